package cachedb_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/cachedb"
)

// hogDir is the environment variable that makes the test binary a process that fills the disk below that directory and
// frees it again, until it is killed.
const hogDir = "SKIMFS_TEST_DISK_HOG"

func hog(dir string) error {
	path := filepath.Join(dir, "hog")
	for {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		size := int64(0)
		for range 40 { // what is freed meanwhile it takes too
			var st unix.Statfs_t
			if err := unix.Statfs(dir, &st); err != nil {
				return err
			}
			for n := int64(st.Bavail) * st.Bsize; n >= st.Bsize; n /= 2 {
				if unix.Fallocate(int(f.Fd()), 0, size, n) == nil {
					size += n
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
		if err := errors.Join(f.Close(), os.Remove(path)); err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// K10: another process fills an ext4 and frees it, again and again, while the cache on it is read and filled. Every read gets the
// right bytes, badger never meets the full disk, and when all is over the cache caches again.
func TestFullExt4(t *testing.T) {
	t.Parallel()
	d := newDisk(t, 128)
	dir := filepath.Join(d.root, "cache")
	db := open(t, cachedb.Config{Dir: dir, Limit: 80 << 20})
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), hogDir+"="+d.root)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var next, full atomic.Uint64
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			var fills atomic.Int64
			for ctx.Err() == nil {
				n := next.Add(1)
				get(t, db, content(n, churnSize(n)), &fills)
				old := 1 + rand.Uint64N(n)
				get(t, db, content(old, churnSize(old)), &fills)
				var st unix.Statfs_t
				if err := unix.Statfs(d.root, &st); err == nil && st.Bavail < 16 {
					full.Add(1)
				}
				if n%50 == 0 {
					if err := db.SetState("last", fmt.Append(nil, n)); err != nil {
						t.Logf("state: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	_ = cmd.Process.Kill()
	if _ = cmd.Wait(); stderr.Len() > 0 {
		t.Fatalf("the other process: %s", stderr.String())
	}
	os.Remove(filepath.Join(d.root, "hog"))
	before := db.Stats()
	t.Logf("%d objects, disk found full %d times, %+v", next.Load(), full.Load(), before)
	if full.Load() == 0 || before.Refused == 0 || before.VerifyFailures > 0 {
		t.Errorf("the disk was found full %d times; %+v", full.Load(), before)
	}
	syncDB(t, db) // free space is looked at anew
	for range 60 {
		n := next.Add(1)
		put(t, db, content(n, churnSize(n)))
	}
	closeDB(t, db)
	db = open(t, cachedb.Config{Dir: dir, Limit: 80 << 20})
	n := next.Load()
	if !cached(t, db, content(n, churnSize(n))) {
		t.Error("reopened: the newest object is lost")
	}
}
