package index

import (
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
)

// Tree gives the nodes of an image, or of a repository's name tree, their numbers, over a root catalog and the nested catalogs attached so
// far. Numbers are above 0 and the same on every node and after every restart: in an image the root is 1, in a name tree the
// publisher gave them. Reading takes no lock. Where a nested catalog is needed and not attached, methods return a *Missing.
type Tree struct {
	root    *part
	numbers sync.Map // of a name tree: uint32 → Pos

	attachNames sync.Mutex // held while a name-tree catalog enters its numbers
}

// part is an attached catalog.
type part struct {
	cat    *Catalog
	first  uint32 // number of its node 0 in an image
	parent *part
	row    uint32 // its row in the parent
	nodes  uint32
	parts  []atomic.Pointer[part] // by nested row
	bases  []uint32               // of the nested parts of an image by row, ascending
}

// Pos is a place in a Tree: a node, or a mountpoint seen from its parent catalog. The zero Pos is no place.
type Pos struct {
	p     *part
	node  uint32 // or a nested row
	mount bool
}

// Missing says which nested catalog must be attached before a Tree can answer. It is an error so that it travels like one.
type Missing struct {
	Ref  CatalogRef
	tree *Tree
	at   *part
	row  uint32
}

func (m *Missing) Error() string { return fmt.Sprintf("nested catalog %v is not loaded", m.Ref) }

// Number returns, in a name tree, the number of the directory whose catalog is missing; 0 elsewhere.
func (m *Missing) Number() uint32 {
	row, err := m.at.cat.Nested(m.row)
	if err != nil {
		return 0
	}
	return row.Number
}

// NewTree returns a Tree over a root catalog.
func NewTree(root *Catalog) (*Tree, error) {
	t := &Tree{}
	p, err := t.newPart(root, 1, nil, 0)
	if err != nil {
		return nil, err
	}
	t.root = p
	return t, nil
}

// Root returns the root catalog.
func (t *Tree) Root() *Catalog { return t.root.cat }

// RootPos returns the place of the root directory.
func (t *Tree) RootPos() Pos { return Pos{p: t.root} }

// newPart makes a part of an image, or the root of a name tree, of c.
func (t *Tree) newPart(c *Catalog, first uint32, parent *part, row uint32) (*part, error) {
	p := &part{cat: c, first: first, parent: parent, row: row, nodes: c.Nodes(), parts: make([]atomic.Pointer[part], c.NestedCount())}
	if c.IsNameTree() {
		return p, t.number(p)
	}
	p.bases = make([]uint32, c.NestedCount())
	for i := range p.bases {
		row, err := c.Nested(uint32(i))
		if err != nil {
			return nil, err
		}
		p.bases[i] = row.Base
	}
	return p, nil
}

// number enters the explicit numbers of a name-tree catalog, all or none. The root of a nested one has its parent's row for a number.
func (t *Tree) number(p *part) error {
	enter := make(map[uint32]Pos, p.nodes)
	add := func(n uint32, pos Pos) error {
		_, old := t.numbers.Load(n)
		if _, again := enter[n]; n == 0 || old || again {
			return fmt.Errorf("catalog: number %d is zero or given twice in the name tree: %w", n, ErrFormat)
		}
		enter[n] = pos
		return nil
	}
	want := uint32(1)
	if p.parent != nil {
		row, err := p.parent.cat.Nested(p.row)
		if err != nil {
			return err
		}
		want = row.Number
	}
	for i := range p.nodes {
		n, err := p.cat.Number(i)
		switch {
		case err == nil && i == 0 && n != want:
			err = fmt.Errorf("catalog: root has number %d, want %d: %w", n, want, ErrFormat)
		case err == nil && (i != 0 || p.parent == nil):
			err = add(n, Pos{p: p, node: i})
		}
		if err != nil {
			return err
		}
	}
	for i := range p.cat.NestedCount() {
		row, err := p.cat.Nested(i)
		if err == nil {
			err = add(row.Number, Pos{p, i, true})
		}
		if err != nil {
			return err
		}
	}
	for n, pos := range enter {
		t.numbers.Store(n, pos)
	}
	return nil
}

