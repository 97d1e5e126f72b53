package cachedb

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// states are the state records: few and small, all in memory, each change on disk before it is visible.
type states struct {
	mu sync.RWMutex // guards m; held to write while a change goes to disk
	m  map[string][]byte
}

// stateFile is the form of the state records beside the index.
type stateFile struct {
	Records map[string][]byte `json:"records"`
	CRC     uint32            `json:"crc32c"` // of Records as JSON
}

// State returns a record, or fs.ErrNotExist.
func (db *DB) State(key string) ([]byte, error) {
	db.state.mu.RLock()
	defer db.state.mu.RUnlock()
	v, ok := db.state.m[key]
	if !ok {
		return nil, fmt.Errorf("state %q: %w", key, fs.ErrNotExist)
	}
	return bytes.Clone(v), nil
}

// States yields the records whose keys begin with prefix, in order of their keys, as they are when it is called.
func (db *DB) States(prefix string) iter.Seq2[string, []byte] {
	db.state.mu.RLock()
	all := maps.Clone(db.state.m)
	db.state.mu.RUnlock()
	return func(yield func(string, []byte) bool) {
		for _, k := range slices.Sorted(maps.Keys(all)) {
			if strings.HasPrefix(k, prefix) && !yield(k, bytes.Clone(all[k])) {
				return
			}
		}
	}
}

// SetState writes a record of up to 64 KiB; it is on disk when SetState returns.
func (db *DB) SetState(key string, value []byte) error {
	if key == "" || len(key) > 1024 || len(value) > stateMax {
		return fmt.Errorf("state %q of %d bytes: %w", key, len(value), fs.ErrInvalid)
	}
	return db.changeState(key, append([]byte{}, value...))
}

// DeleteState removes a record; one that isn't there is no error.
func (db *DB) DeleteState(key string) error { return db.changeState(key, nil) }

func (db *DB) changeState(key string, value []byte) error {
	if db.closed.Load() {
		return fs.ErrClosed
	}
	db.state.mu.Lock()
	defer db.state.mu.Unlock()
	next := maps.Clone(db.state.m)
	if next[key] = value; value == nil {
		delete(next, key)
	}
	err := db.writeStateFile(next)
	for again := func() bool { return true }; isFull(err) && db.evictNow(db.space.reserve, forSpace, again); {
		err = db.writeStateFile(next)
	}
	if isFull(err) {
		err = fmt.Errorf("%w: %w", ErrFull, err)
	}
	if err == nil {
		err = db.setIndex(stateKey(key), value)
	}
	if err != nil {
		return fmt.Errorf("state %q: %w", key, err)
	}
	db.state.m = next
	return nil
}

func encodeState(m map[string][]byte) ([]byte, error) {
	records, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(stateFile{Records: m, CRC: crcOf(records)}, "", "\t")
}

func (db *DB) writeStateFile(m map[string][]byte) error {
	b, err := encodeState(m)
	if err != nil {
		return err
	}
	return writeSynced(filepath.Join(db.dir, "state"), b)
}

// openState takes the records from the state file or, if that is lost, from the index. The file is written first, so it
// never lacks what the index has.
func (db *DB) openState(indexed map[string][]byte) error {
	m, err := readStateFile(filepath.Join(db.dir, "state"))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) || len(indexed) > 0 {
			db.log.Error("state records are taken from the index", "records", len(indexed), "err", err)
		}
		db.state.m = indexed
		return db.writeStateFile(indexed)
	}
	db.state.m = m
	for k, v := range m {
		if old, ok := indexed[k]; ok && bytes.Equal(old, v) {
			continue
		}
		if err := db.setIndex(stateKey(k), v); err != nil {
			return err
		}
	}
	return nil
}

func readStateFile(path string) (map[string][]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var f stateFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("reading %q: %w: %w", path, err, errDamaged)
	}
	records, err := json.Marshal(f.Records)
	if err != nil || crcOf(records) != f.CRC || f.Records == nil {
		return nil, fmt.Errorf("reading %q: checksum: %w", path, errDamaged)
	}
	return f.Records, nil
}
