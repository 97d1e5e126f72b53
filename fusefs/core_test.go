package fusefs_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/fusefs"
	"github.com/skimfs/skimfs/index"
)

func TestLookupTellsWhatTheCatalogSays(t *testing.T) {
	z := newZoo(t)
	c, _ := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog)})
	for _, test := range []struct {
		claim, path string
		mode        uint32
		nlink       uint32
		size        int64
	}{
		{"a file", "etc/hello", index.ModeRegular | 0o644, 1, 6},
		{"an empty file", "etc/empty", index.ModeRegular | 0o644, 1, 0},
		{"setuid", "usr/bin/setuid", index.ModeRegular | 0o4755, 1, 10},
		{"sticky", "tmp", index.ModeDir | 0o1777, 2, 0},
		{"setgid", "var/mail", index.ModeDir | 0o2775, 2, 0},
		{"a hard link", "links/one", index.ModeRegular | 0o640, 3, 7},
		{"a sparse file", "data/sparse", index.ModeRegular | 0o644, 1, int64(len(z.thin))},
		{"a symlink", "sym/absolute", index.ModeSymlink | 0o777, 1, 10},
		{"a socket", "dev/socket", index.ModeSocket | 0o660, 1, 0},
		{"a name of 255 bytes", "names/" + longName, index.ModeRegular | 0o644, 1, 5},
		{"a directory with a subdirectory", "usr", index.ModeDir | 0o755, 3, 0},
	} {
		t.Run(test.claim, func(t *testing.T) {
			e := walk(t, c, fusefs.RootID, test.path)
			if e.Mode != test.mode || e.Nlink != test.nlink || e.Size != test.size || e.Sec != mtimeSec || e.Nsec != mtimeNsec {
				t.Errorf("mode %#o nlink %d size %d mtime %d.%d, want %#o %d %d %d.%d", e.Mode, e.Nlink, e.Size, e.Sec, e.Nsec,
					test.mode, test.nlink, test.size, mtimeSec, mtimeNsec)
			}
			if e.EntryValid != fusefs.Forever || e.Valid != fusefs.Forever {
				t.Errorf("valid for %v and %v, want for ever", e.EntryValid, e.Valid)
			}
			var a fusefs.Attr
			if err := c.Getattr(e.Node, &a); err != nil || a != e.Attr {
				t.Errorf("Getattr says %+v (%v), Lookup %+v", a, err, e.Attr)
			}
			if e.Node > 1<<32 {
				t.Errorf("inode %d has more than 32 bits", e.Node)
			}
		})
	}
	if one, two := walk(t, c, fusefs.RootID, "links/one"), walk(t, c, fusefs.RootID, "other/two"); one.Node != two.Node {
		t.Errorf("hard links have inodes %v and %v", one.Node, two.Node)
	}
	if e := find(t, c, fusefs.RootID, "etc/nope"); e.Node != 0 || e.EntryValid != fusefs.Forever {
		t.Errorf("an absent name has node %v, valid for %v, want 0, for ever", e.Node, e.EntryValid)
	}
	if e := walk(t, c, fusefs.RootID, "dev/disk"); e.Major != 259 || e.Minor != 70000 {
		t.Errorf("device %d:%d, want 259:70000", e.Major, e.Minor)
	}
}

func TestHotPathsDoNotAllocate(t *testing.T) {
	z := newZoo(t)
	c, _ := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog)})
	dir := walk(t, c, fusefs.RootID, "many").Node
	file := walk(t, c, fusefs.RootID, "data/big").Node
	link := walk(t, c, fusefs.RootID, "sym/long").Node
	name, absent := []byte("file-01234"), []byte("file-x")
	var e fusefs.Entry
	var a fusefs.Attr
	buf := make([]byte, 4096)
	for _, test := range []struct {
		claim string
		most  float64
		f     func() error
	}{
		{"lookup", 0, func() error { return c.Lookup(dir, name, &e) }},
		{"lookup of an absent name", 0, func() error { return c.Lookup(dir, absent, &e) }},
		{"getattr", 0, func() error { return c.Getattr(file, &a) }},
		{"readlink", 0, func() error { _, err := c.Readlink(link); return err }},
		{"read", 0, func() error { _, err := c.Read(file, 5000, buf); return err }},
		{"readdir of a buffer", 4, func() error { _, err := c.Readdir(dir, 100, buf); return err }},
		{"statfs", 0, func() error { _, err := c.Statfs(file); return err }},
	} {
		t.Run(test.claim, func(t *testing.T) {
			got := testing.AllocsPerRun(200, func() {
				if err := test.f(); err != nil {
					t.Fatal(err)
				}
			})
			if got > test.most {
				t.Errorf("%v allocations, want at most %v", got, test.most)
			}
		})
	}
}

