package fusefs

import (
	"bytes"
	"encoding/binary"

	"github.com/skimfs/skimfs/index"
)

// Lookup finds a name in a directory. A name that isn't there is no error: out.Node is 0 and out.EntryValid says how
// long that holds. Each node found counts as one reference until Forget.
func (c *Core) Lookup(dir NodeID, name []byte, out *Entry) error {
	if len(name) > maxName {
		return errLongName
	}
	at, err := c.at(dir, true)
	if err != nil {
		return err
	}
	child, n, ok, err := at.tree.Lookup(at.pos, name)
	if err == nil && !ok {
		child, n, ok, err = c.aliased(at, name)
	}
	if err != nil {
		return c.lacks(err)
	}
	out.EntryValid = c.entryValid(dir)
	if !ok {
		out.Attr = Attr{}
		return nil
	}
	if child.Image {
		if _, err = c.enter(at.tree, child); err != nil {
			return err
		}
	} else {
		at.slot.lookups.Add(1)
	}
	c.fill(&out.Attr, c.id(at.slot, child), &n.Attr)
	return nil
}

// sqfsSuffix ends the further name of an image with Config.SqfsAlias.
const sqfsSuffix = ".sqfs"

// aliased finds what name is the further name of. Only symlinks have one: the kernel lets a directory have one name.
func (c *Core) aliased(at place, name []byte) (index.Child, index.Node, bool, error) {
	plain, ok := bytes.CutSuffix(name, []byte(sqfsSuffix))
	if !ok || !c.aliases(at.slot) {
		return index.Child{}, index.Node{}, false, nil
	}
	child, n, ok, err := at.tree.Lookup(at.pos, plain)
	return child, n, ok && n.IsSymlink(), err
}

// aliases reports whether symlinks in directories of s have further names.
func (c *Core) aliases(s *slot) bool { return c.cfg.SqfsAlias && c.names && s == c.top }

// id is the NodeID, as the kernel knows it, of an entry of a directory in slot s.
func (c *Core) id(s *slot, child index.Child) NodeID {
	if child.Image {
		return Node(child.Number, 1)
	}
	return c.swap(Node(s.number, child.Number))
}

// The kernel's struct fuse_dirent: inode, offset of the next entry, length of the name, type, name, zeros to a multiple of 8.
const direntHeader = 24

// Readdir fills buf with entries of a directory in the kernel's form and returns how many bytes it used; 0 is the end.
// off is 0 or the offset that the last entry of an earlier call named.
func (c *Core) Readdir(dir NodeID, off uint64, buf []byte) (int, error) {
	at, err := c.at(dir, true)
	if err != nil {
		return 0, err
	}
	_, n, err := at.pos.Node()
	if err != nil {
		return 0, err
	}
	if !n.IsDir() {
		return 0, errNotDir
	}
	used := 0
	put := func(id NodeID, name []byte, dtype uint8) bool {
		size := (direntHeader + len(name) + 7) &^ 7
		if len(buf)-used < size {
			return false
		}
		b := buf[used : used+size]
		off++
		binary.NativeEndian.PutUint64(b, uint64(id))
		binary.NativeEndian.PutUint64(b[8:], off)
		binary.NativeEndian.PutUint32(b[16:], uint32(len(name)))
		binary.NativeEndian.PutUint32(b[20:], uint32(dtype))
		clear(b[direntHeader+copy(b[direntHeader:], name):])
		used += size
		return true
	}
	if off == 0 && !put(dir, dot, dtDir) {
		return used, nil
	}
	if off == 1 {
		parent, err := c.parent(dir, at)
		if err != nil {
			return 0, err
		}
		if !put(parent, dotdot, dtDir) {
			return used, nil
		}
	}
	if c.aliases(at.slot) {
		err := c.readAliased(at, &off, put)
		return used, err
	}
	if off-2 > uint64(^uint32(0)) {
		return used, nil
	}
	err = at.tree.ReadDir(at.pos, uint32(off-2), func(child index.Child) bool {
		return put(c.id(at.slot, child), child.Name, child.DType)
	})
	if err != nil {
		return 0, c.lacks(err)
	}
	return used, nil
}

// readAliased puts the entries of a directory that has further names: each entry takes two offsets, the second for its further name.
// off is that of the entry to begin with, and put moves it on.
func (c *Core) readAliased(at place, off *uint64, put func(id NodeID, name []byte, dtype uint8) bool) error {
	first := (*off - 2) / 2
	if first > uint64(^uint32(0)) {
		return nil
	}
	var inner error
	err := at.tree.ReadDir(at.pos, uint32(first), func(child index.Child) bool {
		id := c.id(at.slot, child)
		if (*off-2)%2 == 0 && !put(id, child.Name, child.DType) {
			return false
		}
		further := append(bytes.Clone(child.Name), sqfsSuffix...)
		shown := child.DType == dtLink && len(further) <= maxName
		if shown {
			var taken bool
			if _, _, taken, inner = at.tree.Lookup(at.pos, further); inner != nil {
				return false
			}
			shown = !taken
		}
		if !shown {
			*off++
			return true
		}
		return put(id, further, child.DType)
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return c.lacks(err)
	}
	return nil
}

var dot, dotdot = []byte("."), []byte("..")

const (
	dtDir  = index.ModeDir >> 12
	dtLink = index.ModeSymlink >> 12
)

// parent is the directory above dir; the mounted directory is its own.
func (c *Core) parent(dir NodeID, at place) (NodeID, error) {
	if dir == RootID {
		return dir, nil
	}
	s := at.slot
	if m := s.mount.Load(); m != nil && dir.Number() == 1 {
		s, at.tree, at.pos = c.top, m.tree, m.pos
	}
	number, err := at.tree.Parent(at.pos)
	return c.swap(Node(s.number, number)), err
}
