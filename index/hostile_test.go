package index_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/index"
)

// Section numbers and offsets in records, as docs/format.md has them.
const (
	secNodes, secDirents, secNames, secChunks, secXattrs = 1, 2, 3, 4, 5
	secNested, secNumbers, secImage, secFileDigests      = 6, 7, 8, 10

	nodeMode, nodeNlink, nodeNsec, nodeXattrs, nodeLen = 0, 12, 24, 28, 32
	nodeData, nodeCount, nodeShift, nodeParent         = 40, 48, 52, 56

	rowKind, rowTag, rowNumber, rowSize, rowBase, rowCount = 64, 65, 68, 72, 80, 84
)

// raw is an encoded catalog to be damaged.
type raw struct {
	t   testing.TB
	b   []byte
	sec map[uint32][2]int
}

func newRaw(t testing.TB, b []byte) *raw { return &raw{t, b, sections(b)} }

// node is the offset of node i.
func (r *raw) node(i int) int { return r.sec[secNodes][0] + 64*i }

// row is the offset of nested row i.
func (r *raw) row(i int) int { return r.sec[secNested][0] + 128*i }

// dirent is the offset of the first entry with the given name, and the child it leads to.
func (r *raw) dirent(name string) (off, child int) {
	r.t.Helper()
	s := r.sec[secDirents]
	for off := s[0]; off < s[0]+s[1]; off += 12 {
		at := r.sec[secNames][0] + int(le32(r.b, off))
		if string(r.b[at:at+int(r.b[off+8])]) == name {
			return off, int(le32(r.b, off+4))
		}
	}
	r.t.Fatalf("no entry %q", name)
	return 0, 0
}

// at is the offset of the node that the first entry with the given name leads to.
func (r *raw) at(name string) int {
	_, child := r.dirent(name)
	return r.node(child)
}

// chunk is the offset of chunk row i of the file with the given name.
func (r *raw) chunk(name string, i int) int {
	return r.sec[secChunks][0] + 40*(int(le32(r.b, r.at(name)+nodeData))+i)
}

func (r *raw) put(off int, v uint32)   { put32(r.b, off, v) }
func (r *raw) put64(off int, v uint64) { binary.LittleEndian.PutUint64(r.b[off:], v) }
func (r *raw) add(off int, v int)      { r.put(off, uint32(int(le32(r.b, off))+v)) }

// table is the offset of the row for a section in the section table.
func (r *raw) table(id uint32) int {
	for i := range int(le32(r.b, 12)) {
		if le32(r.b, 32+24*i) == id {
			return 32 + 24*i
		}
	}
	r.t.Fatalf("no section %d", id)
	return 0
}

// nameOf writes over an entry's name.
func (r *raw) nameOf(name, to string) {
	off, _ := r.dirent(name)
	copy(r.b[r.sec[secNames][0]+int(le32(r.b, off)):], to)
}

// hostileSample is a damaged catalog, of the kinds below.
type hostileSample struct {
	name   string
	of     string // "image", "split" or "names": what was damaged
	damage func(r *raw)
	says   string // what the error must name
}

