package index

// EachChunk calls f for each chunk of the catalog's own regular files, holes left out. A chunk that several files share comes as
// often. What hangs below, in nested catalogs, isn't visited.
func (c *Catalog) EachChunk(f func(Chunk)) error {
	for i := range c.Nodes() {
		n, err := c.Node(i)
		if err != nil {
			return err
		}
		if !n.IsRegular() {
			continue
		}
		for off := int64(0); off < n.Size; {
			chunk, err := c.Chunk(&n, off)
			if err != nil {
				return err
			}
			if off = chunk.Offset + chunk.Size; !chunk.IsHole() {
				f(chunk)
			}
		}
	}
	return nil
}

// Catalogs returns the catalogs of the image, or name tree, that are attached now, the root first.
func (t *Tree) Catalogs() []*Catalog {
	var out []*Catalog
	var walk func(p *part)
	walk = func(p *part) {
		out = append(out, p.cat)
		for i := range p.parts {
			if child := p.parts[i].Load(); child != nil {
				walk(child)
			}
		}
	}
	walk(t.root)
	return out
}
