package cachedb_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

// A cache in memory keeps its limit exactly, while 20 times as much goes through it and is read; what is hot or pinned stays, and the disk sees
// the lock alone.
func TestRAMCacheKeepsItsLimit(t *testing.T) {
	t.Parallel()
	const limit = 16 << 20
	dir := scratchDir(t)
	db := open(t, cachedb.Config{Dir: dir, RAM: true, Limit: limit})
	base := content(1, 150_000)
	object := func(n uint64) []byte {
		b := bytes.Clone(base[:100+rand.New(rand.NewPCG(n, 1)).IntN(149_900)])
		binary.LittleEndian.PutUint64(b, n)
		return b
	}
	type kept struct {
		d     index.Digest
		plain []byte
	}
	var hot []kept
	for n := range uint64(10) {
		hot = append(hot, kept{put(t, db, object(n)), object(n)})
	}
	pinned := put(t, db, content(1000, 200_000))
	if ok, err := db.Pin(pinned); !ok || err != nil {
		t.Fatal(ok, err)
	}
	read := func(o kept) {
		got := make([]byte, 70) // across two pages, where there are two
		off := max(0, min(len(o.plain)-70, 4060))
		got = got[:min(70, len(o.plain)-off)]
		if ok, err := db.ReadAt(o.d, int64(len(o.plain)), got, int64(off)); err != nil || ok && !bytes.Equal(got, o.plain[off:off+len(got)]) {
			t.Errorf("object of %d bytes: %v", len(o.plain), err)
		}
	}
	var through, over atomic.Int64
	var writers sync.WaitGroup
	for w := range uint64(2) {
		writers.Go(func() {
			for n := 2000 + w; through.Load() < 20*limit; n += 2 {
				plain := object(n)
				d := index.DigestOf(plain)
				if stored, err := db.Put(d, cachedb.ClassFile, plain); err != nil || !stored {
					t.Errorf("object %d: %v %v", n, stored, err)
				}
				read(kept{d, plain})
				for _, o := range hot {
					read(o)
				}
				if s := db.Stats(); s.Bytes > limit || cachedb.RAMUsed(t, db) > limit {
					over.Add(1)
				}
				through.Add(int64(len(plain)))
			}
		})
	}
	writers.Wait()
	s := db.Stats()
	if over.Load() > 0 || s.Bytes > limit || s.Bytes < limit/2 || s.Evictions == 0 {
		t.Errorf("above the limit %d times: %+v", over.Load(), s)
	}
	if used := cachedb.RAMUsed(t, db); used > s.Bytes || used < s.Bytes/2 {
		t.Errorf("the kernel counts %d bytes, we %d", used, s.Bytes)
	}
	for n, o := range hot {
		if !db.Has(o.d) {
			t.Errorf("hot object %d left", n)
		}
	}
	if !db.Has(pinned) {
		t.Error("the pinned object left")
	}
	before := db.Stats().Objects // the evictor may not be done
	v, err := db.Verify(t.Context(), false, func(d cachedb.Damage) { t.Errorf("%+v", d) })
	if after := db.Stats().Objects; err != nil || v.Objects > before || v.Objects < after || after == 0 {
		t.Errorf("%+v %v, %d objects before and %d after", v, err, before, after)
	}
	if err := errors.Join(db.SetState("a", []byte("b")), db.SetLimit(limit/2), db.Sync(t.Context())); err != nil {
		t.Error(err)
	}
	if db.Trim(0); cachedb.RAMUsed(t, db) > 50*4096 { // the pages of the pinned object
		t.Errorf("after a trim to nothing %d bytes are left", cachedb.RAMUsed(t, db))
	}
	var names []string
	list, err := os.ReadDir(dir)
	for _, e := range list {
		names = append(names, e.Name())
	}
	if err != nil || !slices.Equal(names, []string{"lock", "state"}) {
		t.Errorf("on disk: %q %v", names, err)
	}
}

func TestRAMCacheForgetsObjectsAndKeepsState(t *testing.T) {
	t.Parallel()
	dir := scratchDir(t)
	db := open(t, cachedb.Config{Dir: dir, RAM: true, Limit: 8 << 20})
	d := put(t, db, content(1, 1000))
	if err := db.SetState("a", []byte("b")); err != nil {
		t.Fatal(err)
	}
	if _, err := cachedb.Open(cachedb.Config{Dir: dir, RAM: true, Limit: 8 << 20}); !errors.Is(err, cachedb.ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
	closeDB(t, db)
	db = open(t, cachedb.Config{Dir: dir, RAM: true, Limit: 8 << 20})
	if b, err := db.State("a"); err != nil || string(b) != "b" || db.Has(d) {
		t.Errorf("%q %v %v", b, err, db.Has(d))
	}
	if _, err := cachedb.Open(cachedb.Config{Dir: scratchDir(t), RAM: true}); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("without a limit: %v", err)
	}
}