func TestListingAgreesWithLookup(t *testing.T) {
	z := newZoo(t)
	c, _ := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog)})
	for _, path := range []string{"etc", "names", "dev", "many", "tmp"} {
		dir := walk(t, c, fusefs.RootID, path).Node
		all := list(t, c, dir, 1<<20)
		if len(all) < 2 || all[0].name != "." || all[0].id != dir || all[1].name != ".." || all[1].id != fusefs.RootID {
			t.Errorf("%s begins with %+v", path, all[:min(2, len(all))])
		}
		for _, size := range []int{280, 512, 4096} {
			if got := list(t, c, dir, size); !slices.Equal(got, all) {
				t.Errorf("%s through buffers of %d bytes has %d entries, want %d", path, size, len(got), len(all))
			}
		}
		for _, d := range all[2:] {
			if e := walk(t, c, dir, d.name); e.Node != d.id || e.DType() != uint8(d.dtype) {
				t.Errorf("%s/%s: listed as %v of type %d, looked up as %v of type %d", path, d.name, d.id, d.dtype, e.Node, e.DType())
			}
		}
		if path == "many" && len(all) != manyNames+2 {
			t.Errorf("%s has %d entries, want %d", path, len(all), manyNames+2)
		}
	}
	if _, err := c.Readdir(walk(t, c, fusefs.RootID, "etc/hello").Node, 0, make([]byte, 4096)); err == nil {
		t.Error("a file can be listed")
	}
}

func TestReadAtEdges(t *testing.T) {
	z := newZoo(t)
	c, _ := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog)})
	const chunk = index.ChunkSize
	for path, content := range map[string][]byte{"data/big": z.big, "data/sparse": z.thin, "data/hole": make([]byte, chunk/2), "etc/empty": nil} {
		id := walk(t, c, fusefs.RootID, path).Node
		size := int64(len(content))
		for _, at := range []struct{ off, n int64 }{{0, 1}, {0, 4096}, {chunk - 1, 2}, {chunk, 1}, {4*chunk - 5, 10}, {4*chunk - 5, chunk + 10},
			{0, size + 100}, {size - 1, 10}, {size, 10}, {size + chunk, 10}} {
			if at.off < 0 {
				continue
			}
			want := content[min(at.off, size):min(at.off+at.n, size)]
			p := bytes.Repeat([]byte{0xaa}, int(at.n))
			for name, read := range map[string]func() (int, error){
				"Read":     func() (int, error) { return c.Read(id, at.off, p) },
				"ReadWait": func() (int, error) { return c.ReadWait(context.Background(), id, at.off, p) },
			} {
				if n, err := read(); err != nil || !bytes.Equal(p[:n], want) {
					t.Errorf("%s of %s at %d+%d: %d bytes, %v, want %d bytes", name, path, at.off, at.n, n, err, len(want))
				}
			}
		}
	}
	if _, err := c.Read(walk(t, c, fusefs.RootID, "etc").Node, 0, make([]byte, 10)); err == nil {
		t.Error("a directory can be read")
	}
	z.uncached.Store(true)
	if n, err := c.Read(walk(t, c, fusefs.RootID, "data/big").Node, 0, make([]byte, 10)); !fusefs.Later(err) {
		t.Errorf("Read of what is elsewhere: %d, %v, want an error that says later", n, err)
	}
	if n, err := c.Read(walk(t, c, fusefs.RootID, "data/hole").Node, 0, make([]byte, 10)); n != 10 || err != nil {
		t.Errorf("Read of a hole: %d, %v, want 10 bytes without a source", n, err)
	}
}

