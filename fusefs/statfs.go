package fusefs

// Totals is what statfs tells.
type Totals struct {
	Bytes   int64 // of all regular files
	Entries int64
}

// Statfs tells the totals of the image that holds a node. In the name tree it tells those of all images that are loaded, so that
// it never waits.
func (c *Core) Statfs(id NodeID) (Totals, error) {
	s := c.slot(c.swap(id).Slot())
	if s == nil {
		return Totals{}, errStale
	}
	if t := s.totals.Load(); t != nil && (s != c.top || !c.names) {
		return *t, nil
	}
	sum := *c.top.totals.Load()
	for _, s := range *c.slots.Load() {
		if t := s.totals.Load(); t != nil {
			sum.Bytes += t.Bytes
			sum.Entries += t.Entries
		}
	}
	return sum, nil
}
