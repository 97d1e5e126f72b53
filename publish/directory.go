package publish

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/index"
)

// openDirectory takes a directory for an image of one layer.
func openDirectory(root string) (*image, error) {
	st, err := os.Stat(root)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("%s: %w", root, unix.ENOTDIR)
	}
	p := HostPlatform()
	file := v1.ConfigFile{OS: p.OS, Architecture: p.Arch, Created: v1.Time{Time: st.ModTime().UTC().Truncate(time.Second)}, RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}}}
	config, err := json.Marshal(file)
	if err != nil {
		return nil, err
	}
	i, err := newImage(index.Digest{}, config)
	if err != nil {
		return nil, err
	}
	i.tree = func(ctx context.Context, c *converter) (*layer, error) { return c.readDirectory(ctx, root) }
	return i, nil
}

// readDirectory turns what lies below root into a layer. Sockets, devices, holes, hard links and xattrs come along; mount points are
// crossed.
func (c *converter) readDirectory(ctx context.Context, root string) (*layer, error) {
	b := c.newLayer(ctx)
	defer b.wait()
	links := map[[2]uint64]string{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if name == "." {
			name = ""
		}
		return b.addPath(path, name, links)
	})
	if err != nil {
		return nil, err
	}
	return b.finish()
}

// addPath adds what is at path under the given name, "" for the root. links holds the first names of files with several.
func (b *layerBuilder) addPath(path, name string, links map[[2]uint64]string) error {
	follow := name == "" // the root may be given as a symlink
	var st unix.Stat_t
	stat := unix.Lstat
	if follow {
		stat = unix.Stat
	}
	if err := stat(path, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	o := op{Name: name, Attr: index.Attr{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}}
	id := [2]uint64{st.Dev, st.Ino}
	if first, ok := links[id]; ok {
		return b.add(op{Name: name, Link: first, Hard: true})
	}
	if st.Nlink > 1 && !o.Attr.IsDir() {
		links[id] = name
	}
	var err error
	if o.Xattrs, err = readXattrs(path, follow); err != nil {
		return err
	}
	switch o.Attr.Type() {
	case index.ModeSymlink:
		if o.Link, err = os.Readlink(path); err != nil {
			return err
		}
	case index.ModeChar, index.ModeBlock:
		o.Attr.Major, o.Attr.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case index.ModeRegular:
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := b.addFile(o, f, st.Size); err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		b.c.progress.BlobBytes.Add(st.Size)
		return nil
	}
	return b.add(o)
}

func readXattrs(path string, follow bool) ([]index.Xattr, error) {
	list, get := unix.Llistxattr, unix.Lgetxattr
	if follow {
		list, get = unix.Listxattr, unix.Getxattr
	}
	buf := make([]byte, 64<<10)
	n, err := list(path, buf)
	if n == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "listxattr", Path: path, Err: err}
	}
	out := map[string]string{}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if ignoredXattrs[name] {
			continue
		}
		n, err := get(path, name, value)
		if err != nil {
			return nil, &fs.PathError{Op: "getxattr", Path: path, Err: err}
		}
		out[name] = string(value[:n])
	}
	return index.SortXattrs(out), nil
}

// identity returns a digest of all that the layer holds: what a directory has in place of an image manifest.
func (l *layer) identity() index.Digest {
	h := sha256.New()
	fmt.Fprintf(h, "skimfs directory v1\n")
	for _, o := range l.Ops {
		fmt.Fprintf(h, "%q %q %t %+v\n", o.Name, o.Link, o.Hard, o.Attr)
		for _, x := range o.Xattrs {
			fmt.Fprintf(h, "xattr %q %q\n", x.Name, x.Value)
		}
		for _, c := range o.Chunks {
			if c < 0 {
				fmt.Fprintln(h, "hole")
			} else {
				fmt.Fprintln(h, l.Objects[c].digest())
			}
		}
	}
	return index.SHA256Digest([sha256.Size]byte(h.Sum(nil)))
}
