package cachedb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/index"
)

// Damage is a fault that Verify found.
type Damage struct {
	What     string // an object's digest, or a file of the cache
	Reason   string
	Repaired bool
}

// Verified is what Verify did.
type Verified struct {
	Objects int64 // read
	Bytes   int64 // of their content
}

// Verify reads every object on disk and compares it with its digest, and checks the state records, the index, the list of
// packs and chunk files, the lock and the marker of an unclean stop. Each fault goes to found. With repair a damaged object is dropped, a stray
// file removed, state file and marker written anew. The index can only be told: it is rebuilt when the cache is opened next; so is the lock.
// Objects that leave or come meanwhile are no faults.
func (db *DB) Verify(ctx context.Context, repair bool, found func(Damage)) (v Verified, err error) {
	if db.closed.Load() {
		return v, fs.ErrClosed
	}
	var all []victim
	db.table.scan(func(k *key, l loc) { all = append(all, victim{*k, l}) })
	for _, o := range all {
		if ctx.Err() != nil {
			return v, ctx.Err()
		}
		if db.closed.Load() {
			return v, fs.ErrClosed
		}
		why := db.verifyObject(o)
		v.Objects++
		v.Bytes += int64(o.loc.size)
		if now, ok := db.table.get(o.key, false); why == nil || !ok || !now.samePlace(o.loc) {
			continue
		}
		if repair {
			db.dropBad(o.key, o.loc, why)
		}
		found(Damage{index.SHA256Digest(o.key).String(), why.Error(), repair})
	}
	db.verifyStrays(repair, found)
	db.verifyState(repair, found)
	if db.ram == nil {
		db.verifyPacks(repair, found)
		db.verifyOwner(repair, found)
	}
	if err := db.verifyIndex(); err != nil {
		found(Damage{filepath.Join(db.dir, "index"), err.Error(), false})
	}
	return v, nil
}

// verifyObject reads an object from the disk, not from a file that is open since before it was replaced.
func (db *DB) verifyObject(o victim) error {
	buf := scratch(int(o.loc.size))
	defer buf.free()
	err := db.verifyRead(o, buf.b)
	switch {
	case errors.Is(err, errGone):
		return nil
	case errors.Is(err, errDamaged), errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EIO):
		return err
	case err != nil:
		return nil // out of descriptors, say
	case sha256.Sum256(buf.b) != o.key:
		return fmt.Errorf("content does not match its digest: %w", errDamaged)
	}
	return nil
}

func (db *DB) verifyRead(o victim, b []byte) error {
	if db.ram != nil {
		return db.ram.read(o.key, b, 0)
	}
	if o.loc.pack != 0 {
		return errors.Join(db.packs.read(o.key, o.loc, b, 0), db.verifyPadding(o.loc))
	}
	f, err := os.Open(db.chunks.path(o.key))
	if err != nil {
		return err
	}
	defer f.Close()
	h, crcs, err := readTrailer(f, int64(o.loc.size))
	if err == nil && h.key != o.key {
		err = fmt.Errorf("another object's file: %w", errDamaged)
	}
	if err != nil {
		return err
	}
	cf := chunkFile{f: f, crcs: crcs}
	return cf.read(int64(o.loc.size), b, 0)
}

// verifyPadding reads what lies between a pack record and the next.
func (db *DB) verifyPadding(l loc) error {
	p := db.packs.get(l.pack)
	if p == nil {
		return errGone
	}
	end := headerLen + int64(l.size)
	pad := make([]byte, packRecordLen(int64(l.size))-end)
	if err := p.pread(pad, int64(l.off)+end); err != nil {
		return err
	}
	for _, b := range pad {
		if b != 0 {
			return fmt.Errorf("padding: %w", errDamaged)
		}
	}
	return nil
}

// verifyPacks finds packs that are gone or longer than they were written, and files among them that are none. Objects miss what a short one lacks.
func (db *DB) verifyPacks(repair bool, found func(Damage)) {
	for _, p := range db.packs.all() {
		st, err := os.Stat(db.packs.path(p.id))
		if size := p.size.Load(); err == nil && st.Size() > size {
			err = fmt.Errorf("%d bytes, want %d: %w", st.Size(), size, errDamaged)
		}
		if err != nil && db.packs.get(p.id) == p {
			found(Damage{db.packs.path(p.id), err.Error(), false})
		}
	}
	names, _ := filepath.Glob(filepath.Join(db.packs.dir, "*"))
	for _, path := range names {
		if id, ok := packID(filepath.Base(path)); ok && db.packs.has(id) {
			continue
		}
		if _, err := os.Lstat(path); err != nil {
			continue // it left
		}
		d := Damage{path, "no pack of this cache", false}
		if repair {
			d.Repaired = os.RemoveAll(path) == nil
		}
		found(d)
	}
}

// verifyOwner checks what tells others whose the cache is, and that it is in use.
func (db *DB) verifyOwner(repair bool, found func(Damage)) {
	mark := marker{running, db.memTable}
	if b, err := os.ReadFile(db.markerPath()); err != nil || !bytes.Equal(b, mark.text()) {
		d := Damage{db.markerPath(), "does not say that the cache is open", false}
		if repair {
			d.Repaired = db.writeMarker(mark) == nil
		}
		found(d)
	}
	path := filepath.Join(db.dir, "lock")
	ours, err := db.lock.Stat()
	now, statErr := os.Stat(path)
	if pid, readErr := os.ReadFile(path); errors.Join(err, statErr, readErr) != nil || !os.SameFile(ours, now) || string(pid) != fmt.Sprintln(os.Getpid()) {
		found(Damage{path, "is not the lock that this process holds: another process may open the cache beside it", false})
	}
}

// verifyStrays finds files among the chunks that the cache knows nothing of.
func (db *DB) verifyStrays(repair bool, found func(Damage)) {
	names, _ := filepath.Glob(filepath.Join(db.chunks.dir, "*", "*"))
	for _, path := range names {
		if k, ok := chunkKey(filepath.Base(filepath.Dir(path)), filepath.Base(path)); ok {
			unlock := db.chunks.lock(k) // whoever writes or removes it holds this
			l, ok := db.table.get(k, false)
			unlock.Unlock()
			if ok && l.pack == 0 {
				continue
			}
			if _, err := os.Lstat(path); err != nil {
				continue // it left
			}
		}
		d := Damage{path, "no object of this cache", false}
		if repair {
			d.Repaired = os.RemoveAll(path) == nil
		}
		found(d)
	}
}

func (db *DB) verifyState(repair bool, found func(Damage)) {
	db.state.mu.Lock()
	defer db.state.mu.Unlock()
	path := filepath.Join(db.dir, "state")
	got, err := os.ReadFile(path)
	if want, encErr := encodeState(db.state.m); err == nil && encErr == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("not as it was written: %w", errDamaged)
	}
	if err == nil {
		return
	}
	d := Damage{path, err.Error(), false}
	if repair {
		d.Repaired = db.writeStateFile(db.state.m) == nil
	}
	found(d)
}

// verifyIndex checks badger's manifest, its tables, and the blocks in these.
func (db *DB) verifyIndex() error {
	if db.ram != nil {
		return nil
	}
	if err := db.flush(); err != nil {
		return nil // there is no room to record; that is no damage
	}
	db.flushing.Lock()
	defer db.flushing.Unlock()
	return guard(func() error {
		if err := db.checkTables(); err != nil {
			return err
		}
		// Badger reads through mappings: what changed on the disk shows in them.
		return db.badger.VerifyChecksum()
	})
}
