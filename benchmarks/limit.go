package main

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"bazil.org/fuse"
	"golang.org/x/sys/unix"
)

// limit is the least that a filesystem on bazil's connection can do: the same tree as the image's,
// all of it in memory, everything answered in place. What skimfs takes longer than this is its own.
type limit struct {
	tree, pack string
	dir        string
	service    *service
}

func newLimit(s *scope, native string) *limit {
	dir := s.TempDir()
	l := &limit{tree: filepath.Join(dir, "tree"), pack: filepath.Join(dir, "pack"), dir: filepath.Join(dir, "mnt")}
	s.check(os.Mkdir(l.dir, 0o755))
	s.check(packTree(native, l.tree, l.pack))
	return l
}

func (l *limit) name() string          { return "limit" }
func (l *limit) states() []state       { return []state{cached} }
func (l *limit) usage(s *scope) usage  { return usage{cpu: cpuSeconds(s, l.service.pid())} }
func (l *limit) memory(s *scope) int64 { return anonymous(s, l.service.pid()) }

func (l *limit) pid() int { return l.service.pid() }

// enter has the server load its tree, which isn't what mount is to measure.
func (l *limit) enter(s *scope, _ state) {
	l.service = startService(s, self(s.ctx, "child-limit", l.tree, l.pack, l.dir))
	s.Cleanup(func() {
		unmount(l.dir)
		l.service.end()
	})
	l.service.await(s)
}

func (l *limit) mount(s *scope) string {
	l.service.tell(s)
	l.service.await(s)
	return l.dir
}

// limitNode is a file of the limit's tree; a node's number is its place in the list, plus 1.
type limitNode struct {
	Parent   int // place in the list; the root is its own parent
	Name     string
	Mode     uint32
	UID, GID uint32
	Rdev     uint64
	Mtime    int64 // seconds since 1970
	Size     int64
	Offset   int64 // of a regular file's content in the pack
	Target   string
}

// packTree writes the tree below root as a list of nodes, and the content of its files to one pack.
func packTree(root, treePath, packPath string) error {
	pack, err := os.Create(packPath)
	if err != nil {
		return err
	}
	defer pack.Close()
	var nodes []limitNode
	var end int64
	places := map[string]int{}   // by path
	packed := map[uint64]int64{} // offset by inode
	err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		n := limitNode{
			Parent: places[filepath.Dir(path)], Name: filepath.Base(path), Mode: st.Mode, UID: st.Uid, GID: st.Gid,
			Rdev: st.Rdev, Mtime: st.Mtim.Sec, Size: st.Size,
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			if n.Target, err = os.Readlink(path); err != nil {
				return err
			}
		case unix.S_IFREG:
			offset, ok := packed[st.Ino]
			if !ok {
				offset = end
				if err := appendFile(pack, path, st.Size); err != nil {
					return err
				}
				end += st.Size
				packed[st.Ino] = offset
			}
			n.Offset = offset
		}
		places[path] = len(nodes)
		nodes = append(nodes, n)
		return nil
	})
	if err != nil {
		return err
	}
	tree, err := os.Create(treePath)
	if err != nil {
		return err
	}
	if err := gob.NewEncoder(tree).Encode(nodes); err != nil {
		return err
	}
	return errors.Join(tree.Close(), pack.Close())
}

func appendFile(pack *os.File, path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(pack, f)
	if err == nil && n != size {
		err = fmt.Errorf("%s has %d bytes and was said to have %d", path, n, size)
	}
	return err
}

// entryKey finds a name in a directory.
type entryKey struct {
	dir  fuse.NodeID
	name string
}

// limitServer answers from memory.
type limitServer struct {
	nodes    []limitNode
	pack     []byte
	entries  map[entryKey]fuse.NodeID
	listings [][]byte // of directories, ready to send
}

const forever = time.Second << 30

// serveLimit loads a packed tree, says so with a line, mounts it when it is sent a line, answers
// with another, and ends when the mount is taken away.
func serveLimit(args []string) error {
	treePath, packPath, dir := args[0], args[1], args[2]
	server, err := loadLimit(treePath, packPath)
	if err != nil {
		return err
	}
	fmt.Println("loaded")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	conn, err := fuse.Mount(dir, fuse.FSName("limit"), fuse.Subtype("limit"), fuse.ReadOnly(), fuse.AllowOther(),
		fuse.AsyncRead(), fuse.MaxReadahead(128<<10), fuse.CacheSymlinks())
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	var readers sync.WaitGroup
	for range min(max(runtime.NumCPU(), 2), 8) {
		readers.Go(func() { server.serve(conn) })
	}
	readers.Wait()
	return conn.Close()
}