var hostileSamples = []hostileSample{
	{"empty", "image", func(r *raw) { r.b = nil }, "magic"},
	{"header only", "image", func(r *raw) { r.b = r.b[:32]; r.put(12, 0); r.put64(16, 32) }, "no node 0"},
	{"another magic", "image", func(r *raw) { r.b[0] = 'S' }, "magic"},
	{"a later version", "image", func(r *raw) { r.put(8, 2) }, "version 2"},
	{"2^32 sections", "image", func(r *raw) { r.put(12, 1<<32-1) }, "4294967295 sections"},
	{"another size", "image", func(r *raw) { r.put64(16, 1<<63) }, "header states"},
	{"bytes after the end", "image", func(r *raw) { r.b = append(r.b, make([]byte, 8)...); r.put64(16, uint64(len(r.b))) }, "after the last section"},
	{"reserved header bytes", "image", func(r *raw) { r.b[31] = 1 }, "reserved"},
	{"unknown section to be understood", "image", func(r *raw) { r.put(r.table(secFileDigests), 99); r.put(r.table(99)+4, 1) }, "section 99"},
	{"unknown section flag", "image", func(r *raw) { r.put(r.table(secNames)+4, 3) }, "section 3"},
	{"known section with other flags", "image", func(r *raw) { r.put(r.table(secNodes)+4, 0) }, "section 1"},
	{"section twice", "image", func(r *raw) { r.put(r.table(secDirents), 1) }, "section 1 follows section 1"},
	{"overlapping sections", "image", func(r *raw) { r.put64(r.table(secNames)+8, uint64(r.sec[secNodes][0])) }, "section 3"},
	{"section past the end", "image", func(r *raw) { r.put64(r.table(secFileDigests)+8, 1<<40) }, "section 10"},
	{"section length past the end", "image", func(r *raw) { r.put64(r.table(secFileDigests)+16, 1<<40) }, "section 10"},
	{"section length wraps", "image", func(r *raw) { r.put64(r.table(secNodes)+16, 1<<64-64) }, "section 1"},
	{"empty section", "image", func(r *raw) { r.put64(r.table(secNodes)+16, 0) }, "section 1"},
	{"half a row", "image", func(r *raw) { r.put64(r.table(secFileDigests)+16, 39) }, "section 10"},
	{"bytes in a gap", "image", func(r *raw) { s := r.sec[secImage]; r.b[s[0]+s[1]] = 1 }, "before section 9"},

	{"root is a file", "image", func(r *raw) { r.put(r.node(0)+nodeMode, 0o100644); r.put(r.node(0)+nodeCount, 0) }, "node 0"},
	{"mode without type", "image", func(r *raw) { r.put(r.at("hard")+nodeMode, 0o644) }, "no known type"},
	{"mode with more bits", "image", func(r *raw) { r.put(r.at("hard")+nodeMode, 1<<20|0o100644) }, "mode"},
	{"nanoseconds", "image", func(r *raw) { r.put(r.at("hard")+nodeNsec, 1e9) }, "nanoseconds"},
	{"negative size", "image", func(r *raw) { r.put64(r.at("hard")+nodeLen, 1<<63) }, "size"},
	{"reserved node bytes", "image", func(r *raw) { r.b[r.at("hard")+60] = 1 }, "reserved"},
	{"parent of a file", "image", func(r *raw) { r.put(r.at("hard")+nodeParent, 1) }, "parent 1"},
	{"parent of the root", "image", func(r *raw) { r.put(r.node(0)+nodeParent, 1) }, "node 0"},
	{"another parent", "image", func(r *raw) {
		r.put(r.at("lib")+nodeParent, 0)
		_, c := r.dirent("none")
		r.put(r.node(c)+nodeParent, 0)
	}, `"none"`},
	{"too few links of a directory", "image", func(r *raw) { r.add(r.at("etc")+nodeNlink, -1) }, "links"},
	{"a link that isn't there", "image", func(r *raw) { r.add(r.at("hard")+nodeNlink, 1) }, "1 names fewer than links"},
	{"a link too many", "image", func(r *raw) { r.add(r.at("hard")+nodeNlink, -1) }, "link to come"},
	{"no link", "image", func(r *raw) { r.put(r.at("again")+nodeNlink, 0) }, "0 links"},
	{"size of a directory", "image", func(r *raw) { r.put(r.at("etc")+nodeLen, 4096) }, "size 4096"},
	{"size of a device", "image", func(r *raw) { r.put(r.at("sda")+nodeLen, 1) }, "size 1"},
	{"data of a fifo", "image", func(r *raw) { r.put(r.at("a b\n")+nodeData, 1) }, "bytes 40 to 47"},

	{"entries past the table", "image", func(r *raw) { r.put64(r.at("etc")+nodeData, 1<<40) }, "entries 1099511627776"},
	{"first entry wraps", "image", func(r *raw) { r.put64(r.at("etc")+nodeData, 1<<64-1) }, "outside the table"},
	{"2^32 entries", "image", func(r *raw) { r.put(r.node(0)+nodeCount, 1<<32-1) }, "entries 0+4294967295"},
	{"two directories share entries", "image", func(r *raw) { r.put(r.at("etc")+nodeData, le32(r.b, r.at("dev")+nodeData)) }, "first entry"},
	{"entries left over", "image", func(r *raw) { r.add(r.node(0)+nodeCount, -1) }, "links, want"},
	{"cycle to the root", "image", func(r *raw) { off, _ := r.dirent("none"); r.put(off+4, 0) }, `"none" leads`},
	{"directory in itself", "image", func(r *raw) {
		_, usr := r.dirent("usr")
		off, _ := r.dirent("none")
		r.put(off+4, uint32(usr))
		r.put(r.node(usr)+nodeParent, uint32(usr))
	}, "leads from directory"},
	{"directory with two names", "image", func(r *raw) { off, _ := r.dirent("etc"); _, dev := r.dirent("dev"); r.put(off+4, uint32(dev)) }, "where"},
	{"entry past the nodes", "image", func(r *raw) { off, _ := r.dirent("etc"); r.put(off+4, 1<<32-1) }, "no node 4294967295"},
	{"numbers out of order", "image", func(r *raw) {
		a, x := r.dirent("again")
		e, y := r.dirent("empty")
		r.put(a+4, uint32(y))
		r.put(e+4, uint32(x))
	}, `"again"`},
	{"slash in a name", "image", func(r *raw) { r.nameOf("etc", "e/c") }, `"e/c"`},
	{"NUL in a name", "image", func(r *raw) { r.nameOf("etc", "et\x00") }, `"et\x00"`},
	{"dot dot", "image", func(r *raw) { off, _ := r.dirent("etc"); r.nameOf("etc", ".."); r.b[off+8] = 2 }, `".."`},
	{"dot", "image", func(r *raw) { off, _ := r.dirent("etc"); r.nameOf("etc", "."); r.b[off+8] = 1 }, `"."`},
	{"empty name", "image", func(r *raw) { off, _ := r.dirent("etc"); r.b[off+8] = 0 }, "name at"},
	{"name past the heap", "image", func(r *raw) { off, _ := r.dirent("etc"); r.put(off, 1<<32-1) }, "name at 4294967295"},
	{"names out of order", "image", func(r *raw) { r.nameOf("etc", "zzz") }, `follows "zzz"`},
	{"name twice", "image", func(r *raw) { r.nameOf("dev", "big") }, `"big" follows "big"`},
	{"names share bytes", "image", func(r *raw) { off, _ := r.dirent("etc"); r.add(off, -1) }, "is not at"},
	{"names left over", "image", func(r *raw) { r.growNames() }, "names are used"},
	{"d_type", "image", func(r *raw) { off, _ := r.dirent("etc"); r.b[off+9] = 8 }, "type 8"},
	{"entry flags", "image", func(r *raw) { off, _ := r.dirent("etc"); r.b[off+10] = 2 }, "flags 0x2"},
	{"nested flag without a nested catalog", "image", func(r *raw) { off, _ := r.dirent("etc"); r.b[off+10] = 1 }, "no nested catalog"},

	{"symlink target past the heap", "image", func(r *raw) { r.put64(r.at("mtab")+nodeData, 1<<63) }, "symlink target"},
	{"symlink target of 2^62 bytes", "image", func(r *raw) { r.put64(r.at("mtab")+nodeLen, 1<<62) }, "symlink target"},
	{"empty symlink target", "image", func(r *raw) { r.put64(r.at("mtab")+nodeLen, 0) }, "symlink target"},
	{"symlink target elsewhere", "image", func(r *raw) { r.put64(r.at("mtab")+nodeData, 0) }, "symlink target"},

	{"chunks past the table", "image", func(r *raw) { r.put64(r.at("hard")+nodeData, 1<<60) }, "chunk rows"},
	{"2^32 chunks", "image", func(r *raw) { r.put(r.at("hard")+nodeCount, 1<<32-1) }, "chunk rows"},
	{"no chunks for a file with bytes", "image", func(r *raw) { r.put(r.at("hard")+nodeCount, 0) }, "0 chunk rows"},
	{"chunks of an empty file", "image", func(r *raw) { r.put(r.at("empty")+nodeCount, 1) }, "1 chunk rows"},
	{"shift of an empty file", "image", func(r *raw) { r.b[r.at("empty")+nodeShift] = 20 }, "shift 20"},
	{"shift of 64", "image", func(r *raw) { r.b[r.at("hard")+nodeShift] = 64 }, "2^64"},
	{"file of more than 2^32 chunks", "image", func(r *raw) { r.put64(r.at("big")+nodeLen, 1<<60) }, "chunk rows"},
	{"two files share chunks", "image", func(r *raw) { r.put64(r.at("hard")+nodeData, uint64(le32(r.b, r.at("again")+nodeData))) }, "first chunk row"},
	{"first chunk missing", "image", func(r *raw) { r.put(r.chunk("big", 0), 1) }, "chunk row"},
	{"chunks out of order", "image", func(r *raw) { r.put(r.chunk("big", 1), 0) }, "chunk row"},
	{"gap after a chunk", "image", func(r *raw) { r.put(r.chunk("big", 1), 2) }, "chunk row"},
	{"hole past the end", "image", func(r *raw) { r.put(r.chunk("big", 2), 1<<31) }, "chunk row"},
	{"file ends early", "image", func(r *raw) { r.put64(r.at("big")+nodeLen, 10<<20) }, "end at chunk 4 of 10"},
	{"two holes", "image", func(r *raw) { o := r.chunk("big", 2); clear(r.b[o+4 : o+40]) }, "a hole: true"},
	{"unknown digest tag", "image", func(r *raw) { r.b[r.chunk("hard", 0)+4] = 9 }, "tag 9"},
	{"hole with a digest", "image", func(r *raw) { r.b[r.chunk("big", 1)+8] = 9 }, "no hole"},
	{"reserved chunk bytes", "image", func(r *raw) { r.b[r.chunk("hard", 0)+7] = 1 }, "chunk row"},

	{"xattrs past the heap", "image", func(r *raw) { r.put(r.at("hard")+nodeXattrs, 1<<32-1) }, "xattr set"},
	{"2^32 xattrs", "image", func(r *raw) { r.put(r.sec[secXattrs][0], 1<<32-1) }, "xattr set"},
	{"no xattrs in a set", "image", func(r *raw) { r.put(r.sec[secXattrs][0], 0) }, "is empty"},
	{"xattr value of 2^32 bytes", "image", func(r *raw) { r.put(r.sec[secXattrs][0]+5, 1<<32-1) }, "xattr set"},
	{"xattr without a name", "image", func(r *raw) { r.b[r.sec[secXattrs][0]+4] = 0 }, "xattr set"},
	{"xattrs out of order", "image", func(r *raw) { r.b[r.sec[secXattrs][0]+9] = 'z' }, "follows"},
	{"NUL in an xattr's name", "image", func(r *raw) { r.b[r.sec[secXattrs][0]+9] = 0 }, "xattr set"},
	{"xattrs nobody has", "image", func(r *raw) { r.put(r.at("tmp")+nodeXattrs, 0) }, "xattrs are used"},
	{"xattrs in the middle of a set", "image", func(r *raw) { r.add(r.at("again")+nodeXattrs, 1) }, "xattr set"},

	{"image section is no JSON", "image", func(r *raw) { r.b[r.sec[secImage][0]] = 'x' }, "image section"},
	{"file digest of a directory", "image", func(r *raw) { r.put(r.sec[secFileDigests][0], 0) }, "file digest 0"},
	{"file digest past the nodes", "image", func(r *raw) { r.put(r.sec[secFileDigests][0], 1<<31) }, "file digest 0"},
	{"no file digest", "image", func(r *raw) { o := r.sec[secFileDigests][0]; clear(r.b[o+4 : o+40]) }, "file digest 0"},
	{"reserved file digest bytes", "image", func(r *raw) { r.b[r.sec[secFileDigests][0]+5] = 1 }, "file digest 0"},

	{"base past the nodes", "split", func(r *raw) { r.put(r.row(0)+rowBase, 1<<32-1) }, "base 4294967295"},
	{"bases overlap", "split", func(r *raw) { r.add(r.row(1)+rowBase, -1) }, "nested catalog 1"},
	{"2^32 nodes in a nested catalog", "split", func(r *raw) { r.put(r.row(1)+rowCount, 1<<32-1) }, "nested catalog 1"},
	{"empty nested catalog", "split", func(r *raw) { r.put(r.row(1)+rowCount, 0) }, "nested catalog 1"},
	{"unknown kind", "split", func(r *raw) { r.b[r.row(0)+rowKind] = 3 }, "kind 3"},
	{"image in an image", "split", func(r *raw) { r.b[r.row(0)+rowKind] = 2; r.put(r.row(0)+rowBase, 0) }, "kind 2"},
	{"names in an image", "split", func(r *raw) { r.b[r.row(0)+rowKind] = 1; r.put(r.row(0)+rowBase, 0); r.put(r.row(0)+rowCount, 0) }, "kind 1"},
	{"number in an image", "split", func(r *raw) { r.put(r.row(0)+rowNumber, 1) }, "number 1"},
	{"nested catalog of no bytes", "split", func(r *raw) { r.put64(r.row(0)+rowSize, 0) }, "size 0"},
	{"nested catalog of 2^63 bytes", "split", func(r *raw) { r.put64(r.row(0)+rowSize, 1<<63) }, "nested catalog 0"},
	{"nested catalog above the limit", "split", func(r *raw) { r.put64(r.row(0)+rowSize, index.MaxCatalog+1) }, "nested catalog 0"},
	{"nested digest tag", "split", func(r *raw) { r.b[r.row(0)+rowTag] = 2 }, "digest tag 2"},
	{"reserved bytes of a row", "split", func(r *raw) { r.b[r.row(0)+127] = 1 }, "reserved"},
	{"entries in a mountpoint's record", "split", func(r *raw) { r.put(r.row(0)+nodeCount, 1) }, "nested catalog 0"},
	{"mountpoint is a file", "split", func(r *raw) { r.put(r.row(0)+nodeMode, 0o100644) }, "nested catalog 0"},
	{"mountpoint's parent", "split", func(r *raw) { r.put(r.row(0)+nodeParent, 1) }, "below 1"},
	{"mountpoint past the table", "split", func(r *raw) { off, _ := r.dirent("a"); r.put(off+4, 7) }, "no nested catalog 7"},
	{"mountpoint twice", "split", func(r *raw) { off, _ := r.dirent("b"); r.put(off+4, 0) }, "nested catalog 0"},
	{"mountpoint without a name", "split", func(r *raw) { r.add(r.node(0)+nodeCount, -1); r.add(r.node(0)+nodeNlink, -1) }, "are used"},

	{"number zero", "names", func(r *raw) { r.put(r.sec[secNumbers][0]+4, 0) }, "number 0"},
	{"number twice", "names", func(r *raw) { r.put(r.sec[secNumbers][0]+4, 1) }, "number 1"},
	{"slot twice", "names", func(r *raw) { r.put(r.row(0)+rowNumber, 1) }, "number 1"},
	{"a number missing", "names", func(r *raw) { r.cutNumber() }, "numbers for"},
	{"part of an image among names", "names", func(r *raw) { r.b[r.row(0)+rowKind] = 0; r.put(r.row(0)+rowNumber, 0) }, "kind 0"},
}

