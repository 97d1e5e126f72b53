package index

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
)

const (
	// splitAbove is the number of nodes above which a directory is split off, splitLeast the fewest that make a nested catalog.
	splitAbove = 16384
	splitLeast = 1024
)

// Put stores the plain content of an object under its digest. It must not keep plain.
type Put func(d Digest, plain []byte) error

// BuildImage writes the catalogs of an image, nested ones first, and returns the reference to its root catalog. It fills in the link
// counts of root's inodes. Equal trees give equal bytes.
func BuildImage(root *Entry, info ImageInfo, config []byte, put Put) (ImageRef, error) {
	return buildImage(root, info, config, put, splitAbove, splitLeast)
}

func buildImage(root *Entry, info ImageInfo, config []byte, put Put, above, least int) (ImageRef, error) {
	b := &builder{put: put, split: map[*Entry]bool{}, links: map[*Inode]int{}, above: above, least: least}
	if err := b.check(root, "", 0); err != nil {
		return ImageRef{}, err
	}
	b.weigh(root, true)
	image, err := json.Marshal(info)
	if err != nil {
		return ImageRef{}, fmt.Errorf("encoding image section: %w", err)
	}
	return b.write(root, image, config)
}

// BuildNames writes the catalogs of a repository's name tree, whose entries must carry their numbers, and returns the reference to
// its root catalog.
func BuildNames(root *Entry, put Put) (CatalogRef, error) {
	b := &builder{put: put, split: map[*Entry]bool{}, links: map[*Inode]int{}, names: true, numbers: map[uint32]*Inode{}}
	if err := b.check(root, "", 0); err != nil {
		return CatalogRef{}, err
	}
	ref, err := b.write(root, nil, nil)
	return ref.Catalog, err
}

type builder struct {
	put   Put
	split map[*Entry]bool // directories that become nested catalogs
	links map[*Inode]int  // names of each inode that isn't a directory
	names bool            // a name tree

	above, least int // of an image: splitAbove and splitLeast

	numbers map[uint32]*Inode // of a name tree
}

// check validates the tree and counts links.
func (b *builder) check(e *Entry, path string, depth int) error {
	bad := func(what string, args ...any) error {
		return fmt.Errorf("building catalog: %q: %s: %w", path, fmt.Sprintf(what, args...), ErrFormat)
	}
	switch {
	case depth == 0 && !e.IsDir():
		return bad("the root has mode %#o", e.Mode)
	case depth > 4096:
		return bad("more than 4096 directories deep")
	case b.names && (e.Number == 0 || (e.Number == 1) != (depth == 0)):
		return bad("number %d in a name tree, whose root alone has 1", e.Number)
	case e.Nsec >= 1e9 || e.Mode&^uint32(ModeType|0o7777) != 0:
		return bad("mode %#o or nanoseconds %d out of range", e.Mode, e.Nsec)
	case e.IsSymlink() && (len(e.Target) == 0 || len(e.Target) > maxTarget):
		return bad("symlink target of %d bytes", len(e.Target))
	case e.IsRegular() && (e.Size < 0 || int64(len(e.Chunks)) != (e.Size+ChunkSize-1)>>ChunkShift):
		return bad("%d chunks for %d bytes", len(e.Chunks), e.Size)
	case e.IsRegular() && (uint64(len(e.Chunks)) > math.MaxUint32 || slices.ContainsFunc(e.Chunks, badDigest) || badDigest(e.File)):
		return bad("more than 2^32 chunks, or a digest with an unknown tag")
	case !knownType(e.Mode):
		return bad("mode %#o has no known type", e.Mode)
	case e.Image != nil && (!b.names || !e.IsDir() || len(e.Children) != 0 || e.Image.Nodes == 0):
		return bad("an image that is no directory, has children or no nodes, or is not in a name tree")
	case !e.IsDir() && len(e.Children) != 0:
		return bad("a file with children")
	}
	if b.names {
		if other := b.numbers[e.Number]; other != nil && other != e.Inode {
			return bad("number %d is given twice", e.Number)
		}
		b.numbers[e.Number] = e.Inode
	}
	last := ""
	for _, x := range e.Xattrs {
		if len(x.Name) == 0 || len(x.Name) > 255 || x.Name <= last || strings.IndexByte(x.Name, 0) >= 0 || uint64(len(x.Value)) > math.MaxUint32 {
			return bad("xattr %q: length, order or bytes of the name", x.Name)
		}
		last = x.Name
	}
	if !e.IsDir() {
		b.links[e.Inode]++
		return nil
	}
	subdirs := uint32(0)
	for name, child := range e.Children {
		if !validName([]byte(name)) {
			return bad("name %q", name)
		}
		if child.IsDir() {
			subdirs++
		}
		if err := b.check(child, path+"/"+name, depth+1); err != nil {
			return err
		}
	}
	if e.Image == nil {
		e.Nlink = 2 + subdirs
	}
	return nil
}

