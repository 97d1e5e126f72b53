package cachedb

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/index"
)

var (
	// ErrInUse says that another process owns the cache; the text names it.
	ErrInUse = errors.New("in use")
	// ErrFull says that the partition or the limit leaves no room.
	ErrFull = errors.New("no room")
	// ErrPinned says that pins need more room than a limit gives them.
	ErrPinned = errors.New("pinned content needs more")
	// ErrLayout says that a newer program wrote the cache.
	ErrLayout = errors.New("unknown cache layout")
)

// Class says what an object is for. Higher classes leave the cache last.
type Class uint8

const (
	ClassFile    Class = iota // content of files
	ClassCatalog              // what every lookup needs
)

// Config says where a cache is and what it may use. Only Dir is required.
type Config struct {
	Dir         string        // owned by one process; created with mode 0700
	Limit       int64         // bytes on disk, index included; 0: as set last, or the smaller of 20 GB and 70 % of the partition's free space
	RAM         bool          // objects are kept in memory, at most Limit bytes, which must be given; Dir holds the lock and the state records
	Memory      int64         // bytes of the memory tier; 0: 16 MiB, with RAM none; negative: none
	FillTimeout time.Duration // for each fill; 0: one minute
	Log         *slog.Logger  // nil: silent

	// Large is called once, unless it is nil, when the table of objects takes more than 32 MiB of memory, with half a million of them: time to
	// save memory elsewhere.
	Large func()
}

// DB is an open cache. It is safe for concurrent use.
type DB struct {
	dir     string
	log     *slog.Logger
	timeout time.Duration
	lock    *os.File
	badger  *badger.DB // nil with ram
	ram     *ram       // nil: packs and chunk files hold the objects
	gen     generations
	space   *space
	quota   quota
	table   table
	packs   packs
	chunks  *chunks
	memory  *memory
	state   states
	count   counters

	journal  journal
	flushing sync.Mutex // held by whoever writes the index; guards wal
	wal      wal
	memTable int64 // size of badger's memtable, bytes
	sums     tableSums

	flights flights
	writing *semaphore.Weighted // bytes filled and not yet on disk
	warned  atomic.Int64        // when the full disk was last logged, Unix seconds

	ctx    context.Context // ends when the cache closes; background work and fills follow it
	cancel context.CancelFunc
	wg     sync.WaitGroup
	closed atomic.Bool
}

// pendingWrites bounds the bytes that are answered but not yet on disk.
const pendingWrites = 16 << 20

// Open opens the cache in c.Dir, creating it if it isn't there, and takes it over from a process that died. A cache that can't be opened for
// what is in its directory is moved aside, which the log tells, and begun anew. Open returns ErrInUse, ErrFull or ErrLayout wrapped, or what
// the filesystem said.
func Open(c Config) (*DB, error) {
	db, err := openOnce(c)
	if err == nil || !spoiled(err) {
		return db, err
	}
	aside, moveErr := moveAside(c.Dir)
	if moveErr != nil {
		return nil, errors.Join(err, moveErr)
	}
	if c.Log != nil {
		c.Log.Error("the cache can't be opened: moved aside, beginning anew", "dir", c.Dir, "aside", aside, "err", err)
	}
	return openOnce(c)
}

func openOnce(c Config) (*DB, error) {
	db := &DB{dir: c.Dir, log: c.Log, timeout: c.FillTimeout, writing: semaphore.NewWeighted(pendingWrites)}
	if db.log == nil {
		db.log = slog.New(slog.DiscardHandler)
	}
	if db.timeout <= 0 {
		db.timeout = time.Minute
	}
	if c.Memory == 0 && !c.RAM {
		c.Memory = 16 << 20
	}
	db.memory = newMemory(max(0, c.Memory))
	db.count.init()
	db.table.unpin = func(l loc) { db.countPinned(l, false) }
	db.table.large = c.Large
	db.quota.use.Store(1)
	db.quota.kick = make(chan struct{}, 1)
	db.flights.m = map[key]*flight{}
	db.chunks = newChunks(filepath.Join(c.Dir, "chunks"), filepath.Join(c.Dir, "tmp"))
	db.packs.dir = filepath.Join(c.Dir, "packs")
	db.ctx, db.cancel = context.WithCancel(context.Background())
	open := db.open
	if c.RAM {
		open = db.openRAM
	}
	if err := open(c); err != nil {
		db.abandon()
		return nil, fmt.Errorf("opening cache %q: %w", c.Dir, err)
	}
	db.wg.Add(2)
	go db.recorder()
	go db.evictor()
	db.wakeEvictor()
	return db, nil
}