// growNames puts a byte that no entry uses behind the names.
func (r *raw) growNames() {
	s := r.sec[secNames]
	if s[1]%8 == 0 {
		r.t.Fatal("the names fill their section: give the sample other names")
	}
	r.put64(r.table(secNames)+16, uint64(s[1]+1))
	r.b[s[0]+s[1]] = 'x'
}

// cutNumber takes the last number away, from a section with an even number of them.
func (r *raw) cutNumber() {
	s := r.sec[secNumbers]
	if s[1]%8 != 0 {
		r.t.Fatal("the section would end earlier: give the sample another node")
	}
	r.put64(r.table(secNumbers)+16, uint64(s[1]-4))
	r.put(s[0]+s[1]-4, 0)
}

// good returns the three catalogs that the samples damage.
func good(t testing.TB) map[string][]byte {
	t.Helper()
	s := newStore()
	image := sample(s)
	image.Children["tmp"].Xattrs[0].Value = []byte("short") // a small catalog is damaged faster
	out := map[string][]byte{"image": encoded(t, s, image)}
	get := func(ref index.CatalogRef, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.get(context.Background(), ref.Digest, ref.Size)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Clone(b)
	}
	split, err := index.BuildSplit(dir("a", flat("a", 3), "b", flat("b", 2), "0", file(s, nil)), s.put, 2, 2)
	out["split"] = get(split.Catalog, err)
	hung := &index.Entry{Inode: dir().Inode, Number: 5, Image: &split}
	out["names"] = get(index.BuildNames(numbered(1, dir("a", numbered(2, dir("l", numbered(3, symlink("../i")))), "b", numbered(4, dir()), "i", hung)), s.put))
	for name, b := range out {
		if c, err := index.NewCatalog(b); err != nil {
			t.Fatal(name, err)
		} else if err := c.Verify(); err != nil {
			t.Fatal(name, err)
		}
	}
	return out
}

