package index

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Verify checks every rule of docs/format.md section 5 that can be seen in this catalog alone. It takes time and memory in
// proportion to the catalog. The error wraps ErrFormat and names the first place that breaks a rule.
func (c *Catalog) Verify() error {
	v := &verifier{c: c, links: map[uint32]uint32{}, sets: map[uint32]bool{}, known: map[string]uint32{}}
	for _, check := range []func() error{v.walk, v.used, v.numbers, v.about} {
		if err := check(); err != nil {
			return fmt.Errorf("verifying catalog: %w", err)
		}
	}
	return nil
}

// verifier goes through a catalog in the order in which it was built. Each field counts what was met of one section: the next thing
// must lie there.
type verifier struct {
	c      *Catalog
	node   uint32
	dirent uint64
	name   uint64
	chunk  uint64
	xattr  uint64
	nested uint32

	links map[uint32]uint32 // of nodes with more than one link: those not met yet
	sets  map[uint32]bool   // handles of xattr sets met
	known map[string]uint32 // their bytes
}

func (v *verifier) bad(format string, args ...any) error {
	return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), ErrFormat)
}

// used checks, after the walk, that all of each section was met and all links of each file.
func (v *verifier) used() error {
	for _, node := range slices.Sorted(maps.Keys(v.links)) {
		if n := v.links[node]; n != 0 {
			return v.bad("node %d has %d names fewer than links", node, n)
		}
	}
	for _, t := range []struct {
		what             string
		at, row, section uint64
	}{
		{"nodes", uint64(v.node), nodeSize, secNodes},
		{"directory entries", v.dirent, direntSize, secDirents},
		{"names", v.name, 1, secNames},
		{"chunks", v.chunk, chunkRowSize, secChunks},
		{"xattrs", v.xattr, 1, secXattrs},
		{"nested catalogs", uint64(v.nested), nestedSize, secNested},
	} {
		if n := uint64(len(v.c.sec[t.section])) / t.row; t.at != n {
			return v.bad("%d of %d %s are used", t.at, n, t.what)
		}
	}
	return nil
}

// walk visits the directories depth first, in order of name.
func (v *verifier) walk() error {
	if err := v.meet(0, 0); err != nil {
		return err
	}
	todo := []uint32{0}
	for len(todo) > 0 {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		subs, err := v.dir(dir)
		if err != nil {
			return fmt.Errorf("directory %d: %w", dir, err)
		}
		for i := len(subs) - 1; i >= 0; i-- {
			todo = append(todo, subs[i])
		}
	}
	return nil
}

// dir checks the entries of a directory and returns the subdirectories in this catalog.
func (v *verifier) dir(num uint32) (subs []uint32, err error) {
	n, err := v.c.Node(num)
	if err != nil {
		return nil, err
	}
	if uint64(n.First()) != v.dirent {
		return nil, v.bad("first entry is %d, want %d", n.First(), v.dirent)
	}
	last, subdirs := []byte(nil), uint32(0)
	for i := range n.Count {
		d, err := v.c.Dirent(n.First() + i)
		if err != nil {
			return nil, err
		}
		switch {
		case !validName(d.Name):
			return nil, v.bad("entry %d: name %q", v.dirent, d.Name)
		case string(d.Name) <= string(last):
			return nil, v.bad("entry %d: name %q follows %q", v.dirent, d.Name, last)
		case uint64(binary.LittleEndian.Uint32(v.c.sec[secDirents][v.dirent*direntSize:])) != v.name:
			return nil, v.bad("entry %d: name %q is not at %d", v.dirent, d.Name, v.name)
		}
		last = d.Name
		v.dirent++
		v.name += uint64(len(d.Name))
		child, err := v.c.Child(num, d)
		if err != nil {
			return nil, err
		}
		if child.IsDir() {
			subdirs++
		}
		if err := v.entry(num, d, &child); err != nil {
			return nil, fmt.Errorf("entry %q: %w", d.Name, err)
		}
		if child.IsDir() && !d.Nested {
			subs = append(subs, d.Child)
		}
	}
	if n.Nlink != 2+subdirs {
		return nil, v.bad("%d links, want 2 and %d subdirectories", n.Nlink, subdirs)
	}
	return subs, nil
}

