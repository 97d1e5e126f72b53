package fusefs

// Readlink returns the target of a symlink, verbatim. It points into the catalog.
func (c *Core) Readlink(id NodeID) ([]byte, error) {
	at, err := c.at(id, false)
	if err != nil {
		return nil, err
	}
	cat, n, err := at.pos.Node()
	if err != nil {
		return nil, err
	}
	if !n.IsSymlink() {
		return nil, errInvalid
	}
	return cat.Readlink(&n)
}
