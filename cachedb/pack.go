package cachedb

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// errGone says that an object moved or left between lookup and read: look again.
var errGone = errors.New("object moved")

// pack is one append-only file of small objects. Its records never change, so readers need no lock but for its end.
type pack struct {
	id       uint32
	size     atomic.Int64 // bytes handed out to writers
	writers  atomic.Int32 // appends whose object is not in the table yet
	recorded int64        // size the index knows; the recorder's own

	mu sync.RWMutex // guards f: held to read, taken to close
	f  *os.File     // nil once the pack has left
}

// packs are the packs of a cache; the active one takes appends.
//
// Lock order: beginning, then mu.
type packs struct {
	dir       string
	full      atomic.Int64 // size at which a pack is sealed
	beginning sync.Mutex   // held by who makes a new pack; the others wait for it

	// byID has *pack by number, without a lock: readers must not wait for the one that every append takes, whose holder may have lost his CPU.
	byID sync.Map

	mu     sync.Mutex // guards what follows
	active *pack
	next   uint32 // the next pack's number; numbers are not used again
}

func (ps *packs) path(id uint32) string {
	return filepath.Join(ps.dir, strconv.FormatUint(uint64(id), 10)+".pack")
}

// load opens the packs that exist. It removes files that can't be opened as packs.
func (ps *packs) load() error {
	ps.byID.Clear()
	names, err := os.ReadDir(ps.dir)
	if err != nil {
		return fmt.Errorf("listing packs: %w", err)
	}
	for _, e := range names {
		id, ok := packID(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		p := &pack{id: id}
		if p.f, err = os.OpenFile(ps.path(p.id), os.O_RDWR, 0); err != nil {
			return fmt.Errorf("opening pack: %w", err)
		}
		st, err := p.f.Stat()
		if err != nil {
			return fmt.Errorf("opening pack: %w", err)
		}
		if st.Size() > math.MaxUint32 {
			p.f.Close()
			continue
		}
		p.size.Store(st.Size())
		ps.byID.Store(p.id, p)
		ps.next = max(ps.next, p.id+1)
	}
	ps.next = max(ps.next, 1)
	return nil
}

// packID returns the number in the name of a pack's file; ok is false for every other name.
func packID(name string) (id uint32, ok bool) {
	num, ok := strings.CutSuffix(name, ".pack")
	n, err := strconv.ParseUint(num, 10, 32)
	return uint32(n), ok && err == nil && n != 0 && n != math.MaxUint32 && strconv.FormatUint(n, 10) == num
}

func (ps *packs) get(id uint32) *pack {
	p, _ := ps.byID.Load(id)
	found, _ := p.(*pack)
	return found
}

// has reports whether a pack is there, one that is just begun included.
func (ps *packs) has(id uint32) bool {
	ps.beginning.Lock()
	defer ps.beginning.Unlock()
	return ps.get(id) != nil
}

func (ps *packs) all() []*pack {
	var list []*pack
	ps.byID.Range(func(_, p any) bool {
		list = append(list, p.(*pack))
		return true
	})
	return list
}

// append writes record to the active pack. The caller says p.writers.Add(-1) once the object is in the table.
func (ps *packs) append(record []byte) (p *pack, off uint32, err error) {
	p, at := ps.reserve(int64(len(record)))
	for ; p == nil; p, at = ps.reserve(int64(len(record))) {
		if err := ps.begin(int64(len(record))); err != nil {
			return nil, 0, err
		}
	}
	if _, err := p.f.WriteAt(record, at); err != nil {
		p.writers.Add(-1)
		return p, 0, fmt.Errorf("appending to pack: %w", err)
	}
	return p, uint32(at), nil
}

// reserve finds a place for n bytes in the active pack, if it has one.
func (ps *packs) reserve(n int64) (p *pack, at int64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if !ps.takes(n) {
		return nil, 0
	}
	ps.active.writers.Add(1)
	return ps.active, ps.active.size.Add(n) - n
}

// takes reports whether the active pack has a place for n bytes. ps.mu is held.
func (ps *packs) takes(n int64) bool {
	return ps.active != nil && ps.active.size.Load()+n <= ps.full.Load()
}

// begin makes a new pack the active one, unless another did meanwhile.
func (ps *packs) begin(n int64) error {
	ps.beginning.Lock()
	defer ps.beginning.Unlock()
	ps.mu.Lock()
	begun, id := ps.takes(n), ps.next
	ps.mu.Unlock()
	if begun {
		return nil
	}
	f, err := os.OpenFile(ps.path(id), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("creating pack: %w", err)
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := &pack{id: id, f: f}
	ps.next++
	ps.active = p
	ps.byID.Store(p.id, p)
	return nil
}

// seal ends appends to the active pack.
func (ps *packs) seal() {
	ps.mu.Lock()
	ps.active = nil
	ps.mu.Unlock()
}

// drop removes p for good. Reads in flight end first; later ones don't find it.
func (ps *packs) drop(p *pack) error {
	ps.mu.Lock()
	ps.byID.Delete(p.id)
	if ps.active == p {
		ps.active = nil
	}
	ps.mu.Unlock()
	err := os.Remove(ps.path(p.id))
	p.mu.Lock()
	f := p.f
	p.f = nil
	p.mu.Unlock()
	f.Close() // which gives the space back, and may take the disk a while
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (ps *packs) close() {
	for _, p := range ps.all() {
		p.mu.Lock()
		if p.f != nil {
			p.f.Close()
			p.f = nil
		}
		p.mu.Unlock()
	}
}

// read fills b from offset off of the object k at l, and returns whether all it touched is sound.
func (ps *packs) read(k key, l loc, b []byte, off int64) error {
	from, to := span(off, off+int64(len(b)), int64(l.size))
	buf := scratch(int(headerLen + to))
	defer buf.free()
	p := ps.get(l.pack)
	if p == nil {
		return errGone
	}
	if err := p.pread(buf.b, int64(l.off)); err != nil {
		return err
	}
	h, err := parseHeader(buf.b, packMagic)
	if err != nil {
		return err
	}
	if h.key != k || h.size != l.size {
		return fmt.Errorf("another object's record: %w", errDamaged)
	}
	plain := buf.b[headerLen:]
	if err := checkBlocks(plain[from:to], from/blockSize, func(i int64) uint32 { return h.crc[i] }); err != nil {
		return err
	}
	copy(b, plain[off:])
	return nil
}

func (p *pack) pread(b []byte, off int64) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.f == nil {
		return errGone
	}
	return readFull(p.f, b, off)
}

// records calls f for each readable record header of the pack, from an offset on, skipping what is torn or damaged.
func (p *pack) records(from int64, f func(h header, off uint32)) error {
	size := p.size.Load()
	buf := make([]byte, 1<<20)
	base, have := int64(0), 0 // buf[:have] are the bytes at base
	for off := from &^ (packAlign - 1); off+headerLen <= size; {
		if off < base || off+headerLen > base+int64(have) {
			base, have = off, int(min(int64(len(buf)), size-off))
			if err := p.pread(buf[:have], base); err != nil {
				return fmt.Errorf("scanning pack %d: %w", p.id, err)
			}
		}
		h, err := parseHeader(buf[off-base:have], packMagic)
		end := off + packRecordLen(int64(h.size))
		if err != nil || h.size > packMax || off+headerLen+int64(h.size) > size {
			off += packAlign
			continue
		}
		f(h, uint32(off))
		off = end
	}
	return nil
}

// buffer is scratch space from a pool.
type buffer struct{ b []byte }

var scratchPool = sync.Pool{New: func() any { return &buffer{make([]byte, 0, 64<<10)} }}

func scratch(n int) *buffer {
	buf := scratchPool.Get().(*buffer)
	if cap(buf.b) < n {
		buf.b = make([]byte, n)
	}
	buf.b = buf.b[:n]
	return buf
}

func (b *buffer) free() {
	if cap(b.b) <= 2<<20 {
		scratchPool.Put(b)
	}
}
