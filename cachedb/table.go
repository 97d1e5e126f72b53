package cachedb

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loc says where an object is and what is known of it.
type loc struct {
	pack, off   uint32 // pack 0: a chunk file
	size        uint32
	class       Class
	suspect     bool // written before an unclean stop, SHA-256 not yet checked
	pinned      bool
	use         uint8  // marks of objects in use, see hold.go
	used, stamp uint32 // clock of the last use; the same as last handed to the index
}

// samePlace reports whether two locations name the same bytes on disk.
func (l loc) samePlace(o loc) bool { return l.pack == o.pack && l.off == o.off && l.size == o.size }

// diskBytes is what the object costs on disk: a share of its pack, or whole blocks and a directory entry.
func (l loc) diskBytes() int64 {
	if l.pack != 0 {
		return packRecordLen(int64(l.size))
	}
	return chunkDiskBytes(int64(l.size))
}

// largeTable is half of what a million objects take.
const largeTable = 32 << 20

// shards are as many as there are directories of chunk files: each has the objects of one.
const shards = 256

// table maps digests to locations: open addressing, 52 bytes a slot, loaded to 85 %. Slots lie outside Go's heap, so that the collector
// does not let as much garbage pile up beside them. Recency is one atomic store under a read lock.
type table struct {
	clock atomic.Uint32 // counts insertions; ages are differences of it, so it may wrap
	count atomic.Int64
	unpin func(l loc)   // called, under the shard's lock, when a pinned object leaves
	grew  func(n int64) // called, under the shard's lock, when the slots take n bytes more, unless it is nil
	bytes atomic.Int64  // that the slots take
	large func()        // called once in a goroutine of its own when they take more than largeTable, unless it is nil
	told  atomic.Bool   // large was called
	shard [shards]shard
}

type shard struct {
	mu    sync.RWMutex // guards what follows; slot.used is atomic besides
	slots []slot
	n     int
}

type slot struct {
	key         key
	pack, off   uint32
	meta        uint32 // size in the low 24 bits, then flags
	used, stamp uint32
}

const (
	metaLive     = 1 << 24
	metaSuspect  = 1 << 25
	metaClassBit = 26
	metaPinned   = 1 << 28
	metaUseBit   = 29 // two bits
	metaSize     = metaLive - 1
)

func (t *table) of(k *key) *shard { return &t.shard[k[0]] }

func home(k *key, n int) int {
	return int(uint64(binary.LittleEndian.Uint32(k[4:])) * uint64(n) >> 32)
}

// find returns k's slot, or the empty one where its search ended. The shard has slots and is locked.
func (s *shard) find(k *key) (int, bool) {
	for i := home(k, len(s.slots)); ; i++ {
		if i == len(s.slots) {
			i = 0
		}
		if s.slots[i].meta == 0 {
			return i, false
		}
		if s.slots[i].key == *k {
			return i, true
		}
	}
}

func (e *slot) loc() loc {
	return loc{pack: e.pack, off: e.off, size: e.meta & metaSize, class: Class(e.meta >> metaClassBit & 3),
		suspect: e.meta&metaSuspect != 0, pinned: e.meta&metaPinned != 0, use: uint8(e.meta >> metaUseBit & 3), used: atomic.LoadUint32(&e.used), stamp: e.stamp}
}

func (e *slot) set(l loc) {
	e.pack, e.off, e.stamp = l.pack, l.off, l.stamp
	e.meta = l.size | metaLive | uint32(l.class)<<metaClassBit | uint32(l.use)<<metaUseBit
	if l.pinned {
		e.meta |= metaPinned
	}
	if l.suspect {
		e.meta |= metaSuspect
	}
	atomic.StoreUint32(&e.used, l.used)
}

// get returns k's location; touch makes it the most recently used.
func (t *table) get(k key, touch bool) (loc, bool) {
	s := t.of(&k)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.n == 0 {
		return loc{}, false
	}
	i, ok := s.find(&k)
	if !ok {
		return loc{}, false
	}
	e := &s.slots[i]
	if touch {
		if now := t.clock.Load(); atomic.LoadUint32(&e.used) != now {
			atomic.StoreUint32(&e.used, now)
		}
	}
	return e.loc(), true
}

