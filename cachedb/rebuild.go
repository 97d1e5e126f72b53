package cachedb

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sync/errgroup"
)

// recover brings index, packs and chunk files into agreement. found is the last owner's marker.
// removed says that files are missing which the index may know.
func (db *DB) recover(found marker, removed bool) error {
	begun := time.Now()
	if err := db.packs.load(); err != nil {
		return err
	}
	in, rebuilt, err := db.openIndex(found.phase)
	if err != nil {
		return err
	}
	doubtful := found.phase != stopped || rebuilt
	if doubtful {
		// From here on only what is written or verified now is trusted.
		g := max(in.gen.now, in.gen.trusted) + 1
		db.suspectAll()
		if err := db.setGenerations(generations{g, g}); err != nil {
			return err
		}
	} else if db.gen = in.gen; db.gen.now == 0 {
		if err := db.setGenerations(generations{1, 1}); err != nil {
			return err
		}
	}
	db.dropOrphans()
	if err := db.adoptPacks(in.packs, !doubtful); err != nil {
		return err
	}
	if doubtful || removed {
		if err := db.adoptChunks(); err != nil {
			return err
		}
	}
	db.sumUp()
	if err := db.openState(in.state); err != nil {
		return err
	}
	if n := db.table.count.Load(); found.phase != stopped || rebuilt && n > 0 {
		db.log.Info("recovered cache", "dir", db.dir, "objects", n, "rebuilt", rebuilt, "seconds", time.Since(begun).Seconds())
	}
	return nil
}

// openIndex opens badger and loads the table; phase is the last owner's. An index that can't be read, that changed since a
// clean stop, or that killed the last owner when it opened it, is moved aside; then rebuilt is true and the table empty.
func (db *DB) openIndex(phase string) (in loaded, rebuilt bool, err error) {
	dir := filepath.Join(db.dir, "index")
	opts := badgerOptions(dir, db.memTable, badgerLog{db.log})
	fresh := isEmpty(dir)
	var cause error
	switch {
	case fresh:
	case phase == opening:
		cause = errors.New("the last owner did not survive opening it")
	case phase == stopped:
		cause = db.checkIndex(dir)
	}
	var manifest badger.Manifest
	if cause == nil && !fresh {
		manifest, cause = wholeManifest(dir, opts)
	}
	if cause == nil {
		if db.badger, cause = openBadger(opts); cause == nil {
			if cause = db.checkOpened(manifest); cause == nil {
				in, cause = db.load()
			}
			if cause == nil {
				db.sumTables()
				return in, fresh, db.stampVersion(fresh)
			}
			if errors.Is(cause, ErrLayout) {
				return in, false, cause
			}
			_ = guard(db.badger.Close)
			db.badger = nil
		}
	}
	aside := filepath.Join(db.dir, "index.damaged")
	db.log.Error("the cache's index is damaged: moved aside, rebuilding it", "index", dir, "aside", aside, "err", cause)
	if err := errors.Join(os.RemoveAll(aside), os.Rename(dir, aside), os.Mkdir(dir, 0o700)); err != nil {
		return in, true, err
	}
	db.table.reset()
	if db.badger, err = openBadger(opts); err != nil {
		return in, true, err
	}
	return loaded{}, true, db.stampVersion(true)
}

func (db *DB) stampVersion(fresh bool) error {
	if !fresh {
		return nil
	}
	return db.setIndex([]byte(keyVersion), binary.LittleEndian.AppendUint32(nil, layoutVersion))
}

func isEmpty(dir string) bool {
	list, err := os.ReadDir(dir)
	return err == nil && len(list) == 0
}

func (db *DB) suspectAll() {
	for i := range db.table.shard {
		slots := db.table.shard[i].slots
		for j := range slots {
			if slots[j].meta != 0 {
				slots[j].meta |= metaSuspect
			}
		}
	}
}

// dropOrphans forgets objects whose pack is not there.
func (db *DB) dropOrphans() {
	var orphans []victim
	db.table.scan(func(k *key, l loc) {
		if l.pack == 0 {
			return
		}
		if p := db.packs.get(l.pack); p == nil || int64(l.off)+packRecordLen(int64(l.size)) > p.size.Load() {
			orphans = append(orphans, victim{*k, l})
		}
	})
	for _, v := range orphans {
		db.table.remove(v.key, v.loc)
		db.record(v.key)
	}
}

// tornWithin is how many bytes at the end of all packs may hold records that the last owner was writing when it was killed: more than it
// writes before the index learns of it.
const tornWithin = 64 << 20

