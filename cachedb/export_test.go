package cachedb

import (
	"encoding/binary"
	"log/slog"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// RAMUsed returns the memory that objects of a cache in memory take, in bytes, as the kernel counts it.
func RAMUsed(t *testing.T, db *DB) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(db.ram.f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// SetLayoutVersion makes the closed cache in dir look as if a program of that layout had written it.
func SetLayoutVersion(t *testing.T, dir string, v uint32) {
	t.Helper()
	b, err := openBadger(badgerOptions(filepath.Join(dir, "index"), maxMemTable, badgerLog{slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	space, err := newSpace(partitionFree(dir))
	if err != nil {
		t.Fatal(err)
	}
	db := DB{badger: b, log: slog.New(slog.DiscardHandler), dir: dir, space: space, memTable: maxMemTable}
	if err := db.setIndex([]byte(keyVersion), binary.LittleEndian.AppendUint32(nil, v)); err != nil {
		t.Fatal(err)
	}
	if err := db.closeIndex(); err != nil {
		t.Fatal(err)
	}
}
