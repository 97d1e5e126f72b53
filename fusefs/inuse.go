package fusefs

import "github.com/skimfs/skimfs/index"

// InUse returns the trees of the images in use: the image itself in a mount of one, and else those that the kernel holds references to.
func (c *Core) InUse() []*index.Tree {
	if !c.names {
		if t := c.top.tree.Load(); t != nil {
			return []*index.Tree{t}
		}
		return nil
	}
	var out []*index.Tree
	for _, s := range *c.slots.Load() {
		if t := s.tree.Load(); t != nil && s.lookups.Load() > 0 {
			out = append(out, t)
		}
	}
	return out
}
