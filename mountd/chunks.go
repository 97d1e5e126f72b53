package mountd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/fetch"
	"github.com/skimfs/skimfs/index"
)

// object returns a whole object: from the cache, else from the lower cache or a server into the cache. If it was a server, fetched is called,
// even if the asker has left by then. hit says that the cache had it.
func (g *origin) object(ctx context.Context, d index.Digest, size int64, class cachedb.Class, fetched func()) (plain []byte, hit bool, err error) {
	for range 2 {
		var ran atomic.Bool
		plain, err = g.db.Get(ctx, d, size, class, func(ctx context.Context) ([]byte, error) {
			ran.Store(true)
			plain, network, err := g.reach(ctx, d, size)
			if err == nil && network {
				if class == cachedb.ClassFile {
					g.files.Add(1)
				}
				fetched()
			}
			return plain, err
		})
		if hit = !ran.Load(); err == nil || !hit || ctx.Err() != nil {
			break
		}
		// Another mount's fill went wrong: its servers need not be ours.
	}
	return plain, hit, err
}

// catalog loads a catalog. It is an index.CatalogLoader.
func (g *origin) catalog(ctx context.Context, ref index.CatalogRef) (*index.Catalog, error) {
	return ref.Load(ctx, func(ctx context.Context, d index.Digest, size int64) ([]byte, error) {
		plain, _, err := g.object(ctx, d, size, cachedb.ClassCatalog, func() {})
		return plain, err
	})
}

// readAhead bounds the bytes being fetched before they are asked for, in all mounts together.
const readAhead = 32 << 20

// chunks is a mount's source of chunks: cache first, else fetch. It is a fusefs.ChunkReader.
type chunks struct {
	via      atomic.Pointer[*origin] // how objects are reached; a remount may change it
	db       *cachedb.DB
	deadline time.Duration // of one go at the network
	hang     bool          // go on for ever
	ahead    *semaphore.Weighted
	done     context.Context // ends with the mount
	fetching sync.WaitGroup  // read-ahead under way
	failed   failures

	lastError             atomic.Int64 // seconds since 1970
	hits, misses, errors  atomic.Int64
	objects, files, bytes atomic.Int64 // fetched: objects, those that begin a file, plain bytes
}

func newChunks(g *origin, o Options, ahead *semaphore.Weighted, done context.Context) *chunks {
	s := &chunks{db: g.db, deadline: o.deadline(), hang: o.Hang, ahead: ahead, done: done}
	s.via.Store(&g)
	return s
}

// origin is the way to objects now.
func (s *chunks) origin() *origin { return *s.via.Load() }

// catalog loads a catalog. It is an index.CatalogLoader.
func (s *chunks) catalog(ctx context.Context, ref index.CatalogRef) (*index.Catalog, error) {
	var c *index.Catalog
	err := s.insist(ctx, ref.Digest, func(ctx context.Context) (err error) {
		c, err = s.origin().catalog(ctx, ref)
		return err
	})
	return c, err
}

// ReadCached reads from c at off if it is in the node's cache.
func (s *chunks) ReadCached(c index.Chunk, p []byte, off int64) bool {
	ok, err := s.db.ReadAt(c.Digest, c.Size, p, off)
	if ok && err == nil {
		s.hits.Add(1)
		return true
	}
	return false
}

// ReadChunk reads from c at off; it waits for the network if it must, until ctx or the mount's deadline ends.
func (s *chunks) ReadChunk(ctx context.Context, c index.Chunk, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > c.Size {
		return fmt.Errorf("reading %d bytes at %d of a chunk of %d: %w", len(p), off, c.Size, index.ErrFormat)
	}
	var plain []byte
	err := s.insist(ctx, c.Digest, func(ctx context.Context) (err error) {
		plain, err = s.whole(ctx, c)
		return err
	})
	if err != nil {
		s.errors.Add(1)
		s.lastError.Store(time.Now().Unix())
		return fmt.Errorf("reading chunk %v: %w", c.Digest, err)
	}
	copy(p, plain[off:])
	return nil
}

// insist calls f, which gets d, with a deadline and, if the mount hangs rather than fails, again until the network gives what it is asked for or ctx ends.
func (s *chunks) insist(ctx context.Context, d index.Digest, f func(context.Context) error) error {
	begun := time.Now()
	if err := s.failed.recent(d, begun); err != nil && !s.hang {
		return err
	}
	for wait := hangFirst; ; wait = min(2*wait, hangMost) {
		err := func() error {
			ctx, cancel := context.WithTimeoutCause(ctx, s.deadline, errDeadline)
			defer cancel()
			err := f(ctx)
			if cause := context.Cause(ctx); err != nil && errors.Is(cause, errDeadline) {
				err = fmt.Errorf("%v: %w", err, cause)
			}
			return err
		}()
		var network *fetch.Error
		if err != nil && !s.hang && !errors.Is(ctx.Err(), context.Canceled) {
			s.failed.note(d, err, time.Since(begun), time.Now())
		}
		if err == nil || !s.hang || !errors.As(err, &network) && !errors.Is(err, errDeadline) && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-s.done.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// Pauses between the goes of a mount that hangs.
const (
	hangFirst = 500 * time.Millisecond
	hangMost  = 15 * time.Second
)

var errDeadline = errors.New("the deadline for a read has passed")

// whole returns all of c and counts.
func (s *chunks) whole(ctx context.Context, c index.Chunk) ([]byte, error) {
	plain, hit, err := s.origin().object(ctx, c.Digest, c.Size, cachedb.ClassFile, func() { s.fetched(c) })
	if hit && err == nil {
		s.hits.Add(1)
	} else if !hit {
		s.misses.Add(1)
	}
	return plain, err
}

// Prefetch fetches c in the background if it isn't cached and the budget allows it.
func (s *chunks) Prefetch(c index.Chunk) {
	if s.db.Has(c.Digest) || s.done.Err() != nil || !s.ahead.TryAcquire(c.Size) {
		return
	}
	s.fetching.Go(func() {
		defer s.ahead.Release(c.Size)
		ctx, cancel := context.WithTimeout(s.done, s.deadline)
		defer cancel()
		// A failure shows when the chunk is read. Nobody has asked yet, so it is neither hit nor miss.
		_, _, _ = s.origin().object(ctx, c.Digest, c.Size, cachedb.ClassFile, func() { s.fetched(c) })
	})
}

// fetched counts an object that came over the network.
func (s *chunks) fetched(c index.Chunk) {
	s.objects.Add(1)
	s.bytes.Add(c.Size)
	if c.Offset == 0 {
		s.files.Add(1)
	}
}
