package cachedb

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
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

// A record in whose midst a kill came is left out, without being counted as damage; what came after it is adopted.
func TestARecordCutShortByAKillIsNoDamage(t *testing.T) {
	t.Parallel()
	db, err := Open(Config{Dir: t.TempDir(), Limit: 64 << 20, Memory: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	whole, cut, after := bytes.Repeat([]byte("a"), 20_000), bytes.Repeat([]byte("b"), 20_000), bytes.Repeat([]byte("c"), 20_000)
	if _, err := db.Put(index.DigestOf(whole), ClassFile, whole); err != nil {
		t.Fatal(err)
	}
	if err := db.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	killed := filepath.Join(t.TempDir(), "cache")
	if err := os.CopyFS(killed, os.DirFS(db.dir)); err != nil {
		t.Fatal(err)
	}
	packs, err := filepath.Glob(filepath.Join(killed, "packs", "*.pack"))
	if err != nil || len(packs) != 1 {
		t.Fatal(packs, err)
	}
	torn := appendPackRecord(nil, keyOf(index.DigestOf(cut)), ClassFile, 7, cut)
	clear(torn[4096:])
	tail := appendPackRecord(torn, keyOf(index.DigestOf(after)), ClassFile, 8, after)
	f, err := os.OpenFile(packs[0], os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(tail); err != nil {
		t.Fatal(err)
	}
	f.Close()
	again, err := Open(Config{Dir: killed, Memory: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for _, row := range []struct {
		plain []byte
		here  bool
	}{{whole, true}, {cut, false}, {after, true}} {
		p := make([]byte, len(row.plain))
		if here, err := again.ReadAt(index.DigestOf(row.plain), int64(len(p)), p, 0); err != nil || here != row.here || here && !bytes.Equal(p, row.plain) {
			t.Errorf("object %c: here %v, %v", row.plain[0], here, err)
		}
	}
	if s := again.Stats(); s.VerifyFailures != 0 || s.Objects != 2 {
		t.Errorf("%+v", s)
	}
}
