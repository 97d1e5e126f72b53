package index_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/skimfs/skimfs/index"
)

// walkTree calls f for all nodes of an image's tree, attaching what is missing.
func walkTree(t testing.TB, s *store, tree *index.Tree, f func(dir index.Pos, c index.Child)) {
	t.Helper()
	todo := []index.Pos{tree.RootPos()}
	for len(todo) > 0 {
		pos := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		err := tree.ReadDir(pos, 0, func(c index.Child) bool {
			f(pos, c)
			if c.DType == index.ModeDir>>12 && !c.Image {
				todo = append(todo, c.Pos)
			}
			return true
		})
		var missing *index.Missing
		if errors.As(err, &missing) {
			attach(t, s, missing)
			todo = append(todo, pos)
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func attach(t testing.TB, s *store, m *index.Missing) {
	t.Helper()
	c, err := s.load(context.Background(), m.Ref)
	if err == nil {
		err = m.Attach(c)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func nested() *index.Entry {
	return dir("bin", flat("b", 3), "x", fill(flat("x", 17000), "y", fill(flat("y", 17000), "z", flat("z", 3000))), "w", fill(flat("w", 20000), "v", flat("v", 9)))
}

func TestNumbersAgree(t *testing.T) {
	s := newStore()
	ref, c := s.image(t, nested())
	tree, err := index.NewTree(c)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint32]bool{1: true}
	walkTree(t, s, tree, func(dir index.Pos, c index.Child) {
		if seen[c.Number] {
			t.Fatalf("number %d of %q is given twice", c.Number, c.Name)
		}
		seen[c.Number] = true
		again, n, ok, err := tree.Lookup(dir, c.Name)
		if !ok || err != nil || again.Number != c.Number || again.DType != c.DType || again.Pos != c.Pos {
			t.Fatalf("lookup of %q: %+v, %v, %v, want %+v", c.Name, again, ok, err, c)
		}
		pos, err := tree.At(c.Number)
		if err != nil {
			t.Fatal(err)
		}
		if _, at, err := pos.Node(); err != nil || at.Attr != n.Attr {
			t.Fatalf("node %d of %q: %+v, %v, want %+v", c.Number, c.Name, at.Attr, err, n.Attr)
		}
		if n.IsDir() {
			parent, err := tree.Parent(pos)
			if err != nil {
				t.Fatal(err)
			}
			if p, err := tree.At(parent); err != nil {
				t.Fatal(err)
			} else if back, _, ok, err := tree.Lookup(p, c.Name); !ok || err != nil || back.Number != c.Number {
				t.Fatalf("parent %d of %q does not hold it: %v, %v", parent, c.Name, ok, err)
			}
		}
	})
	if len(seen) != int(ref.Nodes) {
		t.Errorf("%d numbers were seen, the image has %d nodes", len(seen), ref.Nodes)
	}
	for n := range ref.Nodes {
		if !seen[n+1] {
			t.Fatalf("no node has number %d", n+1)
		}
	}
	for _, n := range []uint32{0, ref.Nodes + 1, 1<<32 - 1} {
		if _, err := tree.At(n); !errors.Is(err, index.ErrFormat) {
			t.Errorf("At(%d): %v", n, err)
		}
	}
	if left, err := tree.Parts(); len(left) != 0 || err != nil {
		t.Errorf("%d catalogs are still missing, %v", len(left), err)
	}
	if p, err := tree.Parent(tree.RootPos()); p != 1 || err != nil {
		t.Errorf("parent of the root is %d, %v", p, err)
	}
}

// A mountpoint has its number and attributes before its catalog is there, and the same ones afterwards.
func TestMountpointBeforeItsCatalog(t *testing.T) {
	s := newStore()
	_, c := s.image(t, nested())
	tree, err := index.NewTree(c)
	if err != nil {
		t.Fatal(err)
	}
	child, before, ok, err := tree.Lookup(tree.RootPos(), []byte("x"))
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	pos, err := tree.At(child.Number)
	if err != nil || pos != child.Pos {
		t.Fatalf("At = %+v, %v, want %+v", pos, err, child.Pos)
	}
	var missing *index.Missing
	if _, err := tree.At(child.Number + 1); !errors.As(err, &missing) {
		t.Fatalf("node behind the mountpoint: %v", err)
	}
	if _, _, _, err := tree.Lookup(child.Pos, []byte("y")); !errors.As(err, &missing) {
		t.Fatalf("lookup below the mountpoint: %v", err)
	}
	if err := tree.ReadDir(child.Pos, 0, nil); !errors.As(err, &missing) {
		t.Fatalf("listing of the mountpoint: %v", err)
	}
	if parent, err := tree.Parent(child.Pos); parent != 1 || err != nil {
		t.Errorf("parent %d, %v", parent, err)
	}
	attach(t, s, missing)
	attach(t, s, missing)
	pos, err = tree.At(child.Number)
	if err != nil {
		t.Fatal(err)
	}
	if _, n, err := pos.Node(); err != nil || n.Attr != before.Attr {
		t.Errorf("attributes changed from %+v to %+v, %v", before.Attr, n.Attr, err)
	}
	if i, ok := pos.Index(); i != 0 || !ok {
		t.Errorf("At leads to %d, %v, not to the nested catalog's root", i, ok)
	}
}

func TestAttachRefusesAnotherCatalog(t *testing.T) {
	s := newStore()
	_, c := s.image(t, nested())
	tree, err := index.NewTree(c)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := tree.Parts()
	if err != nil || len(parts) != 2 {
		t.Fatalf("%d missing parts, %v", len(parts), err)
	}
	other, err := s.load(t.Context(), parts[0].Ref)
	if err != nil {
		t.Fatal(err)
	}
	_, names := sampleNames(t, newStore())
	for what, c := range map[string]*index.Catalog{"its parent": c, "a sibling": other, "a name tree": names} {
		if err := parts[1].Attach(c); !errors.Is(err, index.ErrFormat) {
			t.Errorf("attaching %s: %v", what, err)
		}
	}
}

func TestAttachWhileReading(t *testing.T) {
	s := newStore()
	ref, c := s.image(t, nested())
	_, names := sampleNames(t, s)
	var wg sync.WaitGroup
	tree, err := index.NewTree(c)
	if err != nil {
		t.Fatal(err)
	}
	nameTree, err := index.NewTree(names)
	if err != nil {
		t.Fatal(err)
	}
	for w := range 8 {
		wg.Go(func() {
			walkTree(t, s, tree, func(dir index.Pos, c index.Child) {
				if _, err := tree.At(c.Number); err != nil {
					t.Errorf("reader %d: %v", w, err)
				}
			})
			walkTree(t, s, nameTree, func(dir index.Pos, c index.Child) {
				if _, err := nameTree.At(c.Number); err != nil {
					t.Errorf("reader %d: %v", w, err)
				}
			})
			for i := uint32(w); i < ref.Nodes; i += 8 {
				if _, err := tree.At(i + 1); err != nil {
					t.Errorf("reader %d: %v", w, err)
				}
			}
		})
	}
	wg.Wait()
}

// numbered gives an entry its number in a name tree.
func numbered(n uint32, e *index.Entry) *index.Entry {
	e.Number = n
	return e
}

// sampleNames builds a repository: a name tree with two images.
func sampleNames(t testing.TB, s *store) (index.CatalogRef, *index.Catalog) {
	t.Helper()
	place := func(slot uint32, root *index.Entry) *index.Entry {
		ref, _ := s.image(t, root)
		return &index.Entry{Inode: root.Inode, Number: slot, Image: &ref}
	}
	split := func(n uint32, e *index.Entry) *index.Entry {
		e.Number, e.Split = n, true
		return e
	}
	big := sample(s)
	big.Children["opt"] = flat("o", 20000)
	big.Children["abs"] = symlink("/etc/passwd")
	big.Children["up"] = symlink("../../../../etc/passwd")
	big.Children["loop"] = symlink("loop2")
	big.Children["loop2"] = symlink("/usr/../loop")
	big.Children["etc"].Children["dangling"] = symlink("/nowhere/at/all")
	root := numbered(1, dir(
		"docker.io", split(2, dir("library", numbered(3, dir(
			"debian:12", numbered(4, symlink("../../.flat/ab/abcd")),
			"busybox:1", numbered(5, symlink("../../.flat/ab/abff")),
		)))),
		".flat", split(6, dir("ab", split(7, dir("abcd", place(8, big), "abff", place(9, dir("bin", dir())))))),
	))
	ref, err := index.BuildNames(root, s.put)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.load(context.Background(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return ref, c
}

func TestNameTreeNumbers(t *testing.T) {
	s := newStore()
	_, c := sampleNames(t, s)
	tree, err := index.NewTree(c)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	walkTree(t, s, tree, func(dir index.Pos, c index.Child) {
		got[string(c.Name)] = fmt.Sprint(c.Number, c.Image)
		pos, err := tree.At(c.Number)
		if err != nil {
			t.Fatal(err)
		}
		if again, n, ok, err := tree.Lookup(dir, c.Name); !ok || err != nil || again.Number != c.Number {
			t.Errorf("lookup of %q: %+v, %v, %v", c.Name, again, ok, err)
		} else if _, at, err := pos.Node(); err != nil || at.Attr != n.Attr {
			t.Errorf("At(%d) has %+v, %v, want %+v", c.Number, at.Attr, err, n.Attr)
		}
	})
	want := map[string]string{"docker.io": "2 false", "library": "3 false", "debian:12": "4 false", "busybox:1": "5 false",
		".flat": "6 false", "ab": "7 false", "abcd": "8 true", "abff": "9 true"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("numbers %v, want %v", got, want)
	}
	for number, parent := range map[uint32]uint32{1: 1, 2: 1, 3: 2, 6: 1, 7: 6, 8: 7, 9: 7} {
		pos, err := tree.At(number)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tree.Parent(pos); got != parent || err != nil {
			t.Errorf("parent of %d is %d, %v, want %d", number, got, err, parent)
		}
	}
	pos, err := tree.At(8)
	if err != nil {
		t.Fatal(err)
	}
	if row, ok, err := pos.Nested(); !ok || err != nil || row.Kind != index.NestedImage || row.Number != 8 {
		t.Errorf("slot 8 is %+v, %v, %v", row, ok, err)
	}
	var missing *index.Missing
	if _, _, _, err := tree.Lookup(pos, []byte("etc")); !errors.As(err, &missing) {
		t.Fatalf("lookup in an image through the name tree: %v", err)
	}
	if image, err := s.load(t.Context(), missing.Ref); err != nil {
		t.Fatal(err)
	} else if err := missing.Attach(image); !errors.Is(err, index.ErrFormat) {
		t.Errorf("attaching an image to the name tree: %v", err)
	}
}

func TestBuildNamesRefuses(t *testing.T) {
	for name, root := range map[string]*index.Entry{
		"no number":              numbered(1, dir("a", dir())),
		"root has another":       numbered(2, dir()),
		"root's again":           numbered(1, dir("a", numbered(1, dir()))),
		"number given twice":     numbered(1, dir("a", numbered(2, dir()), "b", numbered(2, dir()))),
		"twice in two catalogs":  numbered(1, dir("a", &index.Entry{Inode: dir().Inode, Children: map[string]*index.Entry{"c": numbered(3, dir())}, Number: 2, Split: true}, "b", numbered(3, dir()))),
		"image that is no image": numbered(1, dir("a", &index.Entry{Inode: dir().Inode, Number: 2, Image: &index.ImageRef{}})),
	} {
		if ref, err := index.BuildNames(root, newStore().put); !errors.Is(err, index.ErrFormat) {
			t.Errorf("%s: built %v, %v", name, ref, err)
		}
	}
}
