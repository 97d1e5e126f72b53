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
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

func (db *DB) checkTablesOnce() error {
	db.sumTables()
	path := filepath.Join(db.dir, "index", badger.ManifestFilename)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	manifest, end, err := badger.ReplayManifestFile(f, 0, db.badger.Opts())
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if now := db.tables(); err != nil || st.Size() != end || len(manifest.Tables) != len(now) {
		return errors.Join(err, fmt.Errorf("%s: %d tables in %d bytes that can be read, want %d tables: %w", path, len(manifest.Tables), end, len(now), errDamaged))
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