func (db *DB) open(c Config) (err error) {
	for _, sub := range []string{"", "index", "packs", "chunks", "tmp"} {
		if err := os.MkdirAll(filepath.Join(db.dir, sub), 0o700); err != nil {
			return err
		}
	}
	if err := db.takeLock(); err != nil {
		return err
	}
	if err := emptyDir(db.chunks.tmp); err != nil {
		return err
	}
	if db.space, err = newSpace(partitionFree(db.dir)); err != nil {
		return err
	}
	removed, err := db.space.freeForOpen(db.dir)
	if err != nil {
		return err
	}
	if removed > 0 {
		db.log.Warn("removed cached files: the partition is full", "dir", db.dir, "files", removed)
	}
	found, err := db.readMarker()
	if err != nil {
		return err
	}
	// The index is not loaded yet; until then the limit is what was asked or, for the size of badger's tables, the default.
	asked := c.Limit
	if c.Limit <= 0 {
		c.Limit = db.recordedLimit()
	}
	db.quota.limit.Store(c.Limit)
	if c.Limit <= 0 {
		db.quota.limit.Store(db.defaultLimit())
	}
	db.packs.full.Store(packSize(db.Limit()))
	// A log that a larger memtable wrote does not fit a smaller one.
	now := marker{phase: opening, memTable: max(found.memTable, memTableSize(db.Limit(), db.space.total))}
	mark := db.writeMarker
	if found.phase != stopped && found.memTable == now.memTable {
		mark = db.remark
	}
	if err := mark(now); err != nil {
		return err
	}
	db.memTable = now.memTable
	db.quota.indexStep.Store(logBytes(db.memTable))
	if err := db.recover(found, removed > 0); err != nil {
		if db.badger != nil {
			err = errors.Join(err, db.closeIndex())
			db.badger = nil
		}
		return errors.Join(err, db.writeMarker(found))
	}
	db.measureIndex()
	db.useLimit(c.Limit)
	if asked > 0 && asked != db.recordedLimit() {
		if err := db.setLimit(asked); err != nil {
			db.log.Warn("recording the cache's limit", "err", err)
		}
	}
	now.phase = running
	return db.remark(now)
}

// openRAM opens a cache without a disk: nothing is there but state records.
func (db *DB) openRAM(c Config) (err error) {
	if c.Limit <= 0 {
		return fmt.Errorf("a cache in memory needs a limit: %w", fs.ErrInvalid)
	}
	if err := os.MkdirAll(db.dir, 0o700); err != nil {
		return err
	}
	if err := db.takeLock(); err != nil {
		return err
	}
	if db.space, err = newSpace(memoryFree); err != nil {
		return err
	}
	if db.ram, err = newRAM(); err != nil {
		return err
	}
	db.table.grew = func(n int64) { db.quota.index.Add(n) }
	db.table.reserve(0)
	db.useLimit(c.Limit)
	return db.openState(map[string][]byte{})
}

// takeLock makes this process the owner.
func (db *DB) takeLock() error {
	f, err := os.OpenFile(filepath.Join(db.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("locking: %w", err)
		}
		pid := make([]byte, 20)
		n, _ := f.ReadAt(pid, 0)
		return fmt.Errorf("%w by process %s", ErrInUse, strings.TrimSpace(string(pid[:n])))
	}
	db.lock = f
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	return err
}

// unlock ends the ownership. Closing the file alone would not, as long as a child that another goroutine forks holds it too, until it executes
// its program.
func (db *DB) unlock() error {
	return errors.Join(unix.Flock(int(db.lock.Fd()), unix.LOCK_UN), db.lock.Close())
}

// marker is the content of DIR/dirty: what the owner was doing when it was last heard of.
type marker struct {
	phase    string // stopped when there is no marker
	memTable int64  // size of badger's memtable, bytes
}

const (
	stopped = ""
	opening = "opening"
	running = "open"
)

func (db *DB) markerPath() string { return filepath.Join(db.dir, "dirty") }

