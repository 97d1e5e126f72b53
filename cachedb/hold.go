package cachedb

import (
	"fmt"

	"github.com/skimfs/skimfs/index"
)

// pinMax: pins hold at most 3/4 of the limit, so that the rest of the node can work.
func pinMax(limit int64) int64 { return limit / 4 * 3 }

// Pin keeps d, which must be cached on disk, until Unpin: it only leaves if a smaller limit can't be kept otherwise. It reports
// false when d isn't on disk. ErrFull wrapped says that pins would take more than three quarters of the limit.
func (db *DB) Pin(d index.Digest) (bool, error) {
	k := keyOf(d)
	l, ok := db.table.get(k, true)
	if !ok || d.Algorithm() != index.SHA256 {
		return false, nil
	}
	if l.pinned {
		return true, nil
	}
	if n := db.quota.pinned.Load() + l.diskBytes(); n > pinMax(db.Limit()) {
		return false, fmt.Errorf("pinning %v: pins would take %d bytes of %d: %w", d, n, db.Limit(), ErrFull)
	}
	return db.setPinned(k, true), nil
}

// Unpin lets d leave as any other object.
func (db *DB) Unpin(d index.Digest) {
	if d.Algorithm() == index.SHA256 {
		db.setPinned(keyOf(d), false)
	}
}

// setPinned reports whether k is on disk. An object that moves meanwhile is looked up again.
func (db *DB) setPinned(k key, to bool) bool {
	for {
		l, ok := db.table.get(k, false)
		if !ok {
			return false
		}
		if db.table.update(k, l, func(l *loc) {
			if l.pinned != to {
				l.pinned = to
				db.countPinned(*l, to)
			}
		}) {
			db.record(k)
			return true
		}
	}
}

// countPinned accounts for an object that became pinned, or no longer is.
func (db *DB) countPinned(l loc, pinned bool) {
	if pinned {
		db.quota.pinned.Add(l.diskBytes())
	} else {
		db.quota.pinned.Add(-l.diskBytes())
	}
}

// SetInUse marks the objects that images in use consist of, in place of those marked before: they leave after other files.
// all calls its argument for each; what is not cached is passed over. The marks are not kept over a restart.
func (db *DB) SetInUse(all func(mark func(index.Digest))) {
	db.quota.marking.Lock()
	defer db.quota.marking.Unlock()
	mark := uint8(3 - max(1, db.quota.use.Load())) // the other one of 1 and 2
	for i := range db.table.shard {
		s := &db.table.shard[i]
		s.mu.Lock()
		for j := range s.slots {
			s.slots[j].meta &^= uint32(mark) << metaUseBit
		}
		s.mu.Unlock()
	}
	all(func(d index.Digest) {
		k := keyOf(d)
		s := db.table.of(&k)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.n == 0 {
			return
		}
		if i, ok := s.find(&k); ok {
			s.slots[i].meta |= uint32(mark) << metaUseBit
		}
	})
	db.quota.use.Store(uint32(mark))
}

// Size returns the bytes that d takes on disk, 0 if it isn't there, and whether it is pinned.
func (db *DB) Size(d index.Digest) (bytes int64, pinned bool) {
	if d.Algorithm() != index.SHA256 {
		return 0, false
	}
	l, ok := db.table.get(keyOf(d), false)
	if !ok {
		return 0, false
	}
	return l.diskBytes(), l.pinned
}

// Evict drops d from memory and disk, unless it is pinned. A small object's space comes back when its pack leaves. It reports
// whether d was on disk and is gone.
func (db *DB) Evict(d index.Digest) bool {
	if d.Algorithm() != index.SHA256 {
		return false
	}
	k := keyOf(d)
	db.memory.drop(k)
	for {
		l, ok := db.table.get(k, false)
		if !ok || l.pinned {
			return false
		}
		gone := false
		if l.pack == 0 {
			gone = db.removeChunk(k, l, db.table.evict)
		} else if gone = db.table.evict(k, l); gone {
			db.record(k)
		}
		if gone {
			db.count.evictedAsked.add(1)
			return true
		}
	}
}

// Trim evicts, the least recently used first, until at most n bytes are on disk or only what is pinned is left. It returns the
// bytes freed.
func (db *DB) Trim(n int64) int64 {
	before := db.quota.freed.Load()
	db.quota.evict.Lock()
	defer db.quota.evict.Unlock()
	for over := db.quota.bytes() - n; over > 0 && db.ctx.Err() == nil; over = db.quota.bytes() - n {
		if db.evictRound(min(over, db.quota.step()), asked) <= 0 {
			break
		}
	}
	return db.quota.freed.Load() - before
}

// PinOnly unpins whatever is not in keep.
func (db *DB) PinOnly(keep map[index.Digest]bool) {
	var gone []key
	db.table.scan(func(k *key, l loc) {
		if l.pinned && !keep[index.SHA256Digest(*k)] {
			gone = append(gone, *k)
		}
	})
	for _, k := range gone {
		db.setPinned(k, false)
	}
}
