package publish

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"path"
	"runtime"
	"strings"
	"sync"

	"github.com/skimfs/skimfs/index"
)

// converter turns the content of files into objects. All layers of a publish share its workers, so its memory is bounded by their
// number, whatever the layers hold.
type converter struct {
	store    *store
	limits   Limits
	progress *Progress
	jobs     chan job
	workers  sync.WaitGroup
	small    sync.Pool // *[]byte of smallBuffer
	large    sync.Pool // *[]byte of index.ChunkSize
}

const smallBuffer = 32 << 10

// job is a chunk to hash, compress and store.
type job struct {
	ctx  context.Context
	b    *layerBuilder
	buf  *[]byte
	size int
	out  *index.Digest
}

func newConverter(s *store, limits Limits, p *Progress) *converter {
	n := runtime.GOMAXPROCS(0)
	c := &converter{store: s, limits: limits.withDefaults(), progress: p, jobs: make(chan job, 2*n)}
	c.small.New = func() any { b := make([]byte, smallBuffer); return &b }
	c.large.New = func() any { b := make([]byte, index.ChunkSize); return &b }
	for range n {
		c.workers.Go(c.work)
	}
	return c
}

// close ends the workers. No layer may be under way.
func (c *converter) close() {
	close(c.jobs)
	c.workers.Wait()
}

func (c *converter) work() {
	var scratch []byte
	for j := range c.jobs {
		scratch = c.do(j, scratch)
	}
}

func (c *converter) do(j job, scratch []byte) []byte {
	defer j.b.pending.Done()
	defer c.release(j.buf)
	if j.ctx.Err() != nil {
		return scratch
	}
	plain := (*j.buf)[:j.size]
	d := index.DigestOf(plain)
	size, scratch, err := c.store.put(j.ctx, d, plain, scratch)
	if err != nil {
		j.b.cancel(err)
		return scratch
	}
	*j.out = d
	j.b.mu.Lock()
	j.b.stored[d] = object{Sum: d.Sum(), Plain: int64(j.size), Stored: size}
	j.b.mu.Unlock()
	return scratch
}

func (c *converter) buffer(size int64) *[]byte {
	if size <= smallBuffer {
		return c.small.Get().(*[]byte)
	}
	return c.large.Get().(*[]byte)
}

func (c *converter) release(b *[]byte) {
	if len(*b) == smallBuffer {
		c.small.Put(b)
	} else {
		c.large.Put(b)
	}
}

// layerBuilder collects a layer while its chunks are under way.
type layerBuilder struct {
	c       *converter
	ctx     context.Context // of this layer's conversion, which ends with its first error
	cancel  context.CancelCauseFunc
	pending sync.WaitGroup
	layer   layer
	digests [][]index.Digest // of each op's chunks

	mu     sync.Mutex // guards stored
	stored map[index.Digest]object
}

func (c *converter) newLayer(ctx context.Context) *layerBuilder {
	b := &layerBuilder{c: c, stored: map[index.Digest]object{}}
	b.ctx, b.cancel = context.WithCancelCause(ctx)
	return b
}

// wait returns when no chunk of the layer is under way any more.
func (b *layerBuilder) wait() {
	b.pending.Wait()
	b.cancel(nil)
}

func (b *layerBuilder) add(o op) error {
	if err := b.check(&o); err != nil {
		return err
	}
	b.layer.Ops = append(b.layer.Ops, o)
	b.digests = append(b.digests, nil)
	return nil
}

func (b *layerBuilder) check(o *op) error {
	if int64(len(b.layer.Ops)) >= b.c.limits.Entries {
		return &LimitError{"entries", b.c.limits.Entries}
	}
	// A whiteout itself may be longer than a name, since no file system ever holds it.
	dir, base := path.Split(o.Name)
	for name := range strings.SplitSeq(dir+strings.TrimPrefix(base, whiteoutPrefix), "/") {
		if len(name) > 255 {
			return fmt.Errorf("name %.40q… is longer than 255 bytes", name)
		}
	}
	if o.Attr.IsSymlink() && (o.Link == "" || len(o.Link) >= 1<<16) {
		return fmt.Errorf("symlink with a target of %d bytes", len(o.Link))
	}
	return context.Cause(b.ctx)
}

// addFile adds a regular file whose content of size bytes comes from r.
func (b *layerBuilder) addFile(o op, r io.Reader, size int64) error {
	if size > b.c.limits.Bytes-b.layer.Bytes {
		return &LimitError{"bytes", b.c.limits.Bytes}
	}
	if err := b.check(&o); err != nil {
		return err
	}
	chunks := make([]index.Digest, (size+index.ChunkSize-1)>>index.ChunkShift)
	o.Attr.Size = size
	whole := sha256.New()
	for i := range chunks {
		n := min(size-int64(i)<<index.ChunkShift, index.ChunkSize)
		buf := b.c.buffer(n)
		plain := (*buf)[:n]
		if _, err := io.ReadFull(r, plain); err != nil {
			b.c.release(buf)
			return err
		}
		if len(chunks) > 1 {
			whole.Write(plain)
		}
		if allZero(plain) {
			b.c.release(buf)
		} else if err := b.send(job{b.ctx, b, buf, int(n), &chunks[i]}); err != nil {
			return err
		}
	}
	if len(chunks) > 1 {
		o.File = [sha256.Size]byte(whole.Sum(nil))
	}
	b.layer.Bytes += size
	b.layer.Ops = append(b.layer.Ops, o)
	b.digests = append(b.digests, chunks)
	b.c.progress.Files.Add(1)
	b.c.progress.Bytes.Add(size)
	return nil
}

func (b *layerBuilder) send(j job) error {
	b.pending.Add(1)
	select {
	case b.c.jobs <- j:
		return nil
	case <-b.ctx.Done():
		b.pending.Done()
		b.c.release(j.buf)
		return context.Cause(b.ctx)
	}
}

// finish waits for all chunks and returns the layer.
func (b *layerBuilder) finish() (*layer, error) {
	b.pending.Wait()
	if err := context.Cause(b.ctx); err != nil {
		return nil, err
	}
	numbers := map[index.Digest]int32{}
	for i, digests := range b.digests {
		chunks := make([]int32, len(digests))
		for j, d := range digests {
			if chunks[j] = -1; d.IsZero() {
				continue
			}
			n, ok := numbers[d]
			if !ok {
				n = int32(len(b.layer.Objects))
				numbers[d] = n
				b.layer.Objects = append(b.layer.Objects, b.stored[d])
			}
			chunks[j] = n
		}
		b.layer.Ops[i].Chunks = chunks
	}
	return &b.layer, nil
}

var zeros [4096]byte

func allZero(b []byte) bool {
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

// counted counts the bytes read through r as progress.
func (c *converter) counted(r io.Reader) io.Reader { return &countingReader{r, c.progress} }

type countingReader struct {
	r io.Reader
	p *Progress
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.p.BlobBytes.Add(int64(n))
	layerBytes.Add(n)
	return n, err
}