// allocated is what f allocates in bytes.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestHostileCatalogs(t *testing.T) {
	catalogs := good(t)
	for _, h := range hostileSamples {
		t.Run(h.name, func(t *testing.T) {
			r := newRaw(t, bytes.Clone(catalogs[h.of]))
			h.damage(r)
			var err error
			start := time.Now()
			size := allocated(func() {
				var c *index.Catalog
				if c, err = index.NewCatalog(r.b); err == nil {
					err = c.Verify()
				}
			})
			if !errors.Is(err, index.ErrFormat) || !strings.Contains(err.Error(), h.says) {
				t.Errorf("error %v, want one that names %q", err, h.says)
			}
			size += allocated(func() { readAll(r.b) })
			if took := time.Since(start); size > 1<<20+8*uint64(len(r.b)) || took > 5*time.Second {
				t.Errorf("%d bytes allocated for a catalog of %d, in %v", size, len(r.b), took)
			}
		})
	}
}

func TestTruncatedCatalogs(t *testing.T) {
	for of, b := range good(t) {
		for n := 0; n < len(b); n += max(1, n/64) {
			if _, err := index.NewCatalog(b[:n]); !errors.Is(err, index.ErrFormat) {
				t.Fatalf("%s: first %d of %d bytes: %v", of, n, len(b), err)
			}
		}
	}
}

