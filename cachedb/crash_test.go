package cachedb_test

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

// writerDir is the environment variable that makes the test binary a process that fills a cache until it is killed.
const writerDir = "SKIMFS_TEST_CACHE_WRITER"

func TestMain(m *testing.M) {
	for variable, work := range map[string]func(dir string) error{writerDir: writeUntilKilled, churnDir: churn, hogDir: hog} {
		if dir := os.Getenv(variable); dir != "" {
			fmt.Fprintln(os.Stderr, work(dir))
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func crashSize(n int) int {
	if n%8 == 0 {
		return 40_000 + n*1000
	}
	return 1 + n*97%32768
}

// writeUntilKilled stores objects, saying the number of each once it is on disk.
func writeUntilKilled(dir string) error {
	db, err := cachedb.Open(cachedb.Config{Dir: dir, Memory: -1})
	if err != nil {
		return err
	}
	fmt.Println("open")
	for n := 0; ; n++ {
		plain := content(uint64(n), crashSize(n%400))
		if ok, err := db.Put(index.DigestOf(plain), cachedb.ClassFile, plain); err != nil || !ok {
			return fmt.Errorf("object %d: %v %w", n, ok, err)
		}
		if n%50 == 0 {
			if err := db.SetState("last", fmt.Append(nil, n)); err != nil {
				return err
			}
		}
		fmt.Println(n)
	}
}

// killWriter runs a writer on dir, kills it after it said `after` numbers and a moment more, and returns the last number.
func killWriter(t *testing.T, dir string, after int, moment time.Duration) int {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last := -1
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Sscan(lines.Text(), &last)
		if last == after {
			time.AfterFunc(moment, func() { _ = cmd.Process.Kill() })
		}
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("writer: %v", err)
	}
	return last
}

func TestReopenAfterKill(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	dir := scratchDir(t)
	for round := range 4 {
		last := killWriter(t, dir, 20+rng.IntN(400), time.Duration(rng.IntN(30))*time.Millisecond)
		db := open(t, cachedb.Config{Dir: dir})
		for n := 0; n <= last; n++ {
			if !cached(t, db, content(uint64(n), crashSize(n%400))) {
				t.Errorf("round %d: object %d of %d is lost", round, n, last)
			}
		}
		var n int
		v, err := db.State("last")
		if fmt.Sscan(string(v), &n); err != nil || n < last-last%50 {
			t.Errorf("round %d: state %q, %v; last object %d", round, v, err, last)
		}
		if f := db.Stats().VerifyFailures; f != 0 {
			t.Errorf("round %d: %d verify failures", round, f)
		}
		if round%2 == 1 {
			closeDB(t, db)
			continue
		}
		closeDB(t, db)
		db = open(t, cachedb.Config{Dir: dir})
		if !cached(t, db, content(0, crashSize(0))) {
			t.Errorf("round %d: object 0 is lost after a clean stop", round)
		}
		closeDB(t, db)
	}
}

// After an unclean stop the digest is checked: here content and checksums agree with each other, but not with the digest.
func TestUncleanStopVerifiesDigests(t *testing.T) {
	dir := t.TempDir()
	db := open(t, cachedb.Config{Dir: dir})
	truth, lie := content(1, 100_000), content(2, 100_000)
	if ok, err := db.Put(index.DigestOf(truth), cachedb.ClassFile, lie); !ok || err != nil {
		t.Fatal(ok, err)
	}
	closeDB(t, db)
	if err := os.WriteFile(filepath.Join(dir, "dirty"), []byte("open 16777216\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	db = open(t, cachedb.Config{Dir: dir})
	if cached(t, db, truth) {
		t.Error("unverified content was served")
	}
	if n := db.Stats().VerifyFailures; n != 1 {
		t.Errorf("%d verify failures, want 1", n)
	}
}

func files(t *testing.T, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || len(list) == 0 {
		t.Fatalf("%s: %v %v", pattern, list, err)
	}
	return list
}

func flip(t *testing.T, path string, bit int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], bit/8); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << (bit % 8)
	if _, err := f.WriteAt(b[:], bit/8); err != nil {
		t.Fatal(err)
	}
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// Damage of any kind, while the cache runs or while it is closed, costs a refill and never gives a wrong byte.
func TestDamage(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	sizes := []int{1, 100, 4096, 16384, 16385, 32768, 32769, 100_000, 1 << 20}
	damage := map[string]func(path string){
		"bit flip":   func(p string) { flip(t, p, rng.Int64N(size(t, p)*8)) },
		"truncation": func(p string) { os.Truncate(p, rng.Int64N(size(t, p))) },
		"deletion":   func(p string) { os.Remove(p) },
		"zeros": func(p string) {
			f, _ := os.OpenFile(p, os.O_RDWR, 0)
			f.WriteAt(make([]byte, 4096), rng.Int64N(size(t, p))&^4095)
			f.Close()
		},
	}
	for name, act := range damage {
		for _, running := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, running %v", name, running), func(t *testing.T) {
				for range 4 {
					dir := scratchDir(t)
					db := open(t, cachedb.Config{Dir: dir})
					for i, n := range sizes {
						put(t, db, content(uint64(i), n))
					}
					if !running {
						closeDB(t, db)
					}
					for _, p := range append(files(t, dir+"/packs/*.pack"), files(t, dir+"/chunks/*/*")...) {
						act(p)
					}
					if !running {
						db = open(t, cachedb.Config{Dir: dir})
					}
					var fills atomic.Int64
					for range 2 {
						for i, n := range sizes {
							get(t, db, content(uint64(i), n), &fills)
						}
						syncDB(t, db)
					}
					if fills.Load() > int64(len(sizes)) {
						t.Errorf("%d fills for %d objects", fills.Load(), len(sizes))
					}
					closeDB(t, db)
				}
			})
		}
	}
}

