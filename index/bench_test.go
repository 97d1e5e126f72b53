package index_test

import (
	"fmt"
	"testing"

	"github.com/skimfs/skimfs/index"
)

// wide returns a tree over one directory d of n files, and the directory's place.
func wide(t testing.TB, n int) (tree *index.Tree, pos index.Pos) {
	t.Helper()
	s := newStore()
	_, c := s.image(t, dir("d", flat("file", n)))
	tree, err := index.NewTree(c)
	if err != nil {
		t.Fatal(err)
	}
	child, _, ok, err := tree.Lookup(tree.RootPos(), []byte("d"))
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	parts, err := tree.Parts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range parts {
		attach(t, s, m)
	}
	pos, err = tree.At(child.Number)
	if err != nil {
		t.Fatal(err)
	}
	return tree, pos
}

func TestHotPathsDoNotAllocate(t *testing.T) {
	tree, pos := wide(t, 60_000)
	s := newStore()
	big := sparse(1<<30, func(i int) bool { return i%3 > 0 })
	big.Xattrs = []index.Xattr{{Name: "user.a", Value: []byte("1")}, {Name: "user.b", Value: []byte("2")}}
	_, c := s.image(t, dir("big", big, "dev", node(index.ModeChar|0o600), "link", symlink("big")))
	n, err := c.Node(1)
	if err != nil {
		t.Fatal(err)
	}
	link, err := c.Node(3)
	if err != nil {
		t.Fatal(err)
	}
	name, none, xattr := []byte("file031234"), []byte("nothing"), []byte("user.b")
	for what, f := range map[string]func(){
		"Tree.Lookup":            func() { tree.Lookup(pos, name) },
		"Tree.Lookup of no name": func() { tree.Lookup(pos, none) },
		"Tree.At and Pos.Node":   func() { p, _ := tree.At(40_000); p.Node() },
		"Tree.Parent":            func() { tree.Parent(pos) },
		"Tree.ReadDir":           func() { tree.ReadDir(pos, 59_000, func(index.Child) bool { return true }) },
		"Attr":                   func() { c.Attr(1) },
		"Chunk":                  func() { c.Chunk(&n, 777<<20) },
		"Xattr":                  func() { c.Xattr(n.Xattrs, xattr) },
		"Readlink":               func() { c.Readlink(&link) },
		"FileDigest":             func() { c.FileDigest(1) },
	} {
		if got := testing.AllocsPerRun(100, f); got != 0 {
			t.Errorf("%s allocates %v times", what, got)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{100, 60_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tree, pos := wide(b, n)
			names := make([][]byte, 1024)
			for i := range names {
				names[i] = fmt.Appendf(nil, "file%06d", i*7919%n)
			}
			b.ResetTimer()
			for i := 0; b.Loop(); i++ {
				if _, _, ok, err := tree.Lookup(pos, names[i%len(names)]); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}

func BenchmarkAttr(b *testing.B) {
	tree, _ := wide(b, 60_000)
	for i := uint32(0); b.Loop(); i++ {
		pos, err := tree.At(2 + i%60_000)
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := pos.Node(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadDir(b *testing.B) {
	tree, pos := wide(b, 60_000)
	for b.Loop() {
		entries := 0
		if err := tree.ReadDir(pos, 0, func(index.Child) bool { entries++; return true }); err != nil || entries != 60_000 {
			b.Fatal(entries, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/60_000, "ns/entry")
}

func BenchmarkChunk(b *testing.B) {
	for name, data := range map[string]func(i int) bool{"plain": func(int) bool { return true }, "sparse": func(i int) bool { return i%3 > 0 }} {
		b.Run(name, func(b *testing.B) {
			s := newStore()
			_, c := s.image(b, dir("f", sparse(10<<30, data)))
			n, err := c.Node(1)
			if err != nil {
				b.Fatal(err)
			}
			for i := int64(0); b.Loop(); i++ {
				if _, err := c.Chunk(&n, i*7919<<20%(10<<30)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkNewCatalog(b *testing.B) {
	s := newStore()
	ref, _ := s.image(b, flat("f", 100_000))
	plain, err := s.load(b.Context(), ref.Catalog)
	if err != nil || plain.Nodes() != 100_001 {
		b.Fatal(err)
	}
	small := encoded(b, s, sample(s))
	b.ResetTimer()
	for b.Loop() {
		if _, err := index.NewCatalog(small); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	s := newStore()
	_, c := s.image(b, flat("f", 100_000))
	for b.Loop() {
		if err := c.Verify(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBuildImage(b *testing.B) {
	root := dir()
	for i := range 1000 {
		root.Children[fmt.Sprint("d", i)] = flat("f", 100)
	}
	for b.Loop() {
		if _, err := index.BuildImage(root, index.ImageInfo{}, nil, func(index.Digest, []byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
