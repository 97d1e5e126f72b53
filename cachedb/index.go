package cachedb

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sys/unix"
)

// index.go, tables.go and rebuild.go alone talk to badger. The index is written in batches behind the cache's back and read once,
// when the cache opens; in between the table answers.

const (
	recordEvery  = 200 * time.Millisecond // at most this much is not in the index yet
	recencyEvery = time.Minute            // how often last uses are handed to the index
	stateMax     = 64 << 10               // longest state value; all values stay in badger's tables, whose space comes back
)

const (
	maxMemTable    = 16 << 20 // that any version used
	commonMemTable = 2 << 20
)

// memTableSize is 2 MiB, or less where the cache or its partition is small.
func memTableSize(limit, total int64) int64 {
	return min(commonMemTable, max(1<<20, min(limit, total)/64))
}

// logBytes is what the log of a memtable takes on disk.
func logBytes(memTable int64) int64 { return memTable + memTable/4 }

func badgerOptions(dir string, memTable int64, log badgerLog) badger.Options {
	o := badger.DefaultOptions(dir).
		WithLogger(log).
		WithMemTableSize(memTable).
		WithNumMemtables(2).
		WithNumLevelZeroTables(2).
		WithNumLevelZeroTablesStall(6).
		WithNumCompactors(2).
		WithBaseTableSize(512 << 10).
		WithBaseLevelSize(8 << 20).
		WithBlockCacheSize(0). // blocks are read where they are mapped, once
		WithValueThreshold(stateMax + 1).
		WithValueLogFileSize(1 << 20). // holds nothing
		WithCompression(options.None).
		WithChecksumVerificationMode(options.OnBlockRead).
		WithDetectConflicts(false).
		WithMetricsEnabled(false)
	o.TableSizeMultiplier = 1 // a compaction keeps twice the size of some ten tables in memory
	return o
}

// openBadger opens the index. Damage that badger answers with a panic is an error like any other.
func openBadger(opts badger.Options) (b *badger.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			b, err = nil, fmt.Errorf("badger: %v", p)
		}
	}()
	if b, err = badger.Open(opts); err != nil {
		return nil, fmt.Errorf("badger: %w", err)
	}
	return b, nil
}

// guard turns a panic on damaged index files into an error.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("badger: %v", p)
		}
	}()
	return f()
}

// generations order trust: an object recorded in a generation before trusted must be verified before its first use.
type generations struct{ now, trusted uint32 }

// loaded is what the index told when the cache opened.
type loaded struct {
	gen   generations
	packs map[uint32]int64 // recorded sizes
	state map[string][]byte
}