func TestBitFlipIsDroppedCountedRefilled(t *testing.T) {
	for _, n := range []int{20_000, 200_000} {
		dir := t.TempDir()
		db := open(t, cachedb.Config{Dir: dir})
		plain := content(1, n)
		put(t, db, plain)
		pattern, bit := dir+"/chunks/*/*", int64(17_000*8)
		if n <= 32<<10 {
			pattern = dir + "/packs/*.pack"
		}
		flip(t, files(t, pattern)[0], bit)
		if ok, err := db.ReadAt(index.DigestOf(plain), int64(n), make([]byte, 100), 0); !ok || err != nil {
			t.Errorf("size %d: a sound block beside the damaged one: %v %v", n, ok, err)
		}
		if cached(t, db, plain) || db.Has(index.DigestOf(plain)) {
			t.Errorf("size %d: damage was not noticed", n)
		}
		if f := db.Stats().VerifyFailures; f != 1 {
			t.Errorf("size %d: %d verify failures, want 1", n, f)
		}
		var fills atomic.Int64
		get(t, db, plain, &fills)
		syncDB(t, db)
		if fills.Load() != 1 || !cached(t, db, plain) {
			t.Errorf("size %d: not refilled", n)
		}
		closeDB(t, db)
	}
}

func TestDamagedIndexIsRebuilt(t *testing.T) {
	t.Parallel()
	damage := map[string]func(dir string){
		"manifest cut": func(dir string) { os.Truncate(dir+"/index/MANIFEST", 3) },
		"table flipped": func(dir string) {
			for _, p := range files(t, dir+"/index/*.sst") {
				flip(t, p, 8*200)
			}
		},
		"table gone": func(dir string) { os.Remove(files(t, dir+"/index/*.sst")[0]) },
		"all gone":   func(dir string) { os.RemoveAll(dir + "/index") },
		"opening it was deadly": func(dir string) {
			os.WriteFile(dir+"/dirty", []byte("opening 16777216\n"), 0o600)
		},
	}
	for name, act := range damage {
		t.Run(name, func(t *testing.T) {
			dir := scratchDir(t)
			db := open(t, cachedb.Config{Dir: dir})
			for n := range 300 {
				put(t, db, content(uint64(n), crashSize(n)))
			}
			if err := db.SetState("root", []byte("accepted")); err != nil {
				t.Fatal(err)
			}
			closeDB(t, db)
			act(dir)
			for _, when := range []string{"rebuilt", "reopened"} {
				db = open(t, cachedb.Config{Dir: dir})
				for n := range 300 {
					if !cached(t, db, content(uint64(n), crashSize(n))) {
						t.Fatalf("%s: object %d is lost", when, n)
					}
				}
				if v, err := db.State("root"); err != nil || string(v) != "accepted" {
					t.Errorf("%s: state %q %v", when, v, err)
				}
				closeDB(t, db)
			}
		})
	}
}

func TestNewerLayoutIsRefused(t *testing.T) {
	dir := t.TempDir()
	closeDB(t, open(t, cachedb.Config{Dir: dir}))
	cachedb.SetLayoutVersion(t, dir, 99)
	for range 2 { // the refusal leaves everything as it was
		if _, err := cachedb.Open(cachedb.Config{Dir: dir}); !errors.Is(err, cachedb.ErrLayout) {
			t.Errorf("Open: %v", err)
		}
	}
}
