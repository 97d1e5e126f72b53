package fusefs

import (
	"strconv"
	"strings"

	"github.com/skimfs/skimfs/index"
)

// magicPrefix begins the names of attributes that no image has and that tell of the mount and of where content comes from.
const magicPrefix = "user.skimfs."

const (
	largestXattr = 64 << 10 // bytes of a value, the kernel's limit
	pageSize     = 40_000   // bytes of a page of a list
)

// magic answers an attribute of any node. Of a regular file these are its digest and its chunks: hash, chunks, and chunk_list with lines
// DIGEST,OFFSET,SIZE. A list beyond 64 KiB has pages: chunk_list~0, chunk_list~1 and so on, and chunk_list~? is how many. image is the root catalog
// of the image that holds the node.
func (c *Core) magic(at place, cat *index.Catalog, n *index.Node, name string) ([]byte, error) {
	what, ok := strings.CutPrefix(name, magicPrefix)
	if !ok {
		return nil, errNoAttr
	}
	if what == "image" {
		if m := at.slot.mount.Load(); m != nil {
			return []byte(m.row.Catalog.Digest.String()), nil
		}
		return nil, errNoAttr
	}
	if !n.IsRegular() {
		return nil, errNoAttr
	}
	what, page, paged := strings.Cut(what, "~")
	switch {
	case what == "hash" && !paged:
		return fileHash(at, cat, n)
	case what == "chunks" && !paged:
		count := 0
		err := eachChunk(cat, n, func(index.Chunk) { count++ })
		return strconv.AppendInt(nil, int64(count), 10), err
	case what == "chunk_list":
		return chunkList(cat, n, page, paged)
	}
	return nil, errNoAttr
}

// eachChunk calls f for the chunks of a file that are objects.
func eachChunk(cat *index.Catalog, n *index.Node, f func(index.Chunk)) error {
	for off := int64(0); off < n.Size; {
		chunk, err := cat.Chunk(n, off)
		if err != nil {
			return err
		}
		if !chunk.IsHole() {
			f(chunk)
		}
		off = chunk.Offset + chunk.Size
	}
	return nil
}

// fileHash is the digest of a whole file. A file of zeros, and one without bytes, has none.
func fileHash(at place, cat *index.Catalog, n *index.Node) ([]byte, error) {
	if i, ok := at.pos.Index(); ok {
		if d, ok := cat.FileDigest(i); ok {
			return []byte(d.String()), nil
		}
	}
	if n.Size == 0 {
		return []byte(index.DigestOf(nil).String()), nil
	}
	chunk, err := cat.Chunk(n, 0)
	if err != nil {
		return nil, err
	}
	if chunk.IsHole() || chunk.Size != n.Size {
		return nil, errNoAttr
	}
	return []byte(chunk.Digest.String()), nil
}

func chunkList(cat *index.Catalog, n *index.Node, page string, paged bool) ([]byte, error) {
	pages, total := [][]byte{nil}, 0
	err := eachChunk(cat, n, func(chunk index.Chunk) {
		line := []byte(chunk.Digest.String() + "," + strconv.FormatInt(chunk.Offset, 10) + "," + strconv.FormatInt(chunk.Size, 10) + "\n")
		total += len(line)
		if last := len(pages) - 1; len(pages[last])+len(line) <= pageSize {
			pages[last] = append(pages[last], line...)
		} else {
			pages = append(pages, line)
		}
	})
	switch {
	case err != nil:
		return nil, err
	case !paged && total > largestXattr:
		return nil, errRange
	case !paged:
		var all []byte
		for _, p := range pages {
			all = append(all, p...)
		}
		return all, nil
	case page == "?":
		return strconv.AppendInt(nil, int64(len(pages)), 10), nil
	}
	i, err := strconv.ParseUint(page, 10, 31)
	if err != nil || i >= uint64(len(pages)) {
		return nil, errNoAttr
	}
	return pages[i], nil
}