func TestSymlinksAreVerbatim(t *testing.T) {
	z := newZoo(t)
	c, _ := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog)})
	for path, want := range map[string]string{"sym/absolute": "/etc/hello", "sym/verbatim": "$(ARCH:-x)/./../ \xff", "sym/long": strings.Repeat("x/", 2000)} {
		if got, err := c.Readlink(walk(t, c, fusefs.RootID, path).Node); err != nil || string(got) != want {
			t.Errorf("%s leads to %q (%v), want %q", path, got, err, want)
		}
	}
	if _, err := c.Readlink(walk(t, c, fusefs.RootID, "etc").Node); err == nil {
		t.Error("a directory has a target")
	}
}

func TestXattrs(t *testing.T) {
	z := newZoo(t)
	magic := func(name string) ([]byte, bool) { return []byte("12"), name == "user.revision" }
	c, _ := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog), Magic: magic})
	file, dir := walk(t, c, fusefs.RootID, "xattr/file").Node, walk(t, c, fusefs.RootID, "xattr").Node
	for _, test := range []struct {
		claim string
		id    fusefs.NodeID
		name  string
		want  string // "-" means none
	}{
		{"a value", file, "user.a", "1"},
		{"an empty value", file, "user.empty", ""},
		{"a long value", file, "user.big", strings.Repeat("b", 8000)},
		{"an absent name", file, "user.b", "-"},
		{"overlay's own is hidden on a file", file, "user.overlay.opaque", "-"},
		{"overlay's own is hidden on a directory", dir, "trusted.overlay.opaque", "-"},
		{"a directory", dir, "user.dir", "d"},
		{"magic on the mounted directory", fusefs.RootID, "user.revision", "12"},
		{"no magic elsewhere", dir, "user.revision", "-"},
	} {
		t.Run(test.claim, func(t *testing.T) {
			got, err := c.Getxattr(test.id, test.name)
			if test.want == "-" {
				if err == nil {
					t.Errorf("got %q, want an error", got)
				}
			} else if err != nil || string(got) != test.want {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
	for id, want := range map[fusefs.NodeID]string{file: "security.capability\x00user.a\x00user.big\x00user.empty\x00", dir: "user.dir\x00", fusefs.RootID: ""} {
		if got, err := c.Listxattr(id, nil); err != nil || string(got) != want {
			t.Errorf("list of %v: %q, %v, want %q", id, got, err, want)
		}
	}
}

func TestOwnerIsShownEverywhere(t *testing.T) {
	z := newZoo(t)
	c, _ := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog), Owner: fusefs.Owner{UID: id(1001), GID: id(1002)}})
	for _, path := range []string{"etc/shadow", "private", "var/mail"} {
		if e := walk(t, c, fusefs.RootID, path); e.UID != 1001 || e.GID != 1002 {
			t.Errorf("%s belongs to %d:%d", path, e.UID, e.GID)
		}
	}
	var a fusefs.Attr
	if err := c.Getattr(fusefs.RootID, &a); err != nil || a.UID != 1001 || a.GID != 1002 {
		t.Errorf("the root belongs to %d:%d (%v)", a.UID, a.GID, err)
	}
}

func TestSubdirectory(t *testing.T) {
	z := newZoo(t)
	tree := z.tree(t, z.ref.Catalog)
	whole, _ := z.newCore(t, fusefs.Config{Tree: tree})
	usr := walk(t, whole, fusefs.RootID, "usr").Node
	c, _ := z.newCore(t, fusefs.Config{Tree: tree, Root: usr.Number()})
	if got, want := walk(t, c, fusefs.RootID, "bin/busybox").Node, walk(t, whole, fusefs.RootID, "usr/bin/busybox").Node; got != want {
		t.Errorf("inode %v, want %v as in the whole image", got, want)
	}
	entries := list(t, c, fusefs.RootID, 4096)
	if len(entries) != 3 || entries[0].id != fusefs.RootID || entries[1].id != fusefs.RootID || entries[2].name != "bin" {
		t.Errorf("the root lists %+v", entries)
	}
	bin := list(t, c, entries[2].id, 4096)
	if bin[1].id != fusefs.RootID {
		t.Errorf("above bin is %v, want the mounted directory", bin[1].id)
	}
	if _, err := fusefs.New(fusefs.Config{Tree: tree, Chunks: z, Root: walk(t, whole, fusefs.RootID, "etc/hello").Node.Number()}); err == nil {
		t.Error("a file can be mounted")
	}
}

