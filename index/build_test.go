package index_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/index"
)

var update = flag.Bool("update", false, "rewrite golden files")

// compare walks the directory got beside the tree want, which was built, and reports every difference.
func compare(t *testing.T, got index.File, want *index.Entry, path string) {
	t.Helper()
	cat, n, err := got.Node()
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	wantAttr := want.Attr
	if n.Attr != wantAttr {
		t.Errorf("%s: attributes %+v, want %+v", path, n.Attr, wantAttr)
	}
	var xattrs []index.Xattr
	if err := cat.EachXattr(n.Xattrs, func(name, value []byte) bool {
		xattrs = append(xattrs, index.Xattr{Name: string(name), Value: value})
		return true
	}); err != nil || len(xattrs) != len(want.Xattrs) {
		t.Errorf("%s: xattrs %v, %v, want %v", path, xattrs, err, want.Xattrs)
	}
	for i, x := range want.Xattrs {
		v, ok, err := cat.Xattr(n.Xattrs, []byte(x.Name))
		if !ok || err != nil || !bytes.Equal(v, x.Value) || xattrs[i].Name != x.Name {
			t.Errorf("%s: xattr %s = %q, %v, %v", path, x.Name, v, ok, err)
		}
	}
	switch {
	case n.IsSymlink():
		if target, err := cat.Readlink(&n); string(target) != want.Target || err != nil {
			t.Errorf("%s: target %q, %v, want %q", path, target, err, want.Target)
		}
	case n.IsRegular():
		compareChunks(t, got, want, path)
	case n.IsDir():
		compareDir(t, got, want, path)
	}
}

func compareChunks(t *testing.T, got index.File, want *index.Entry, path string) {
	t.Helper()
	chunks, err := got.Chunks()
	if err != nil {
		t.Errorf("%s: %v", path, err)
	}
	var digests []index.Digest
	next := int64(0)
	for _, c := range chunks {
		if c.Offset != next || !c.IsHole() && c.Size > index.ChunkSize {
			t.Errorf("%s: chunk %+v, want offset %d", path, c, next)
		}
		for range (c.Size + index.ChunkSize - 1) / index.ChunkSize {
			digests = append(digests, c.Digest)
		}
		next += c.Size
	}
	if next != want.Size || !slices.Equal(digests, want.Chunks) {
		t.Errorf("%s: %d bytes in %d chunks, want %d in %d", path, next, len(digests), want.Size, len(want.Chunks))
	}
	cat, _, _ := got.Node()
	i, ok := got.Pos.Index()
	if d, has := cat.FileDigest(i); !ok || has != (len(want.Chunks) > 1) || has && d != want.File {
		t.Errorf("%s: file digest %v, %v, want %v", path, d, has, want.File)
	}
}

func compareDir(t *testing.T, got index.File, want *index.Entry, path string) {
	t.Helper()
	var names []string
	err := got.ReadDir(t.Context(), func(c index.Child) error {
		name := string(c.Name)
		names = append(names, name)
		child := want.Children[name]
		if child == nil {
			t.Errorf("%s/%s: not in the tree", path, name)
			return nil
		}
		f, err := got.Open(t.Context(), c)
		if err != nil {
			return err
		}
		if c.DType != child.DType() {
			t.Errorf("%s/%s: d_type %d, want %d", path, name, c.DType, child.DType())
		}
		compare(t, f, child, path+"/"+name)
		return nil
	})
	if err != nil || len(names) != len(want.Children) || !slices.IsSorted(names) {
		t.Errorf("%s: listed %d names, sorted: %v, %v, want %d", path, len(names), slices.IsSorted(names), err, len(want.Children))
	}
}

func TestRoundTrip(t *testing.T) {
	s := newStore()
	root := sample(s)
	_, c := s.image(t, root)
	compare(t, s.view(t, c).Root(), root, "")
	info, ok, err := c.Image()
	if !ok || err != nil || info.Platform != "linux/amd64" || info.Manifest != index.DigestOf([]byte("manifest")) || string(c.Config()) != `{"config":{}}` {
		t.Errorf("image section %+v, %v, %v, config %s", info, ok, err, c.Config())
	}
	if got := root.Children["hard"].Nlink; got != 3 {
		t.Errorf("link count %d of a file with three names", got)
	}
	if got := root.Nlink; got != 2+4 {
		t.Errorf("link count %d of a root with four directories", got)
	}
}

