package cachedb_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

// K05: pinned objects stay while everything else turns over three times, over restarts, an index lost included; unpinned they leave.
func TestPinnedStays(t *testing.T) {
	t.Parallel()
	dir := scratchDir(t)
	db := open(t, cachedb.Config{Dir: dir, Limit: 32 << 20})
	var pinned []index.Digest
	for i := range 120 {
		d := put(t, db, content(uint64(i), []int{9000, 100_000}[i%2]))
		if i%3 == 0 {
			if ok, err := db.Pin(d); !ok || err != nil {
				t.Fatal(ok, err)
			}
			pinned = append(pinned, d)
		}
	}
	stream := func(from int) {
		t.Helper()
		for i := range 900 {
			put(t, db, content(uint64(from+i), []int{20_000, 200_000}[i%2]))
		}
	}
	check := func(when string) {
		t.Helper()
		for i, d := range pinned {
			if _, is := db.Size(d); !is {
				t.Errorf("%s: pinned object %d is gone", when, i)
			}
			if !cached(t, db, content(uint64(3*i), []int{9000, 100_000}[3*i%2])) {
				t.Errorf("%s: pinned object %d can't be read", when, i)
			}
		}
	}
	stream(10_000)
	check("streamed")
	closeDB(t, db)
	db = open(t, cachedb.Config{Dir: dir, Limit: 32 << 20})
	stream(20_000)
	check("reopened")
	if freed := db.Trim(0); freed == 0 {
		t.Error("a trim freed nothing")
	}
	check("trimmed")
	if got := db.Stats().Bytes; got > 10<<20 {
		t.Errorf("trimmed: %d bytes", got)
	}
	before := db.Stats().Pinned
	db.Unpin(pinned[0])
	db.PinOnly(map[index.Digest]bool{pinned[1]: true})
	if now := db.Stats().Pinned; now >= before || now <= 0 {
		t.Errorf("pinned %d bytes, before %d", now, before)
	}
	stream(30_000)
	if db.Has(pinned[0]) || !db.Has(pinned[1]) {
		t.Error("unpinned stays, or pinned left")
	}
}

func TestPinsHaveABudget(t *testing.T) {
	db := open(t, cachedb.Config{Dir: scratchDir(t), Limit: 16 << 20})
	var err error
	for i := 0; i < 200 && err == nil; i++ {
		_, err = db.Pin(put(t, db, content(uint64(i), 100_000)))
	}
	if s := db.Stats(); !errors.Is(err, cachedb.ErrFull) || s.Pinned > 12<<20 || s.Pinned < 11<<20 {
		t.Errorf("%v, pinned %d", err, s.Pinned)
	}
	if err := db.SetLimit(15 << 20); !errors.Is(err, cachedb.ErrPinned) || db.Limit() != 16<<20 {
		t.Errorf("a limit too small for the pins: %v, now %d", err, db.Limit())
	}
	if err := db.SetLimit(17 << 20); err != nil {
		t.Errorf("a larger limit: %v", err)
	}
}

// Objects of images in use leave after all others, however long they were not read: the kernel reads them from its own cache.
func TestInUseLeavesLast(t *testing.T) {
	t.Parallel()
	db := open(t, cachedb.Config{Dir: scratchDir(t), Limit: 32 << 20})
	var used []index.Digest
	for i := range 80 {
		used = append(used, put(t, db, content(uint64(i), []int{9000, 100_000}[i%2])))
	}
	db.SetInUse(func(mark func(index.Digest)) {
		for _, d := range used {
			mark(d)
		}
	})
	for i := range 900 {
		put(t, db, content(uint64(1000+i), []int{20_000, 200_000}[i%2]))
	}
	for i, d := range used {
		if !db.Has(d) {
			t.Errorf("object %d of an image in use left before others", i)
		}
	}
	db.SetInUse(func(func(index.Digest)) {})
	for i := range 600 {
		put(t, db, content(uint64(5000+i), []int{20_000, 200_000}[i%2]))
	}
	left := 0
	for _, d := range used {
		if db.Has(d) {
			left++
		}
	}
	if left > len(used)/4 {
		t.Errorf("%d of %d are still here although nothing uses them", left, len(used))
	}
}

