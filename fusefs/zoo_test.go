package fusefs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/skimfs/skimfs/fusefs"
	"github.com/skimfs/skimfs/index"
)

// zoo is an image with one of each kind.
type zoo struct {
	*store
	root *index.Entry
	ref  index.ImageRef
	big  []byte // content of /data/big
	thin []byte // content of /data/sparse
}

// longName has as many bytes as a name may have.
var longName = strings.Repeat("n", 255)

const manyNames = 3000

var zooInfo = index.ImageInfo{Bytes: 123456789, Entries: 4321}

func newZoo(t testing.TB) *zoo {
	t.Helper()
	onceZoo.Do(func() { builtZoo = buildZoo(t) })
	if builtZoo == nil {
		t.Fatal("the image could not be built")
	}
	z := *builtZoo
	z.store = z.store.clone()
	return &z
}

// The large images are built once; each test has a store of its own.
var (
	onceZoo, onceSplit sync.Once
	builtZoo           *zoo
	builtSplit         *split
)

func buildZoo(t testing.TB) *zoo {
	t.Helper()
	z := &zoo{store: newStore(), root: newDir(0o755)}
	rnd := rand.NewChaCha8([32]byte{1})
	z.big = make([]byte, 3*index.ChunkSize+index.ChunkSize/2+7)
	rnd.Read(z.big)
	z.thin = make([]byte, 10*index.ChunkSize+5)
	rnd.Read(z.thin[4*index.ChunkSize : 5*index.ChunkSize])
	busybox, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Fatal("package busybox-static is needed: ", err)
	}
	add(z.root, "etc/hello", z.file(t, 0o644, []byte("hello\n")))
	add(z.root, "etc/shadow", z.file(t, 0o600, []byte("secret\n"))).GID = 42
	add(z.root, "etc/empty", z.file(t, 0o644, nil))
	add(z.root, "usr/bin/busybox", z.file(t, 0o755, busybox))
	add(z.root, "usr/bin/setuid", z.file(t, 0o4755, []byte("#!/bin/sh\n")))
	add(z.root, "data/big", z.file(t, 0o644, z.big))
	add(z.root, "data/sparse", z.file(t, 0o644, z.thin))
	add(z.root, "data/hole", z.file(t, 0o644, make([]byte, index.ChunkSize/2)))
	add(z.root, "tmp", newDir(0o1777))
	add(z.root, "var/mail", newDir(0o2775)).GID = 8
	add(z.root, "private/file", z.file(t, 0o644, []byte("private\n")))
	z.root.Children["private"].Mode = index.ModeDir | 0o700
	one := add(z.root, "links/one", z.file(t, 0o640, []byte("linked\n")))
	add(z.root, "other/two", one)
	add(z.root, "links/three", one)
	add(z.root, "sym/absolute", symlink("/etc/hello"))
	add(z.root, "sym/relative", symlink("../etc/hello"))
	add(z.root, "sym/verbatim", symlink("$(ARCH:-x)/./../ \xff"))
	add(z.root, "sym/long", symlink(strings.Repeat("x/", 2000)))
	add(z.root, "names/"+longName, z.file(t, 0o644, []byte("long\n")))
	add(z.root, "names/new\nline", z.file(t, 0o644, []byte("newline\n")))
	add(z.root, "names/\xff\xfe", z.file(t, 0o644, []byte("not UTF-8\n")))
	device := func(mode, major, minor uint32) *index.Entry {
		a := attr(mode | 0o660)
		a.Major, a.Minor = major, minor
		return &index.Entry{Inode: &index.Inode{Attr: a}}
	}
	add(z.root, "dev/console", device(index.ModeChar, 5, 1))
	add(z.root, "dev/disk", device(index.ModeBlock, 259, 70000))
	add(z.root, "dev/fifo", device(index.ModeFIFO, 0, 0))
	add(z.root, "dev/socket", device(index.ModeSocket, 0, 0))
	add(z.root, "old", z.file(t, 0o644, []byte("before 1970\n"))).Sec = -86400
	x := add(z.root, "xattr/file", z.file(t, 0o644, []byte("x\n")))
	x.Xattrs = index.SortXattrs(map[string]string{"user.a": "1", "user.big": strings.Repeat("b", 8000), "user.overlay.opaque": "y", "user.empty": "",
		"security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"})
	z.root.Children["xattr"].Xattrs = index.SortXattrs(map[string]string{"trusted.overlay.opaque": "y", "user.dir": "d"})
	for i := range manyNames {
		add(z.root, fmt.Sprintf("many/file-%05d", i), z.file(t, 0o644, nil))
	}
	z.ref = z.image(t, z.root, zooInfo)
	return z
}

// split is an image with two directories of 12000 files each, one of which is in a nested catalog.
type split struct {
	*store
	ref    index.ImageRef
	nested index.CatalogRef // of the nested catalog
	dir    string           // name of the directory it holds
}

func newSplit(t testing.TB) *split {
	t.Helper()
	onceSplit.Do(func() { builtSplit = buildSplit(t) })
	if builtSplit == nil {
		t.Fatal("the image could not be built")
	}
	s := *builtSplit
	s.store = s.store.clone()
	return &s
}

