package fusefs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/VictoriaMetrics/metrics"
	"github.com/skimfs/skimfs/fusefs"
	"github.com/skimfs/skimfs/index"
)

// mtime of all that the tests build: 2020-02-20 20:20:20.202020202.
const (
	mtimeSec  = 1582230020
	mtimeNsec = 202020202
)

func attr(mode uint32) index.Attr {
	return index.Attr{Mode: mode, Sec: mtimeSec, Nsec: mtimeNsec}
}

func newDir(mode uint32) *index.Entry { return index.NewDir(attr(index.ModeDir | mode)) }

// store holds objects in memory and is the source of chunks and catalogs. Its fields may be changed before it is used,
// its switches at any time.
type store struct {
	mu       sync.Mutex // guards what follows
	objects  map[index.Digest][]byte
	gates    map[index.Digest]chan struct{} // a read of the object waits until its gate is closed
	broken   map[index.Digest]bool          // reads fail
	waiting  map[index.Digest]int           // reads at a gate
	reads    map[index.Digest]int           // that came through ReadChunk or the loader
	asked    []index.Chunk                  // through Prefetch
	uncached atomic.Bool                    // ReadCached knows nothing
}

func newStore() *store {
	return &store{objects: map[index.Digest][]byte{}, gates: map[index.Digest]chan struct{}{}, broken: map[index.Digest]bool{},
		waiting: map[index.Digest]int{}, reads: map[index.Digest]int{}}
}

// clone returns a store with the same objects.
func (s *store) clone() *store {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := newStore()
	c.objects = maps.Clone(s.objects)
	return c
}

func (s *store) put(d index.Digest, plain []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[d] = bytes.Clone(plain)
	return nil
}

// errBroken has a cause that means something else of a file: a firewall refuses so.
var errBroken = fmt.Errorf("the object is broken: %w", fs.ErrPermission)

// get is a read that may wait.
func (s *store) get(ctx context.Context, d index.Digest, _ int64) ([]byte, error) {
	s.mu.Lock()
	b, ok := s.objects[d]
	gate, broken := s.gates[d], s.broken[d]
	s.reads[d]++
	if gate != nil {
		s.waiting[d]++
	}
	s.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if broken || !ok {
		return nil, errBroken
	}
	return b, nil
}

// shut makes reads of d wait; the function it returns lets them go.
func (s *store) shut(d index.Digest) (open func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gate := make(chan struct{})
	s.gates[d] = gate
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.gates, d)
		close(gate)
	})
}

func (s *store) setBroken(d index.Digest, broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken[d] = broken
}

// await returns when n reads of d have come to its gate.
func (s *store) await(t *testing.T, d index.Digest, n int) {
	t.Helper()
	poll(t, fmt.Sprintf("%d reads of %v wait", n, d), func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.waiting[d] >= n
	})
}

func (s *store) count(d index.Digest) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads[d]
}

func (s *store) ReadChunk(ctx context.Context, c index.Chunk, p []byte, off int64) error {
	b, err := s.get(ctx, c.Digest, c.Size)
	if err != nil {
		return err
	}
	if copy(p, b[off:]) < len(p) {
		return errors.New("read past the chunk")
	}
	return nil
}

func (s *store) ReadCached(c index.Chunk, p []byte, off int64) bool {
	if s.uncached.Load() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gates[c.Digest] != nil || s.broken[c.Digest] {
		return false
	}
	b, ok := s.objects[c.Digest]
	return ok && copy(p, b[off:]) == len(p)
}

func (s *store) Prefetch(c index.Chunk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, c)
}

func (s *store) prefetched() []index.Chunk {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *store) load(ctx context.Context, ref index.CatalogRef) (*index.Catalog, error) {
	return ref.Load(ctx, s.get)
}

// file returns a regular file, whose chunks it stores. Chunks of zeros are holes.
func (s *store) file(t testing.TB, mode uint32, content []byte) *index.Entry {
	t.Helper()
	i := &index.Inode{Attr: attr(index.ModeRegular | mode)}
	i.Size = int64(len(content))
	for off := 0; off < len(content); off += index.ChunkSize {
		part := content[off:min(off+index.ChunkSize, len(content))]
		if len(bytes.Trim(part, "\x00")) == 0 {
			i.Chunks = append(i.Chunks, index.Digest{})
			continue
		}
		d := index.DigestOf(part)
		if err := s.put(d, part); err != nil {
			t.Fatal(err)
		}
		i.Chunks = append(i.Chunks, d)
	}
	return &index.Entry{Inode: i}
}

func symlink(target string) *index.Entry {
	return &index.Entry{Inode: &index.Inode{Attr: attr(index.ModeSymlink | 0o777), Target: target}}
}

// add puts an entry at a path whose directories exist or are made with mode 0755.
func add(root *index.Entry, path string, e *index.Entry) *index.Entry {
	at := root
	parts := strings.Split(path, "/")
	for _, name := range parts[:len(parts)-1] {
		if at.Children[name] == nil {
			at.Children[name] = newDir(0o755)
		}
		at = at.Children[name]
	}
	at.Children[parts[len(parts)-1]] = e
	return e
}

// image builds the image below root.
func (s *store) image(t testing.TB, root *index.Entry, info index.ImageInfo) index.ImageRef {
	t.Helper()
	ref, err := index.BuildImage(root, info, nil, s.put)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// tree returns the Tree over a root catalog.
func (s *store) tree(t testing.TB, ref index.CatalogRef) *index.Tree {
	t.Helper()
	cat, err := s.load(context.Background(), ref)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := index.NewTree(cat)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// logs keeps what is logged, for tests to look at.
type logs struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// newCore returns a Core that ends with the test.
func (s *store) newCore(t testing.TB, cfg fusefs.Config) (*fusefs.Core, *logs) {
	t.Helper()
	l := &logs{}
	cfg.Log = slog.New(slog.NewTextHandler(l, nil))
	if cfg.Chunks == nil {
		cfg.Chunks = s
	}
	if cfg.Catalogs == nil {
		cfg.Catalogs = s.load
	}
	if cfg.Metrics == nil {
		cfg.Metrics = metrics.NewSet()
	}
	c, err := fusefs.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, l
}