// weigh decides which directories are split off (docs/format.md 5.6). It returns the nodes of e's subtree that are not, and the
// links seen so far of each inode that has more outside of e.
func (b *builder) weigh(e *Entry, root bool) (weight int, open map[*Inode]int) {
	open = map[*Inode]int{}
	weight = 1
	type sub struct {
		e      *Entry
		weight int
		closed bool
	}
	var subs []sub
	for _, name := range e.names() {
		child := e.Children[name]
		if !child.IsDir() {
			weight++
			if b.links[child.Inode] > 1 {
				open[child.Inode]++
			}
			continue
		}
		w, o := b.weigh(child, false)
		weight += w
		subs = append(subs, sub{child, w, len(o) == 0})
		if len(o) > len(open) {
			o, open = open, o
		}
		for inode, n := range o {
			open[inode] += n
		}
	}
	for inode, n := range open {
		if n == b.links[inode] {
			weight -= n - 1
			delete(open, inode)
		}
	}
	if weight <= b.above {
		return weight, open
	}
	slices.SortStableFunc(subs, func(x, y sub) int { return y.weight - x.weight })
	for _, s := range subs {
		if weight <= b.above || s.weight < b.least {
			break
		}
		if s.closed && !b.split[s.e] {
			b.split[s.e] = true
			weight -= s.weight
		}
	}
	if weight > b.above && !root && len(open) == 0 {
		b.split[e] = true
		weight = 0
	}
	return weight, open
}

// nested returns the row kind under which e hangs in its parent catalog, and whether it does at all.
func (b *builder) nested(e *Entry) (NestedKind, bool) {
	switch {
	case !b.names:
		return NestedPart, b.split[e]
	case e.Image != nil:
		return NestedImage, true
	}
	return NestedNames, e.Split
}

// catalogWriter collects the sections of one catalog.
type catalogWriter struct {
	b     *builder
	sec   [secCount][]byte
	nodes map[*Inode]uint32 // hard links already numbered
	sets  map[string]uint32 // xattr sets already written
	count uint64            // nodes of nested parts
}

// write builds the catalog whose root is e, after all that nest in it.
func (b *builder) write(e *Entry, image, config []byte) (ImageRef, error) {
	w := &catalogWriter{b: b, nodes: map[*Inode]uint32{}, sets: map[string]uint32{}}
	w.sec[secImage], w.sec[secConfig] = image, config
	w.node(e, 0)
	if err := w.visit(e, 0); err != nil {
		return ImageRef{}, err
	}
	w.bases()
	total := uint64(len(w.sec[secNodes])/nodeSize) + w.count
	if total > maxNodes {
		return ImageRef{}, fmt.Errorf("building catalog: %d nodes are above the limit of %d: %w", total, uint64(maxNodes), ErrFormat)
	}
	ref, err := b.store(w.bytes())
	return ImageRef{ref, uint32(total)}, err
}