// readAll uses every accessor on whatever b is, as a mount would, and on each nested catalog that b claims to have gives b itself. It returns
// how many entries it met.
func readAll(b []byte) (entries int) {
	c, err := index.NewCatalog(b)
	if err != nil {
		return 0
	}
	c.Image()
	c.Config()
	for i := range min(c.Nodes()+2, 5000) {
		c.FileDigest(i)
		c.Number(i)
		if n, err := c.Node(i); err == nil {
			readNode(c, &n)
		}
	}
	for i := range c.NestedCount() + 1 {
		c.Nested(i)
	}
	tree, err := index.NewTree(c)
	if err != nil {
		return 0
	}
	for _, n := range []uint32{0, 1, 2, c.Nodes(), c.Nodes() + 1, c.Total(), c.Total() + 1, 1<<32 - 1} {
		if pos, err := tree.At(n); err == nil {
			pos.Node()
			tree.Parent(pos)
		}
	}
	seen := map[index.Pos]bool{}
	for todo := []index.Pos{tree.RootPos()}; len(todo) > 0 && entries < 20_000; {
		pos := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[pos] {
			continue
		}
		seen[pos] = true
		err := tree.ReadDir(pos, 0, func(child index.Child) bool {
			entries++
			if child, n, ok, err := tree.Lookup(pos, child.Name); ok && err == nil {
				if cat, _, err := child.Pos.Node(); err == nil {
					readNode(cat, &n)
				}
				if n.IsDir() {
					todo = append(todo, child.Pos)
				}
			}
			return entries < 20_000
		})
		var missing *index.Missing
		if errors.As(err, &missing) && missing.Attach(c) == nil {
			delete(seen, pos)
			todo = append(todo, pos)
		}
	}
	return entries
}