// At returns the place with the given number.
func (t *Tree) At(number uint32) (Pos, error) {
	if t.root.cat.IsNameTree() {
		v, ok := t.numbers.Load(number)
		if !ok {
			return Pos{}, fmt.Errorf("name tree has no number %d: %w", number, ErrFormat)
		}
		return v.(Pos).enter(), nil
	}
	p := t.root
	for {
		i := number - p.first
		if number < p.first {
			break
		}
		if i < p.nodes {
			return Pos{p: p, node: i}, nil
		}
		at := sort.Search(len(p.bases), func(j int) bool { return p.bases[j] > i }) - 1
		if at < 0 {
			break
		}
		i -= p.bases[at]
		if child := p.parts[at].Load(); child != nil {
			if i >= child.cat.Total() {
				break
			}
			p = child
			continue
		}
		row, err := p.cat.Nested(uint32(at))
		switch {
		case err != nil:
			return Pos{}, err
		case i == 0:
			return Pos{p, uint32(at), true}, nil
		case i < row.Count:
			return Pos{}, &Missing{row.Catalog, t, p, uint32(at)}
		}
		break
	}
	return Pos{}, fmt.Errorf("image has no node %d: %w", number, ErrFormat)
}

// enter goes through a mountpoint whose catalog is attached.
func (pos Pos) enter() Pos {
	if pos.mount {
		if child := pos.p.parts[pos.node].Load(); child != nil {
			return Pos{p: child}
		}
	}
	return pos
}

// Attach gives the Tree a catalog it missed. Attaching twice does no harm.
func (m *Missing) Attach(c *Catalog) error {
	row, err := m.at.cat.Nested(m.row)
	if err != nil {
		return err
	}
	root, err := c.Node(0)
	if err != nil {
		return err
	}
	if row.Kind == NestedImage {
		return fmt.Errorf("catalog %v is an image's, which has a tree of its own: %w", m.Ref, ErrFormat)
	}
	if root.Attr != row.Attr || c.IsNameTree() != (row.Kind == NestedNames) || row.Kind == NestedPart && c.Total() != row.Count {
		return fmt.Errorf("catalog %v: its root or its %d nodes are not what its parent promises (%d): %w", m.Ref, c.Total(), row.Count, ErrFormat)
	}
	if row.Kind == NestedNames {
		// Two catalogs that enter the same number at once must not both find it free.
		m.tree.attachNames.Lock()
		defer m.tree.attachNames.Unlock()
		if m.at.parts[m.row].Load() != nil {
			return nil
		}
	}
	p, err := m.tree.newPart(c, m.at.first+row.Base, m.at, m.row)
	if err != nil {
		return err
	}
	m.at.parts[m.row].CompareAndSwap(nil, p)
	return nil
}

// Child is a name in a directory, as Lookup and ReadDir find it.
type Child struct {
	Name   []byte // points into the catalog
	Number uint32 // in this Tree; of an image its slot
	Image  bool   // the child is an image's root: node 1 of the Tree of slot Number
	DType  uint8
	Pos    Pos
}

func (t *Tree) child(p *part, d Dirent) (Child, error) {
	c := Child{Name: d.Name, DType: d.DType, Pos: Pos{p, d.Child, d.Nested}}
	if !d.Nested {
		if d.Child >= p.nodes {
			return c, fmt.Errorf("catalog: entry %q leads to node %d of %d: %w", d.Name, d.Child, p.nodes, ErrFormat)
		}
		if p.cat.IsNameTree() {
			var err error
			c.Number, err = p.cat.Number(d.Child)
			return c, err
		}
		c.Number = p.first + d.Child
		return c, nil
	}
	row, err := p.cat.Nested(d.Child)
	if err != nil {
		return c, err
	}
	c.DType, c.Image, c.Number = row.DType(), row.Kind == NestedImage, row.Number
	if row.Kind == NestedPart {
		c.Number = p.first + row.Base
	}
	return c, nil
}

