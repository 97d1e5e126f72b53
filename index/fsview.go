package index

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"time"
)

// ReadChunk reads len(p) bytes of the chunk c, which is no hole, from off bytes behind its beginning on. It may block.
type ReadChunk func(ctx context.Context, c Chunk, p []byte, off int64) error

// NewFS returns the directory root, and what is below it, as an fs.FS that also has ReadDir, Stat, Lstat and ReadLink. Names
// that are not UTF-8 are listed but can't be opened, as io/fs has it. Everything that it opens uses ctx, for there
// is no other way in io/fs.
func NewFS(ctx context.Context, root File, read ReadChunk) fs.FS {
	return &imageFS{ctx, root, read}
}

type imageFS struct {
	ctx  context.Context
	root File
	read ReadChunk
}

var (
	_ fs.ReadDirFS  = (*imageFS)(nil)
	_ fs.StatFS     = (*imageFS)(nil)
	_ fs.ReadLinkFS = (*imageFS)(nil)
)

// find resolves name, as io/fs writes it.
func (i *imageFS) find(op, name string, follow bool) (File, *fileInfo, error) {
	if !fs.ValidPath(name) {
		return File{}, nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	f, err := i.root.Resolve(i.ctx, name, follow)
	var info *fileInfo
	if err == nil {
		info, err = f.info(path.Base(name))
	}
	if err != nil {
		var inner *fs.PathError
		if errors.As(err, &inner) {
			err = inner.Err
		}
		return File{}, nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return f, info, nil
}

func (i *imageFS) Open(name string) (fs.File, error) {
	f, info, err := i.find("open", name, true)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return &openDir{fs: i, file: f, info: info, path: name}, nil
	}
	return &openFile{fs: i, file: f, info: info, path: name}, nil
}

func (i *imageFS) Stat(name string) (fs.FileInfo, error) { return i.stat("stat", name, true) }

func (i *imageFS) Lstat(name string) (fs.FileInfo, error) { return i.stat("lstat", name, false) }

func (i *imageFS) stat(op, name string, follow bool) (fs.FileInfo, error) {
	_, info, err := i.find(op, name, follow)
	if err != nil {
		return nil, err
	}
	return info, nil
}

func (i *imageFS) ReadLink(name string) (string, error) {
	f, info, err := i.find("readlink", name, false)
	if err != nil {
		return "", err
	}
	if !info.node.IsSymlink() {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	cat, n, err := f.Node()
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	target, err := cat.Readlink(&n)
	return string(target), err
}

func (i *imageFS) ReadDir(name string) ([]fs.DirEntry, error) {
	f, info, err := i.find("readdir", name, true)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errors.New("not a directory")}
	}
	return i.list(f, name)
}

func (i *imageFS) list(f File, name string) ([]fs.DirEntry, error) {
	var out []fs.DirEntry
	err := f.ReadDir(i.ctx, func(c Child) error {
		_, n, err := c.Pos.Node()
		if err == nil {
			out = append(out, fs.FileInfoToDirEntry(&fileInfo{string(c.Name), n}))
		}
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	return out, nil
}

// fileInfo is a node under a name.
type fileInfo struct {
	name string
	node Node
}

func (f File) info(name string) (*fileInfo, error) {
	_, n, err := f.Node()
	return &fileInfo{name, n}, err
}

func (i *fileInfo) Name() string       { return i.name }
func (i *fileInfo) Size() int64        { return i.node.Size }
func (i *fileInfo) Mode() fs.FileMode  { return i.node.FileMode() }
func (i *fileInfo) ModTime() time.Time { return time.Unix(i.node.Sec, int64(i.node.Nsec)) }
func (i *fileInfo) IsDir() bool        { return i.node.IsDir() }

// Sys returns the node's Attr.
func (i *fileInfo) Sys() any { return i.node.Attr }

// FileMode returns Mode as package fs has it.
func (a Attr) FileMode() fs.FileMode {
	m := fs.FileMode(a.Mode & 0o777)
	for bit, mode := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if a.Mode&bit != 0 {
			m |= mode
		}
	}
	switch a.Type() {
	case ModeDir:
		m |= fs.ModeDir
	case ModeSymlink:
		m |= fs.ModeSymlink
	case ModeChar:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case ModeBlock:
		m |= fs.ModeDevice
	case ModeFIFO:
		m |= fs.ModeNamedPipe
	case ModeSocket:
		m |= fs.ModeSocket
	}
	return m
}

// openDir is an open directory.
type openDir struct {
	fs   *imageFS
	file File
	info *fileInfo
	path string
	rest []fs.DirEntry // what is still to be listed, once read
	read bool
}

func (d *openDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *openDir) Close() error               { return nil }

func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.path, Err: errors.New("is a directory")}
}

func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if !d.read {
		list, err := d.fs.list(d.file, d.path)
		if err != nil {
			return nil, err
		}
		d.rest, d.read = list, true
	}
	if n <= 0 || n > len(d.rest) {
		if n > 0 && len(d.rest) == 0 {
			return nil, io.EOF
		}
		n = len(d.rest)
	}
	out := d.rest[:n:n]
	d.rest = d.rest[n:]
	return out, nil
}

// openFile is an open file that is no directory. It isn't safe for concurrent use, but for ReadAt.
type openFile struct {
	fs   *imageFS
	file File
	info *fileInfo
	path string
	off  int64
}

var _ interface {
	io.ReaderAt
	io.Seeker
} = (*openFile)(nil)

func (f *openFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *openFile) Close() error               { return nil }

func (f *openFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.off)
	f.off += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (f *openFile) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += f.off
	case io.SeekEnd:
		off += f.info.Size()
	case io.SeekStart:
	default:
		off = -1
	}
	if off < 0 {
		return 0, &fs.PathError{Op: "seek", Path: f.path, Err: fs.ErrInvalid}
	}
	f.off = off
	return off, nil
}

func (f *openFile) ReadAt(p []byte, off int64) (int, error) {
	bad := func(err error) error { return &fs.PathError{Op: "read", Path: f.path, Err: err} }
	if !f.info.node.IsRegular() || off < 0 {
		return 0, bad(fs.ErrInvalid)
	}
	cat, node, err := f.file.Node()
	if err != nil {
		return 0, bad(err)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= node.Size {
			return done, io.EOF
		}
		c, err := cat.Chunk(&node, at)
		if err != nil {
			return done, bad(err)
		}
		part := p[done:]
		part = part[:min(int64(len(part)), c.Offset+c.Size-at)]
		if c.IsHole() {
			clear(part)
		} else if err := f.fs.read(f.fs.ctx, c, part, at-c.Offset); err != nil {
			return done, bad(fmt.Errorf("chunk %v: %w", c.Digest, err))
		}
		done += len(part)
	}
	return done, nil
}