// load reads the whole index into the table.
func (db *DB) load() (loaded, error) {
	in := loaded{packs: map[uint32]int64{}, state: map[string][]byte{}}
	version := uint32(0)
	err := guard(func() error {
		return db.badger.View(func(txn *badger.Txn) error {
			// About how many objects there are: some have several versions. All memtables are full but the last, which is new.
			logs, _ := filepath.Glob(filepath.Join(db.dir, "index", "*.mem"))
			keys := max(0, len(logs)-1) * int(db.memTable/entryCost)
			for _, t := range db.badger.Tables() {
				keys += int(t.KeyCount)
			}
			db.table.reserve(keys)
			it := txn.NewIterator(badger.IteratorOptions{PrefetchValues: false})
			defer it.Close()
			for it.Rewind(); it.Valid(); it.Next() {
				item := it.Item()
				if err := item.Value(func(v []byte) error { return db.loadItem(&in, &version, item.Key(), v) }); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return in, err
	}
	db.table.fit()
	if version > layoutVersion {
		return in, fmt.Errorf("layout %d, this program knows up to %d: %w", version, layoutVersion, ErrLayout)
	}
	return in, nil
}

func (db *DB) loadItem(in *loaded, version *uint32, k, v []byte) error {
	le := binary.LittleEndian
	switch {
	case string(k) == keyVersion && len(v) == 4:
		*version = le.Uint32(v)
	case string(k) == keyGeneration && len(v) == 8: // sorts before the objects
		in.gen = generations{le.Uint32(v), le.Uint32(v[4:])}
	case k[0] == prefixObject:
		key, err := parseObjectKey(k)
		if err != nil {
			return err
		}
		l, gen, err := decodeRecord(v)
		if err != nil {
			return err
		}
		in.gen.now = max(in.gen.now, gen)
		l.suspect = gen < in.gen.trusted
		db.table.add(key, l)
	case k[0] == prefixPack && len(k) == 5 && len(v) == 4:
		in.packs[binary.BigEndian.Uint32(k[1:])] = int64(le.Uint32(v))
	case k[0] == prefixState:
		in.state[string(k[1:])] = append([]byte{}, v...)
	}
	return nil
}

// Badger writes through mappings, and dies when a page finds no block on the disk. Between two memtables it writes to
// its log alone, so the log gets its blocks ahead; only a batch that may begin the next memtable needs free space.

// wal is badger's log as far as it is prepared. DB.flushing guards it.
type wal struct {
	name  string // of the newest log
	used  int64  // bytes written to it, rather more than less
	ready bool   // it has all its blocks
}

const entryCost = 200 // more than an object's record takes in the log or in the memtable

// mayWriteIndex reports whether badger may be handed n bytes. db.flushing is held.
func (db *DB) mayWriteIndex(n int64) bool {
	if db.wal.ready && db.wal.used+n < db.memTable {
		return true
	}
	db.space.forget()
	return db.space.free() >= db.space.reserve/4*3
}

// wroteIndex accounts for n bytes and gives a new log its blocks. db.flushing is held.
func (db *DB) wroteIndex(n int64) {
	w := &db.wal
	logs, _ := filepath.Glob(filepath.Join(db.dir, "index", "*.mem"))
	if len(logs) == 0 {
		w.ready = false
		return
	}
	if newest := slices.Max(logs); newest != w.name { // names are numbers of equal length
		*w = wal{name: newest}
	}
	w.used += n
	if w.ready {
		return
	}
	f, err := os.OpenFile(w.name, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, logBytes(db.memTable))
	w.ready = err == nil
	db.space.forget()
}

// setIndex writes one pair, or deletes it, and syncs that.
func (db *DB) setIndex(k, v []byte) error { return db.writePair(k, v, true) }

func (db *DB) writePair(k, v []byte, sync bool) error {
	if db.ram != nil {
		return nil
	}
	db.flushing.Lock()
	defer db.flushing.Unlock()
	n := int64(entryCost + len(k) + len(v))
	if !db.mayWriteIndex(n) {
		return fmt.Errorf("writing index: %w", ErrFull)
	}
	defer db.wroteIndex(n)
	err := guard(func() error {
		if err := db.badger.Update(func(txn *badger.Txn) error {
			if v == nil {
				return txn.Delete(k)
			}
			return txn.Set(k, v)
		}); err != nil || !sync {
			return err
		}
		return db.badger.Sync()
	})
	if err != nil {
		return fmt.Errorf("writing index: %w", err)
	}
	return nil
}

// setGenerations is for an opening cache. It syncs nothing: while the marker stands the next owner trusts nothing either, and what is
// written from now on comes after this in the log.
func (db *DB) setGenerations(g generations) error {
	db.gen = g
	le := binary.LittleEndian
	return db.writePair([]byte(keyGeneration), le.AppendUint32(le.AppendUint32(nil, g.now), g.trusted), false)
}

// Badger passes over a damaged table in silence, or dies of it in a goroutine of its own. So the owner leaves the sums of
// all index files behind when it stops, and the next one compares them before it lets badger near.

// indexSums lists the files of the index: name, size, CRC-32C.
func indexSums(dir string) ([]byte, error) {
	var out []byte
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		n, crc, err := sumFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		out = fmt.Appendf(out, "%s %d %08x\n", e.Name(), n, crc)
	}
	return out, nil
}

func (db *DB) sumsPath() string { return filepath.Join(db.dir, "index.sums") }

// checkIndex compares the index with what was left behind at a clean stop.
func (db *DB) checkIndex(dir string) error {
	want, err := os.ReadFile(db.sumsPath())
	if err != nil {
		return err
	}
	got, err := indexSums(dir)
	if err == nil && string(got) != string(want) {
		err = fmt.Errorf("files differ from those at the last stop: %w", errDamaged)
	}
	return err
}

// closeIndex closes badger and leaves the sums behind, unless the index was damaged meanwhile: without sums the next owner rebuilds it.
func (db *DB) closeIndex() error {
	damaged := guard(db.checkTables)
	if err := guard(db.badger.Close); err != nil {
		return err
	}
	if damaged != nil {
		db.log.Error("the cache's index was damaged while in use: it is rebuilt at the next start", "dir", db.dir, "err", damaged)
		return os.RemoveAll(db.sumsPath())
	}
	sums, err := indexSums(filepath.Join(db.dir, "index"))
	if err != nil {
		return err
	}
	return writeSynced(db.sumsPath(), sums)
}

// journal collects what the index has to learn: keys, whose present state is looked up when they are written.
type journal struct {
	mu    sync.Mutex // guards what follows
	keys  []key
	packs []uint32 // that left
}

// record says that what is known of k changed.
func (db *DB) record(k key) {
	if db.ram != nil {
		return
	}
	db.journal.mu.Lock()
	db.journal.keys = append(db.journal.keys, k)
	db.journal.mu.Unlock()
}

func (db *DB) recordDropped(pack uint32) {
	db.journal.mu.Lock()
	db.journal.packs = append(db.journal.packs, pack)
	db.journal.mu.Unlock()
}

func (j *journal) take() ([]key, []uint32) {
	j.mu.Lock()
	defer j.mu.Unlock()
	keys, packs := j.keys, j.packs
	j.keys, j.packs = nil, nil
	return keys, packs
}

func (j *journal) giveBack(keys []key, packs []uint32) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.keys, j.packs = append(j.keys, keys...), append(j.packs, packs...)
}

// flush writes what the index has to learn. It puts that off while the partition is too full for badger.
func (db *DB) flush() error {
	db.flushing.Lock()
	defer db.flushing.Unlock()
	// A pack's size is recorded once all its records up to there are: taken before the keys, and only without writers.
	sizes := map[*pack]int64{}
	for _, p := range db.packs.all() {
		if n := p.size.Load(); p.writers.Load() == 0 && n != p.recorded {
			sizes[p] = n
		}
	}
	keys, dropped := db.journal.take()
	if len(keys)+len(dropped)+len(sizes) == 0 {
		return nil
	}
	n := int64(len(keys)+len(dropped)+len(sizes)) * entryCost
	if !db.mayWriteIndex(n) {
		db.journal.giveBack(keys, dropped)
		return fmt.Errorf("writing index: %w", ErrFull)
	}
	err := guard(func() error { return db.writeBatch(keys, dropped, sizes) })
	db.wroteIndex(n)
	if err != nil {
		db.journal.giveBack(keys, dropped)
		return fmt.Errorf("writing index: %w", err)
	}
	for p, n := range sizes {
		p.recorded = n
	}
	db.space.forget()
	db.measureIndex()
	return nil
}

func (db *DB) writeBatch(keys []key, dropped []uint32, sizes map[*pack]int64) error {
	wb := db.badger.NewWriteBatch()
	defer wb.Cancel()
	for _, k := range keys {
		var err error
		if l, ok := db.table.get(k, false); ok {
			err = wb.Set(objectKey(k), encodeRecord(l, db.gen.now))
		} else {
			err = wb.Delete(objectKey(k))
		}
		if err != nil {
			return err
		}
	}
	for _, id := range dropped {
		if err := wb.Delete(packKey(id)); err != nil {
			return err
		}
	}
	for p, n := range sizes {
		if db.packs.get(p.id) == p && n <= math.MaxUint32 {
			if err := wb.Set(packKey(p.id), binary.LittleEndian.AppendUint32(nil, uint32(n))); err != nil {
				return err
			}
		}
	}
	return wb.Flush()
}

// measureIndex takes the disk usage of everything that is not an object. In memory that is the table, which counts itself.
func (db *DB) measureIndex() {
	if db.ram != nil {
		return
	}
	n := diskUsage(filepath.Join(db.dir, "index"), filepath.Join(db.dir, "index.damaged"), filepath.Join(db.dir, asideDir)) + 16<<10
	if dirs, err := os.ReadDir(db.chunks.dir); err == nil {
		n += int64(len(dirs)+1) * fsBlock
	}
	db.quota.index.Store(n)
}

// stampRecency hands last uses that moved by an eighth of the cache or more to the index.
func (db *DB) stampRecency() {
	db.table.restamp(uint32(max(1, db.table.count.Load()/8)), db.record)
}

// recorder writes the index until the cache closes.
func (db *DB) recorder() {
	defer db.wg.Done()
	tick := time.NewTicker(recordEvery)
	defer tick.Stop()
	recency := time.Now()
	var failed time.Time
	db.syncMarker()
	for n := 1; ; n++ {
		select {
		case <-db.ctx.Done():
			return
		case <-tick.C:
		}
		if time.Since(recency) > recencyEvery && db.ram == nil {
			recency = time.Now()
			db.stampRecency()
		}
		if err := db.flush(); err != nil && time.Since(failed) > time.Minute {
			failed = time.Now()
			db.log.Warn("recording objects is put off", "err", err)
		}
		if n%10 == 0 { // badger tidies up by itself
			db.measureIndex()
			if db.ram == nil {
				db.sumTables()
			}
		}
		if db.quota.bytes() > db.quota.high() || db.space.free() < db.space.reserve {
			db.wakeEvictor()
		}
		db.UpdateGauges()
	}
}