// random fills n bytes that have no chunk of zeros, the same in every run.
func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>12) | 1
	}
	return b
}

func TestChunkEdges(t *testing.T) {
	for _, size := range []int{0, 1, 1<<20 - 1, 1 << 20, 1<<20 + 1, 5 << 20} {
		for _, zero := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d bytes, zeros: %t", size, zero), func(t *testing.T) {
				content := random(size)
				if zero {
					clear(content)
				}
				s := newStore()
				root := dir("f", file(s, content))
				_, c := s.image(t, root)
				v := s.view(t, c)
				compare(t, v.Root(), root, "")
				f, err := v.Resolve(t.Context(), "f", false)
				if err != nil {
					t.Fatal(err)
				}
				_, n, err := f.Node()
				if err != nil {
					t.Fatal(err)
				}
				for _, off := range []int64{-1, int64(size), int64(size) + 1, 1 << 62} {
					if got, err := c.Chunk(&n, off); !errors.Is(err, index.ErrFormat) {
						t.Errorf("chunk at %d of %d: %+v, %v", off, size, got, err)
					}
				}
			})
		}
	}
}

// sparse returns a file of n chunks; data says which are no holes.
func sparse(size int64, data func(i int) bool) *index.Entry {
	e := node(index.ModeRegular | 0o644)
	e.Size = size
	for i := range int((size + index.ChunkSize - 1) / index.ChunkSize) {
		d := index.Digest{}
		if data(i) {
			d = index.DigestOf([]byte{byte(i), byte(i >> 8)})
		}
		e.Chunks = append(e.Chunks, d)
	}
	e.File = index.DigestOf([]byte("whole"))
	return e
}

func TestSparseFiles(t *testing.T) {
	const large = 10<<30 + 3
	last := large / index.ChunkSize
	for _, row := range []struct {
		name string
		data func(i int) bool
		rows uint32
	}{
		{"one hole", func(int) bool { return false }, 1},
		{"data first", func(i int) bool { return i == 0 }, 2},
		{"data last", func(i int) bool { return i == last }, 2},
		{"data in the middle", func(i int) bool { return i == 5000 }, 3},
		{"every second chunk", func(i int) bool { return i%2 == 1 }, uint32(last + 1)},
		{"long runs", func(i int) bool { return i%1000 < 500 }, 500*10 + 241 + 10},
		{"no hole", func(int) bool { return true }, uint32(last + 1)},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newStore()
			e := sparse(large, row.data)
			root := dir("f", e)
			_, c := s.image(t, root)
			compare(t, s.view(t, c).Root(), root, "")
			n, err := c.Node(1)
			if err != nil || n.Count != row.rows {
				t.Errorf("%d chunk rows, %v, want %d", n.Count, err, row.rows)
			}
			for range 2000 {
				off := rand.Int64N(large)
				got, err := c.Chunk(&n, off)
				if err != nil || off < got.Offset || off >= got.Offset+got.Size || got.Digest != e.Chunks[off>>index.ChunkShift] {
					t.Fatalf("chunk at %d: %+v, %v", off, got, err)
				}
			}
		})
	}
}

func TestSameTreeSameBytes(t *testing.T) {
	var first index.ImageRef
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 0))
		s := newStore()
		var shuffle func(e *index.Entry)
		shuffle = func(e *index.Entry) {
			old := e.Children
			e.Children = make(map[string]*index.Entry)
			var names []string
			for name := range old {
				names = append(names, name)
			}
			slices.Sort(names)
			r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
			for _, name := range names {
				e.Children[name] = old[name]
				if old[name].IsDir() {
					shuffle(old[name])
				}
			}
		}
		root := sample(s)
		for i := range 20 {
			root.Children[fmt.Sprint("d", i)] = flat("f", 1000+i)
		}
		shuffle(root)
		ref, _ := s.image(t, root)
		if seed == 0 {
			first = ref
		}
		if ref != first {
			t.Errorf("order %d gives %v, another one %v", seed, ref, first)
		}
	}
}

