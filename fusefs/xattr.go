package fusefs

import "strings"

// hidden reports whether an attribute of the image is kept from view: an overlay filesystem on top would take
// it for its own.
func hidden(name string) bool {
	return strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.")
}

// Getxattr returns the value of an extended attribute. It may point into the catalog.
func (c *Core) Getxattr(id NodeID, name string) ([]byte, error) {
	if c.cfg.NoXattrs {
		return nil, errNoSys
	}
	at, err := c.at(id, false)
	if err != nil {
		return nil, err
	}
	cat, n, err := at.pos.Node()
	if err != nil {
		return nil, err
	}
	if n.Xattrs != 0 && !hidden(name) {
		if value, ok, err := cat.Xattr(n.Xattrs, nameBytes(name)); err != nil || ok {
			return value, err
		}
	}
	if id == RootID && c.cfg.Magic != nil {
		if value, ok := c.cfg.Magic(name); ok {
			return value, nil
		}
	}
	return c.magic(at, cat, &n, name)
}

// Listxattr appends the names of a node's extended attributes to buf, each with a zero byte at its end.
func (c *Core) Listxattr(id NodeID, buf []byte) ([]byte, error) {
	if c.cfg.NoXattrs {
		return nil, errNoSys
	}
	at, err := c.at(id, false)
	if err != nil {
		return nil, err
	}
	cat, n, err := at.pos.Node()
	if err != nil {
		return buf, err
	}
	if id == RootID && c.cfg.MagicNames != nil {
		for _, name := range c.cfg.MagicNames() {
			buf = append(append(buf, name...), 0)
		}
	}
	if n.Xattrs == 0 {
		return buf, nil
	}
	err = cat.EachXattr(n.Xattrs, func(name, _ []byte) bool {
		if !hidden(string(name)) {
			buf = append(append(buf, name...), 0)
		}
		return true
	})
	return buf, err
}