// dir returns the catalog and the record of a directory, whose entries must be at hand.
func (t *Tree) dir(pos Pos) (Pos, Node, error) {
	pos = pos.enter()
	if pos.mount {
		row, err := pos.p.cat.Nested(pos.node)
		if err != nil {
			return pos, Node{}, err
		}
		return pos, Node{}, &Missing{row.Catalog, t, pos.p, pos.node}
	}
	n, err := pos.p.cat.Node(pos.node)
	return pos, n, err
}

// Lookup finds name in the directory at pos.
func (t *Tree) Lookup(pos Pos, name []byte) (c Child, n Node, ok bool, err error) {
	pos, dir, err := t.dir(pos)
	if err != nil {
		return Child{}, Node{}, false, err
	}
	d, ok, err := pos.p.cat.Lookup(&dir, name)
	if err != nil || !ok {
		return Child{}, Node{}, false, err
	}
	if n, err = pos.p.cat.Child(pos.node, d); err != nil {
		return Child{}, Node{}, false, err
	}
	if c, err = t.child(pos.p, d); err != nil {
		return Child{}, Node{}, false, err
	}
	return c, n, true, nil
}

// ReadDir calls f for the entries of the directory at pos, from entry number from on (0 is the first), until f returns false.
func (t *Tree) ReadDir(pos Pos, from uint32, f func(c Child) bool) error {
	pos, dir, err := t.dir(pos)
	if err != nil {
		return err
	}
	if !dir.IsDir() {
		return fmt.Errorf("catalog: listing of a node of mode %#o: %w", dir.Mode, ErrFormat)
	}
	for i := from; i < dir.Count; i++ {
		d, err := pos.p.cat.Dirent(dir.First() + i)
		if err != nil {
			return err
		}
		if !validName(d.Name) {
			return fmt.Errorf("catalog: directory entry %d: name %q: %w", dir.First()+i, d.Name, ErrFormat)
		}
		c, err := t.child(pos.p, d)
		if err != nil {
			return err
		}
		if !f(c) {
			return nil
		}
	}
	return nil
}

// Node returns the record at pos and the catalog that its handles (xattrs, target, chunks) belong to. It never misses a nested catalog.
func (pos Pos) Node() (*Catalog, Node, error) {
	if pos.mount {
		row, err := pos.p.cat.Nested(pos.node)
		return pos.p.cat, row.Node, err
	}
	n, err := pos.p.cat.Node(pos.node)
	return pos.p.cat, n, err
}

// Index returns the node's number in its catalog, for Catalog.FileDigest; ok is false for a mountpoint seen from its parent.
func (pos Pos) Index() (i uint32, ok bool) { return pos.node, !pos.mount }

// Nested returns the row of a mountpoint; ok is false elsewhere.
func (pos Pos) Nested() (row Nested, ok bool, err error) {
	if !pos.mount {
		return Nested{}, false, nil
	}
	row, err = pos.p.cat.Nested(pos.node)
	return row, err == nil, err
}

// Parent returns the number of the directory that holds the directory at pos; the root is its own.
func (t *Tree) Parent(pos Pos) (uint32, error) {
	pos = pos.enter()
	if !pos.mount && pos.node == 0 && pos.p.parent != nil {
		pos = Pos{pos.p.parent, pos.p.row, true}
	}
	_, n, err := pos.Node()
	if err != nil {
		return 0, err
	}
	if pos.p.cat.IsNameTree() {
		return pos.p.cat.Number(n.Parent)
	}
	return pos.p.first + n.Parent, nil
}

// Parts returns references to all nested catalogs of the image that are not attached yet below those that are: what a
// mount fetches side by side after the root.
func (t *Tree) Parts() ([]*Missing, error) {
	var out []*Missing
	var walk func(p *part) error
	walk = func(p *part) error {
		for i := range p.cat.NestedCount() {
			row, err := p.cat.Nested(i)
			if err != nil {
				return err
			}
			switch child := p.parts[i].Load(); {
			case child != nil:
				if err := walk(child); err != nil {
					return err
				}
			case row.Kind != NestedImage:
				out = append(out, &Missing{row.Catalog, t, p, i})
			}
		}
		return nil
	}
	return out, walk(t.root)
}
