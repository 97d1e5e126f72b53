package cachedb_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

// content returns size bytes that belong to number n alone.
func content(n uint64, size int) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], n)
	b := make([]byte, size)
	rand.NewChaCha8(seed).Read(b)
	return b
}

// scratchDir returns a directory in memory if there is one: tests that open caches by the dozen would wait for every sync.
func scratchDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "skimfs-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// open opens a cache without a memory tier, so that every read comes from the disk, and closes it with the test.
func open(t testing.TB, c cachedb.Config) *cachedb.DB {
	t.Helper()
	if c.Memory == 0 {
		c.Memory = -1
	}
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	db, err := cachedb.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
			t.Error(err)
		}
	})
	return db
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

func closeDB(t testing.TB, db *cachedb.DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, db *cachedb.DB, plain []byte) index.Digest {
	t.Helper()
	d := index.DigestOf(plain)
	if ok, err := db.Put(d, cachedb.ClassFile, plain); err != nil || !ok {
		t.Fatalf("Put of %d bytes: stored %v, %v", len(plain), ok, err)
	}
	return d
}

// get reads plain through the cache with a fill that counts, and fails the test on a wrong byte.
func get(t testing.TB, db *cachedb.DB, plain []byte, fills *atomic.Int64) {
	t.Helper()
	got, err := db.Get(t.Context(), index.DigestOf(plain), int64(len(plain)), cachedb.ClassFile, func(context.Context) ([]byte, error) {
		fills.Add(1)
		return bytes.Clone(plain), nil
	})
	if err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("Get of %d bytes: right %v, %v", len(plain), bytes.Equal(got, plain), err)
	}
}

// cached reads all of plain with ReadAt; it fails the test on a wrong byte.
func cached(t testing.TB, db *cachedb.DB, plain []byte) bool {
	t.Helper()
	p := make([]byte, len(plain))
	ok, err := db.ReadAt(index.DigestOf(plain), int64(len(plain)), p, 0)
	if err != nil {
		t.Fatal(err)
	}
	if ok && !bytes.Equal(p, plain) {
		t.Fatalf("ReadAt of %d bytes: wrong content", len(plain))
	}
	return ok
}

func syncDB(t testing.TB, db *cachedb.DB) {
	t.Helper()
	if err := db.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func du(t testing.TB, dir string) (n int64) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil {
			n += st.Blocks * 512
		}
		return nil
	})
	return n
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

var edges = []int{1, 2, 4095, 16383, 16384, 16385, 32767, 32768, 32769, 49152, 65537, 1 << 20, 1<<20 + 1, index.MaxObject}

func TestRoundTripAtBlockEdges(t *testing.T) {
	dir := t.TempDir()
	for _, reopened := range []bool{false, true} {
		db := open(t, cachedb.Config{Dir: dir})
		for i, size := range edges {
			plain := content(uint64(i), size)
			d := index.DigestOf(plain)
			if !reopened {
				put(t, db, plain)
			}
			if !db.Has(d) || !cached(t, db, plain) {
				t.Fatalf("size %d, reopened %v: not cached", size, reopened)
			}
			for _, off := range []int{0, 1, size / 2, size - 1, 16383, 16384, 16385, 32768} {
				for _, n := range []int{0, 1, 100, 4096, 16384, 16385, 131072} {
					if off < 0 || off+n > size {
						continue
					}
					p := make([]byte, n)
					if ok, err := db.ReadAt(d, int64(size), p, int64(off)); !ok || err != nil || !bytes.Equal(p, plain[off:off+n]) {
						t.Fatalf("size %d, %d bytes at %d: ok %v, %v", size, n, off, ok, err)
					}
				}
			}
		}
		if n := db.Stats().Objects; n != int64(len(edges)) {
			t.Errorf("objects %d, want %d", n, len(edges))
		}
		if n := db.Stats().VerifyFailures; n != 0 {
			t.Errorf("%d verify failures", n)
		}
		closeDB(t, db)
	}
}

