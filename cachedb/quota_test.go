package cachedb_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/internal/testkit"
)

// churnSize draws sizes from 100 bytes to 1 MiB, as many small as large.
func churnSize(n uint64) int {
	rng := rand.New(rand.NewPCG(n, 7))
	if n%2 == 0 {
		return 100 + rng.IntN(32<<10)
	}
	return 32<<10 + rng.IntN(1<<20-32<<10)
}

// The limit holds on what du counts, under several writers and readers, while six times the limit streams through; what
// is read again and again survives.
func TestLimitHoldsUnderChurn(t *testing.T) {
	t.Parallel()
	const limit = 64 << 20
	dir := scratchDir(t)
	db := open(t, cachedb.Config{Dir: dir, Limit: limit})
	hot := make([][]byte, 60)
	var hotFills atomic.Int64
	for i := range hot {
		hot[i] = content(uint64(1_000_000+i), []int{3000, 50_000}[i%2])
	}
	var next, streamed, peak atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for streamed.Load() < 6*limit {
				n := uint64(next.Add(1))
				plain := content(n, churnSize(n))
				var fills atomic.Int64
				get(t, db, plain, &fills)
				streamed.Add(int64(len(plain)))
				for i := range uint64(4) { // each is read four times while a quarter of the cache turns over
					get(t, db, hot[(4*n+i)%uint64(len(hot))], &hotFills)
				}
				if n%20 == 0 {
					for used, old := du(t, dir), peak.Load(); used > old && !peak.CompareAndSwap(old, used); old = peak.Load() {
					}
				}
			}
		})
	}
	wg.Wait()
	s := db.Stats()
	t.Logf("streamed %d MiB, peak du %.1f MiB, now %.1f, counted %.1f, evictions %d, hot refills %d", streamed.Load()>>20,
		float64(peak.Load())/(1<<20), float64(du(t, dir))/(1<<20), float64(s.Bytes)/(1<<20), s.Evictions, hotFills.Load()-int64(len(hot)))
	// 2 %, and what was being written when du looked
	if peak.Load() > limit*102/100+8<<20 {
		t.Errorf("du reached %d, limit %d", peak.Load(), limit)
	}
	if s.Evictions == 0 || s.Uncached > 0 || s.VerifyFailures > 0 {
		t.Errorf("stats %+v", s)
	}
	if extra := hotFills.Load() - int64(len(hot)); extra > 3 { // a writer may have been late for its hot object
		t.Errorf("the hot set of %d was filled %d times again", len(hot), extra)
	}
	syncDB(t, db)
	if used, counted := du(t, dir), db.Stats().Bytes; counted < used-1<<20 || counted > used+used/10+2<<20 {
		t.Errorf("counted %d bytes, du says %d", counted, used)
	}
	_ = db.SetLimit(20 << 20)
	eventually(t, "du is below the new limit", func() bool { return du(t, dir) <= 20<<20 })
	closeDB(t, db)
	if used := du(t, dir); used > 20<<20 {
		t.Errorf("closed: du %d", used)
	}
	db = open(t, cachedb.Config{Dir: dir, Limit: 10 << 20})
	eventually(t, "du is below the limit of a new start", func() bool { return du(t, dir) <= 10<<20 })
}

func TestCatalogsLeaveLast(t *testing.T) {
	t.Parallel()
	db := open(t, cachedb.Config{Dir: scratchDir(t), Limit: 32 << 20})
	var catalogs []index.Digest
	for i := range 40 {
		plain := content(uint64(i), []int{5000, 100_000}[i%2])
		if ok, err := db.Put(index.DigestOf(plain), cachedb.ClassCatalog, plain); !ok || err != nil {
			t.Fatal(ok, err)
		}
		catalogs = append(catalogs, index.DigestOf(plain))
	}
	for i := range 1500 {
		put(t, db, content(uint64(1000+i), []int{20_000, 200_000}[i%2]))
	}
	for i, d := range catalogs {
		if !db.Has(d) {
			t.Errorf("catalog %d was evicted before files", i)
		}
	}
	if db.Stats().Evictions == 0 {
		t.Error("nothing was evicted")
	}
}

func TestLeastRecentlyUsedLeavesFirst(t *testing.T) {
	t.Parallel()
	for _, size := range []int{8_000, 100_000} {
		dir := scratchDir(t)
		db := open(t, cachedb.Config{Dir: dir, Limit: 32 << 20})
		n := 20 << 20 / size
		for i := range n {
			put(t, db, content(uint64(i), size))
		}
		used := func(i int) bool { return i < n/4 }
		for i := range n {
			if used(i) && !cached(t, db, content(uint64(i), size)) {
				t.Fatal("evicted below the limit")
			}
		}
		closeDB(t, db) // recency survives
		db = open(t, cachedb.Config{Dir: dir, Limit: 32 << 20})
		for i := range n {
			put(t, db, content(uint64(1_000_000+i), size))
		}
		var old, warm int
		for i := range n {
			if has := db.Has(index.DigestOf(content(uint64(i), size))); has && used(i) {
				warm++
			} else if has {
				old++
			}
		}
		t.Logf("size %d: of %d used again %d stayed, of %d others %d", size, n/4, warm, n-n/4, old)
		if warm < n/4*9/10 || old > (n-n/4)*2/3 {
			t.Errorf("size %d: of %d used again %d stayed, of %d others %d", size, n/4, warm, n-n/4, old)
		}
	}
}

