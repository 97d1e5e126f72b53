package index

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"sort"
)

const (
	catalogMagic   = "skimcat\n"
	catalogVersion = 1
	headerSize     = 32
	sectionSize    = 24
	nodeSize       = 64
	direntSize     = 12
	chunkRowSize   = 40
	nestedSize     = 128
	fileDigestSize = 40

	// maxNodes leaves room for numbers that begin at 1, and for one past the end.
	maxNodes = math.MaxUint32 - 2

	flagMustUnderstand = 1
	direntNested       = 1
)

// Sections of a catalog (docs/format.md 5.1).
const (
	secNodes = 1 + iota
	secDirents
	secNames
	secChunks
	secXattrs
	secNested
	secNumbers
	secImage
	secConfig
	secFileDigests
	secCount
)

// rowSize of each known section; 1 for a heap.
var rowSize = [secCount]uint64{secNodes: nodeSize, secDirents: direntSize, secNames: 1, secChunks: chunkRowSize, secXattrs: 1,
	secNested: nestedSize, secNumbers: 4, secImage: 1, secConfig: 1, secFileDigests: fileDigestSize}

// CatalogRef names a catalog: its digest, or above ListThreshold that of its chunk list, and its plain size in bytes.
type CatalogRef struct {
	Digest Digest
	Size   int64
}

// Catalog is a directory tree, used in place. It is immutable; all methods are safe for concurrent use, take no lock, and
// check every offset they follow: a broken catalog gives an error that wraps ErrFormat.
type Catalog struct {
	sec   [secCount][]byte
	total uint32 // nodes with nested parts
}