// visit writes the entries of the directory e, which is node num, and then visits its subdirectories.
func (w *catalogWriter) visit(e *Entry, num uint32) error {
	names := e.names()
	binary.LittleEndian.PutUint64(w.sec[secNodes][uint64(num)*nodeSize+40:], uint64(len(w.sec[secDirents])/direntSize))
	binary.LittleEndian.PutUint32(w.sec[secNodes][uint64(num)*nodeSize+48:], uint32(len(names)))
	type sub struct {
		e   *Entry
		num uint32
	}
	var subs []sub
	for _, name := range names {
		child := e.Children[name]
		at := len(w.sec[secNames])
		w.sec[secNames] = append(w.sec[secNames], name...)
		to, flags := uint32(0), uint16(0)
		kind, isNested := w.b.nested(child)
		switch seen, ok := w.nodes[child.Inode]; {
		case isNested:
			to, flags = uint32(len(w.sec[secNested])/nestedSize), direntNested
			if err := w.nested(child, kind, num); err != nil {
				return err
			}
		case ok:
			to = seen
		default:
			to = w.node(child, num)
			if child.IsDir() {
				subs = append(subs, sub{child, to})
			}
		}
		d := binary.LittleEndian.AppendUint32(w.sec[secDirents], uint32(at))
		d = binary.LittleEndian.AppendUint32(d, to)
		d = append(d, uint8(len(name)), child.DType())
		w.sec[secDirents] = binary.LittleEndian.AppendUint16(d, flags)
	}
	for _, s := range subs {
		if err := w.visit(s.e, s.num); err != nil {
			return err
		}
	}
	return nil
}

// node appends the record of e below the directory parent, and returns its number.
func (w *catalogWriter) node(e *Entry, parent uint32) uint32 {
	num := uint32(len(w.sec[secNodes]) / nodeSize)
	if w.b.names {
		w.sec[secNumbers] = binary.LittleEndian.AppendUint32(w.sec[secNumbers], e.Number)
	}
	data, count, shift := uint64(0), uint32(0), uint8(0)
	switch e.Type() {
	case ModeDir:
	case ModeRegular:
		e.Nlink = uint32(w.b.links[e.Inode])
		data, count = w.chunks(e.Chunks)
		if count > 0 {
			shift = ChunkShift
		}
		if len(e.Chunks) > 1 && !e.File.IsZero() {
			w.sec[secFileDigests] = appendChunkRow(w.sec[secFileDigests], num, e.File)
		}
	case ModeSymlink:
		e.Nlink, e.Size = uint32(w.b.links[e.Inode]), int64(len(e.Target))
		data = uint64(len(w.sec[secNames]))
		w.sec[secNames] = append(w.sec[secNames], e.Target...)
	default:
		e.Nlink = uint32(w.b.links[e.Inode])
		if t := e.Type(); t == ModeChar || t == ModeBlock {
			data = uint64(e.Major)<<32 | uint64(e.Minor)
		}
	}
	if !e.IsDir() {
		parent = 0
		if e.Nlink > 1 {
			w.nodes[e.Inode] = num
		}
	}
	w.sec[secNodes] = w.record(w.sec[secNodes], e.Inode, data, count, shift, parent)
	return num
}

func (w *catalogWriter) record(b []byte, i *Inode, data uint64, count uint32, shift uint8, parent uint32) []byte {
	size := i.Size
	if !i.IsRegular() && !i.IsSymlink() {
		size = 0
	}
	for _, v := range []uint32{i.Mode, i.UID, i.GID, i.Nlink} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(i.Sec))
	b = binary.LittleEndian.AppendUint32(b, i.Nsec)
	b = binary.LittleEndian.AppendUint32(b, w.xattrs(i.Xattrs))
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	b = binary.LittleEndian.AppendUint64(b, data)
	b = binary.LittleEndian.AppendUint32(b, count)
	b = append(b, shift, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, parent)
	return append(b, 0, 0, 0, 0)
}

// chunks appends rows for the chunks of a file.
func (w *catalogWriter) chunks(chunks []Digest) (first uint64, count uint32) {
	first = uint64(len(w.sec[secChunks]) / chunkRowSize)
	for i, d := range chunks {
		if i > 0 && d.IsZero() && chunks[i-1].IsZero() {
			continue
		}
		w.sec[secChunks] = appendChunkRow(w.sec[secChunks], uint32(i), d)
		count++
	}
	if count == 0 {
		return 0, 0
	}
	return first, count
}

func badDigest(d Digest) bool { return d.alg != SHA256 && !d.IsZero() }

func appendChunkRow(b []byte, first uint32, d Digest) []byte {
	b = binary.LittleEndian.AppendUint32(b, first)
	b = append(b, uint8(d.alg), 0, 0, 0)
	return append(b, d.sum[:]...)
}