// entry checks what an entry of the directory dir leads to.
func (v *verifier) entry(dir uint32, d Dirent, n *Node) error {
	switch {
	case d.Nested:
		if d.Child != v.nested {
			return v.bad("leads to nested catalog %d, want %d", d.Child, v.nested)
		}
		v.nested++
		return v.set(n.Xattrs)
	case d.Child == v.node:
		return v.meet(d.Child, dir)
	case n.IsDir() || v.links[d.Child] == 0:
		return v.bad("leads to node %d where %d is next, and that is no file with a link to come", d.Child, v.node)
	}
	v.links[d.Child]--
	return nil
}

// meet checks a node that is met for the first time.
func (v *verifier) meet(num, dir uint32) error {
	n, err := v.c.Node(num)
	if err != nil {
		return err
	}
	v.node++
	if n.IsDir() {
		if n.Size != 0 || n.Shift != 0 || n.Parent != dir {
			return v.bad("node %d: directory with size %d, shift %d, parent %d", num, n.Size, n.Shift, n.Parent)
		}
		return v.set(n.Xattrs)
	}
	if n.Nlink == 0 || n.Parent != 0 || !n.IsRegular() && (n.Count != 0 || n.Shift != 0) || !n.IsRegular() && !n.IsSymlink() && n.Size != 0 {
		return v.bad("node %d of mode %#o: %d links, parent %d, size %d, count %d, shift %d", num, n.Mode, n.Nlink, n.Parent, n.Size, n.Count, n.Shift)
	}
	if n.Nlink > 1 {
		v.links[num] = n.Nlink - 1
	}
	switch n.Type() {
	case ModeRegular:
		if err := v.chunks(&n); err != nil {
			return fmt.Errorf("node %d: %w", num, err)
		}
	case ModeSymlink:
		target, err := v.c.Readlink(&n)
		if err != nil {
			return err
		}
		if n.data != v.name || strings.IndexByte(string(target), 0) >= 0 {
			return v.bad("node %d: symlink target %.80q at %d, want %d", num, target, n.data, v.name)
		}
		v.name += uint64(n.Size)
	case ModeFIFO, ModeSocket:
		if n.data != 0 {
			return v.bad("node %d of mode %#o: bytes 40 to 47 are %#x", num, n.Mode, n.data)
		}
	}
	return v.set(n.Xattrs)
}

// chunks checks the rows of a regular file.
func (v *verifier) chunks(n *Node) error {
	if n.Count == 0 {
		if n.data != 0 || n.Shift != 0 {
			return v.bad("empty file with chunk row %d or shift %d", n.data, n.Shift)
		}
		return nil
	}
	if n.data != v.chunk {
		return v.bad("first chunk row is %d, want %d", n.data, v.chunk)
	}
	v.chunk += uint64(n.Count)
	table := v.c.sec[secChunks][n.data*chunkRowSize:][:uint64(n.Count)*chunkRowSize]
	end, hole := uint64(0), false // the next chunk, and whether a hole may reach further
	all := uint64(n.Size-1)>>n.Shift + 1
	for i := range int(n.Count) {
		first := chunkFirst(table, i)
		d, err := chunkDigest(table, i)
		switch {
		case err != nil:
			return fmt.Errorf("chunk row %d: %w", n.data+uint64(i), err)
		case hole && (first < end || d.IsZero()) || !hole && first != end || first >= all:
			return v.bad("chunk row %d begins at chunk %d of %d, a hole: %t, after chunk %d, a hole: %t", n.data+uint64(i), first, all, d.IsZero(), end, hole)
		}
		end, hole = first+1, d.IsZero()
	}
	if !hole && end != all {
		return v.bad("chunk rows end at chunk %d of %d", end, all)
	}
	return nil
}

// set checks a handle of an xattr set, and the set if it is new.
func (v *verifier) set(handle uint32) error {
	if handle == 0 || v.sets[handle] {
		return nil
	}
	if uint64(handle) != v.xattr+1 {
		return v.bad("xattr set at %d, want one met before or %d", int64(handle)-1, v.xattr)
	}
	count, size, last := 0, uint64(4), ""
	var wrong error
	err := v.c.EachXattr(handle, func(name, value []byte) bool {
		if string(name) <= last || strings.IndexByte(string(name), 0) >= 0 {
			wrong = v.bad("xattr set at %d: name %q follows %q", v.xattr, name, last)
		}
		last = string(name)
		count++
		size += 5 + uint64(len(name)) + uint64(len(value))
		return wrong == nil
	})
	if err == nil {
		err = wrong
	}
	if err == nil && count == 0 {
		err = v.bad("xattr set at %d is empty", v.xattr)
	}
	if err != nil {
		return err
	}
	text := string(v.c.sec[secXattrs][v.xattr:][:size])
	if old, ok := v.known[text]; ok {
		return v.bad("xattr set at %d equals the one at %d", v.xattr, old-1)
	}
	v.known[text], v.sets[handle] = handle, true
	v.xattr += size
	return nil
}