func TestRefusals(t *testing.T) {
	db := open(t, cachedb.Config{Dir: t.TempDir()})
	plain := content(1, 100)
	d := put(t, db, plain)
	never := func(context.Context) ([]byte, error) { t.Error("fill ran"); return nil, nil }
	if _, err := db.Get(t.Context(), d, 0, cachedb.ClassFile, never); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("Get of size 0: %v", err)
	}
	if _, err := db.Get(t.Context(), d, 101, cachedb.ClassFile, never); !errors.Is(err, index.ErrFormat) {
		t.Errorf("Get of the wrong size: %v", err)
	}
	if ok, err := db.ReadAt(d, 100, make([]byte, 2), 99); ok || !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("ReadAt past the end: %v %v", ok, err)
	}
	if ok, err := db.ReadAt(index.DigestOf([]byte("else")), 4, make([]byte, 4), 0); ok || err != nil {
		t.Errorf("ReadAt of what is not cached: %v %v", ok, err)
	}
	short := func(context.Context) ([]byte, error) { return []byte("short"), nil }
	if _, err := db.Get(t.Context(), index.DigestOf([]byte("longer")), 6, cachedb.ClassFile, short); !errors.Is(err, index.ErrFormat) {
		t.Errorf("Get with a fill that returns the wrong size: %v", err)
	}
	closeDB(t, db)
	if _, err := db.Get(t.Context(), d, 100, cachedb.ClassFile, never); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Get after Close: %v", err)
	}
	if _, err := db.ReadAt(d, 100, make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("ReadAt after Close: %v", err)
	}
}

func TestOneOwner(t *testing.T) {
	dir := t.TempDir()
	open(t, cachedb.Config{Dir: dir})
	_, err := cachedb.Open(cachedb.Config{Dir: dir})
	if !errors.Is(err, cachedb.ErrInUse) || !bytes.Contains([]byte(err.Error()), []byte(dir)) {
		t.Errorf("second Open: %v", err)
	}
}

func TestPrivateFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	db := open(t, cachedb.Config{Dir: dir})
	put(t, db, content(1, 100))
	put(t, db, content(2, 100_000))
	closeDB(t, db)
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		info, _ := e.Info()
		inIndex := filepath.Base(filepath.Dir(path)) == "index" // badger's own, behind a private directory
		if info.Mode().Perm()&0o077 != 0 && !inIndex {
			t.Errorf("%s: mode %v", path, info.Mode())
		}
		return nil
	})
}

func TestManyReadersOneFill(t *testing.T) {
	db := open(t, cachedb.Config{Dir: t.TempDir()})
	for i, size := range []int{100, 100_000} {
		plain := content(uint64(i), size)
		var fills atomic.Int64
		release := make(chan struct{})
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				got, err := db.Get(t.Context(), index.DigestOf(plain), int64(size), cachedb.ClassFile, func(context.Context) ([]byte, error) {
					fills.Add(1)
					<-release
					return plain, nil
				})
				if err != nil || !bytes.Equal(got, plain) {
					t.Errorf("Get: %v", err)
				}
			})
		}
		want := int64(64 * (i + 1))
		eventually(t, "all ask", func() bool { return db.Stats().Misses == want })
		close(release)
		wg.Wait()
		if fills.Load() != 1 {
			t.Errorf("size %d: %d fills, want 1", size, fills.Load())
		}
	}
}