// Readers never see an object vanish under them, nor a wrong byte, while everything turns over.
func TestReadsDuringEviction(t *testing.T) {
	t.Parallel()
	db := open(t, cachedb.Config{Dir: scratchDir(t), Limit: 24 << 20})
	var objects [400][]byte
	for n := range objects {
		objects[n] = content(uint64(n), churnSize(uint64(n))/4+1)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var hits atomic.Int64
	for range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, rand.Uint64()))
			for ctx.Err() == nil {
				if cached(t, db, objects[rng.IntN(len(objects))]) {
					hits.Add(1)
				}
			}
		})
	}
	for round := range 3 {
		for n := range objects {
			put(t, db, objects[n])
			put(t, db, content(uint64(1000*round+n+10_000), len(objects[n])))
		}
	}
	cancel()
	wg.Wait()
	if s := db.Stats(); s.VerifyFailures > 0 || s.Evictions == 0 || hits.Load() == 0 {
		t.Errorf("hits %d, stats %+v", hits.Load(), s)
	}
}

// tmpfs mounts a filesystem of its own for the test.
func tmpfs(t *testing.T, megabytes int) string {
	t.Helper()
	testkit.NeedRoot(t)
	dir := scratchDir(t)
	if err := unix.Mount("skimfs-test", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", megabytes)); err != nil {
		t.Fatalf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill writes a file until no byte is left.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for b := make([]byte, 1<<16); err == nil; {
		_, err = f.Write(b)
	}
}

// Another program fills the partition and frees it again: every read gets the right bytes, badger survives, and the cache
// caches again when there is room.
func TestFullPartition(t *testing.T) {
	t.Parallel()
	root := tmpfs(t, 160)
	dir := filepath.Join(root, "cache")
	db := open(t, cachedb.Config{Dir: dir, Limit: 100 << 20})
	var fills atomic.Int64
	n := uint64(0)
	stream := func(objects int) {
		for range objects {
			n++
			get(t, db, content(n, churnSize(n)), &fills)
		}
	}
	stream(200)
	for round := range 3 {
		hog := filepath.Join(root, "hog")
		fillDisk(t, hog)
		stream(150)
		for range 3 { // it wants what we give up, too
			fillDisk(t, fmt.Sprint(hog, n))
			stream(50)
		}
		if err := db.SetState("round", fmt.Append(nil, round)); err != nil {
			t.Logf("state on a full disk: %v", err)
		}
		all, _ := filepath.Glob(hog + "*")
		for _, f := range all {
			os.Remove(f)
		}
		syncDB(t, db) // free space is looked at anew
		before := db.Stats().Uncached
		stream(100)
		syncDB(t, db)
		if after := db.Stats().Uncached; after != before {
			t.Errorf("round %d: %d reads uncached although there is room again", round, after-before)
		}
		if !cached(t, db, content(n, churnSize(n))) {
			t.Errorf("round %d: not cached although there is room again", round)
		}
	}
	s := db.Stats()
	t.Logf("%+v", s)
	if s.Uncached == 0 || s.VerifyFailures > 0 {
		t.Errorf("stats %+v", s)
	}
	closeDB(t, db)
	db = open(t, cachedb.Config{Dir: dir, Limit: 100 << 20})
	if !cached(t, db, content(n, churnSize(n))) {
		t.Error("reopened: the newest object is lost")
	}
}

// A cache that finds its partition full makes room for its index before it opens it.
func TestOpenOnFullPartition(t *testing.T) {
	t.Parallel()
	root := tmpfs(t, 160)
	dir := filepath.Join(root, "cache")
	db := open(t, cachedb.Config{Dir: dir, Limit: 100 << 20})
	for n := range uint64(150) {
		put(t, db, content(n, churnSize(n)))
	}
	closeDB(t, db)
	fillDisk(t, filepath.Join(root, "hog"))
	db = open(t, cachedb.Config{Dir: dir, Limit: 100 << 20})
	for n := range uint64(150) {
		var fills atomic.Int64
		get(t, db, content(n, churnSize(n)), &fills)
	}
	if s := db.Stats(); s.Objects == 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestDefaultLimit(t *testing.T) {
	root := tmpfs(t, 160)
	db := open(t, cachedb.Config{Dir: root + "/cache"})
	if got, least, most := db.Limit(), int64(100<<20), int64(113<<20); got < least || got > most {
		t.Errorf("default limit %d on 160 MiB, want 70 %%", got)
	}
}