// readMarker never fails on content: a torn marker tells of an unclean stop.
func (db *DB) readMarker() (m marker, err error) {
	b, err := os.ReadFile(db.markerPath())
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if n, _ := fmt.Sscanf(string(b), "%s %d\n", &m.phase, &m.memTable); n != 2 || m.memTable < 0 || m.memTable > maxMemTable {
		m = marker{phase: running, memTable: maxMemTable}
	}
	return m, err
}

func (m marker) text() []byte { return fmt.Appendf(nil, "%s %d\n", m.phase, m.memTable) }

func (db *DB) writeMarker(m marker) error {
	if m.phase == stopped {
		return errors.Join(os.Remove(db.markerPath()), syncDir(db.dir))
	}
	return writeSynced(db.markerPath(), m.text())
}

// remark changes a marker that is on the disk and has the same size of the memtable, without waiting for the disk: which of the two a power
// loss leaves, or a torn one, tells of an unclean stop as well.
func (db *DB) remark(m marker) error { return os.WriteFile(db.markerPath(), m.text(), 0o600) }

// syncMarker brings the marker to the disk. Until then a power loss may leave one that has the next owner rebuild the index.
func (db *DB) syncMarker() {
	if f, err := os.Open(db.markerPath()); err == nil {
		_ = f.Sync() // a disk that can't will be told of by what writes
		f.Close()
	}
}

