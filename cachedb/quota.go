package cachedb

import (
	"cmp"
	"fmt"
	"math/bits"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/skimfs/skimfs/index"
)

const defaultLimit = 20e9

// quota counts bytes on disk against the limit.
type quota struct {
	limit     atomic.Int64
	objects   atomic.Int64  // packs and chunk files, those being written included
	index     atomic.Int64  // the index and the directories, as last measured
	indexStep atomic.Int64  // how much the index may grow between two measurements
	freed     atomic.Int64  // bytes freed since the cache was opened, less what was copied forward
	pinned    atomic.Int64  // bytes on disk of pinned objects
	use       atomic.Uint32 // which of the two marks tells of objects in use now: 1 or 2
	marking   sync.Mutex    // held by SetInUse
	evict     sync.Mutex    // held while objects are chosen and removed
	kick      chan struct{}
}

func (q *quota) bytes() int64 { return q.objects.Load() + q.index.Load() }

// Reasons to evict.
type reason uint8

const (
	forLimit reason = iota
	forSpace
	asked
)

// low is where eviction stops, high where it begins in the background.
func (q *quota) low() int64  { return q.limit.Load() / 10 * 9 }
func (q *quota) high() int64 { return min(q.limit.Load()/100*96, q.low()+(q.ceiling()-q.low())/4*3) }

// ceiling is how far writers may fill the cache. The rest of the limit is for what waits for no eviction: objects copied out of a
// pack before it leaves, and the index, which is measured once it has grown.
func (q *quota) ceiling() int64 {
	limit := q.limit.Load()
	return limit - min(packSize(limit), limit/16) - min(q.indexStep.Load(), limit/32)
}

// step is how much one round of eviction frees: small enough not to be felt, large enough to pay for its scans.
func (q *quota) step() int64 { return max(q.limit.Load()/64, 4<<20) }

// Limit returns the bytes on disk that the cache may use, its index included.
func (db *DB) Limit() int64 { return db.quota.limit.Load() }

// SetLimit changes the limit, in bytes, for now and for later; 0 asks for the default again. What is above it is evicted in the
// background. ErrPinned wrapped says that pins would take more than three quarters of it; nothing is changed then.
func (db *DB) SetLimit(limit int64) error {
	next := limit
	if next <= 0 {
		next = db.defaultLimit()
	}
	if pinned := db.quota.pinned.Load(); pinned > pinMax(next) {
		return fmt.Errorf("limit of %d bytes, of which pins may take three quarters: %w: %d bytes", next, ErrPinned, pinned)
	}
	return db.setLimit(limit)
}

// setLimit changes the limit. An error says that it holds now but could not be recorded.
func (db *DB) setLimit(limit int64) error {
	db.useLimit(limit)
	if limit <= 0 {
		return db.DeleteState(limitState)
	}
	return db.SetState(limitState, strconv.AppendInt(nil, limit, 10))
}

// limitState is the record of the limit that was set last.
const limitState = "limit"

// recordedLimit returns the limit that was set last, or 0. It is asked before the index is open.
func (db *DB) recordedLimit() int64 {
	records, err := readStateFile(filepath.Join(db.dir, "state"))
	if err != nil {
		return 0
	}
	limit, err := strconv.ParseInt(string(records[limitState]), 10, 64)
	if err != nil {
		return 0
	}
	return limit
}

func (db *DB) useLimit(limit int64) {
	if limit <= 0 {
		limit = db.defaultLimit()
	}
	db.quota.limit.Store(limit)
	db.packs.full.Store(packSize(limit))
	db.wakeEvictor()
}

// defaultLimit is the smaller of 20 GB and 70 % of what the partition could give.
func (db *DB) defaultLimit() int64 {
	return int64(min(defaultLimit, 0.7*float64(db.space.free()+db.quota.bytes())))
}

// packSize is 32 MiB, or less in a small cache, so that one pack is a small part of it.
func packSize(limit int64) int64 { return min(32<<20, max(1<<20, limit/64)) }

func (db *DB) wakeEvictor() {
	select {
	case db.quota.kick <- struct{}{}:
	default:
	}
}

// evictor keeps the cache below its high mark until the cache closes.
func (db *DB) evictor() {
	defer db.wg.Done()
	for {
		select {
		case <-db.ctx.Done():
			return
		case <-db.quota.kick:
		}
		db.restoreSpace()
		if db.quota.bytes() <= db.quota.high() {
			continue
		}
		for over := int64(1); over > 0 && db.ctx.Err() == nil; {
			db.quota.evict.Lock()
			if over = db.quota.bytes() - db.quota.low(); over > 0 && db.evictRound(min(over, db.quota.step()), forLimit) <= 0 {
				over = 0
			}
			db.quota.evict.Unlock()
		}
	}
}