// add inserts k unless it is there.
func (t *table) add(k key, l loc) bool {
	s := t.of(&k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n+1 > len(s.slots)*85/100 {
		t.resize(s, len(s.slots)+len(s.slots)/8)
	}
	i, ok := s.find(&k)
	if ok {
		return false
	}
	s.slots[i].key = k
	s.slots[i].set(l)
	s.n++
	t.count.Add(1)
	return true
}

// reserve makes room for n objects in an empty table: growing step by step would move each several times.
func (t *table) reserve(n int) {
	for i := range t.shard {
		s := &t.shard[i]
		s.mu.Lock()
		t.resize(s, n/shards*104/85) // shards differ by a few in a hundred
		s.mu.Unlock()
	}
}

// fit gives back what reserve took too much.
func (t *table) fit() {
	for i := range t.shard {
		s := &t.shard[i]
		s.mu.Lock()
		if want := s.n*104/85 + 1; len(s.slots) > want+want/8+100 { // the last is not to copy for a page
			t.resize(s, want)
		}
		s.mu.Unlock()
	}
}

// resize makes room for n objects in a shard, which is locked.
func (t *table) resize(s *shard, n int) {
	old := s.slots
	s.slots = newSlots(n)
	more := int64(len(s.slots)-len(old)) * int64(unsafe.Sizeof(slot{}))
	if t.grew != nil {
		t.grew(more)
	}
	if t.bytes.Add(more) > largeTable && t.large != nil && !t.told.Swap(true) {
		go t.large()
	}
	for i := range old {
		if old[i].meta != 0 {
			j, _ := s.find(&old[i].key)
			s.slots[j] = old[i]
		}
	}
	freeSlots(old)
}

// newSlots returns n empty slots, or a few more: whole pages.
func newSlots(n int) []slot {
	const size, page = int(unsafe.Sizeof(slot{})), 4096
	bytes := (max(1, n*size) + page - 1) &^ (page - 1)
	p, err := unix.MmapPtr(-1, 0, nil, uintptr(bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		panic(fmt.Errorf("memory for %d cached objects: %w", n, err)) // as make would
	}
	return unsafe.Slice((*slot)(p), bytes/size)
}

func freeSlots(s []slot) {
	if len(s) > 0 {
		// It fails only for what is no mapping.
		_ = unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(s)), uintptr(len(s))*unsafe.Sizeof(slot{}))
	}
}

// reset forgets everything.
func (t *table) reset() {
	for i := range t.shard {
		s := &t.shard[i]
		s.mu.Lock()
		freeSlots(s.slots)
		s.slots, s.n = nil, 0
		s.mu.Unlock()
	}
	t.count.Store(0)
	t.bytes.Store(0)
}

// update replaces what is known of k if it is still where was says; change gets the present value.
func (t *table) update(k key, was loc, change func(*loc)) bool {
	s := t.of(&k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == 0 {
		return false
	}
	i, ok := s.find(&k)
	if !ok {
		return false
	}
	l := s.slots[i].loc()
	if !l.samePlace(was) {
		return false
	}
	change(&l)
	s.slots[i].set(l)
	return true
}

// remove forgets k if it is still where was says.
func (t *table) remove(k key, was loc) bool {
	return t.removeIf(k, func(l loc) bool { return l.samePlace(was) })
}

// evict is remove for what may stay: it does nothing if k was pinned meanwhile.
func (t *table) evict(k key, was loc) bool {
	return t.removeIf(k, func(l loc) bool { return l.samePlace(was) && (was.pinned || !l.pinned) })
}

func (t *table) removeIf(k key, still func(l loc) bool) bool {
	s := t.of(&k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == 0 {
		return false
	}
	i, ok := s.find(&k)
	if !ok {
		return false
	}
	l := s.slots[i].loc()
	if !still(l) {
		return false
	}
	if l.pinned && t.unpin != nil {
		t.unpin(l)
	}
	s.erase(i)
	s.n--
	t.count.Add(-1)
	return true
}

// erase empties slot i and moves later ones of its run up, so that no search ends early.
func (s *shard) erase(i int) {
	n := len(s.slots)
	for j := i; ; {
		if j++; j == n {
			j = 0
		}
		if s.slots[j].meta == 0 {
			break
		}
		if h := home(&s.slots[j].key, n); (j-h+n)%n >= (j-i+n)%n {
			s.slots[i] = s.slots[j]
			i = j
		}
	}
	s.slots[i] = slot{}
}

// scan calls f for every object, a shard at a time under its read lock; f must not call back into the table.
func (t *table) scan(f func(k *key, l loc)) {
	for i := range t.shard {
		t.shard[i].scan(f)
	}
}

func (s *shard) scan(f func(k *key, l loc)) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for j := range s.slots {
		if s.slots[j].meta != 0 {
			f(&s.slots[j].key, s.slots[j].loc())
		}
	}
}

// restamp calls f for every object whose last use differs by min or more from what the index was told, and takes it as told.
func (t *table) restamp(min uint32, f func(k key)) {
	for i := range t.shard {
		s := &t.shard[i]
		s.mu.Lock()
		for j := range s.slots {
			e := &s.slots[j]
			if used := atomic.LoadUint32(&e.used); e.meta != 0 && used-e.stamp >= min {
				e.stamp = used
				f(e.key)
			}
		}
		s.mu.Unlock()
	}
}
