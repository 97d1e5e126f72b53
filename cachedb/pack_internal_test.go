package cachedb

import (
	"bytes"
	"testing"
	"time"

	"github.com/skimfs/skimfs/index"
)

// A read of a small object takes none of the locks that appends take: one who holds them may have lost his CPU.
func TestReadsTakeNoLockOfAppends(t *testing.T) {
	db, err := Open(Config{Dir: t.TempDir(), Limit: 64 << 20, Memory: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	plain := bytes.Repeat([]byte("skim"), 1000)
	d := index.DigestOf(plain)
	if _, err := db.Put(d, ClassFile, plain); err != nil {
		t.Fatal(err)
	}
	db.packs.mu.Lock()
	defer db.packs.mu.Unlock()
	read := make(chan bool, 1)
	go func() {
		p := make([]byte, len(plain))
		ok, err := db.ReadAt(d, int64(len(plain)), p, 0)
		read <- ok && err == nil && bytes.Equal(p, plain)
	}()
	select {
	case right := <-read:
		if !right {
			t.Error("the read is not right")
		}
	case <-time.After(10 * time.Second):
		t.Error("the read waits for the lock")
	}
}