// numbers checks the explicit numbers of a name-tree catalog.
func (v *verifier) numbers() error {
	if !v.c.IsNameTree() {
		return nil
	}
	seen := make(map[uint32]bool, v.c.Nodes()+v.c.NestedCount())
	enter := func(n uint32, err error) error {
		if err == nil && (n == 0 || seen[n]) {
			err = v.bad("number %d is zero or given twice", n)
		}
		seen[n] = true
		return err
	}
	for i := range v.c.Nodes() {
		if err := enter(v.c.Number(i)); err != nil {
			return err
		}
	}
	for i := range v.c.NestedCount() {
		row, err := v.c.Nested(i)
		if err := enter(row.Number, err); err != nil {
			return err
		}
	}
	return nil
}

// about checks the sections that say something of the image and of whole files.
func (v *verifier) about() error {
	if _, ok, err := v.c.Image(); err != nil {
		return err
	} else if v.c.IsNameTree() && (ok || v.c.Config() != nil || len(v.c.sec[secFileDigests]) != 0) {
		return v.bad("image, config or file digests in a name tree")
	}
	table := v.c.sec[secFileDigests]
	for i, last := 0, uint64(0); i < len(table)/fileDigestSize; i++ {
		num := chunkFirst(table, i)
		n, err := v.c.Node(uint32(num))
		if err != nil {
			return fmt.Errorf("file digest %d: %w", i, err)
		}
		d, err := chunkDigest(table, i)
		if err != nil {
			return fmt.Errorf("file digest %d: %w", i, err)
		}
		if i > 0 && num <= last || d.IsZero() || !n.IsRegular() || n.Size <= 1<<n.Shift {
			return v.bad("file digest %d, of node %d after %d: order, no digest, or no file of more than one chunk", i, num, last)
		}
		last = num
	}
	return nil
}

// Verify loads every catalog below the root of the view, images included, and checks each, and that each mountpoint is in both
// of its catalogs the same. It stops at the first error.
func (v *View) Verify(ctx context.Context) error {
	return v.verifyTree(ctx, v.root)
}

func (v *View) verifyTree(ctx context.Context, t *Tree) error {
	if err := t.root.cat.Verify(); err != nil {
		return err
	}
	for todo := []*part{t.root}; len(todo) > 0; {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for i := range p.cat.NestedCount() {
			row, err := p.cat.Nested(i)
			if err != nil {
				return err
			}
			child, err := v.verifyRow(ctx, t, p, i, row)
			if err != nil {
				return fmt.Errorf("nested catalog %v: %w", row.Catalog, err)
			}
			if child != nil {
				todo = append(todo, child)
			}
		}
	}
	return nil
}

// verifyRow checks the catalog at row i of p, and returns its part if it belongs to the same tree.
func (v *View) verifyRow(ctx context.Context, t *Tree, p *part, i uint32, row Nested) (child *part, err error) {
	c, err := v.load(ctx, row.Catalog)
	if err != nil {
		return nil, err
	}
	if err := sameXattrs(p.cat, row.Xattrs, c); err != nil {
		return nil, err
	}
	if row.Kind == NestedImage {
		image, err := NewImage(row, c)
		if err != nil {
			return nil, err
		}
		return nil, v.verifyTree(ctx, image)
	}
	if err := c.Verify(); err != nil {
		return nil, err
	}
	if err := (&Missing{row.Catalog, t, p, i}).Attach(c); err != nil {
		return nil, err
	}
	return p.parts[i].Load(), nil
}

// sameXattrs checks that a set of the parent and that of the child's root are the same.
func sameXattrs(parent *Catalog, set uint32, child *Catalog) error {
	root, err := child.Node(0)
	if err != nil {
		return err
	}
	flat := func(c *Catalog, set uint32) (out string, err error) {
		err = c.EachXattr(set, func(name, value []byte) bool {
			out += fmt.Sprintf("%q=%q,", name, value)
			return true
		})
		return out, err
	}
	want, err := flat(parent, set)
	if err != nil {
		return err
	}
	got, err := flat(child, root.Xattrs)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("catalog: xattrs of its root are not those of its mountpoint: %w", ErrFormat)
	}
	return nil
}
