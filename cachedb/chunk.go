package cachedb

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	fsBlock      = 4096 // unit of disk usage
	dirEntryCost = 128  // what a file's name costs in its directory, amply
	openChunks   = 256  // chunk files kept open
	stripes      = 64
)

// chunks are the larger objects, a file each. Files that are read stay open for a while, their checksums in memory.
//
// Lock order: a stripe, then mu. A stripe orders naming and removal of the files whose digests share it, so that no new file is removed.
// Content is written before it is taken. Readers take a stripe only if they don't find what they look for: naming and removing wait for the disk.
type chunks struct {
	dir, tmp string
	stripe   [stripes]sync.Mutex

	mu      sync.Mutex // guards what follows and all chunkFile.refs; nobody who holds it waits for the disk
	open    *simplelru.LRU[key, *chunkFile]
	removed [stripes]uint32 // files removed so far, for each stripe: none of them stays open
	idle    []*chunkFile    // to be closed by who gives up mu

	closing sync.WaitGroup // removed files whose space the filesystem takes back
}

// chunkFile is an open chunk file; it is closed when neither the list nor a reader refers to it.
type chunkFile struct {
	f    *os.File
	crcs []uint32
	refs int
	gone bool // it was removed, or may have been
}

func newChunks(dir, tmp string) *chunks {
	c := &chunks{dir: dir, tmp: tmp}
	c.open, _ = simplelru.NewLRU(openChunks, func(_ key, cf *chunkFile) { c.unref(cf) })
	return c
}

func (c *chunks) path(k key) string {
	h := hex.EncodeToString(k[:])
	return filepath.Join(c.dir, h[:2], h)
}

func stripeOf(k key) int { return int(k[1] % stripes) }

func (c *chunks) lock(k key) *sync.Mutex {
	m := &c.stripe[stripeOf(k)]
	m.Lock()
	return m
}

// chunkDiskBytes is what a chunk file of size bytes of content costs on disk.
func chunkDiskBytes(size int64) int64 {
	return (size+trailerLen(size)+fsBlock-1)&^(fsBlock-1) + dirEntryCost
}

// write writes the file of k under a name of its own, which it returns.
func (c *chunks) write(k key, class Class, clock uint32, plain []byte) (tmp string, err error) {
	f, err := os.CreateTemp(c.tmp, "chunk-") // mode 0600
	if err != nil {
		return "", fmt.Errorf("creating chunk file: %w", err)
	}
	_, err = f.Write(plain)
	if err == nil {
		_, err = f.Write(chunkTrailer(k, class, clock, plain))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("writing chunk file: %w", err)
	}
	return f.Name(), nil
}

// name gives the file that write wrote its place. The stripe of k is held.
func (c *chunks) name(k key, tmp string) error {
	path := c.path(k)
	err := os.Rename(tmp, path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.Mkdir(filepath.Dir(path), 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			err = os.Rename(tmp, path)
		}
	}
	if err != nil {
		return fmt.Errorf("naming chunk file: %w", err)
	}
	return nil
}

// remove deletes the file of k. The stripe of k is held.
func (c *chunks) remove(k key) error {
	err := os.Remove(c.path(k))
	c.mu.Lock()
	defer c.unlock()
	c.removed[stripeOf(k)]++
	if cf, ok := c.open.Peek(k); ok {
		cf.gone = true
		c.open.Remove(k)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// acquire returns the open file of k, which has size bytes of content. present is asked under the stripe.
func (c *chunks) acquire(k key, size int64, present func() bool) (*chunkFile, error) {
	c.mu.Lock()
	cf, removed := c.opened(k), c.removed[stripeOf(k)]
	c.mu.Unlock()
	if cf != nil {
		return cf, nil
	}
	cf, err := c.openFile(k, size)
	if err != nil { // it just left, or is lost
		defer c.lock(k).Unlock()
		if !present() {
			return nil, errGone
		}
		if cf, err = c.openFile(k, size); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.unlock()
	if c.removed[stripeOf(k)] != removed {
		cf.gone = true // perhaps: it is closed after this read
		return cf, nil
	}
	if other := c.opened(k); other != nil {
		c.unref(cf)
		return other, nil
	}
	cf.refs++
	c.open.Add(k, cf)
	return cf, nil
}

// openFile opens the file of k and reads its checksums; the caller has a reference.
func (c *chunks) openFile(k key, size int64) (*chunkFile, error) {
	f, err := os.Open(c.path(k))
	if err != nil {
		return nil, err
	}
	h, crcs, err := readTrailer(f, size)
	if err == nil && h.key != k {
		err = fmt.Errorf("another object's file: %w", errDamaged)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &chunkFile{f: f, crcs: crcs, refs: 1}, nil
}

// opened returns the file of k with a reference more, if it is open. mu is held.
func (c *chunks) opened(k key) *chunkFile {
	cf, ok := c.open.Get(k)
	if !ok {
		return nil
	}
	cf.refs++
	return cf
}

func (c *chunks) release(cf *chunkFile) {
	c.mu.Lock()
	defer c.unlock()
	c.unref(cf)
}

// unref gives up one reference; mu is held.
func (c *chunks) unref(cf *chunkFile) {
	if cf.refs--; cf.refs == 0 {
		c.idle = append(c.idle, cf)
	}
}

// unlock gives up mu and closes what nothing refers to any more. The space of a removed file comes back with its last reference, which may
// take the disk a while: no reader waits for it.
func (c *chunks) unlock() {
	idle := c.idle
	c.idle = nil
	c.mu.Unlock()
	for _, cf := range idle {
		if cf.gone {
			c.closing.Go(func() { cf.f.Close() })
		} else {
			cf.f.Close()
		}
	}
}

func (c *chunks) close() {
	c.mu.Lock()
	c.open.Purge()
	c.unlock()
	c.closing.Wait()
}

// readTrailer reads and checks the trailer; size < 0 takes the size that the footer names.
func readTrailer(f *os.File, size int64) (header, []uint32, error) {
	st, err := f.Stat()
	if err != nil {
		return header{}, nil, err
	}
	if size < 0 {
		foot := make([]byte, headerLen)
		if err := readFull(f, foot, max(0, st.Size()-headerLen)); err != nil {
			return header{}, nil, err
		}
		h, err := parseHeader(foot, chunkMagic)
		if err != nil {
			return header{}, nil, err
		}
		size = int64(h.size)
	}
	if !st.Mode().IsRegular() || st.Size() != size+trailerLen(size) {
		return header{}, nil, fmt.Errorf("file of %d bytes: %w", st.Size(), errDamaged)
	}
	b := make([]byte, trailerLen(size))
	if err := readFull(f, b, size); err != nil {
		return header{}, nil, err
	}
	return parseTrailer(b, size)
}

// read fills b from offset off of the content, checking every block it touches.
func (cf *chunkFile) read(size int64, b []byte, off int64) error {
	end := off + int64(len(b))
	from, to := span(off, end, size)
	crc := func(i int64) uint32 { return cf.crcs[i] }
	if from == off && to == end {
		if err := readFull(cf.f, b, off); err != nil {
			return err
		}
		return checkBlocks(b, from/blockSize, crc)
	}
	buf := scratch(int(to - from))
	defer buf.free()
	if err := readFull(cf.f, buf.b, from); err != nil {
		return err
	}
	if err := checkBlocks(buf.b, from/blockSize, crc); err != nil {
		return err
	}
	copy(b, buf.b[off-from:])
	return nil
}