// The digests of some catalogs: a change of one means that all that was ever published is written anew.
func TestGoldenDigests(t *testing.T) {
	var out strings.Builder
	s := newStore()
	for _, row := range []struct {
		name string
		root *index.Entry
	}{
		{"empty", dir()},
		{"sample", sample(s)},
		{"split", dir("a", flat("a", 9000), "b", flat("b", 8000), "c", flat("c", 500))},
		{"listed", flat("file-with-a-long-name-so-that-the-catalog-is-large-", 30000)},
	} {
		ref, _ := s.image(t, row.root)
		fmt.Fprintf(&out, "%s %v %d nodes\n", row.name, ref.Catalog, ref.Nodes)
	}
	names, _ := sampleNames(t, s)
	fmt.Fprintf(&out, "names %v\n", names)
	const golden = "testdata/digests.txt"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("digests changed (go test -update writes them):\n%swant\n%s", out.String(), want)
	}
}

func TestBuildRefuses(t *testing.T) {
	with := func(f func(e *index.Entry)) *index.Entry {
		e := file(nil, []byte("x"))
		f(e)
		return dir("f", e)
	}
	deep := dir()
	for range 5000 {
		deep = dir("d", deep)
	}
	for name, root := range map[string]*index.Entry{
		"slash in a name":         dir("a/b", dir()),
		"NUL in a name":           dir("a\x00", dir()),
		"dot":                     dir(".", dir()),
		"dot dot":                 dir("..", dir()),
		"empty name":              dir("", dir()),
		"name of 256 bytes":       dir(strings.Repeat("a", 256), dir()),
		"too deep":                deep,
		"nanoseconds":             with(func(e *index.Entry) { e.Nsec = 1e9 }),
		"no type":                 with(func(e *index.Entry) { e.Mode = 0o644 }),
		"unknown type":            with(func(e *index.Entry) { e.Mode = 0o110644 }),
		"more mode bits":          with(func(e *index.Entry) { e.Mode |= 1 << 20 }),
		"chunk missing":           with(func(e *index.Entry) { e.Chunks = nil }),
		"negative size":           with(func(e *index.Entry) { e.Size = -1 }),
		"size overflows":          with(func(e *index.Entry) { e.Size = 1<<63 - 1 }),
		"empty symlink":           dir("l", symlink("")),
		"long symlink":            dir("l", symlink(strings.Repeat("a", 1<<16))),
		"xattrs out of order":     with(func(e *index.Entry) { e.Xattrs = []index.Xattr{{Name: "b"}, {Name: "a"}} }),
		"xattr twice":             with(func(e *index.Entry) { e.Xattrs = []index.Xattr{{Name: "a"}, {Name: "a"}} }),
		"xattr with NUL":          with(func(e *index.Entry) { e.Xattrs = []index.Xattr{{Name: "a\x00"}} }),
		"xattr name of 256 bytes": with(func(e *index.Entry) { e.Xattrs = []index.Xattr{{Name: strings.Repeat("a", 256)}} }),
		"file with children":      with(func(e *index.Entry) { e.Children = map[string]*index.Entry{"a": dir()} }),
		"image in an image":       dir("i", &index.Entry{Inode: dir().Inode, Image: &index.ImageRef{Nodes: 1}}),
		"root is a file":          file(nil, nil),
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore()
			if ref, err := index.BuildImage(root, index.ImageInfo{}, nil, s.put); !errors.Is(err, index.ErrFormat) {
				t.Errorf("built %v, %v", ref, err)
			}
			if s.puts != 0 {
				t.Errorf("%d objects were stored before the error", s.puts)
			}
		})
	}
	full := errors.New("disk full")
	if _, err := index.BuildImage(dir(), index.ImageInfo{}, nil, func(index.Digest, []byte) error { return full }); !errors.Is(err, full) {
		t.Errorf("error of put: %v", err)
	}
}