func TestWaiterLeavesAlone(t *testing.T) {
	db := open(t, cachedb.Config{Dir: t.TempDir()})
	plain := content(1, 5000)
	d := index.DigestOf(plain)
	release, begun := make(chan struct{}), make(chan struct{})
	fill := func(ctx context.Context) ([]byte, error) {
		close(begun)
		select {
		case <-release:
			return plain, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error)
	go func() {
		_, err := db.Get(ctx, d, 5000, cachedb.ClassFile, fill)
		first <- err
	}()
	<-begun
	second := make(chan error)
	go func() {
		got, err := db.Get(t.Context(), d, 5000, cachedb.ClassFile, fill)
		if !bytes.Equal(got, plain) {
			t.Error("second waiter: wrong content")
		}
		second <- err
	}()
	eventually(t, "both wait", func() bool { return db.Stats().Misses == 2 })
	cancel()
	if err := <-first; err != context.Canceled { //nolint:errorlint // it must come bare
		t.Errorf("first waiter: %v, want a bare context.Canceled", err)
	}
	close(release)
	if err := <-second; err != nil {
		t.Errorf("second waiter: %v", err)
	}
	syncDB(t, db)
	if !cached(t, db, plain) {
		t.Error("the fill did not complete into the cache")
	}
}

func TestFillFailures(t *testing.T) {
	db := open(t, cachedb.Config{Dir: t.TempDir(), FillTimeout: 50 * time.Millisecond})
	plain := content(1, 5000)
	d := index.DigestOf(plain)
	boom := errors.New("boom")
	for _, row := range []struct {
		name string
		fill cachedb.Fill
		want error
	}{
		{"error", func(context.Context) ([]byte, error) { return nil, boom }, boom},
		{"panic", func(context.Context) ([]byte, error) { panic("boom") }, nil},
		{"deadline", func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }, context.DeadlineExceeded},
	} {
		_, err := db.Get(t.Context(), d, 5000, cachedb.ClassFile, row.fill)
		if err == nil || row.want != nil && !errors.Is(err, row.want) {
			t.Errorf("%s: %v, want %v", row.name, err, row.want)
		}
	}
	var fills atomic.Int64
	eventually(t, "failures are forgotten", func() bool {
		_, err := db.Get(t.Context(), d, 5000, cachedb.ClassFile, func(context.Context) ([]byte, error) { fills.Add(1); return plain, nil })
		return err == nil
	})
	if s := db.Stats(); fills.Load() != 1 || s.FillErrors < 2 {
		t.Errorf("fills %d, errors %d", fills.Load(), s.FillErrors)
	}
}

func TestMemoryTier(t *testing.T) {
	db := open(t, cachedb.Config{Dir: t.TempDir(), Memory: 1 << 20})
	var fills atomic.Int64
	for i := range 40 {
		get(t, db, content(uint64(i), 100_000), &fills)
		if n := db.Stats().MemoryBytes; n > 1<<20 {
			t.Fatalf("%d bytes in memory", n)
		}
	}
	last := content(39, 100_000)
	if b, ok := db.Memory(index.DigestOf(last)); !ok || !bytes.Equal(b, last) {
		t.Error("the newest object is not in memory")
	}
	if _, ok := db.Memory(index.DigestOf(content(0, 100_000))); ok {
		t.Error("the oldest object is still in memory")
	}
	syncDB(t, db)
	get(t, db, content(0, 100_000), &fills)
	if s := db.Stats(); s.Hits.Disk != 1 || s.Hits.Memory != 1 || fills.Load() != 40 {
		t.Errorf("hits %+v, fills %d", s.Hits, fills.Load())
	}
}

func TestState(t *testing.T) {
	dir := t.TempDir()
	db := open(t, cachedb.Config{Dir: dir})
	for _, k := range []string{"root/b", "root/a", "mount/x", "gone"} {
		if err := db.SetState(k, []byte("value of "+k)); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.DeleteState("gone"); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		var got []string
		for k, v := range db.States("root/") {
			got = append(got, k+"="+string(v))
		}
		if len(got) != 2 || got[0] != "root/a=value of root/a" || got[1] != "root/b=value of root/b" {
			t.Errorf("%s: %q", when, got)
		}
		if v, err := db.State("mount/x"); err != nil || string(v) != "value of mount/x" {
			t.Errorf("%s: %q %v", when, v, err)
		}
		if _, err := db.State("gone"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: deleted record: %v", when, err)
		}
	}
	check("set")
	closeDB(t, db)
	db = open(t, cachedb.Config{Dir: dir})
	check("reopened")
	closeDB(t, db)
	if err := os.RemoveAll(filepath.Join(dir, "index")); err != nil {
		t.Fatal(err)
	}
	db = open(t, cachedb.Config{Dir: dir})
	check("index lost")
	closeDB(t, db)
	db = open(t, cachedb.Config{Dir: dir})
	check("index lost and reopened")
}

// A closed cache can be opened at once, whatever other goroutines fork: a child holds copies of all files until it executes its program.
func TestReopenWhileOthersFork(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := exec.Command("true").Run(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	dir := scratchDir(t)
	for range 100 {
		closeDB(t, open(t, cachedb.Config{Dir: dir}))
	}
}