func TestNestedCatalogIsLoadedOnceAtFirstTouch(t *testing.T) {
	s := newSplit(t)
	c, _ := s.newCore(t, fusefs.Config{Tree: s.tree(t, s.ref.Catalog)})
	before := s.count(s.nested.Digest)
	dir := walk(t, c, fusefs.RootID, s.dir)
	var a fusefs.Attr
	if err := c.Getattr(dir.Node, &a); err != nil || !a.IsDir() || a.Nlink != 3 {
		t.Errorf("the mountpoint: %+v, %v", a, err)
	}
	if n := len(list(t, c, fusefs.RootID, 4096)); n != 4 {
		t.Errorf("its parent lists %d entries, want 4", n)
	}
	if got := s.count(s.nested.Digest); got != before {
		t.Fatalf("lookup, stat and the parent's listing loaded the nested catalog %d times", got-before)
	}
	var e fusefs.Entry
	if err := c.Lookup(dir.Node, []byte("deep"), &e); !fusefs.Later(err) || errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("lookup in it: %v, want an error that says later", err)
	}
	open := s.shut(s.nested.Digest)
	const askers = 20
	errs := make(chan error)
	for range askers {
		go func() {
			var e fusefs.Entry
			err := c.Do(context.Background(), func() error { return c.Lookup(dir.Node, []byte("deep"), &e) })
			if err == nil && e.Node == 0 {
				err = fs.ErrNotExist
			}
			errs <- err
		}()
	}
	s.await(t, s.nested.Digest, 1)
	open()
	for range askers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got := s.count(s.nested.Digest) - before; got != 1 {
		t.Errorf("%d askers loaded it %d times", askers, got)
	}
	if err := c.Lookup(dir.Node, []byte("deep"), &e); err != nil {
		t.Errorf("once loaded: %v", err)
	}
}

func TestNestedCatalogThatFailsIsTriedAgain(t *testing.T) {
	s := newSplit(t)
	c, _ := s.newCore(t, fusefs.Config{Tree: s.tree(t, s.ref.Catalog)})
	s.setBroken(s.nested.Digest, true)
	dir := walk(t, c, fusefs.RootID, s.dir).Node
	var e fusefs.Entry
	for range 2 {
		err := c.Do(context.Background(), func() error { return c.Lookup(dir, []byte("deep"), &e) })
		if !errors.Is(err, errBroken) || errors.Is(err, fs.ErrNotExist) || fusefs.Later(err) {
			t.Errorf("got %v, want the loader's error", err)
		}
	}
	if err := c.Prepare(context.Background()); !errors.Is(err, errBroken) {
		t.Errorf("Prepare: %v, want the loader's error", err)
	}
	s.setBroken(s.nested.Digest, false)
	if e := walk(t, c, fusefs.RootID, s.dir+"/deep/file-00001"); !e.IsRegular() {
		t.Errorf("healed, it is %+v", e)
	}
}

func TestPrepareLoadsAll(t *testing.T) {
	s := newSplit(t)
	c, _ := s.newCore(t, fusefs.Config{Tree: s.tree(t, s.ref.Catalog)})
	if err := c.Prepare(context.Background()); err != nil {
		t.Fatal(err)
	}
	var e fusefs.Entry
	if err := c.Lookup(walk(t, c, fusefs.RootID, s.dir).Node, []byte("deep"), &e); err != nil {
		t.Error(err)
	}
}

func TestDeadline(t *testing.T) {
	s := newSplit(t)
	c, _ := s.newCore(t, fusefs.Config{Tree: s.tree(t, s.ref.Catalog), Deadline: 30 * time.Millisecond})
	dir := walk(t, c, fusefs.RootID, s.dir).Node
	defer s.shut(s.nested.Digest)()
	var e fusefs.Entry
	start := time.Now()
	err := c.Do(context.Background(), func() error { return c.Lookup(dir, []byte("deep"), &e) })
	if err == nil || fusefs.Later(err) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a load that hangs: %v, want an error", err)
	}
	if took := time.Since(start); took > patience/2 {
		t.Errorf("it took %v", took)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Do(ctx, func() error { return c.Lookup(dir, []byte("deep"), &e) }); !errors.Is(err, context.Canceled) {
		t.Errorf("a waiter that leaves: %v, want its context's error", err)
	}
}