func buildSplit(t testing.TB) *split {
	t.Helper()
	s := &split{store: newStore()}
	root := newDir(0o755)
	for _, dir := range []string{"a", "b"} {
		for i := range 12000 {
			add(root, fmt.Sprintf("%s/deep/file-%05d", dir, i), s.file(t, 0o644, fmt.Appendf(nil, "%s%d\n", dir, i%10)))
		}
	}
	s.ref = s.image(t, root, index.ImageInfo{})
	parts, err := s.tree(t, s.ref.Catalog).Parts()
	if err != nil || len(parts) != 1 {
		t.Fatalf("the image has %d nested catalogs (%v), want 1", len(parts), err)
	}
	s.nested = parts[0].Ref
	s.dir = "a"
	c, _ := s.newCore(t, fusefs.Config{Tree: s.tree(t, s.ref.Catalog)})
	a := walk(t, c, fusefs.RootID, "a")
	if _, err := c.Readdir(a.Node, 0, make([]byte, 4096)); !fusefs.Later(err) {
		s.dir = "b"
	}
	return s
}

// repository is a name tree with two images below .flat/ab, in slots 10 and 11, and a symlink to each.
type repository struct {
	*store
	names index.CatalogRef
	refs  [2]index.ImageRef
	roots [2]*index.Entry
}

func newRepository(t testing.TB) *repository {
	t.Helper()
	r := &repository{store: newStore()}
	for i := range r.roots {
		r.roots[i] = newDir(0o751)
		r.roots[i].Xattrs = index.SortXattrs(map[string]string{"user.which": fmt.Sprint(i)})
		add(r.roots[i], "bin/sh", r.file(t, 0o755, fmt.Appendf(nil, "shell %d\n", i)))
		add(r.roots[i], "etc", newDir(0o755))
		r.refs[i] = r.image(t, r.roots[i], index.ImageInfo{Bytes: int64(1+i) << 20, Entries: 4})
	}
	r.names = r.publish(t, map[string]string{"app:1": "../.flat/ab/0123", "app:2": "../.flat/ab/4567"})
	return r
}

// publish builds a name tree whose registry.test holds the given symlinks.
func (r *repository) publish(t testing.TB, links map[string]string) index.CatalogRef {
	t.Helper()
	number := func(e *index.Entry, n uint32) *index.Entry {
		e.Number, e.Split = n, e.IsDir()
		return e
	}
	root := number(newDir(0o755), 1)
	add(root, "registry.test", number(newDir(0o755), 2))
	add(root, ".flat", number(newDir(0o755), 3))
	add(root, ".flat/ab", number(newDir(0o755), 4))
	for i, name := range []string{"0123", "4567"} {
		add(root, ".flat/ab/"+name, &index.Entry{Inode: r.roots[i].Inode, Number: uint32(10 + i), Image: &r.refs[i]})
	}
	for name, target := range links {
		d := index.DigestOf([]byte(name + target)).Hex()
		add(root, "registry.test/"+name, number(symlink(target), 1000+uint32(d[0])*256+uint32(d[1])))
	}
	ref, err := index.BuildNames(root, r.put)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// find looks a path up, waiting where it must. The entry's Node is 0 if its last name isn't there.
func find(t testing.TB, c *fusefs.Core, from fusefs.NodeID, path string) fusefs.Entry {
	t.Helper()
	e := fusefs.Entry{Attr: fusefs.Attr{Node: from}}
	for name := range strings.SplitSeq(path, "/") {
		dir := e.Node
		if err := c.Do(context.Background(), func() error { return c.Lookup(dir, []byte(name), &e) }); err != nil {
			t.Fatalf("%s of %s: %v", name, path, err)
		}
	}
	return e
}

// walk is find for a path that is there.
func walk(t testing.TB, c *fusefs.Core, from fusefs.NodeID, path string) fusefs.Entry {
	t.Helper()
	e := find(t, c, from, path)
	if e.Node == 0 {
		t.Fatalf("%s is not there", path)
	}
	return e
}

// dirent is what a listing says of a name.
type dirent struct {
	id    fusefs.NodeID
	next  uint64
	name  string
	dtype uint32
}

// list reads a directory through buffers of the given size, and checks that each cookie goes on where it should.
func list(t testing.TB, c *fusefs.Core, dir fusefs.NodeID, size int) []dirent {
	t.Helper()
	var out []dirent
	buf, off := make([]byte, size), uint64(0)
	for {
		n := 0
		err := c.Do(context.Background(), func() (err error) {
			n, err = c.Readdir(dir, off, buf)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return out
		}
		for b := buf[:n]; len(b) > 0; {
			length := binary.NativeEndian.Uint32(b[16:])
			d := dirent{fusefs.NodeID(binary.NativeEndian.Uint64(b)), binary.NativeEndian.Uint64(b[8:]), string(b[24 : 24+length]), binary.NativeEndian.Uint32(b[20:])}
			padded := (24 + int(length) + 7) &^ 7
			if pad := b[24+length : padded]; len(bytes.Trim(pad, "\x00")) > 0 {
				t.Fatalf("padding of %q is %q", d.name, pad)
			}
			b, off = b[padded:], d.next
			out = append(out, d)
		}
	}
}