func loadLimit(treePath, packPath string) (*limitServer, error) {
	tree, err := os.Open(treePath)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	var l limitServer
	if err := gob.NewDecoder(tree).Decode(&l.nodes); err != nil {
		return nil, err
	}
	pack, err := os.Open(packPath)
	if err != nil {
		return nil, err
	}
	defer pack.Close()
	info, err := pack.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > 0 {
		if l.pack, err = unix.Mmap(int(pack.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
			return nil, err
		}
	}
	l.entries = make(map[entryKey]fuse.NodeID, len(l.nodes))
	l.listings = make([][]byte, len(l.nodes))
	for i, n := range l.nodes[1:] {
		id := fuse.NodeID(i + 2)
		l.entries[entryKey{fuse.NodeID(n.Parent + 1), n.Name}] = id
		l.listings[n.Parent] = fuse.AppendDirent(l.listings[n.Parent], fuse.Dirent{
			Inode: uint64(id), Type: fuse.DirentType(n.Mode & unix.S_IFMT >> 12), Name: n.Name,
		})
	}
	return &l, nil
}

func (l *limitServer) serve(conn *fuse.Conn) {
	for {
		req, err := conn.ReadRequest()
		switch {
		case err == nil:
			l.answer(req)
		case errors.Is(err, io.EOF):
			return
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.EAGAIN):
		default:
			return
		}
	}
}

func (l *limitServer) answer(req fuse.Request) {
	switch r := req.(type) {
	case *fuse.LookupRequest:
		id, ok := l.entries[entryKey{r.Node, r.Name}]
		if !ok {
			r.Respond(&fuse.LookupResponse{EntryValid: forever}) // number 0: absent, for ever
			return
		}
		r.Respond(&fuse.LookupResponse{Node: id, EntryValid: forever, Attr: l.attr(id)})
	case *fuse.GetattrRequest:
		r.Respond(&fuse.GetattrResponse{Attr: l.attr(r.Node)})
	case *fuse.ReadRequest:
		content := l.listings[r.Node-1]
		if !r.Dir {
			n := &l.nodes[r.Node-1]
			content = l.pack[n.Offset : n.Offset+n.Size]
		}
		from := min(r.Offset, int64(len(content)))
		to := min(from+int64(r.Size), int64(len(content)))
		r.Respond(&fuse.ReadResponse{Data: content[from:to]})
	case *fuse.ReadlinkRequest:
		r.Respond(l.nodes[r.Node-1].Target)
	case *fuse.StatfsRequest:
		r.Respond(&fuse.StatfsResponse{Bsize: 4096, Frsize: 4096, Namelen: 255, Files: uint64(len(l.nodes))})
	case *fuse.ForgetRequest:
		r.Respond()
	case *fuse.BatchForgetRequest:
		r.Respond()
	case *fuse.InterruptRequest:
		r.Respond()
	case *fuse.DestroyRequest:
		r.Respond()
	default:
		// OPEN and OPENDIR among them: after this answer the kernel never asks again.
		req.RespondError(syscall.ENOSYS)
	}
}

func (l *limitServer) attr(id fuse.NodeID) fuse.Attr {
	n := &l.nodes[id-1]
	mtime := time.Unix(n.Mtime, 0)
	return fuse.Attr{
		Valid: forever, Inode: uint64(id), Size: uint64(n.Size), Blocks: uint64(n.Size+511) / 512, Mode: fileMode(n.Mode),
		Atime: mtime, Mtime: mtime, Ctime: mtime, Nlink: 1, Uid: n.UID, Gid: n.GID, Rdev: uint32(n.Rdev), BlockSize: 4096,
	}
}

// fileMode translates st_mode to Go's.
func fileMode(mode uint32) os.FileMode {
	m := os.FileMode(mode & 0o777)
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= os.ModeDir
	case unix.S_IFLNK:
		m |= os.ModeSymlink
	case unix.S_IFIFO:
		m |= os.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= os.ModeSocket
	case unix.S_IFBLK:
		m |= os.ModeDevice
	case unix.S_IFCHR:
		m |= os.ModeDevice | os.ModeCharDevice
	}
	if mode&unix.S_ISUID != 0 {
		m |= os.ModeSetuid
	}
	if mode&unix.S_ISGID != 0 {
		m |= os.ModeSetgid
	}
	return m
}