// Catalogs have a quarter of the limit to themselves; what is beyond that leaves as files do.
func TestCatalogBudget(t *testing.T) {
	t.Parallel()
	db := open(t, cachedb.Config{Dir: scratchDir(t), Limit: 32 << 20})
	for i := range 250 {
		plain := content(uint64(i), 100_000)
		if ok, err := db.Put(index.DigestOf(plain), cachedb.ClassCatalog, plain); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	for i := range 400 {
		put(t, db, content(uint64(1000+i), 100_000))
	}
	left := 0
	for i := range 250 {
		if db.Has(index.DigestOf(content(uint64(i), 100_000))) {
			left++
		}
	}
	if left < 45 || left > 100 { // ages are told apart to a sixteenth
		t.Errorf("%d catalogs of 100 kB are left, the budget is 8 MiB", left)
	}
}

// K17: the limit is remembered, and holds before anything is evicted at the next start.
func TestLimitIsRemembered(t *testing.T) {
	dir := scratchDir(t)
	db := open(t, cachedb.Config{Dir: dir})
	if err := db.SetLimit(77 << 20); err != nil {
		t.Fatal(err)
	}
	closeDB(t, db)
	db = open(t, cachedb.Config{Dir: dir})
	if got := db.Limit(); got != 77<<20 {
		t.Errorf("limit %d, want %d", got, 77<<20)
	}
	if err := db.SetLimit(0); err != nil {
		t.Fatal(err)
	}
	closeDB(t, db)
	if db = open(t, cachedb.Config{Dir: dir}); db.Limit() == 77<<20 {
		t.Error("the default was asked for, the old limit came back")
	}
}

// The limit is checked before each write: no background work has to come first. What that adds, copies and a longer index, has its room.
func TestLimitIsExact(t *testing.T) {
	t.Parallel()
	const limit, writers, each = 16 << 20, 4, 600
	db := open(t, cachedb.Config{Dir: scratchDir(t), Limit: limit})
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				plain := content(uint64(each*w+i), []int{100, 32 << 10, 300_000}[i%3])
				if _, err := db.Put(index.DigestOf(plain), cachedb.ClassFile, plain); err != nil {
					t.Error(err)
				}
				if got := db.Stats().Bytes; got > limit {
					t.Errorf("object %d of writer %d: %d bytes counted, limit %d", i, w, got, limit)
				}
			}
		})
	}
	wg.Wait()
}

func TestVerifyFindsWhatIsPlanted(t *testing.T) {
	dir := scratchDir(t)
	db := open(t, cachedb.Config{Dir: dir})
	small, large := put(t, db, content(1, 9000)), put(t, db, content(2, 90_000))
	put(t, db, content(3, 90_000))
	if err := db.SetState("a", []byte("b")); err != nil {
		t.Fatal(err)
	}
	verify := func(repair bool) (found []cachedb.Damage) {
		t.Helper()
		if _, err := db.Verify(t.Context(), repair, func(d cachedb.Damage) { found = append(found, d) }); err != nil {
			t.Fatal(err)
		}
		return found
	}
	if found := verify(false); len(found) != 0 {
		t.Fatalf("a sound cache: %v", found)
	}
	flip(t, files(t, dir+"/packs/*.pack")[0], 8*5000)
	flip(t, files(t, dir+"/chunks/*/"+large.String()[len("sha256:"):])[0], 8*50_000)
	flip(t, dir+"/state", 8*30)
	for _, repair := range []bool{false, true} {
		if found := verify(repair); len(found) != 3 || found[0].Repaired != repair {
			t.Errorf("repair %v: %v", repair, found)
		}
	}
	if found := verify(false); len(found) != 0 || db.Has(small) || db.Has(large) {
		t.Errorf("repaired: %v", found)
	}
}
