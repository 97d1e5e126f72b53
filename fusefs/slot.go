package fusefs

import (
	"context"
	"fmt"
	"maps"
	"sync/atomic"

	"github.com/skimfs/skimfs/index"
	"golang.org/x/sync/errgroup"
)

// slot holds the Tree of an image, or of slot 0.
type slot struct {
	number  uint32
	mount   atomic.Pointer[mountpoint] // nil in slot 0
	tree    atomic.Pointer[index.Tree] // nil while not loaded
	totals  atomic.Pointer[Totals]
	lookups atomic.Int64 // references that the kernel holds to nodes of the slot
}

// mountpoint is where an image hangs in the name tree.
type mountpoint struct {
	row  index.Nested
	tree *index.Tree
	pos  index.Pos
}

// set makes t the slot's tree.
func (s *slot) set(t *index.Tree) error {
	info, _, err := t.Root().Image()
	if err != nil {
		return err
	}
	s.totals.Store(&Totals{Bytes: info.Bytes, Entries: max(info.Entries, int64(t.Root().Total()))})
	s.tree.Store(t)
	return nil
}

func (c *Core) slot(number uint32) *slot {
	if number == 0 {
		return c.top
	}
	return (*c.slots.Load())[number]
}

// enter returns the slot of an image that was found in the name tree, with one reference of the kernel more.
func (c *Core) enter(t *index.Tree, child index.Child) (*slot, error) {
	if s := c.slot(child.Number); s != nil && s.mount.Load().tree == t {
		s.lookups.Add(1)
		if c.slot(child.Number) == s {
			return s, nil
		}
		s.lookups.Add(-1) // Replace took it off meanwhile
	}
	row, _, err := child.Pos.Nested()
	if err != nil {
		return nil, err
	}
	m := &mountpoint{row, t, child.Pos}
	c.grow.Lock()
	defer c.grow.Unlock()
	old := *c.slots.Load()
	s := old[child.Number]
	if s == nil {
		s = &slot{number: child.Number}
		s.mount.Store(m)
		s.lookups.Add(1)
		grown := maps.Clone(old)
		grown[child.Number] = s
		c.slots.Store(&grown)
		return s, nil
	}
	if was := s.mount.Load().row.Catalog; was != row.Catalog {
		return nil, fmt.Errorf("slot %d held catalog %v and now names %v: %w", child.Number, was, row.Catalog, index.ErrFormat)
	}
	s.mount.Store(m)
	s.lookups.Add(1)
	return s, nil
}

// moveSlots hangs the images that are known into t, the name tree that is shown from now on, so that the one before leaves memory. What
// the kernel no longer knows is dropped; an image in use that t doesn't have stays where it was.
func (c *Core) moveSlots(t *index.Tree) {
	c.grow.Lock()
	defer c.grow.Unlock()
	old, left := *c.slots.Load(), map[uint32]*slot{}
	for n, s := range old {
		if s.lookups.Load() <= 0 {
			continue
		}
		left[n] = s
		pos, err := t.At(n)
		if err != nil {
			continue
		}
		row, ok, err := pos.Nested()
		if ok && err == nil && row.Kind == index.NestedImage && row.Catalog == s.mount.Load().row.Catalog {
			s.mount.Store(&mountpoint{row, t, pos})
		}
	}
	c.slots.Store(&left)
	// A lookup that came in between sees the new map, or is seen here.
	back := map[uint32]*slot{}
	for n, s := range old {
		if left[n] == nil && s.lookups.Load() > 0 {
			back[n] = s
		}
	}
	if len(back) > 0 {
		maps.Copy(back, left)
		c.slots.Store(&back)
	}
}

// Forget takes back n references that lookups gave the kernel. An image that the kernel no longer knows leaves memory.
func (c *Core) Forget(id NodeID, n uint64) {
	s := c.slot(c.swap(id).Slot())
	if s == nil {
		return
	}
	if s.lookups.Add(-int64(n)) > 0 || s == c.top {
		return
	}
	t := s.tree.Swap(nil)
	if s.lookups.Load() > 0 {
		s.tree.CompareAndSwap(nil, t) // a lookup came in between
	}
}

// SlotInfo is what a Core knows of an image of a repository.
type SlotInfo struct {
	Slot    uint32
	Catalog index.CatalogRef
	Lookups int64 // references that the kernel holds; above 0 the image is in use
	Loaded  bool
}

// Slots returns the images that were looked up since the mount, in no order.
func (c *Core) Slots() []SlotInfo {
	var out []SlotInfo
	for n, s := range *c.slots.Load() {
		out = append(out, SlotInfo{n, s.mount.Load().row.Catalog, s.lookups.Load(), s.tree.Load() != nil})
	}
	return out
}

// Lookups returns the references that the kernel holds to nodes of slot 0.
func (c *Core) Lookups() int64 { return c.top.lookups.Load() }

// Replace makes t, the name tree of a later revision, the one that is shown. What was loaded of the old tree is loaded
// of t first, so that nothing which is in use becomes unreachable; on an error the old tree stays. Images go on unchanged.
func (c *Core) Replace(ctx context.Context, t *index.Tree) error {
	if !c.names || !t.Root().IsNameTree() {
		return fmt.Errorf("replacing the tree of a mount: not a name tree: %w", index.ErrFormat)
	}
	if c.root != RootID {
		if err := mountable(t, c.root.Number()); err != nil {
			return err
		}
	}
	c.swaps.Lock()
	defer c.swaps.Unlock()
	old := c.top.tree.Load()
	for {
		parts, err := t.Parts()
		if err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(loadsAtOnce)
		more := false
		for _, m := range parts {
			if !attached(old, m.Number()) {
				continue
			}
			more = true
			g.Go(func() error {
				cat, err := c.cfg.Catalogs(ctx, m.Ref)
				if err != nil {
					return fmt.Errorf("loading catalog %v of the new revision: %w", m.Ref, err)
				}
				return m.Attach(cat)
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		if !more {
			if err := c.top.set(t); err != nil {
				return err
			}
			c.moveSlots(t)
			return nil
		}
	}
}

// attached reports whether the catalog of the directory is loaded in t.
func attached(t *index.Tree, number uint32) bool {
	pos, err := t.At(number)
	if err != nil {
		return false
	}
	_, mountpoint, err := pos.Nested()
	return err == nil && !mountpoint
}