// shape lists an image's catalogs: their own nodes by path.
func shape(t *testing.T, s *store, v *index.View) map[string]uint32 {
	t.Helper()
	out := map[string]uint32{"": v.Root().Tree.Root().Nodes()}
	var walk func(f index.File, path string)
	walk = func(f index.File, path string) {
		if err := f.ReadDir(t.Context(), func(c index.Child) error {
			if c.DType != index.ModeDir>>12 {
				return nil
			}
			child, err := f.Open(t.Context(), c)
			if err != nil {
				return err
			}
			if row, ok, err := c.Pos.Nested(); err != nil {
				return err
			} else if ok {
				cat, err := s.load(t.Context(), row.Catalog)
				if err != nil {
					return err
				}
				out[path+"/"+string(c.Name)] = cat.Nodes()
			}
			walk(child, path+"/"+string(c.Name))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	walk(v.Root(), "")
	return out
}

func TestSplits(t *testing.T) {
	many := func(dirs, files int) *index.Entry {
		d := dir()
		for i := range dirs {
			d.Children[fmt.Sprintf("d%04d", i)] = flat("f", files)
		}
		return d
	}
	deep := func() *index.Entry { // each level has more than a catalog's share of its own
		return dir("x", fill(flat("x", 17000), "y", fill(flat("y", 17000), "z", flat("z", 17000))))
	}
	shared := func() *index.Entry { // one link leads out of a, one pair stays in b
		a, b, c := flat("a", 17000), flat("b", 17000), flat("c", 17000)
		c.Children["out"] = link(a.Children["a000000"])
		b.Children["in"] = link(b.Children["b000000"])
		return dir("a", a, "b", b, "c", c)
	}
	across := func() *index.Entry { // links between two subdirectories of a directory that can go as a whole
		a, b := flat("a", 9000), flat("b", 9000)
		b.Children["a"] = link(a.Children["a000000"])
		return dir("up", dir("a", a, "b", b), "f", file(nil, nil))
	}
	for _, row := range []struct {
		name string
		root *index.Entry
		want map[string]uint32
	}{
		{"just small enough", flat("f", 16383), map[string]uint32{"": 16384}},
		{"a flat root has nothing to give away", flat("f", 60000), map[string]uint32{"": 60001}},
		{"a flat directory goes", dir("d", flat("f", 60000)), map[string]uint32{"": 1, "/d": 60001}},
		{"small directories stay", dir("d", many(1000, 100)), map[string]uint32{"": 1, "/d": 1 + 1000 + 100000}},
		{"the heaviest go first", dir("a", flat("a", 3000), "b", flat("b", 9000), "c", flat("c", 9000), "d", flat("d", 1)),
			map[string]uint32{"": 1 + 3001 + 9001 + 2, "/b": 9001}},
		{"nested in nested", deep(), map[string]uint32{"": 1, "/x": 17001, "/x/y": 17001, "/x/y/z": 17001}},
		{"links hold directories together", shared(), map[string]uint32{"": 1 + 17001 + 17001, "/b": 17001}},
		{"links below a directory that goes", across(), map[string]uint32{"": 2, "/up": 1 + 9001 + 9001}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newStore()
			ref, c := s.image(t, row.root)
			v := s.view(t, c)
			if got := shape(t, s, v); !reflect.DeepEqual(got, row.want) {
				t.Errorf("nodes by catalog %v, want %v", got, row.want)
			}
			if c.Total() != ref.Nodes {
				t.Errorf("%d nodes, reference says %d", c.Total(), ref.Nodes)
			}
			compare(t, v.Root(), row.root, "")
		})
	}
}

func TestBytesPerFile(t *testing.T) {
	s := newStore()
	root := dir()
	for i := range 1000 {
		d := dir()
		for j := range 100 {
			d.Children[fmt.Sprintf("module_%03d.py", j)] = file(nil, fmt.Appendf(nil, "%d %d", i, j))
		}
		root.Children[fmt.Sprintf("package-%d", i)] = d
	}
	ref, _ := s.image(t, root)
	if got := ref.Catalog.Size/100_000 - 32; got > 100 {
		t.Errorf("%d bytes a file plus its digest, want at most 100", got)
	} else {
		t.Logf("%d bytes a file plus its digest; catalog of %d bytes", got, ref.Catalog.Size)
	}
}