// adoptPacks reads the records that packs have beyond what the index knows of them, and goes on with the last pack if all
// is known of it. A record that is not whole for a kill came in its midst is no damage: it is left out, where it may be.
func (db *DB) adoptPacks(recorded map[uint32]int64, clean bool) error {
	var last *pack
	for id := range recorded {
		if db.packs.get(id) == nil {
			db.recordDropped(id)
		}
		db.packs.next = max(db.packs.next, id+1)
	}
	all := db.packs.all()
	slices.SortFunc(all, func(a, b *pack) int { return cmp.Compare(a.id, b.id) })
	unknown := int64(0)
	for _, p := range all {
		unknown += max(0, p.size.Load()-recorded[p.id])
	}
	buf := make([]byte, packMax)
	for _, p := range all {
		p.recorded = recorded[p.id]
		if p.recorded == p.size.Load() {
			if last == nil || p.id > last.id {
				last = p
			}
			continue
		}
		mayBeTorn := unknown <= tornWithin
		unknown -= max(0, p.size.Load()-p.recorded)
		if err := p.records(p.recorded, func(h header, off uint32) {
			at := loc{pack: p.id, off: off, size: h.size}
			if !mayBeTorn || db.packs.read(h.key, at, buf[:h.size], 0) == nil {
				db.adopt(h, at)
			}
		}); err != nil {
			return err
		}
	}
	if clean && last != nil && last.size.Load()%packAlign == 0 {
		db.packs.active = last
	}
	return nil
}

// adopt adds an object found on disk, to be verified on its first use. Of two with the same digest it takes the newer one: the
// older was damaged, and dropped, or copied forward.
func (db *DB) adopt(h header, l loc) {
	l.size, l.class, l.used, l.stamp, l.suspect = h.size, h.class, h.clock, h.clock, true
	added := db.table.add(h.key, l)
	if !added {
		was, _ := db.table.get(h.key, false)
		added = int32(l.used-was.used) >= 0 && db.table.update(h.key, was, func(now *loc) {
			l.pinned = now.pinned
			*now = l
		})
	}
	if added {
		db.record(h.key)
	}
}

// adoptChunks adds chunk files that the table doesn't know, removes files that are none, and forgets chunks whose file is
// not there. Directories are looked at side by side, as each may have to come from the disk.
func (db *DB) adoptChunks() error {
	dirs, err := os.ReadDir(db.chunks.dir)
	if err != nil {
		return err
	}
	shard := map[string]*shard{} // by name of its directory; nil for what is none of ours
	for _, d := range dirs {
		if d.IsDir() {
			shard[d.Name()] = nil
		}
	}
	for i := range db.table.shard {
		shard[fmt.Sprintf("%02x", i)] = &db.table.shard[i]
	}
	var all errgroup.Group
	all.SetLimit(8)
	for dir, s := range shard {
		all.Go(func() error { return db.adoptDir(dir, s) })
	}
	return all.Wait()
}

// adoptDir is adoptChunks for a directory, which need not be there, and its shard.
func (db *DB) adoptDir(dir string, s *shard) error {
	names, err := namesIn(filepath.Join(db.chunks.dir, dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("listing chunk files: %w", err)
	}
	there := make(map[key]struct{}, len(names))
	for _, name := range names {
		if k, ok := db.adoptChunk(dir, name); ok {
			there[k] = struct{}{}
			continue
		}
		path := filepath.Join(db.chunks.dir, dir, name)
		if err := os.RemoveAll(path); err != nil {
			db.log.Warn("removing a file that is no chunk", "path", path, "err", err)
		}
	}
	if s == nil {
		return nil
	}
	var lost []victim
	s.scan(func(k *key, l loc) {
		if _, ok := there[*k]; !ok && l.pack == 0 {
			lost = append(lost, victim{*k, l})
		}
	})
	for _, v := range lost {
		db.table.remove(v.key, v.loc)
		db.record(v.key)
	}
	return nil
}

// namesIn lists a directory without asking anything about its files.
func namesIn(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// chunkKey returns the digest that names a chunk file in a directory below chunks; ok is false for every other name.
func chunkKey(dir, name string) (k key, ok bool) {
	if len(name) != 2*len(k) || name[:2] != dir || name != strings.ToLower(name) {
		return k, false
	}
	_, err := hex.Decode(k[:], []byte(name))
	return k, err == nil
}

// adoptChunk reports whether a file below chunks is a chunk of the table, now or already.
func (db *DB) adoptChunk(dir, name string) (k key, ok bool) {
	if k, ok = chunkKey(dir, name); !ok {
		return k, false
	}
	if l, ok := db.table.get(k, false); ok {
		return k, l.pack == 0
	}
	f, err := os.Open(db.chunks.path(k))
	if err != nil {
		return k, false
	}
	defer f.Close()
	h, _, err := readTrailer(f, -1)
	if err != nil || h.key != k {
		return k, false
	}
	db.adopt(h, loc{})
	return k, true
}

// sumUp counts what is on disk and sets the clock behind all uses.
func (db *DB) sumUp() {
	total, clock, pinned := int64(0), uint32(0), int64(0)
	db.table.scan(func(_ *key, l loc) {
		if l.pinned {
			pinned += l.diskBytes()
		}
		if l.pack == 0 {
			total += l.diskBytes()
		}
		clock = max(clock, l.used)
	})
	for _, p := range db.packs.all() {
		total += p.size.Load()
	}
	db.quota.objects.Store(total)
	db.quota.pinned.Store(pinned)
	db.table.clock.Store(clock + 1)
}