func readNode(c *index.Catalog, n *index.Node) {
	c.EachXattr(n.Xattrs, func(name, value []byte) bool { return true })
	c.Xattr(n.Xattrs, []byte("user.a"))
	c.Readlink(n)
	for i, off := 0, int64(0); i < 1000 && off < n.Size; i++ {
		chunk, err := c.Chunk(n, off)
		if err != nil {
			break
		}
		if chunk.Size <= 0 || chunk.Offset > off || chunk.Offset+chunk.Size <= off || chunk.Offset+chunk.Size > n.Size {
			panic(fmt.Sprintf("chunk %+v for byte %d of %d", chunk, off, n.Size))
		}
		off = chunk.Offset + chunk.Size
	}
	c.Chunk(n, n.Size-1)
}

// Nested catalogs that aren't what their parents promise.
func TestHostileNesting(t *testing.T) {
	catalogs := good(t)
	for _, row := range []struct {
		name, of string
		damage   func(parent, child *raw)
	}{
		{"names itself", "split", nil},
		{"names itself, with one node more", "split", func(p, c *raw) { p.add(p.row(0)+rowCount, 1); p.add(p.row(1)+rowBase, 1) }},
		{"has other attributes", "", func(p, c *raw) { p.put(p.row(0)+4, 99) }},
		{"has another link count", "", func(p, c *raw) { p.add(p.row(0)+nodeNlink, 1) }},
		{"is damaged in its header", "", func(p, c *raw) { c.b[3] = 0 }},
		{"is damaged inside", "", func(p, c *raw) { c.nameOf("a000000", "z") }},
		{"has other xattrs", "", nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newStore()
			root := dir("a", flat("a", 3), "b", flat("b", 2), "0", file(s, nil))
			root.Children["a"].Xattrs = []index.Xattr{{Name: "user.a", Value: []byte("1")}}
			ref, err := index.BuildSplit(root, s.put, 2, 2)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := s.get(t.Context(), ref.Catalog.Digest, ref.Catalog.Size)
			parent := newRaw(t, bytes.Clone(b))
			first, err := index.NewCatalog(b)
			if err != nil {
				t.Fatal(err)
			}
			a, err := first.Nested(0)
			if err != nil {
				t.Fatal(err)
			}
			b, _ = s.get(t.Context(), a.Catalog.Digest, a.Catalog.Size)
			child := newRaw(t, bytes.Clone(b))
			if row.of != "" {
				child = newRaw(t, bytes.Clone(catalogs[row.of]))
			}
			if row.damage != nil {
				row.damage(parent, child)
			} else if row.of == "" {
				at := bytes.LastIndexByte(child.b[:child.sec[secXattrs][0]+child.sec[secXattrs][1]], '1')
				child.b[at] = '2'
			}
			c, err := index.NewCatalog(parent.b)
			if err != nil {
				t.Fatal(err)
			}
			v, err := index.NewView(c, func(ctx context.Context, ref index.CatalogRef) (*index.Catalog, error) {
				if ref == a.Catalog {
					return index.NewCatalog(child.b)
				}
				return s.load(ctx, ref)
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := v.Verify(t.Context()); !errors.Is(err, index.ErrFormat) || !strings.Contains(err.Error(), a.Catalog.Digest.String()) {
				t.Errorf("verified: %v, want an error that names %v", err, a.Catalog.Digest)
			}
		})
	}
}

// Two catalogs of a name tree that give the same number: the second one is refused, and none of its numbers stay.
func TestNumberInTwoCatalogs(t *testing.T) {
	s := newStore()
	split := numbered(2, dir("x", numbered(3, dir()), "y", numbered(5, dir())))
	split.Split = true
	ref, err := index.BuildNames(numbered(1, dir("a", split, "b", numbered(4, dir()))), s.put)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.get(t.Context(), ref.Digest, ref.Size)
	if err != nil {
		t.Fatal(err)
	}
	r := newRaw(t, bytes.Clone(b))
	r.put(r.sec[secNumbers][0]+4, 3)
	c, err := index.NewCatalog(r.b)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := index.NewTree(c)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := tree.Parts()
	if err != nil || len(parts) != 1 {
		t.Fatal(parts, err)
	}
	child, err := s.load(t.Context(), parts[0].Ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := parts[0].Attach(child); !errors.Is(err, index.ErrFormat) || !strings.Contains(err.Error(), "number 3") {
		t.Errorf("attached: %v", err)
	}
	if pos, err := tree.At(5); err == nil {
		t.Errorf("a refused catalog's number leads to %+v", pos)
	}
}
