package fusefs

import (
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
	if err != nil {
		return c.lacks(err)
	}
	out.EntryValid = c.entryValid(dir)
	if !ok {
		out.Attr = Attr{}
		return nil
	}
	s := at.slot
	if child.Image {
		if s, err = c.enter(at.tree, child); err != nil {
			return err
		}
	}
	s.lookups.Add(1)
	c.fill(&out.Attr, c.id(at.slot, child), &n.Attr)
	return nil
}

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

var dot, dotdot = []byte("."), []byte("..")

const dtDir = index.ModeDir >> 12

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
