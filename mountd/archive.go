package mountd

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

// ExportBytes is the HTTP header of POST /v1/cache/export that says how many bytes of content follow, more or less.
const ExportBytes = "Skimfs-Bytes"

// postExport answers with an archive of what a source consists of; what this node lacks is fetched. An error after the first byte is in the
// trailer.
func (d *Daemon) postExport(w http.ResponseWriter, r *http.Request) (any, error) {
	var req WorkRequest
	if err := readJSON(r, &req); err != nil {
		return nil, err
	}
	if req.Action != Export {
		return nil, problem(Usage, "action %q is not export", req.Action)
	}
	src, err := req.clean()
	if err != nil {
		return nil, err
	}
	k, rev, err := d.begin(r.Context(), src, req)
	if err != nil {
		return nil, err
	}
	defer d.origins.release(k.g)
	h, err := rev.archiveHeader(k.need)
	if err != nil {
		return nil, err
	}
	w.Header().Set("Trailer", ErrorTrailer)
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set(ExportBytes, strconv.FormatInt(h.Bytes, 10))
	if err := k.export(r.Context(), w, h); err != nil {
		w.Header().Set(ErrorTrailer, trailerText(err))
	}
	return nil, nil
}

// archiveHeader names what an archive of a part of the revision holds, with the notes that it was accepted by.
func (r *revision) archiveHeader(need *needed) (h cachedb.ArchiveHeader, err error) {
	a := cmp.Or(r.record, r.repository.accepted())
	if r.pin != "" {
		a = cmp.Or(r.record, r.pinnedRoot(r.pin))
	}
	if a == nil || a.Root != r.Root {
		return h, problem(Conflict, "%s has a new revision since a moment ago: try again", r.where())
	}
	whitelist, err := r.db.State(r.state("whitelist"))
	if err != nil {
		return h, fmt.Errorf("whitelist of %s: %w", r.name, err)
	}
	return cachedb.ArchiveHeader{Repository: r.name, Revision: r.Revision, Servers: withoutCredentials(r.servers), Objects: int64(len(need.size)),
		Bytes: need.bytes, Manifest: a.Note, Whitelist: whitelist}, nil
}