// room accounts for n bytes to be written, evicting if it must. If it is not ok they must not be written; lacking tells for what.
func (db *DB) room(n int64) (lacking reason, ok bool) {
	q := &db.quota
	if n > q.limit.Load()/4 {
		return forLimit, false
	}
	tooMuch := func() bool { return q.bytes()+n > q.ceiling() }
	for {
		objects := q.objects.Load()
		if over := objects + q.index.Load() + n - q.ceiling(); over > 0 {
			if !db.evictNow(max(over, min(q.step(), q.limit.Load()/20)), forLimit, tooMuch) {
				return forLimit, false
			}
		} else if q.objects.CompareAndSwap(objects, objects+n) {
			break
		}
	}
	if q.bytes() > q.high() {
		db.wakeEvictor()
	}
	short := func() bool { return db.space.free() < db.space.reserve+n }
	for short() {
		if !db.evictNow(db.space.reserve+n-db.space.free()+q.step(), forSpace, short) {
			q.objects.Add(-n)
			return forSpace, false
		}
	}
	db.space.take(n)
	return 0, true
}

// evictNow evicts about n bytes if, its turn come, still says so. It returns false when nothing is left to evict.
func (db *DB) evictNow(n int64, why reason, still func() bool) bool {
	db.quota.evict.Lock()
	defer db.quota.evict.Unlock()
	if why == forSpace {
		db.space.forget()
	}
	if !still() {
		return true
	}
	freed := db.evictRound(min(n, 2*db.quota.step()), why)
	db.space.forget()
	return freed > 0
}

// restoreSpace gives back what another program took of the partition's reserve, so that it is there when the index needs it.
func (db *DB) restoreSpace() {
	short := func() bool { return db.space.free() < db.space.reserve }
	for db.ctx.Err() == nil && short() && db.evictNow(db.space.reserve-db.space.free(), forSpace, short) {
	}
}

// Ages are counted in insertions since the last use, in buckets 1/16 apart. Tiers leave one after the other; what is pinned
// only leaves when the limit can't be kept otherwise.
const (
	ageBuckets = 480

	tierFile    = 0 // files, and catalogs beyond their budget
	tierInUse   = 1 // files of images in use
	tierCatalog = 2
	tierPinned  = 3
	tiers       = 4
)

func ageBucket(age uint32) int {
	if age < 16 {
		return int(age)
	}
	e := bits.Len32(age) - 5
	return 16*e + int(age>>e)
}

func bucketAge(b int) uint32 {
	if b < 32 {
		return uint32(b)
	}
	return uint32(b%16+16) << (b/16 - 1)
}

// cutoff says which objects are cold, by their age. Packs leave whole, so in them the older half of all packed bytes is.
type cutoff struct {
	now    uint32
	age    [tiers]uint64 // about n bytes of all objects are as old
	chunk  [tiers]uint64 // about n bytes of chunk files are as old
	packed uint64        // half of the packed bytes are as old
	inPack int64         // packed bytes beyond age: what packs are due to give in this round
	use    uint8         // mark of objects in use
	budget uint64        // catalogs as old are beyond their budget
	all    bool          // everything is cold but what is pinned
}

const noAge = 1 << 32 // none is that old

// ageOf is 0 for what was used after the cutoff was made: it is not the oldest.
func (c *cutoff) ageOf(l loc) uint32 { return uint32(max(0, int32(c.now-l.used))) }

func (c *cutoff) cold(l loc) bool {
	age, tier := uint64(c.ageOf(l)), c.tier(l)
	switch {
	case c.all:
		return tier != tierPinned || !c.spares(tier)
	case l.pack != 0:
		return age >= c.packed && !c.spares(tier)
	}
	return age >= c.chunk[tier]
}

// hot objects were used much later than most of what is packed. What came at the same time lies in the same packs, and so does what was copied
// at the same time, so that they may be most of one.
func (c *cutoff) hot(l loc) bool { return uint64(c.ageOf(l)) < c.packed/4 }

func (c *cutoff) tier(l loc) int {
	switch {
	case l.pinned:
		return tierPinned
	case l.class == ClassCatalog && uint64(c.ageOf(l)) < c.budget:
		return tierCatalog
	case l.class == ClassFile && l.use&c.use != 0:
		return tierInUse
	}
	return tierFile
}

// spares reports whether objects of a tier leave only if they share a pack with nothing better.
func (c *cutoff) spares(tier int) bool { return tier != tierFile && c.age[tier] == noAge }