// xattrs returns the handle of a set, written if it is new.
func (w *catalogWriter) xattrs(set []Xattr) uint32 {
	if len(set) == 0 {
		return 0
	}
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(set)))
	for _, x := range set {
		b = append(b, uint8(len(x.Name)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(x.Value)))
		b = append(append(b, x.Name...), x.Value...)
	}
	at, ok := w.sets[string(b)]
	if !ok {
		at = 1 + uint32(len(w.sec[secXattrs]))
		w.sets[string(b)] = at
		w.sec[secXattrs] = append(w.sec[secXattrs], b...)
	}
	return at
}

// nested appends the row for e, which hangs in directory parent as a catalog of its own.
func (w *catalogWriter) nested(e *Entry, kind NestedKind, parent uint32) error {
	ref, number := ImageRef{}, e.Number
	switch {
	case kind == NestedImage:
		ref = *e.Image
	default:
		var err error
		if ref, err = w.b.write(e, nil, nil); err != nil {
			return err
		}
	}
	count := ref.Nodes
	switch kind {
	case NestedPart:
		number = 0
	case NestedNames:
		count = 0
	}
	b := w.record(w.sec[secNested], e.Inode, 0, 0, 0, parent)
	b = append(b, uint8(kind), uint8(ref.Catalog.Digest.alg), 0, 0)
	b = binary.LittleEndian.AppendUint32(b, number)
	b = binary.LittleEndian.AppendUint64(b, uint64(ref.Catalog.Size))
	b = binary.LittleEndian.AppendUint32(b, 0) // the base, known when all nodes are
	b = binary.LittleEndian.AppendUint32(b, count)
	b = append(b, ref.Catalog.Digest.sum[:]...)
	w.sec[secNested] = append(b, make([]byte, 8)...)
	return nil
}

// bases numbers the nested parts behind the catalog's own nodes.
func (w *catalogWriter) bases() {
	next := uint32(len(w.sec[secNodes]) / nodeSize)
	for b := w.sec[secNested]; len(b) > 0; b = b[nestedSize:] {
		if NestedKind(b[64]) != NestedPart {
			continue
		}
		binary.LittleEndian.PutUint32(b[80:], next)
		count := binary.LittleEndian.Uint32(b[84:])
		next += count
		w.count += uint64(count)
	}
}

// bytes lays the sections out.
func (w *catalogWriter) bytes() []byte {
	n := 0
	size := uint64(0)
	for _, s := range w.sec {
		if len(s) > 0 {
			n++
			size += align8(uint64(len(s)))
		}
	}
	head := uint64(headerSize + n*sectionSize)
	out := make([]byte, head, head+size)
	copy(out, catalogMagic)
	binary.LittleEndian.PutUint32(out[8:], catalogVersion)
	binary.LittleEndian.PutUint32(out[12:], uint32(n))
	binary.LittleEndian.PutUint64(out[16:], head+size)
	row := headerSize
	for id, s := range w.sec {
		if len(s) == 0 {
			continue
		}
		binary.LittleEndian.PutUint32(out[row:], uint32(id))
		binary.LittleEndian.PutUint32(out[row+4:], sectionFlags(uint32(id)))
		binary.LittleEndian.PutUint64(out[row+8:], uint64(len(out)))
		binary.LittleEndian.PutUint64(out[row+16:], uint64(len(s)))
		row += sectionSize
		out = append(out, s...)
		out = append(out, make([]byte, align8(uint64(len(s)))-uint64(len(s)))...)
	}
	return out
}

// store puts a catalog, in chunks below a list if it is large.
func (b *builder) store(plain []byte) (CatalogRef, error) {
	ref := CatalogRef{Size: int64(len(plain))}
	if ref.Size > MaxCatalog {
		return ref, fmt.Errorf("building catalog: %d bytes are above the limit of %d: %w", ref.Size, MaxCatalog, ErrFormat)
	}
	if ref.Listed() {
		var chunks []Digest
		for part := range slices.Chunk(plain, ChunkSize) {
			d := DigestOf(part)
			if err := b.put(d, part); err != nil {
				return ref, err
			}
			chunks = append(chunks, d)
		}
		plain = encodeChunkList(ref.Size, chunks)
	}
	ref.Digest = DigestOf(plain)
	return ref, b.put(ref.Digest, plain)
}
