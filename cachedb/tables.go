package cachedb

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	btable "github.com/dgraph-io/badger/v4/table"
)

// tableSums are the sums of badger's tables, taken when they were first seen: a table never changes.
type tableSums struct {
	mu sync.Mutex // guards of
	of map[string]uint32
}

// sumFile returns a file's size and CRC-32C.
func sumFile(path string) (n int64, crc uint32, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	sum := crc32.New(castagnoli)
	n, err = io.Copy(sum, f)
	return n, sum.Sum32(), err
}

// tables are the paths of badger's tables now.
func (db *DB) tables() map[string]bool {
	paths := map[string]bool{}
	for _, t := range db.badger.Tables() {
		paths[btable.NewFilename(t.ID, filepath.Join(db.dir, "index"))] = true
	}
	return paths
}

// sumTables takes the sums of new tables and forgets those of tables that left.
func (db *DB) sumTables() {
	db.sums.mu.Lock()
	defer db.sums.mu.Unlock()
	if db.sums.of == nil {
		db.sums.of = map[string]uint32{}
	}
	now := db.tables()
	maps.DeleteFunc(db.sums.of, func(path string, _ uint32) bool { return !now[path] })
	for path := range now {
		if _, known := db.sums.of[path]; known {
			continue
		}
		if _, crc, err := sumFile(path); err == nil {
			db.sums.of[path] = crc
		}
	}
}

// checkTables compares badger's manifest and tables with what they were. Compactions change both, so a fault must last.
func (db *DB) checkTables() (err error) {
	for range 5 {
		if err = db.checkTablesOnce(); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond) // badger syncs the one before it changes the other
	}
	return err
}

// readManifest returns the tables that the manifest in dir lists, and where what can be read of it ends.
func readManifest(dir string, opts badger.Options) (m badger.Manifest, end, size int64, err error) {
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if err != nil {
		return m, 0, 0, err
	}
	defer f.Close()
	if m, end, err = badger.ReplayManifestFile(f, 0, opts); err != nil {
		return m, 0, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		return m, 0, 0, err
	}
	return m, end, st.Size(), nil
}

// wholeManifest is readManifest for an index that nobody uses. Badger cuts off what it can't read, and the tables listed there go with it.
func wholeManifest(dir string, opts badger.Options) (badger.Manifest, error) {
	m, end, size, err := readManifest(dir, opts)
	if err == nil && end != size {
		err = fmt.Errorf("manifest: %d of %d bytes can be read: %w", end, size, errDamaged)
	}
	return m, err
}

// checkOpened finds tables of the manifest that badger passed over, in silence, when it opened the index. Whatever was listed then and is
// listed now must be in use: a compaction changes the manifest first.
func (db *DB) checkOpened(then badger.Manifest) error {
	dir := filepath.Join(db.dir, "index")
	used := db.tables()
	now, _, _, err := readManifest(dir, db.badger.Opts())
	if err != nil {
		return err
	}
	for id := range then.Tables {
		path := btable.NewFilename(id, dir)
		if _, listed := now.Tables[id]; listed && !used[path] {
			return fmt.Errorf("%s: badger does not read it: %w", path, errDamaged)
		}
	}
	return nil
}

func (db *DB) checkTablesOnce() error {
	db.sumTables()
	dir := filepath.Join(db.dir, "index")
	m, end, size, err := readManifest(dir, db.badger.Opts())
	if err != nil {
		return err
	}
	if now := db.tables(); size != end || len(m.Tables) != len(now) {
		return fmt.Errorf("manifest of %s: %d tables in %d of %d bytes, want %d tables: %w", dir, len(m.Tables), end, size, len(now), errDamaged)
	}
	db.sums.mu.Lock()
	sums := maps.Clone(db.sums.of)
	db.sums.mu.Unlock()
	for path, want := range sums {
		if _, got, err := sumFile(path); err != nil || got != want {
			return errors.Join(err, fmt.Errorf("%s: checksum: %w", path, errDamaged))
		}
	}
	return nil
}