// writeSynced replaces path by data: write, sync, rename, sync the directory.
func writeSynced(path string, data []byte) (err error) {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		os.Remove(path + ".new")
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func emptyDir(dir string) error {
	list, err := os.ReadDir(dir)
	for _, e := range list {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

// abandon gives up whatever an unfinished Open holds.
func (db *DB) abandon() {
	db.cancel()
	if db.badger != nil {
		_ = guard(db.badger.Close)
	}
	if db.ram != nil {
		db.ram.f.Close()
	}
	db.packs.close()
	db.table.reset()
	if db.lock != nil {
		_ = db.unlock()
	}
}

// Close stops fills, waits for what is being written, and leaves the cache clean: everything synced and recorded. When
// the partition is too full for that the cache is left as after a crash, which loses nothing but time at the next Open.
func (db *DB) Close() error {
	if db.closed.Swap(true) {
		return fs.ErrClosed
	}
	db.flights.close()
	db.cancel()
	db.wg.Wait()
	db.chunks.close()
	defer db.table.reset()
	if db.ram != nil {
		return errors.Join(db.ram.f.Close(), db.unlock())
	}
	short := func() bool { return !db.space.indexMayClose() }
	for db.space.forget(); short() && db.evictNow(db.space.reserve, forSpace, short); {
	}
	db.stampRecency()
	err := db.flush()
	if short() {
		// Badger would write a table and die. Its log holds all it was told.
		db.packs.close()
		return errors.Join(fmt.Errorf("closing cache %q: %w", db.dir, ErrFull), db.unlock())
	}
	err = errors.Join(err, db.closeIndex())
	db.packs.close()
	if err == nil {
		err = db.syncAll()
	}
	if err == nil {
		err = db.writeMarker(marker{})
	}
	if err = errors.Join(err, db.unlock()); err != nil {
		return fmt.Errorf("closing cache %q: %w", db.dir, err)
	}
	return nil
}

// syncAll brings everything on the partition to the disk.
func (db *DB) syncAll() error {
	d, err := os.Open(db.dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

// Dir returns the directory.
func (db *DB) Dir() string { return db.dir }

// Sync returns when everything answered so far is recorded and on disk.
func (db *DB) Sync(ctx context.Context) error {
	if db.closed.Load() {
		return fs.ErrClosed
	}
	if err := db.writing.Acquire(ctx, pendingWrites); err != nil {
		return err
	}
	db.writing.Release(pendingWrites)
	if db.ram != nil {
		return nil
	}
	db.space.forget()
	if err := db.flush(); err != nil {
		return err
	}
	return db.syncAll()
}

// Has reports whether d is cached, in memory or on disk. It does not count as a use.
func (db *DB) Has(d index.Digest) bool {
	if d.Algorithm() != index.SHA256 {
		return false
	}
	k := keyOf(d)
	if _, ok := db.table.get(k, false); ok {
		return true
	}
	_, ok := db.memory.get(k)
	return ok
}

// Memory returns d's content if the memory tier holds it. Nobody may change it.
func (db *DB) Memory(d index.Digest) ([]byte, bool) {
	if d.Algorithm() != index.SHA256 {
		return nil, false
	}
	b, ok := db.memory.get(keyOf(d))
	if ok {
		db.count.hitsMemory.add(1)
	}
	return b, ok
}

// ReadAt fills p from offset off of object d of size bytes, if d is cached: it never waits for a fill, and reads and
// checks only the 16 KiB blocks it needs. ok is false when d is not cached, or was found damaged and dropped; p's content
// is undefined then. err reports a range or size that d doesn't have, and fs.ErrClosed.
func (db *DB) ReadAt(d index.Digest, size int64, p []byte, off int64) (ok bool, err error) {
	if off < 0 || off+int64(len(p)) > size {
		return false, fmt.Errorf("reading object %v: %d bytes at %d of %d: %w", d, len(p), off, size, fs.ErrInvalid)
	}
	if db.closed.Load() {
		return false, fs.ErrClosed
	}
	if d.Algorithm() != index.SHA256 {
		return false, nil
	}
	k := keyOf(d)
	if b, ok := db.memory.get(k); ok && int64(len(b)) == size {
		copy(p, b[off:])
		db.table.get(k, true)
		db.count.hitsMemory.add(1)
		return true, nil
	}
	ok, err = db.readDisk(k, size, p, off)
	if ok {
		db.countDiskHit()
	}
	return ok, err
}

// readDisk reads from the disk tier. An object that moves meanwhile is looked up again; a bad one is dropped.
func (db *DB) readDisk(k key, size int64, p []byte, off int64) (bool, error) {
	for range 8 {
		l, ok := db.table.get(k, true)
		if !ok {
			return false, nil
		}
		if int64(l.size) != size {
			return false, fmt.Errorf("reading object %x: it has %d bytes, not %d: %w", k, l.size, size, index.ErrFormat)
		}
		err := db.readLoc(k, l, p, off)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, errGone):
			continue
		case errors.Is(err, errDamaged), errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EIO):
			db.dropBad(k, l, err)
		default: // out of descriptors, say: the object is none the worse
			db.log.Warn("reading cached object", "digest", index.SHA256Digest(k), "err", err)
		}
		return false, nil
	}
	return false, nil
}

func (db *DB) readLoc(k key, l loc, p []byte, off int64) error {
	if l.suspect {
		return db.readSuspect(k, l, p, off)
	}
	return db.readBlocks(k, l, p, off)
}

func (db *DB) readBlocks(k key, l loc, p []byte, off int64) error {
	if db.ram != nil {
		return db.ram.read(k, p, off)
	}
	if l.pack != 0 {
		return db.packs.read(k, l, p, off)
	}
	cf, err := db.chunks.acquire(k, int64(l.size), func() bool {
		now, ok := db.table.get(k, false)
		return ok && now.samePlace(l)
	})
	if err != nil {
		return err
	}
	defer db.chunks.release(cf)
	return cf.read(int64(l.size), p, off)
}

// readSuspect reads the whole object and checks its digest: it was written before an unclean stop.
func (db *DB) readSuspect(k key, l loc, p []byte, off int64) error {
	whole := scratch(int(l.size))
	defer whole.free()
	if err := db.readBlocks(k, l, whole.b, 0); err != nil {
		return err
	}
	if sha256.Sum256(whole.b) != k {
		return fmt.Errorf("content does not match its digest: %w", errDamaged)
	}
	if db.table.update(k, l, func(l *loc) { l.suspect = false }) {
		db.record(k)
	}
	copy(p, whole.b[off:])
	return nil
}

// dropBad forgets an object found damaged, if it is still at l.
func (db *DB) dropBad(k key, l loc, why error) {
	dropped := false
	if l.pack == 0 {
		dropped = db.removeChunk(k, l, db.table.remove)
	} else if dropped = db.table.remove(k, l); dropped {
		db.record(k) // its bytes leave with the pack
	}
	if dropped {
		db.count.verifyFailures.add(1)
		db.log.Error("dropped a damaged object", "digest", index.SHA256Digest(k), "pack", l.pack, "err", why)
	}
}
