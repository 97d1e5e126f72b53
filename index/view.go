package index

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
)

// CatalogLoader gets a catalog, from a cache or a repository. It may block.
type CatalogLoader func(ctx context.Context, ref CatalogRef) (*Catalog, error)

// View resolves paths in a repository or an image and loads the catalogs it needs on the way. It is safe for concurrent use. Its
// methods may block in the loader; the kernel's view (package fusefs) uses Tree instead.
type View struct {
	root *Tree
	load CatalogLoader

	mu     sync.Mutex // guards images, not held while loading
	images map[uint32]*Tree
}

// NewView returns a view whose root is the given catalog: a repository's root, or an image's.
func NewView(root *Catalog, load CatalogLoader) (*View, error) {
	t, err := NewTree(root)
	if err != nil {
		return nil, err
	}
	return &View{root: t, load: load, images: map[uint32]*Tree{}}, nil
}

// File is a node found by a View.
type File struct {
	View *View
	Tree *Tree
	Pos  Pos
	Slot uint32     // of the image that holds the node; 0 in the name tree and in a view of a single image
	Root CatalogRef // the root catalog of that image, zero where Slot is 0
	Num  uint32     // number in Tree
	up   *File      // the directory above it, nil for the root
}

// Root returns the root directory.
func (v *View) Root() File {
	return File{View: v, Tree: v.root, Pos: v.root.RootPos(), Num: 1}
}

// maxLinks is Linux's limit on symlinks followed in a path.
const maxLinks = 40

// Resolve finds path, components separated by slashes, below the root. Symlinks on the way are followed, the last one only if
// follow is set. An absolute target starts at the root of the image that holds the link, and ".." stays inside that root. A name that
// doesn't exist gives fs.ErrNotExist.
func (v *View) Resolve(ctx context.Context, path string, follow bool) (File, error) {
	return v.Root().Resolve(ctx, path, follow)
}

// Resolve is View.Resolve from the directory f.
func (f File) Resolve(ctx context.Context, path string, follow bool) (File, error) {
	at, links := f, 0
	todo := strings.Split(path, "/")
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			if at.up != nil && at.up.Tree == at.Tree {
				at = *at.up
			}
			continue
		}
		next, err := at.child(ctx, name)
		if err != nil {
			return File{}, &fs.PathError{Op: "resolve", Path: path, Err: err}
		}
		cat, node, err := next.Pos.Node()
		if err != nil {
			return File{}, &fs.PathError{Op: "resolve", Path: path, Err: err}
		}
		if !node.IsSymlink() || len(todo) == 0 && !follow {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return File{}, &fs.PathError{Op: "resolve", Path: path, Err: errors.New("too many levels of symbolic links")}
		}
		target, err := cat.Readlink(&node)
		if err != nil {
			return File{}, &fs.PathError{Op: "resolve", Path: path, Err: err}
		}
		if target[0] == '/' {
			at = at.top()
		}
		todo = append(strings.Split(string(target), "/"), todo...)
	}
	return at, nil
}

// top returns the root directory of the image, or of the name tree, that f lies in.
func (f File) top() File {
	for f.up != nil && f.up.Tree == f.Tree {
		f = *f.up
	}
	return f
}

// child looks name up in the directory f.
func (f File) child(ctx context.Context, name string) (File, error) {
	for {
		c, _, ok, err := f.Tree.Lookup(f.Pos, []byte(name))
		var missing *Missing
		switch {
		case errors.As(err, &missing):
			if err := f.View.attach(ctx, missing); err != nil {
				return File{}, err
			}
			continue
		case err != nil:
			if _, n, nodeErr := f.Pos.Node(); nodeErr == nil && !n.IsDir() {
				return File{}, fmt.Errorf("not a directory: %w", fs.ErrNotExist)
			}
			return File{}, err
		case !ok:
			return File{}, fs.ErrNotExist
		}
		return f.open(ctx, c)
	}
}

// open makes a File of the entry c of directory f, and enters the image if it is one.
func (f File) open(ctx context.Context, c Child) (File, error) {
	next := File{View: f.View, Tree: f.Tree, Pos: c.Pos, Slot: f.Slot, Root: f.Root, Num: c.Number, up: &f}
	if !c.Image {
		return next, nil
	}
	row, _, err := c.Pos.Nested()
	if err != nil {
		return File{}, err
	}
	tree, err := f.View.image(ctx, row)
	if err != nil {
		return File{}, err
	}
	next.Tree, next.Pos, next.Slot, next.Root, next.Num = tree, tree.RootPos(), row.Number, row.Catalog, 1
	return next, nil
}

func (v *View) attach(ctx context.Context, m *Missing) error {
	c, err := v.load(ctx, m.Ref)
	if err != nil {
		return err
	}
	return m.Attach(c)
}

// image returns the tree of an image, loaded at its first use.
func (v *View) image(ctx context.Context, row Nested) (*Tree, error) {
	v.mu.Lock()
	t := v.images[row.Number]
	v.mu.Unlock()
	if t != nil {
		return t, nil
	}
	c, err := v.load(ctx, row.Catalog)
	if err != nil {
		return nil, err
	}
	if t, err = NewImage(row, c); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if old := v.images[row.Number]; old != nil {
		return old, nil
	}
	v.images[row.Number] = t
	return t, nil
}

// NewImage returns the Tree of the image that hangs at row, over its root catalog.
func NewImage(row Nested, root *Catalog) (*Tree, error) {
	n, err := root.Node(0)
	if err != nil {
		return nil, err
	}
	if n.Attr != row.Attr || root.Total() != row.Count || root.IsNameTree() {
		return nil, fmt.Errorf("catalog %v: its root or its %d nodes are not what the name tree promises (%d): %w", row.Catalog, root.Total(), row.Count, ErrFormat)
	}
	return NewTree(root)
}

// ReadDir calls g for each entry of the directory f in order of name.
func (f File) ReadDir(ctx context.Context, g func(c Child) error) error {
	for {
		var stop error
		err := f.Tree.ReadDir(f.Pos, 0, func(c Child) bool {
			stop = g(c)
			return stop == nil
		})
		var missing *Missing
		if !errors.As(err, &missing) {
			if err == nil {
				err = stop
			}
			return err
		}
		if err := f.View.attach(ctx, missing); err != nil {
			return err
		}
	}
}

// Open returns the entry c that ReadDir found in f.
func (f File) Open(ctx context.Context, c Child) (File, error) { return f.open(ctx, c) }

// Node returns the record of f and the catalog its handles belong to.
func (f File) Node() (*Catalog, Node, error) { return f.Pos.Node() }

// Chunks returns the chunks of the regular file f in order.
func (f File) Chunks() ([]Chunk, error) {
	cat, n, err := f.Node()
	if err != nil {
		return nil, err
	}
	var out []Chunk
	for off := int64(0); off < n.Size; {
		c, err := cat.Chunk(&n, off)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
		off = c.Offset + c.Size
	}
	return out, nil
}