// export writes all that is needed to w, in the order of digests, so that equal content makes equal archives.
func (k *work) export(ctx context.Context, w io.Writer, h cachedb.ArchiveHeader) error {
	a, err := cachedb.NewArchiveWriter(w, h)
	if err != nil {
		return err
	}
	order := make([]index.Digest, 0, len(k.need.size))
	for d := range k.need.size {
		order = append(order, d)
	}
	slices.SortFunc(order, func(a, b index.Digest) int {
		x, y := a.Sum(), b.Sum()
		return bytes.Compare(x[:], y[:])
	})
	// Fetched side by side, written one after the other.
	group, ctx := errgroup.WithContext(ctx)
	turns := make(chan chan []byte, workers)
	group.Go(func() error {
		defer close(turns)
		for _, d := range order {
			size := k.need.size[d]
			if err := k.pace(ctx, size); err != nil {
				return err
			}
			turn := make(chan []byte, 1)
			select {
			case turns <- turn:
			case <-ctx.Done():
				return ctx.Err()
			}
			group.Go(func() error {
				plain, _, err := k.g.object(ctx, d, size, k.need.class[d], func() {})
				if err != nil {
					return fmt.Errorf("fetching %v: %w", d, err)
				}
				turn <- plain
				return nil
			})
		}
		return nil
	})
	group.Go(func() error {
		for _, d := range order {
			var plain []byte
			select {
			case turn, ok := <-turns:
				if !ok {
					return nil // the other one tells why
				}
				select {
				case plain = <-turn:
				case <-ctx.Done():
					return ctx.Err()
				}
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := a.Object(d, plain); err != nil {
				return err
			}
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return err
	}
	return a.Close()
}

// ImportReply tells what an import brought.
type ImportReply struct {
	Repository string `json:"repository"`
	Revision   uint64 `json:"revision"`
	Objects    int64  `json:"objects"`
	Bytes      int64  `json:"bytes"`
	New        int64  `json:"new_objects"` // that this node did not have
}

// postImport reads an archive from the request's body into the cache. Notes are checked as a server's are, and objects against their digests;
// the revision counts as accepted once all of the archive is here.
func (d *Daemon) postImport(_ http.ResponseWriter, r *http.Request) (any, error) {
	var o Options
	if text := r.URL.Query().Get("options"); text != "" {
		if err := decodeOptions(text, &o); err != nil {
			return nil, err
		}
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	var reply ImportReply
	var rev *revision
	begin := func(h cachedb.ArchiveHeader) (err error) {
		reply = ImportReply{Repository: h.Repository, Objects: h.Objects, Bytes: h.Bytes}
		if limit := d.db.Limit() / 10 * 9; h.Bytes > limit {
			return problem(Conflict, "the export has %d bytes, more than nine tenths of the cache's limit of %d", h.Bytes, d.db.Limit())
		}
		rev, err = d.acceptArchive(r.Context(), h, o)
		return err
	}
	object := func(digest index.Digest, plain []byte) error {
		if err := r.Context().Err(); err != nil {
			return err
		}
		if d.db.Has(digest) {
			return nil
		}
		reply.New++
		stored, err := d.db.Put(digest, cachedb.ClassFile, plain)
		if err == nil && !stored {
			err = problem(CacheFailed, "the cache has no room for object %v", digest)
		}
		return err
	}
	err := cachedb.ReadArchive(r.Body, begin, object)
	switch {
	case errors.Is(err, cachedb.ErrArchive):
		return nil, &Error{Damaged, err}
	case err != nil:
		return nil, err
	case !d.db.Has(rev.Root.Digest):
		return nil, problem(Damaged, "%w: the root catalog of %s, revision %d, is missing", cachedb.ErrArchive, rev.name, rev.Revision)
	}
	if rev.view, err = rev.viewOf(r.Context(), rev.Root); err != nil {
		return nil, err
	}
	if err := d.db.Sync(r.Context()); err != nil {
		return nil, err
	}
	reply.Revision = rev.Revision
	return reply, rev.rememberRoot(rev.record)
}

// acceptArchive checks an archive's notes as those of a server.
func (d *Daemon) acceptArchive(ctx context.Context, h cachedb.ArchiveHeader, o Options) (*revision, error) {
	key, err := findKey(d.keyDirs(), h.Repository, o.PublicKey)
	if err != nil {
		return nil, err
	}
	// Objects come from the archive alone.
	g := &origin{servers: h.Servers, db: d.db, log: d.log}
	r := &repository{origin: g, name: h.Repository, key: key, given: map[string][]byte{"manifest": h.Manifest, "whitelist": h.Whitelist}}
	last := r.accepted()
	rev, err := r.verifyWith(ctx, h.Manifest, last, false)
	if err != nil {
		return nil, fmt.Errorf("the export's notes: %w", err)
	}
	if rev.record == nil {
		rev.record = last // its whitelist has expired, and it was accepted before
	}
	return rev, nil
}

// Export asks for an archive of a source's content and writes it to w. total is told how many bytes of content to expect.
func (c *Client) Export(ctx context.Context, req WorkRequest, w io.Writer, total func(int64)) error {
	req.Action = Export
	resp, err := c.send(ctx, http.MethodPost, "/v1/cache/export", req)
	if err != nil {
		return err
	}
	if n, err := strconv.ParseInt(resp.Header.Get(ExportBytes), 10, 64); err == nil {
		total(n)
	}
	return copyAnswer(w, resp)
}

// Import sends an archive to the daemon.
func (c *Client) Import(ctx context.Context, o Options, archive io.Reader) (*ImportReply, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://skimfs/v1/cache/import?"+url.Values{"options": {string(text)}}.Encode(), archive)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, &Error{Interrupted, ctx.Err()}
		}
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, replyError(resp)
	}
	defer resp.Body.Close()
	reply := &ImportReply{}
	if err := json.NewDecoder(resp.Body).Decode(reply); err != nil {
		return nil, &Error{Internal, fmt.Errorf("answer of the daemon: %w", err)}
	}
	return reply, nil
}