// NewCatalog takes b, which it keeps and which must not change, as a catalog. It checks the header and the section table; Verify
// checks the rest.
func NewCatalog(b []byte) (*Catalog, error) {
	if len(b) < headerSize || string(b[:8]) != catalogMagic {
		return nil, fmt.Errorf("catalog: no magic %q: %w", catalogMagic, ErrFormat)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != catalogVersion {
		return nil, fmt.Errorf("catalog: major version %d, this program reads %d: %w", v, catalogVersion, ErrFormat)
	}
	count := uint64(binary.LittleEndian.Uint32(b[12:]))
	if size := binary.LittleEndian.Uint64(b[16:]); size != uint64(len(b)) {
		return nil, fmt.Errorf("catalog: header states %d bytes, there are %d: %w", size, len(b), ErrFormat)
	}
	if binary.LittleEndian.Uint64(b[24:]) != 0 || count > uint64(len(b)-headerSize)/sectionSize {
		return nil, fmt.Errorf("catalog: header: %d sections do not fit, or reserved bytes are set: %w", count, ErrFormat)
	}
	c := &Catalog{}
	end, lastID := headerSize+count*sectionSize, uint32(0)
	for i := range count {
		row := b[headerSize+i*sectionSize:][:sectionSize]
		id, flags := binary.LittleEndian.Uint32(row), binary.LittleEndian.Uint32(row[4:])
		off, n := binary.LittleEndian.Uint64(row[8:]), binary.LittleEndian.Uint64(row[16:])
		switch {
		case id <= lastID:
			return nil, fmt.Errorf("catalog: section %d follows section %d: %w", id, lastID, ErrFormat)
		case flags&^flagMustUnderstand != 0 || id < secCount && flags != sectionFlags(id):
			return nil, fmt.Errorf("catalog: section %d has flags %#x: %w", id, flags, ErrFormat)
		case id >= secCount && flags&flagMustUnderstand != 0:
			return nil, fmt.Errorf("catalog: section %d must be understood and is not: a newer skimfs is needed: %w", id, ErrFormat)
		case off != align8(end) || n == 0 || n > uint64(len(b)) || off > uint64(len(b))-n:
			return nil, fmt.Errorf("catalog: section %d at %d with %d bytes is empty, overlaps, leaves a gap or ends outside: %w", id, off, n, ErrFormat)
		case id < secCount && n%rowSize[id] != 0:
			return nil, fmt.Errorf("catalog: section %d has %d bytes, no multiple of %d: %w", id, n, rowSize[id], ErrFormat)
		case id < secCount && n/rowSize[id] > maxNodes:
			return nil, fmt.Errorf("catalog: section %d has too many rows: %w", id, ErrFormat)
		}
		if !allZero(b[end:off]) {
			return nil, fmt.Errorf("catalog: bytes between sections before section %d: %w", id, ErrFormat)
		}
		if id < secCount {
			c.sec[id] = b[off : off+n : off+n]
		}
		end, lastID = off+n, id
	}
	if align8(end) != uint64(len(b)) || !allZero(b[end:]) {
		return nil, fmt.Errorf("catalog: %d bytes after the last section: %w", uint64(len(b))-end, ErrFormat)
	}
	if err := c.checkTop(); err != nil {
		return nil, err
	}
	return c, nil
}

// sectionFlags returns the flags of a section that this program knows.
func sectionFlags(id uint32) uint32 {
	if id < secImage {
		return flagMustUnderstand
	}
	return 0
}

// checkTop checks what every access relies on: the root, the tables that go together, and the bases of nested catalogs.
func (c *Catalog) checkTop() error {
	if n := len(c.sec[secNumbers]); n != 0 && uint64(n) != 4*uint64(c.Nodes()) {
		return fmt.Errorf("catalog: %d numbers for %d nodes: %w", n/4, c.Nodes(), ErrFormat)
	}
	root, err := c.Node(0)
	if err != nil {
		return err
	}
	if !root.IsDir() {
		return fmt.Errorf("catalog: node 0 has mode %#o, not a directory: %w", root.Mode, ErrFormat)
	}
	next := uint64(c.Nodes())
	for i := range c.NestedCount() {
		row, err := c.Nested(i)
		if err != nil {
			return err
		}
		if (row.Kind == NestedPart) == c.IsNameTree() {
			return fmt.Errorf("catalog: nested catalog %d is of kind %d, in a name tree: %t: %w", i, row.Kind, c.IsNameTree(), ErrFormat)
		}
		if row.Kind != NestedPart {
			continue
		}
		if uint64(row.Base) != next || row.Count == 0 {
			return fmt.Errorf("catalog: nested catalog %d has base %d and %d nodes, want base %d: %w", i, row.Base, row.Count, next, ErrFormat)
		}
		next += uint64(row.Count)
		if next > maxNodes {
			return fmt.Errorf("catalog: nested catalog %d ends at node %d, above the limit of %d: %w", i, next, uint64(maxNodes), ErrFormat)
		}
	}
	c.total = uint32(next)
	return nil
}

// Nodes returns the number of nodes in this catalog itself.
func (c *Catalog) Nodes() uint32 { return uint32(len(c.sec[secNodes]) / nodeSize) }

// Total returns the number of nodes in this catalog and in all nested parts of the same image.
func (c *Catalog) Total() uint32 { return c.total }

// IsNameTree reports whether the catalog belongs to a repository's name tree: its nodes have explicit numbers.
func (c *Catalog) IsNameTree() bool { return len(c.sec[secNumbers]) != 0 }

// Node is a node record: its attributes and where its parts lie in the catalog.
type Node struct {
	Attr
	Xattrs uint32 // 0, or a handle for the catalog's Xattr methods
	Parent uint32 // of a directory: its parent's node
	Count  uint32 // of a directory: number of entries; of a regular file: number of chunk rows
	Shift  uint8  // of a regular file with chunks: binary logarithm of the chunk size
	data   uint64
}

// First is the number of a directory's first entry, for Dirent.
func (n *Node) First() uint32 { return uint32(n.data) }

// Node returns node i.
func (c *Catalog) Node(i uint32) (Node, error) {
	off := uint64(i) * nodeSize
	if off >= uint64(len(c.sec[secNodes])) {
		return Node{}, fmt.Errorf("catalog: no node %d: %w", i, ErrFormat)
	}
	n, err := c.decodeNode(c.sec[secNodes][off:][:nodeSize])
	if err != nil {
		return Node{}, fmt.Errorf("catalog: node %d: %w", i, err)
	}
	return n, nil
}

// Attr returns the attributes of node i, cheaper than Node.
func (c *Catalog) Attr(i uint32) (Attr, error) {
	n, err := c.Node(i)
	return n.Attr, err
}

func (c *Catalog) decodeNode(b []byte) (Node, error) {
	_ = b[nodeSize-1]
	n := Node{
		Attr: Attr{
			Mode: binary.LittleEndian.Uint32(b), UID: binary.LittleEndian.Uint32(b[4:]), GID: binary.LittleEndian.Uint32(b[8:]),
			Nlink: binary.LittleEndian.Uint32(b[12:]), Sec: int64(binary.LittleEndian.Uint64(b[16:])), Nsec: binary.LittleEndian.Uint32(b[24:]),
			Size: int64(binary.LittleEndian.Uint64(b[32:])),
		},
		Xattrs: binary.LittleEndian.Uint32(b[28:]),
		data:   binary.LittleEndian.Uint64(b[40:]),
		Count:  binary.LittleEndian.Uint32(b[48:]),
		Shift:  b[52],
		Parent: binary.LittleEndian.Uint32(b[56:]),
	}
	if n.Nsec >= 1e9 || n.Size < 0 || n.Mode&^uint32(ModeType|0o7777) != 0 || b[53]|b[54]|b[55] != 0 || binary.LittleEndian.Uint32(b[60:]) != 0 {
		return Node{}, fmt.Errorf("mode %#o, size %d, nanoseconds %d or reserved bytes are out of range: %w", n.Mode, n.Size, n.Nsec, ErrFormat)
	}
	switch n.Type() {
	case ModeRegular:
		if (n.Count == 0) != (n.Size == 0) || n.Count != 0 && (n.Shift < minChunkShift || n.Shift > maxChunkShift || uint64(n.Size-1)>>n.Shift > math.MaxUint32) {
			return Node{}, fmt.Errorf("file of %d bytes has %d chunk rows of 2^%d bytes: %w", n.Size, n.Count, n.Shift, ErrFormat)
		}
		if !rows(c.sec[secChunks], chunkRowSize, n.data, n.Count) {
			return Node{}, fmt.Errorf("chunk rows %d+%d are outside the table: %w", n.data, n.Count, ErrFormat)
		}
	case ModeDir:
		if !rows(c.sec[secDirents], direntSize, n.data, n.Count) {
			return Node{}, fmt.Errorf("entries %d+%d are outside the table: %w", n.data, n.Count, ErrFormat)
		}
	case ModeSymlink:
		if n.Size == 0 || n.Size > maxTarget || !rows(c.sec[secNames], 1, n.data, uint32(n.Size)) {
			return Node{}, fmt.Errorf("symlink target at %d+%d is outside the names: %w", n.data, n.Size, ErrFormat)
		}
	case ModeChar, ModeBlock:
		n.Major, n.Minor = uint32(n.data>>32), uint32(n.data)
	case ModeFIFO, ModeSocket:
	default:
		return Node{}, fmt.Errorf("mode %#o has no known type: %w", n.Mode, ErrFormat)
	}
	return n, nil
}

// Dirent is a directory entry. Name points into the catalog.
type Dirent struct {
	Name   []byte
	Child  uint32 // a node, or with Nested a row for the Nested method
	Nested bool
	DType  uint8
}

// Dirent returns entry i of the table, as counted from a directory's First.
func (c *Catalog) Dirent(i uint32) (Dirent, error) {
	off := uint64(i) * direntSize
	if off >= uint64(len(c.sec[secDirents])) {
		return Dirent{}, fmt.Errorf("catalog: no directory entry %d: %w", i, ErrFormat)
	}
	b := c.sec[secDirents][off:][:direntSize]
	name, n := uint64(binary.LittleEndian.Uint32(b)), uint64(b[8])
	flags := binary.LittleEndian.Uint16(b[10:])
	if n == 0 || name+n > uint64(len(c.sec[secNames])) || flags&^direntNested != 0 {
		return Dirent{}, fmt.Errorf("catalog: directory entry %d: name at %d+%d or flags %#x: %w", i, name, n, flags, ErrFormat)
	}
	return Dirent{c.sec[secNames][name : name+n : name+n], binary.LittleEndian.Uint32(b[4:]), flags&direntNested != 0, b[9]}, nil
}

// Child checks the entry d of directory dir and returns the node it leads to; with d.Nested its attributes come from the nested row.
func (c *Catalog) Child(dir uint32, d Dirent) (Node, error) {
	if d.Nested {
		row, err := c.Nested(d.Child)
		if err == nil && (row.Parent != dir || d.DType != row.DType()) {
			return Node{}, fmt.Errorf("catalog: entry %q of type %d leads from directory %d to nested catalog %d below %d: %w", d.Name, d.DType, dir, d.Child, row.Parent, ErrFormat)
		}
		return row.Node, err
	}
	n, err := c.Node(d.Child)
	if err != nil {
		return Node{}, fmt.Errorf("catalog: entry %q: %w", d.Name, err)
	}
	if n.DType() != d.DType {
		return Node{}, fmt.Errorf("catalog: entry %q has type %d, its node mode %#o: %w", d.Name, d.DType, n.Mode, ErrFormat)
	}
	if n.IsDir() && (d.Child <= dir || n.Parent != dir) {
		return Node{}, fmt.Errorf("catalog: entry %q leads from directory %d to directory %d below %d: %w", d.Name, dir, d.Child, n.Parent, ErrFormat)
	}
	return n, nil
}

// Lookup finds name in the directory dir, whose record is n.
func (c *Catalog) Lookup(n *Node, name []byte) (d Dirent, ok bool, err error) {
	if !n.IsDir() {
		return Dirent{}, false, fmt.Errorf("catalog: lookup of %q in a node of mode %#o: %w", name, n.Mode, ErrFormat)
	}
	if !rows(c.sec[secDirents], direntSize, n.data, n.Count) {
		return Dirent{}, false, fmt.Errorf("catalog: lookup of %q: entries %d+%d are outside the table: %w", name, n.data, n.Count, ErrFormat)
	}
	table, names := c.sec[secDirents][n.data*direntSize:], c.sec[secNames]
	for lo, hi := uint32(0), n.Count; lo < hi; {
		mid := lo + (hi-lo)/2
		b := table[uint64(mid)*direntSize:][:direntSize]
		at, size := uint64(binary.LittleEndian.Uint32(b)), uint64(b[8])
		if size == 0 || at+size > uint64(len(names)) {
			_, err := c.Dirent(n.First() + mid)
			return Dirent{}, false, err
		}
		switch cmp := bytes.Compare(names[at:at+size], name); {
		case cmp < 0:
			lo = mid + 1
		case cmp > 0:
			hi = mid
		default:
			if d, err = c.Dirent(n.First() + mid); err == nil && !validName(d.Name) {
				err = fmt.Errorf("catalog: directory entry %d: name %q: %w", n.First()+mid, d.Name, ErrFormat)
			}
			return d, err == nil, err
		}
	}
	return Dirent{}, false, nil
}

// Readlink returns the target of the symlink n. It points into the catalog.
func (c *Catalog) Readlink(n *Node) ([]byte, error) {
	if !n.IsSymlink() || !rows(c.sec[secNames], 1, n.data, uint32(n.Size)) {
		return nil, fmt.Errorf("catalog: readlink of a node of mode %#o: %w", n.Mode, ErrFormat)
	}
	return c.sec[secNames][n.data : n.data+uint64(n.Size)], nil
}

// Chunk returns the chunk of the regular file n that holds the byte at off, which must be below n.Size. A hole is returned
// up to the next object or the end of the file, so its Size may be many chunks.
func (c *Catalog) Chunk(n *Node, off int64) (Chunk, error) {
	if !n.IsRegular() || off < 0 || off >= n.Size || n.Count == 0 || !rows(c.sec[secChunks], chunkRowSize, n.data, n.Count) {
		return Chunk{}, fmt.Errorf("catalog: chunk at %d of a node of mode %#o with %d bytes in %d rows: %w", off, n.Mode, n.Size, n.Count, ErrFormat)
	}
	want := uint64(off) >> n.Shift
	table := c.sec[secChunks][n.data*chunkRowSize:][:uint64(n.Count)*chunkRowSize]
	// Without holes row i is chunk i.
	i := int(min(want, uint64(n.Count-1)))
	if chunkFirst(table, i) != want {
		i = sort.Search(int(n.Count), func(i int) bool { return chunkFirst(table, i) > want }) - 1
	}
	if i < 0 {
		return Chunk{}, fmt.Errorf("catalog: no chunk row for byte %d: %w", off, ErrFormat)
	}
	d, err := chunkDigest(table, i)
	if err != nil {
		return Chunk{}, fmt.Errorf("catalog: chunk row %d: %w", n.data+uint64(i), err)
	}
	first, end := chunkFirst(table, i), int64(0)
	switch {
	case !d.IsZero():
		end = min(int64(first+1)<<n.Shift, n.Size)
	case i+1 < int(n.Count):
		end = int64(chunkFirst(table, i+1)) << n.Shift
	default:
		end = n.Size
	}
	out := Chunk{Digest: d, Offset: int64(first) << n.Shift, Size: end - int64(first)<<n.Shift}
	if off >= end || end > n.Size {
		return Chunk{}, fmt.Errorf("catalog: chunk row %d does not cover byte %d of %d: %w", n.data+uint64(i), off, n.Size, ErrFormat)
	}
	return out, nil
}

// chunkFirst returns the number of the chunk, in its file, that row i of a table begins with.
func chunkFirst(table []byte, i int) uint64 {
	return uint64(binary.LittleEndian.Uint32(table[i*chunkRowSize:]))
}

// chunkDigest returns the digest of row i of a table, zero for a hole. File digests have the same shape.
func chunkDigest(table []byte, i int) (d Digest, err error) {
	b := table[i*chunkRowSize:][:chunkRowSize]
	d.alg = Algorithm(b[4])
	copy(d.sum[:], b[8:])
	if d.alg > SHA256 || d.alg == 0 && d.sum != [32]byte{} || b[5]|b[6]|b[7] != 0 {
		return Digest{}, fmt.Errorf("digest has tag %d and bytes %x behind it, or is no hole with tag 0: %w", d.alg, b[5:8], ErrFormat)
	}
	return d, nil
}

// EachXattr calls f for each attribute of the set that a Node's Xattrs names, until f returns false. Name and value point into the
// catalog.
func (c *Catalog) EachXattr(set uint32, f func(name, value []byte) bool) error {
	if set == 0 {
		return nil
	}
	heap := c.sec[secXattrs]
	bad := func() error { return fmt.Errorf("catalog: xattr set at %d is outside the heap: %w", set-1, ErrFormat) }
	if uint64(set-1)+4 > uint64(len(heap)) {
		return bad()
	}
	heap = heap[set-1:]
	count := binary.LittleEndian.Uint32(heap)
	heap = heap[4:]
	for range count {
		if len(heap) < 5 {
			return bad()
		}
		nn, vn := uint64(heap[0]), uint64(binary.LittleEndian.Uint32(heap[1:]))
		heap = heap[5:]
		if nn == 0 || nn+vn > uint64(len(heap)) {
			return bad()
		}
		if !f(heap[:nn:nn], heap[nn:nn+vn:nn+vn]) {
			return nil
		}
		heap = heap[nn+vn:]
	}
	return nil
}

// Xattr returns the value of one attribute of a set.
func (c *Catalog) Xattr(set uint32, name []byte) (value []byte, ok bool, err error) {
	err = c.EachXattr(set, func(n, v []byte) bool {
		if bytes.Equal(n, name) {
			value, ok = v, true
		}
		return !ok
	})
	return value, ok, err
}

// NestedKind says what hangs at a mountpoint.
type NestedKind uint8

const (
	// NestedPart is a part of the same image, numbered with it.
	NestedPart NestedKind = iota
	// NestedNames is a further catalog of a repository's name tree.
	NestedNames
	// NestedImage is the root of an image.
	NestedImage
)

// Nested is a mountpoint: the row that a parent catalog has for a nested one. Its Node has the mountpoint's full attributes.
type Nested struct {
	Node
	Kind    NestedKind
	Number  uint32 // NestedNames: the directory's number; NestedImage: its slot
	Base    uint32 // NestedPart: number of its node 0 relative to this catalog's
	Count   uint32 // nodes in it and everything nested in it
	Catalog CatalogRef
}

// NestedCount returns the number of nested catalogs.
func (c *Catalog) NestedCount() uint32 { return uint32(len(c.sec[secNested]) / nestedSize) }

// Nested returns row i of the nested catalogs.
func (c *Catalog) Nested(i uint32) (Nested, error) {
	off := uint64(i) * nestedSize
	if off >= uint64(len(c.sec[secNested])) {
		return Nested{}, fmt.Errorf("catalog: no nested catalog %d: %w", i, ErrFormat)
	}
	b := c.sec[secNested][off:][:nestedSize]
	n, err := c.decodeNode(b[:nodeSize])
	if err != nil {
		return Nested{}, fmt.Errorf("catalog: nested catalog %d: %w", i, err)
	}
	row := Nested{Node: n, Kind: NestedKind(b[64]), Number: binary.LittleEndian.Uint32(b[68:]), Base: binary.LittleEndian.Uint32(b[80:]),
		Count: binary.LittleEndian.Uint32(b[84:])}
	row.Catalog.Size = int64(binary.LittleEndian.Uint64(b[72:]))
	row.Catalog.Digest.alg = Algorithm(b[65])
	copy(row.Catalog.Digest.sum[:], b[88:])
	if n.data != 0 || n.Count != 0 || n.Shift != 0 || b[66]|b[67] != 0 || !allZero(b[120:]) ||
		row.Kind == NestedPart && row.Number != 0 || row.Kind != NestedPart && row.Base != 0 || row.Kind == NestedNames && row.Count != 0 {
		return Nested{}, fmt.Errorf("catalog: nested catalog %d of kind %d: number %d, base %d, count %d or reserved bytes are out of range: %w",
			i, row.Kind, row.Number, row.Base, row.Count, ErrFormat)
	}
	if !n.IsDir() || row.Kind > NestedImage || row.Catalog.Digest.alg != SHA256 || row.Catalog.Size <= 0 || row.Catalog.Size > MaxCatalog {
		return Nested{}, fmt.Errorf("catalog: nested catalog %d: kind %d, mode %#o, size %d or digest tag %d is out of range: %w",
			i, row.Kind, n.Mode, row.Catalog.Size, row.Catalog.Digest.alg, ErrFormat)
	}
	return row, nil
}

// Number returns the explicit number of node i of a name-tree catalog.
func (c *Catalog) Number(i uint32) (uint32, error) {
	if uint64(i)*4 >= uint64(len(c.sec[secNumbers])) {
		return 0, fmt.Errorf("catalog: node %d has no number: %w", i, ErrFormat)
	}
	return binary.LittleEndian.Uint32(c.sec[secNumbers][i*4:]), nil
}

// ImageInfo is what an image's root catalog says of the image.
type ImageInfo struct {
	Manifest     Digest `json:"manifest"`     // of the OCI image manifest of the platform
	ConfigDigest Digest `json:"configDigest"` // of the OCI image config
	Platform     string `json:"platform"`     // os/architecture[/variant]
	Converter    string `json:"converter"`    // format and program version
	Bare         bool   `json:"bare"`         // nothing was added to the image
	Entries      int64  `json:"entries"`      // names, hard links counted each
	Files        int64  `json:"files"`        // regular files
	Bytes        int64  `json:"bytes"`        // plain bytes of all regular files
	Objects      int64  `json:"objects"`      // different file objects
}

// Image returns what the catalog says of its image; ok is false unless it is an image's root catalog.
func (c *Catalog) Image() (info ImageInfo, ok bool, err error) {
	b := c.sec[secImage]
	if len(b) == 0 {
		return ImageInfo{}, false, nil
	}
	if err := json.Unmarshal(b, &info); err != nil {
		return ImageInfo{}, false, fmt.Errorf("catalog: image section: %w: %w", err, ErrFormat)
	}
	return info, true, nil
}

// Config returns the OCI image config as it was in the registry, nil if there is none.
func (c *Catalog) Config() []byte { return c.sec[secConfig] }

// FileDigest returns the digest of the whole file of node i, which only files of more than one chunk have here.
func (c *Catalog) FileDigest(i uint32) (d Digest, ok bool) {
	table := c.sec[secFileDigests]
	n := len(table) / fileDigestSize
	at := sort.Search(n, func(j int) bool { return binary.LittleEndian.Uint32(table[j*fileDigestSize:]) >= i })
	if at == n || binary.LittleEndian.Uint32(table[at*fileDigestSize:]) != i {
		return Digest{}, false
	}
	d, err := chunkDigest(table, at)
	return d, err == nil && !d.IsZero()
}

// rows reports whether count rows from first on lie in table.
func rows(table []byte, size uint64, first uint64, count uint32) bool {
	n := uint64(len(table)) / size
	return first <= n && uint64(count) <= n-first
}

func align8(n uint64) uint64 { return (n + 7) &^ 7 }

func allZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}