// coldest returns the cutoff beyond which about n bytes of objects lie. Only hard takes what is pinned.
func (db *DB) coldest(n int64, hard bool) cutoff {
	var all, packed [tiers][ageBuckets]int64
	c := cutoff{now: db.table.clock.Load(), use: uint8(db.quota.use.Load()), budget: noAge}
	inPacks := int64(0)
	db.table.scan(func(_ *key, l loc) {
		b, size := ageBucket(c.ageOf(l)), l.diskBytes()
		t := c.tier(l)
		all[t][b] += size
		if l.pack != 0 {
			packed[t][b] += size
			inPacks += size
		}
	})
	// Of the catalogs those used last stay within the budget; the others are as good as files.
	left := db.quota.limit.Load() / catalogShare
	for b := range ageBuckets {
		if left -= all[tierCatalog][b]; left >= 0 {
			continue
		}
		c.budget = min(c.budget, uint64(bucketAge(b)))
		all[tierFile][b] += all[tierCatalog][b]
		packed[tierFile][b] += packed[tierCatalog][b]
		all[tierCatalog][b], packed[tierCatalog][b] = 0, 0
	}
	m := n
	for t := range tiers {
		c.age[t], c.chunk[t] = noAge, noAge
		if t == tierPinned && !hard {
			continue
		}
		for b := ageBuckets - 1; b >= 0 && n > 0; b-- {
			if n -= all[t][b]; all[t][b] > 0 {
				c.age[t] = uint64(bucketAge(b))
				c.inPack += packed[t][b]
			}
		}
		for b := ageBuckets - 1; b >= 0 && m > 0; b-- {
			if files := all[t][b] - packed[t][b]; files > 0 {
				m -= files
				c.chunk[t] = uint64(bucketAge(b))
			}
		}
	}
	for b := ageBuckets - 1; b >= 0 && inPacks > 0; b-- {
		for t := range tiers {
			inPacks -= 2 * packed[t][b]
		}
		c.packed = uint64(bucketAge(b))
	}
	return c
}

// packHeat is how much of a pack is in use, and how recently it was used.
type packHeat struct {
	size, live, warm int64
	pinned           int64   // of the live bytes
	ages             float64 // of the live bytes, summed
	oldest           uint32
}

func (h *packHeat) add(cut *cutoff, l loc) {
	n, age := l.diskBytes(), cut.ageOf(l)
	h.live += n
	if !cut.cold(l) {
		h.warm += n
	}
	if l.pinned {
		h.pinned += n
	}
	if cut.spares(cut.tier(l)) {
		return // as good as just used
	}
	h.ages += float64(n) * float64(age)
	h.oldest = max(h.oldest, age)
}

// gain is what the pack's leaving would free: not what is copied forward.
func (h *packHeat) gain() int64 { return h.size - max(h.pinned, min(h.warm, h.size/2)) }

// meanAge takes dead bytes to be as old as the oldest object.
func (h *packHeat) meanAge() float64 {
	if h.live == 0 {
		return noAge
	}
	return (h.ages + float64(h.size-h.live)*float64(h.oldest)) / float64(h.size)
}

type victim struct {
	key key
	loc loc
}

// evictRound frees about n bytes of what was used least recently and returns how many it freed: the coldest packs, their
// warm objects copied forward, and chunk files. quota.evict is held.
func (db *DB) evictRound(n int64, why reason) int64 {
	if n := db.dropAside(); n > 0 {
		return n
	}
	n = max(n, db.packs.full.Load())
	before := db.quota.freed.Load()
	freed := func() int64 { return db.quota.freed.Load() - before }
	hard := why == forLimit && db.quota.bytes() > db.quota.limit.Load()
	cut := db.coldest(n, hard)
	var cold []victim
	heat := map[uint32]*packHeat{}
	all := db.packs.all()
	for _, p := range all {
		heat[p.id] = &packHeat{size: p.size.Load()}
	}
	db.table.scan(func(k *key, l loc) {
		switch h := heat[l.pack]; {
		case h != nil:
			h.add(&cut, l)
		case l.pack == 0 && cut.cold(l):
			cold = append(cold, victim{*k, l})
		}
	})
	slices.SortFunc(all, func(a, b *pack) int { return cmp.Compare(heat[b.id].meanAge(), heat[a.id].meanAge()) })
	// A pack leaves if half of what it would free is due; what is due beyond that, chunk files give.
	var leaving []*pack
	due := cut.inPack
	for _, p := range all {
		h := heat[p.id]
		gain := h.gain()
		if gain < h.size/8 && h.size > 0 {
			continue
		}
		if (due >= gain/2 && due > 0 || h.live < h.size/2) && db.packs.idle(p) {
			leaving = append(leaving, p)
			due -= gain
		}
	}
	db.evictPacks(leaving, &cut, why)
	db.evictChunks(cold, &cut, func() bool { return freed() >= n }, why)
	for _, everything := range []bool{false, true} { // packs are all warm, or what is cold is in the active one
		if freed() > 0 {
			break
		}
		cut.all = everything
		db.packs.seal()
		for _, p := range all {
			if h := heat[p.id]; db.packs.idle(p) && (hard || h.size-h.pinned > h.size/8) {
				db.evictPacks([]*pack{p}, &cut, why)
				break
			}
		}
	}
	return freed()
}

