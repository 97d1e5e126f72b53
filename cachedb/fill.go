package cachedb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/skimfs/skimfs/index"
)

// Fill returns an object's verified plain content. It must return soon after its context ends.
type Fill func(ctx context.Context) ([]byte, error)

// flights are the fills under way, one for each object.
type flights struct {
	mu     sync.Mutex // guards what follows
	m      map[key]*flight
	closed bool
}

type flight struct {
	done  chan struct{} // closed when plain and err are set
	once  sync.Once
	plain []byte
	err   error
}

func (f *flight) finish(plain []byte, err error) {
	f.once.Do(func() {
		f.plain, f.err = plain, err
		close(f.done)
	})
}

func (fs *flights) close() {
	fs.mu.Lock()
	fs.closed = true
	fs.mu.Unlock()
}

// Get returns object d of size bytes: from memory, from disk, or from fill, which runs once however many ask, under its
// own deadline, and completes into the cache even when all who asked have left. A waiter leaves with its context's error
// when that ends first. An error of fill goes to all who wait and is not remembered. Nobody may change the result.
func (db *DB) Get(ctx context.Context, d index.Digest, size int64, class Class, fill Fill) ([]byte, error) {
	if size <= 0 || size > index.MaxObject || class > ClassCatalog || d.Algorithm() != index.SHA256 {
		return nil, fmt.Errorf("getting object %v: size %d, class %d: %w", d, size, class, fs.ErrInvalid)
	}
	k := keyOf(d)
	for try := 0; ; try++ {
		if plain, err := db.cached(k, size, class); plain != nil || err != nil {
			return plain, err
		}
		f, err := db.fly(k, size, class, fill, try > 0)
		if err != nil {
			return nil, fmt.Errorf("getting object %v: %w", d, err)
		}
		if f == nil {
			continue // it landed meanwhile
		}
		db.count.missesMemory.add(1)
		db.count.missesDisk.add(1)
		select {
		case <-f.done:
			return f.plain, f.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// cached returns k from memory or disk, or nil.
func (db *DB) cached(k key, size int64, class Class) ([]byte, error) {
	if db.closed.Load() {
		return nil, fs.ErrClosed
	}
	if plain, ok := db.memory.get(k); ok && int64(len(plain)) == size {
		db.table.get(k, true)
		db.count.hitsMemory.add(1)
		return plain, nil
	}
	l, ok := db.table.get(k, false)
	if !ok {
		return nil, nil
	}
	plain := make([]byte, size)
	if ok, err := db.readDisk(k, size, plain, 0); !ok {
		return nil, err
	}
	if class > l.class && db.table.update(k, l, func(l *loc) { l.class = class }) {
		db.record(k)
	}
	db.countDiskHit()
	db.memory.put(k, plain)
	return plain, nil
}

// fly joins the flight for k or starts one. It returns nil if k is cached now, unless insist says that it can't be read.
func (db *DB) fly(k key, size int64, class Class, fill Fill, insist bool) (*flight, error) {
	db.flights.mu.Lock()
	defer db.flights.mu.Unlock()
	if db.flights.closed {
		return nil, fs.ErrClosed
	}
	if f := db.flights.m[k]; f != nil {
		return f, nil
	}
	if _, ok := db.table.get(k, false); ok && !insist {
		return nil, nil
	}
	f := &flight{done: make(chan struct{})}
	db.flights.m[k] = f
	db.wg.Add(1)
	go db.run(f, k, size, class, fill)
	return f, nil
}

// run is a flight: fill, answer, store. Answering waits while too much is answered and not stored.
func (db *DB) run(f *flight, k key, size int64, class Class, fill Fill) {
	defer db.wg.Done()
	defer db.land(f, k)
	ctx, cancel := context.WithTimeout(db.ctx, db.timeout)
	defer cancel()
	fail := func(err error) {
		db.land(f, k) // first: who asks after the error starts anew
		f.finish(nil, err)
	}
	defer context.AfterFunc(ctx, func() { fail(fmt.Errorf("filling %v: %w", index.SHA256Digest(k), ctx.Err())) })()
	db.count.fills.add(1)
	begun := time.Now()
	plain, err := callFill(ctx, fill)
	if err == nil && int64(len(plain)) != size {
		err = fmt.Errorf("filling %v: %d bytes, want %d: %w", index.SHA256Digest(k), len(plain), size, index.ErrFormat)
	}
	if err != nil {
		db.count.fillErrors.add(1)
		fail(err)
		return
	}
	observeFill(begun)
	db.memory.put(k, plain)
	// After Close this fails: the answer is given, the object not stored.
	if err := db.writing.Acquire(db.ctx, size); err != nil {
		f.finish(plain, nil)
		return
	}
	defer db.writing.Release(size)
	f.finish(plain, nil)
	db.store(k, class, plain)
}

// callFill runs fill; a panic is an error.
func callFill(ctx context.Context, fill Fill) (plain []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			plain, err = nil, fmt.Errorf("panic in fill: %v\n%s", p, debug.Stack())
		}
	}()
	return fill(ctx)
}

// land ends a flight: the next to ask starts anew.
func (db *DB) land(f *flight, k key) {
	db.flights.mu.Lock()
	defer db.flights.mu.Unlock()
	if db.flights.m[k] == f {
		delete(db.flights.m, k)
	}
}

// Put stores verified plain content, as a fill would. It reports whether d is on disk now.
func (db *DB) Put(d index.Digest, class Class, plain []byte) (bool, error) {
	if len(plain) == 0 || len(plain) > index.MaxObject || class > ClassCatalog || d.Algorithm() != index.SHA256 {
		return false, fmt.Errorf("putting object %v: size %d, class %d: %w", d, len(plain), class, fs.ErrInvalid)
	}
	db.flights.mu.Lock()
	if db.flights.closed {
		db.flights.mu.Unlock()
		return false, fs.ErrClosed
	}
	db.wg.Add(1)
	db.flights.mu.Unlock()
	defer db.wg.Done()
	return db.store(keyOf(d), class, plain), nil
}

// store writes an object to disk. It answers false, and counts, when that can't be.
func (db *DB) store(k key, class Class, plain []byte) bool {
	l := loc{size: uint32(len(plain)), class: class}
	if len(plain) <= packMax && db.ram == nil {
		l.pack = 1 // until its place is known
	}
	why := &db.count.uncachedSpace
	for range 3 {
		if _, ok := db.table.get(k, true); ok {
			return true
		}
		n := l.diskBytes()
		if lacking, ok := db.room(n); !ok {
			if lacking == forLimit {
				why = &db.count.uncachedLimit
			}
			break
		}
		kept, err := db.write(k, l, plain)
		if err == nil {
			if kept {
				db.count.stored.add(int(n))
			} else {
				db.giveBack(n)
			}
			return true
		}
		db.giveBack(n)
		if !isFull(err) {
			db.log.Error("storing an object", "digest", index.SHA256Digest(k), "err", err)
			why = &db.count.uncachedError
			break
		}
		db.evictNow(4*n+4<<20, forSpace, func() bool { return true })
	}
	why.add(1)
	if now, last := time.Now().Unix(), db.warned.Load(); now-last >= 60 && db.warned.CompareAndSwap(last, now) {
		db.log.Warn("no room in the cache: reads are answered uncached", "dir", db.dir, "free", db.space.free(), "bytes", db.quota.bytes(), "limit", db.Limit())
	}
	return false
}

// write puts an object where l says, and into the table; kept is false if it came there meanwhile.
func (db *DB) write(k key, l loc, plain []byte) (kept bool, err error) {
	l.used = db.table.clock.Add(1)
	l.stamp = l.used
	if l.pack == 0 {
		if db.ram != nil {
			return db.writeRAM(k, l, plain)
		}
		return db.writeChunk(k, l, plain)
	}
	buf := scratch(0)
	defer buf.free()
	buf.b = appendPackRecord(buf.b, k, l.class, l.used, plain)
	p, off, err := db.packs.append(buf.b)
	if err != nil {
		if p != nil {
			db.giveBack(-int64(len(buf.b))) // a gap stays behind
		}
		return false, err
	}
	l.pack, l.off = p.id, off
	if db.table.add(k, l) {
		db.record(k)
	}
	p.writers.Add(-1)
	return true, nil
}

func (db *DB) writeChunk(k key, l loc, plain []byte) (kept bool, err error) {
	tmp, err := db.chunks.write(k, l.class, l.used, plain)
	if err != nil {
		return false, err
	}
	defer db.chunks.lock(k).Unlock()
	if _, there := db.table.get(k, true); there {
		return false, os.Remove(tmp)
	}
	if err := db.chunks.name(k, tmp); err != nil {
		return false, errors.Join(err, os.Remove(tmp))
	}
	db.table.add(k, l)
	db.record(k)
	return true, nil
}
