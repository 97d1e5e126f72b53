package fusefs

import "fmt"

// NodeID names a node of a mount: slot << 32 | number. Slot 0 is the mounted image or, in a repository mount, the name tree; a
// number is one of [index.Tree]. It is at once the inode number that stat shows. It follows from published data alone, so
// it is the same after a restart and on every node.
type NodeID uint64

// RootID is the mounted directory.
const RootID NodeID = 1

// Node returns the NodeID of a node of the Tree in a slot.
func Node(slot, number uint32) NodeID { return NodeID(slot)<<32 | NodeID(number) }

// Slot returns the slot part of n.
func (n NodeID) Slot() uint32 { return uint32(n >> 32) }

// Number returns the number of the node in the Tree of its slot.
func (n NodeID) Number() uint32 { return uint32(n) }

func (n NodeID) String() string { return fmt.Sprintf("%d:%d", n.Slot(), n.Number()) }

// swap turns a NodeID as the kernel knows it into one of the trees, and back: when a subdirectory is mounted it and
// the tree's root change places, because the kernel's root is always 1.
func (c *Core) swap(n NodeID) NodeID {
	switch {
	case c.root == RootID:
	case n == RootID:
		return c.root
	case n == c.root:
		return RootID
	}
	return n
}
