package index_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/skimfs/skimfs/index"
)

// store is a repository's objects in memory, plain. It is safe for concurrent use.
type store struct {
	mu      sync.Mutex
	objects map[index.Digest][]byte
	puts    int
}

func newStore() *store { return &store{objects: map[index.Digest][]byte{}} }

func (s *store) put(d index.Digest, plain []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[d] = bytes.Clone(plain)
	s.puts++
	return nil
}

func (s *store) get(_ context.Context, d index.Digest, size int64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.objects[d]
	if !ok || int64(len(b)) != size {
		return nil, fmt.Errorf("no object %v of %d bytes", d, size)
	}
	return b, nil
}

func (s *store) load(ctx context.Context, ref index.CatalogRef) (*index.Catalog, error) {
	return ref.Load(ctx, s.get)
}

func (s *store) read(ctx context.Context, c index.Chunk, p []byte, off int64) error {
	b, err := s.get(ctx, c.Digest, c.Size)
	if err == nil {
		copy(p, b[off:])
	}
	return err
}

// image builds root and returns its root catalog, verified.
func (s *store) image(t testing.TB, root *index.Entry) (index.ImageRef, *index.Catalog) {
	t.Helper()
	ref, err := index.BuildImage(root, index.ImageInfo{Platform: "linux/amd64", Converter: "test", Manifest: index.DigestOf([]byte("manifest"))}, []byte(`{"config":{}}`), s.put)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.load(t.Context(), ref.Catalog)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Verify(); err != nil {
		t.Fatal(err)
	}
	return ref, c
}

func (s *store) view(t testing.TB, root *index.Catalog) *index.View {
	t.Helper()
	v, err := index.NewView(root, s.load)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	return v
}

func dir(children ...any) *index.Entry {
	d := index.NewDir(index.Attr{Mode: index.ModeDir | 0o755, Sec: 1_700_000_000})
	return fill(d, children...)
}

// fill adds children, alternately names and entries.
func fill(d *index.Entry, children ...any) *index.Entry {
	for i := 0; i < len(children); i += 2 {
		d.Children[children[i].(string)] = children[i+1].(*index.Entry)
	}
	return d
}

func node(mode uint32) *index.Entry {
	return &index.Entry{Inode: &index.Inode{Attr: index.Attr{Mode: mode, Sec: 1_700_000_000, Nsec: 5}}}
}

func symlink(target string) *index.Entry {
	e := node(index.ModeSymlink | 0o777)
	e.Target = target
	return e
}

// file makes a file of content; chunks of zeros become holes. The chunks go to s unless it is nil.
func file(s *store, content []byte) *index.Entry {
	e := node(index.ModeRegular | 0o644)
	e.Size = int64(len(content))
	for off := 0; off < len(content); off += index.ChunkSize {
		part := content[off:min(off+index.ChunkSize, len(content))]
		if bytes.Count(part, []byte{0}) == len(part) {
			e.Chunks = append(e.Chunks, index.Digest{})
			continue
		}
		e.Chunks = append(e.Chunks, index.DigestOf(part))
		if s != nil {
			s.put(index.DigestOf(part), part)
		}
	}
	if len(e.Chunks) > 1 {
		e.File = index.DigestOf(content)
	}
	return e
}

// link is a further name of e.
func link(e *index.Entry) *index.Entry { return &index.Entry{Inode: e.Inode} }

// flat returns a directory of n small files called prefix and a number.
func flat(prefix string, n int) *index.Entry {
	d := dir()
	for i := range n {
		name := fmt.Sprintf("%s%06d", prefix, i)
		d.Children[name] = file(nil, []byte(name))
	}
	return d
}

// sample is a small image with one of everything.
func sample(s *store) *index.Entry {
	hard := file(s, []byte("hard"))
	hard.Xattrs = []index.Xattr{{Name: "security.capability", Value: []byte{1, 0, 0, 2}}, {Name: "user.a", Value: nil}}
	again := file(s, []byte("again"))
	again.Xattrs = hard.Xattrs
	device := node(index.ModeBlock | 0o660)
	device.Major, device.Minor = 8, 1<<20+3
	big := make([]byte, 3*index.ChunkSize+7)
	big[0], big[len(big)-1] = 1, 2
	odd := dir("\xff\xfe", file(s, []byte("odd")), "a b\n", node(index.ModeFIFO|0o600))
	odd.Mode = index.ModeDir | 0o1777
	odd.Xattrs = []index.Xattr{{Name: "user.b", Value: bytes.Repeat([]byte{7}, 70_000)}}
	return dir(
		"etc", dir("passwd", file(s, []byte("root:x:0:0")), "link", link(hard), "mtab", symlink("../proc/mounts")),
		"dev", dir("sda", device, "null", node(index.ModeChar|0o666), "log", node(index.ModeSocket|0o666)),
		"empty", file(s, nil), "big", file(s, big), "hard", hard, "again", again, "tmp", odd, "lib", symlink("usr/lib"),
		"usr", dir("lib", dir("hard", link(hard)), "none", dir()),
	)
}

// sections finds the sections of an encoded catalog: offset and length by id.
func sections(b []byte) map[uint32][2]int {
	out := map[uint32][2]int{}
	for i := range int(le32(b, 12)) {
		row := 32 + 24*i
		out[le32(b, row)] = [2]int{int(le32(b, row+8)), int(le32(b, row+16))}
	}
	return out
}

func le32(b []byte, off int) uint32 {
	return uint32(b[off]) | uint32(b[off+1])<<8 | uint32(b[off+2])<<16 | uint32(b[off+3])<<24
}

func put32(b []byte, off int, v uint32) {
	b[off], b[off+1], b[off+2], b[off+3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
}

// encoded returns the bytes of the sample's root catalog.
func encoded(t testing.TB, s *store, root *index.Entry) []byte {
	t.Helper()
	ref, _ := s.image(t, root)
	b, err := s.get(t.Context(), ref.Catalog.Digest, ref.Catalog.Size)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(b)
}