// evictChunks removes the least recently used of list until enough are gone.
func (db *DB) evictChunks(list []victim, cut *cutoff, enough func() bool, why reason) {
	slices.SortFunc(list, func(a, b victim) int { return cmp.Compare(cut.ageOf(b.loc), cut.ageOf(a.loc)) })
	for _, v := range list {
		if enough() {
			return
		}
		if db.removeChunk(v.key, v.loc, db.table.evict) {
			db.countEvicted(why)
		}
	}
}

// idle reports whether p is there, takes no appends, and none is under way.
func (ps *packs) idle(p *pack) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.get(p.id) == p && p != ps.active && p.writers.Load() == 0
}

// evictPacks removes packs whole. Objects that are not cold are copied forward first, the warmest first and up to half a
// pack, hot ones up to three quarters; pinned ones always, and a pack stays that holds some which there is no room to copy.
func (db *DB) evictPacks(leaving []*pack, cut *cutoff, why reason) {
	if len(leaving) == 0 {
		return
	}
	content := make(map[uint32][]victim, len(leaving))
	for _, p := range leaving {
		content[p.id] = nil
	}
	db.table.scan(func(k *key, l loc) {
		if list, ok := content[l.pack]; ok && l.pack != 0 {
			content[l.pack] = append(list, victim{*k, l})
		}
	})
	for _, p := range leaving {
		list := content[p.id]
		slices.SortFunc(list, func(a, b victim) int {
			return cmp.Or(cmp.Compare(cut.tier(b.loc), cut.tier(a.loc)), cmp.Compare(cut.ageOf(a.loc), cut.ageOf(b.loc)))
		})
		budget, more := p.size.Load()/2, p.size.Load()/4
		stays := false
		for _, v := range list {
			n, hold := v.loc.diskBytes(), v.loc.pinned && cut.spares(tierPinned)
			if !cut.cold(v.loc) && (n <= budget || hold || n <= budget+more && cut.hot(v.loc)) && db.copyForward(v) {
				budget -= n
				continue
			}
			if !hold && db.table.evict(v.key, v.loc) {
				db.record(v.key)
				db.countEvicted(why)
				continue
			}
			if now, ok := db.table.get(v.key, false); ok && now.samePlace(v.loc) { // pinned, if only just now
				stays = hold || !db.copyForward(v) || stays
			}
		}
		if !stays {
			db.dropPack(p)
		}
	}
}

func (db *DB) dropPack(p *pack) {
	if err := db.packs.drop(p); err != nil {
		db.log.Warn("removing pack", "pack", p.id, "err", err)
	}
	db.giveBack(p.size.Load())
	db.recordDropped(p.id)
}

// copyForward moves a small object to the active pack; false leaves it where it is.
func (db *DB) copyForward(v victim) bool {
	if db.space.free() < db.space.reserve/2 {
		return false
	}
	plain := scratch(int(v.loc.size))
	defer plain.free()
	if db.packs.read(v.key, v.loc, plain.b, 0) != nil {
		return false
	}
	record := appendPackRecord(nil, v.key, v.loc.class, v.loc.used, plain.b)
	p, off, err := db.packs.append(record)
	if p != nil {
		db.giveBack(-int64(len(record))) // a failed append leaves a gap of that length
	}
	if err != nil {
		return false
	}
	defer p.writers.Add(-1)
	db.count.copied.add(len(record))
	if db.table.update(v.key, v.loc, func(l *loc) { l.pack, l.off = p.id, off }) {
		db.record(v.key)
	}
	return true
}

// catalogShare: the n-th part of the limit is the catalogs' own.
const catalogShare = 4

// removeChunk deletes the file of a chunk, or what takes its place in memory, if forget takes it from the table.
func (db *DB) removeChunk(k key, l loc, forget func(k key, was loc) bool) bool {
	defer db.chunks.lock(k).Unlock()
	if !forget(k, l) {
		return false
	}
	remove := db.chunks.remove
	if db.ram != nil {
		remove = func(k key) error { return db.ram.remove(k, int(l.size)) }
	}
	if err := remove(k); err != nil {
		db.log.Warn("removing an object", "digest", index.SHA256Digest(k), "err", err)
	}
	db.giveBack(l.diskBytes())
	db.record(k)
	return true
}

// giveBack accounts for n bytes freed on disk.
func (db *DB) giveBack(n int64) {
	db.quota.objects.Add(-n)
	db.quota.freed.Add(n)
	db.space.take(-n)
}

func (db *DB) countEvicted(why reason) {
	switch why {
	case forSpace:
		db.count.evictedSpace.add(1)
	case asked:
		db.count.evictedAsked.add(1)
	default:
		db.count.evictedLimit.add(1)
	}
}
