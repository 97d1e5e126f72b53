package cachedb_test

import (
	"bufio"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

// A read of what is cached waits for no write. The filesystem takes none for a while, so that whoever evicts, stores or records waits in the
// kernel with all the locks that it holds then; meanwhile each cached object is read. Most chunk files have to be opened for that.
func TestCachedReadsWaitForNoWrite(t *testing.T) {
	d := newDisk(t, 192)
	db := open(t, cachedb.Config{Dir: filepath.Join(d.root, "cache"), Limit: 100 << 20})
	const chunks, small, victims = 400, 400, 128
	object := func(n int) []byte { return content(uint64(n), []int{4000, 40_000}[n%2]) }
	for n := range chunks + small {
		put(t, db, object(n))
	}
	for n := range victims {
		put(t, db, content(uint64(10_000+n), 50_000))
	}
	syncDB(t, db)
	// Badger writes through mappings. A thread that waits in one holds up a collection, and that everybody.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	// Another process thaws, should this one get stuck.
	cmd := exec.Command("sh", "-c", `fsfreeze -f "$1" && echo frozen && { timeout 10 cat; fsfreeze -u "$1"; }`, "sh", d.root)
	stop, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "frozen\n" {
		t.Fatal(line, err)
	}
	var waiting sync.WaitGroup
	for n := range victims {
		waiting.Go(func() { db.Evict(index.DigestOf(content(uint64(10_000+n), 50_000))) })
	}
	for n := range 8 {
		waiting.Go(func() {
			plain := content(uint64(20_000+n), []int{5000, 50_000}[n%2])
			_, _ = db.Put(index.DigestOf(plain), cachedb.ClassFile, plain)
		})
	}
	waiting.Go(func() { _ = db.SetState("a", []byte("b")) })
	waiting.Go(func() { db.Trim(90 << 20) })
	time.Sleep(300 * time.Millisecond) // until they wait
	longest, begun := time.Duration(0), time.Now()
	for n := range chunks + small {
		one := time.Now()
		if !cached(t, db, object(n)) {
			t.Errorf("object %d is not cached", n)
		}
		longest = max(longest, time.Since(one))
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("reading took %v, the longest read %v: something waited for a filesystem that takes no writes", took, longest)
	}
	t.Logf("the longest read took %v", longest)
	stop.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(fmt.Errorf("thawing: %w", err))
	}
	waiting.Wait()
}

// What Pin says is pinned stays, whatever eviction had chosen before.
func TestPinWhileEverythingTurnsOver(t *testing.T) {
	t.Parallel()
	db := open(t, cachedb.Config{Dir: scratchDir(t), Limit: 24 << 20})
	object := func(n int) []byte { return content(uint64(n), []int{6000, 60_000}[n%2]) }
	const all = 3000
	var digests [all]index.Digest
	for n := range digests {
		digests[n] = index.DigestOf(object(n))
	}
	var streaming sync.WaitGroup
	over := make(chan struct{})
	for w := range 2 {
		streaming.Go(func() {
			for n := w; ; n = (n + 2) % all {
				select {
				case <-over:
					return
				default:
					put(t, db, object(n))
				}
			}
		})
	}
	pinned, lost := 0, 0
	for end := time.Now().Add(20 * time.Second); (pinned < 1000 || db.Stats().Evictions < 500) && time.Now().Before(end); {
		var held []index.Digest
		for n := 0; n < all && len(held) < 200; n++ {
			d := digests[(n*37+pinned)%all]
			if ok, err := db.Pin(d); err != nil {
				t.Fatal(err)
			} else if ok {
				held = append(held, d)
			}
		}
		time.Sleep(20 * time.Millisecond) // for a round of eviction or two
		for _, d := range held {
			if pinned++; !db.Has(d) {
				lost++
			}
			db.Unpin(d)
		}
	}
	close(over)
	streaming.Wait()
	t.Logf("pinned %d, evictions %d", pinned, db.Stats().Evictions)
	if lost > 0 || pinned == 0 || db.Stats().Evictions == 0 {
		t.Errorf("of %d pinned objects %d left; %d evictions", pinned, lost, db.Stats().Evictions)
	}
}
