package mountd

import (
	"context"
	"fmt"
	"net/http"
	"unicode/utf8"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

// FileInfo tells of a file in a repository.
type FileInfo struct {
	Name    string `json:"name"`          // invalid UTF-8 replaced, then Raw has the bytes
	Raw     []byte `json:"raw,omitempty"` // base64 in JSON
	Mode    uint32 `json:"mode"`          // st_mode
	Inode   uint64 `json:"inode"`         // in a mount of its image, or of the repository for what lies in no image
	Nlink   uint32 `json:"nlink"`
	UID     uint32 `json:"uid"`
	GID     uint32 `json:"gid"`
	Size    int64  `json:"size"`
	Mtime   int64  `json:"mtime"` // seconds since 1970
	MtimeNs uint32 `json:"mtime_ns"`
	Major   uint32 `json:"major,omitempty"` // of a device
	Minor   uint32 `json:"minor,omitempty"`
	Target  string `json:"target,omitempty"` // of a symlink
	Image   bool   `json:"image,omitempty"`  // the root of an image

	Digest string `json:"digest,omitempty"` // of a file's content, in GET /v1/stat
	Chunks int    `json:"chunks,omitempty"` // objects it consists of, in GET /v1/stat
	Cached int    `json:"cached,omitempty"` // how many of them this node has
}

// ListReply is the answer to GET /v1/ls.
type ListReply struct {
	Repository string     `json:"repository"`
	Revision   uint64     `json:"revision"`
	Offline    bool       `json:"offline"`
	Entries    []FileInfo `json:"entries"`
}

// lookup finds the file a request names: path below source.
func (d *Daemon) lookup(r *http.Request, follow bool, use func(g *origin, rev *revision, f index.File, o Options) error) error {
	q := r.URL.Query()
	src, err := ParseSource(q.Get("source"))
	if err != nil {
		return err
	}
	var o Options
	if text := q.Get("options"); text != "" {
		if err := decodeOptions(text, &o); err != nil {
			return err
		}
	}
	if err := d.checkMember(r.Context(), src, o); err != nil {
		return err
	}
	if o, err = d.effective(src, o); err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	src.Path = cleanPath(src.Path + "/" + q.Get("path"))
	g, err := d.origins.take(src, o, d.db, d.cfg.Version, d.log)
	if err != nil {
		return err
	}
	defer d.origins.release(g)
	ctx, cancel := context.WithTimeout(r.Context(), trustTime+o.deadline())
	defer cancel()
	rev, f, err := d.find(ctx, g, src, o, follow)
	if err != nil {
		return err
	}
	return use(g, rev, f, o)
}

func (d *Daemon) getList(_ http.ResponseWriter, r *http.Request) (reply any, err error) {
	err = d.lookup(r, true, func(_ *origin, rev *revision, f index.File, _ Options) error {
		list := ListReply{Repository: rev.name, Revision: rev.Revision, Offline: rev.offline, Entries: []FileInfo{}}
		_, n, err := f.Node()
		if err != nil {
			return err
		}
		if !n.IsDir() {
			info, err := fileInfo(baseName(r.URL.Query().Get("path")), f)
			list.Entries = append(list.Entries, info)
			reply = list
			return err
		}
		var names []index.Child
		if err := f.ReadDir(r.Context(), func(c index.Child) error {
			names = append(names, c)
			return nil
		}); err != nil {
			return err
		}
		for _, c := range names {
			info, err := childInfo(f, c)
			if err != nil {
				return err
			}
			list.Entries = append(list.Entries, info)
		}
		reply = list
		return nil
	})
	return reply, err
}

func (d *Daemon) getStat(_ http.ResponseWriter, r *http.Request) (reply any, err error) {
	err = d.lookup(r, r.URL.Query().Get("follow") == "true", func(g *origin, _ *revision, f index.File, _ Options) error {
		info, err := fileInfo(baseName(r.URL.Query().Get("path")), f)
		if err != nil {
			return err
		}
		if info.Mode&index.ModeType == index.ModeRegular {
			if err := contentInfo(g.db, f, &info); err != nil {
				return err
			}
		}
		reply = info
		return nil
	})
	return reply, err
}

// contentInfo adds what stat tells of a file's content.
func contentInfo(db *cachedb.DB, f index.File, info *FileInfo) error {
	chunks, err := f.Chunks()
	if err != nil {
		return err
	}
	for _, c := range chunks {
		if c.IsHole() {
			continue
		}
		info.Chunks++
		if db.Has(c.Digest) {
			info.Cached++
		}
		if len(chunks) == 1 {
			info.Digest = c.Digest.String()
		}
	}
	cat, _, err := f.Node()
	if err != nil {
		return err
	}
	if i, ok := f.Pos.Index(); ok {
		if whole, ok := cat.FileDigest(i); ok {
			info.Digest = whole.String()
		}
	}
	return nil
}

// ErrorTrailer is the HTTP trailer of GET /v1/cat that says, as JSON, why content ended early.
const ErrorTrailer = "Skimfs-Error"

// contentAhead is how many chunks are fetched ahead of the one being sent.
const contentAhead = 8

func (d *Daemon) getContent(w http.ResponseWriter, r *http.Request) (any, error) {
	return nil, d.lookup(r, true, func(g *origin, _ *revision, f index.File, o Options) error {
		_, n, err := f.Node()
		if err != nil {
			return err
		}
		if !n.IsRegular() {
			return problem(NotFound, "%q is not a regular file", r.URL.Query().Get("path"))
		}
		list, err := f.Chunks()
		if err != nil {
			return err
		}
		w.Header().Set("Trailer", ErrorTrailer)
		w.Header().Set("Content-Type", "application/octet-stream")
		ctx, cancel := context.WithCancel(r.Context())
		s := newChunks(g, o, d.ahead, ctx)
		defer s.fetching.Wait()
		defer cancel()
		sent := false
		for i, c := range list {
			for _, next := range list[i+1 : min(len(list), i+1+contentAhead)] {
				if !next.IsHole() {
					s.Prefetch(next)
				}
			}
			if err := sendChunk(r.Context(), w, s, c); err != nil {
				if !sent {
					w.Header().Del("Trailer")
					return err
				}
				w.Header().Set(ErrorTrailer, trailerText(err))
				return nil
			}
			sent = true
		}
		if !sent {
			w.WriteHeader(http.StatusOK)
		}
		return nil
	})
}

// zeros is what holes are sent from.
var zeros [64 << 10]byte

func sendChunk(ctx context.Context, w http.ResponseWriter, s *chunks, c index.Chunk) error {
	if c.IsHole() {
		for left := c.Size; left > 0; {
			n, err := w.Write(zeros[:min(left, int64(len(zeros)))])
			if err != nil {
				return err
			}
			left -= int64(n)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.deadline)
	defer cancel()
	plain, err := s.whole(ctx, c)
	if err != nil {
		return fmt.Errorf("reading chunk %v: %w", c.Digest, err)
	}
	_, err = w.Write(plain)
	return err
}

// fileInfo tells of f. Of the root of an image it tells what the image says.
func fileInfo(name []byte, f index.File) (FileInfo, error) {
	cat, n, err := f.Node()
	if err != nil {
		return FileInfo{}, err
	}
	info := newInfo(name, n.Attr)
	info.Inode = uint64(f.Num)
	info.Image = f.Slot != 0 && f.Num == 1
	return info, linkTarget(&info, cat, &n)
}

// childInfo tells of an entry of a directory without loading what hangs there.
func childInfo(dir index.File, c index.Child) (FileInfo, error) {
	cat, n, err := c.Pos.Node()
	if err != nil {
		return FileInfo{}, err
	}
	info := newInfo(c.Name, n.Attr)
	info.Inode = uint64(c.Number)
	if info.Image = c.Image; c.Image {
		info.Inode = 1
	}
	return info, linkTarget(&info, cat, &n)
}

func linkTarget(info *FileInfo, cat *index.Catalog, n *index.Node) error {
	if !n.IsSymlink() {
		return nil
	}
	target, err := cat.Readlink(n)
	info.Target = string(target)
	return err
}

func newInfo(name []byte, a index.Attr) FileInfo {
	info := FileInfo{
		Name: string(name), Mode: a.Mode, Nlink: a.Nlink, UID: a.UID, GID: a.GID, Size: a.Size, Mtime: a.Sec, MtimeNs: a.Nsec,
		Major: a.Major, Minor: a.Minor,
	}
	if !utf8.Valid(name) {
		info.Raw = name
	}
	return info
}

func baseName(path string) []byte {
	path = cleanPath(path)
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return []byte(path[i+1:])
		}
	}
	if path == "" {
		path = "."
	}
	return []byte(path)
}
