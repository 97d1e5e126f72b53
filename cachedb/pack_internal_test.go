package cachedb

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/skimfs/skimfs/index"
)

// A read takes none of the locks that appends and the memory tier's changes take: one who holds them may have lost his CPU.
func TestReadsTakeNoLockOfWriters(t *testing.T) {
	db, err := Open(Config{Dir: t.TempDir(), Limit: 64 << 20, Memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	onDisk, inMemory := bytes.Repeat([]byte("skim"), 1000), bytes.Repeat([]byte("milk"), 1000)
	if _, err := db.Put(index.DigestOf(onDisk), ClassFile, onDisk); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Get(t.Context(), index.DigestOf(inMemory), int64(len(inMemory)), ClassFile, func(context.Context) ([]byte, error) { return inMemory, nil }); err != nil {
		t.Fatal(err)
	}
	db.packs.mu.Lock()
	defer db.packs.mu.Unlock()
	db.memory.mu.Lock()
	defer db.memory.mu.Unlock()
	read := make(chan bool, 2)
	for _, plain := range [][]byte{onDisk, inMemory} {
		go func() {
			p := make([]byte, len(plain))
			ok, err := db.ReadAt(index.DigestOf(plain), int64(len(plain)), p, 0)
			read <- ok && err == nil && bytes.Equal(p, plain)
		}()
	}
	for range 2 {
		select {
		case right := <-read:
			if !right {
				t.Error("a read is not right")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a read waits for the lock")
		}
	}
	if s := db.count.hitsMemory.n.Load(); s != 1 {
		t.Errorf("%d reads from memory, want 1", s)
	}
}
