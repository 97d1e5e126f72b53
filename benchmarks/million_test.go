package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/internal/testkit"
)

// BenchmarkDaemonOfAMillion reports the anonymous memory of a daemon that filled a cache with a million objects, read 64 MB through it and was
// started again. It runs once, for minutes.
func BenchmarkDaemonOfAMillion(b *testing.B) {
	if os.Getenv("SKIMFS_BENCH_MILLION") == "" {
		b.Skip("set SKIMFS_BENCH_MILLION to run it")
	}
	home, dir := testkit.Home(b), b.TempDir()
	skimfs := func(in io.Reader, args ...string) []byte {
		cmd := testkit.Command(b, home, args...)
		cmd.Stdin = in
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			b.Fatalf("skimfs %q: %v\n%s", args, err, stderr.Bytes())
		}
		return out
	}
	for n := range 64 {
		path := filepath.Join(dir, "root", fmt.Sprint(n))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, numbered(uint64(n), 1<<20), 0o644)); err != nil {
			b.Fatal(err)
		}
	}
	repo, keys := filepath.Join(dir, "repo"), filepath.Join(home, "etc", "keys")
	skimfs(nil, "repo", "create", repo, "--name", "images.example.org", "--keys", keys)
	skimfs(nil, "publish", "--repo", repo, "--keys", keys, "dir:"+filepath.Join(dir, "root"), "docker.io/library/files:1")
	server := httptest.NewServer(http.FileServer(http.Dir(repo)))
	defer server.Close()
	source := server.URL + "#docker.io/library/files:1"
	export := skimfs(nil, "cache", "export", source)

	// The import's daemon is the one that the export left.
	var daemon int
	var peak atomic.Int64
	stop := make(chan struct{})
	var watching sync.WaitGroup
	if pids := testkit.Processes(home); len(pids) == 1 {
		daemon = pids[0]
	} else {
		b.Fatalf("processes %v, want one daemon", pids)
	}
	watching.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				peak.Store(max(peak.Load(), anonymousOf(b, daemon)))
			}
		}
	})
	r, w := io.Pipe()
	go func() { w.CloseWithError(enlarge(w, export, 1_000_000)) }()
	begun := time.Now()
	skimfs(r, "cache", "import")
	b.ReportMetric(time.Since(begun).Seconds(), "s-import")
	close(stop)
	watching.Wait()
	mib := func(n int64) float64 { return float64(n) / (1 << 20) }
	b.ReportMetric(mib(peak.Load()), "MiB-anon-peak")

	target := filepath.Join(home, "mnt", "m")
	readAll := func(name string) {
		if err := os.MkdirAll(target, 0o755); err != nil {
			b.Fatal(err)
		}
		skimfs(nil, "mount", source, target)
		if out, err := exec.Command("sh", "-c", `cat "$1"/[0-9]* >/dev/null`, "sh", target).CombinedOutput(); err != nil {
			b.Fatalf("%v %s", err, out)
		}
		b.ReportMetric(mib(anonymousOf(b, testkit.Processes(home)[0])), name)
		skimfs(nil, "umount", target)
	}
	readAll("MiB-anon-filled+read")
	end, err := os.FindProcess(daemon)
	if err == nil {
		err = end.Signal(os.Interrupt)
	}
	for start := time.Now(); err == nil && len(testkit.Processes(home)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			err = errors.New("the daemon does not end")
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	readAll("MiB-anon-restarted+read")
	if out := string(skimfs(nil, "status")); !strings.Contains(out, " 1000") {
		b.Errorf("not a million objects:\n%s", out)
	}
}

// enlarge writes an export with n small objects more.
func enlarge(w io.Writer, export []byte, n int64) error {
	var out *cachedb.ArchiveWriter
	err := cachedb.ReadArchive(bytes.NewReader(export), func(h cachedb.ArchiveHeader) (err error) {
		h.Objects += n
		h.Bytes += 256 * n
		out, err = cachedb.NewArchiveWriter(w, h)
		return err
	}, func(d index.Digest, plain []byte) error { return out.Object(d, plain) })
	for i := int64(0); i < n && err == nil; i++ {
		plain := numbered(uint64(1<<32+i), 256)
		err = out.Object(index.DigestOf(plain), plain)
	}
	if err != nil {
		return err
	}
	return out.Close()
}

// numbered returns size bytes that belong to number n alone.
func numbered(n uint64, size int) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], n)
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(b) // it never fails
	return b
}

// anonymousOf is a process's anonymous memory in bytes.
func anonymousOf(b *testing.B, pid int) int64 {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		b.Error(err)
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	var kb int64
	fmt.Sscan(rest, &kb)
	return kb << 10
}

// cpuTime is what this process has used.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCacheReaders is the curve of threads that read 10,000 cached files side by side: from the cache on disk, from its memory tier, and
// for comparison from the files themselves (open, read, close).
func BenchmarkCacheReaders(b *testing.B) {
	const files = 10_000
	size := func(n uint64) int { return 200 + rand.New(rand.NewPCG(n, 0)).IntN(16_000) }
	dir := b.TempDir()
	plainDir := filepath.Join(dir, "files")
	if err := os.Mkdir(plainDir, 0o755); err != nil {
		b.Fatal(err)
	}
	open := func(name string, memory int64) *cachedb.DB {
		db, err := cachedb.Open(cachedb.Config{Dir: filepath.Join(dir, name), Memory: memory})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := db.Close(); err != nil {
				b.Error(err)
			}
		})
		return db
	}
	disk, memory := open("disk", -1), open("memory", 256<<20)
	var digests [files]index.Digest
	var sizes [files]int64
	for n := range digests {
		plain := numbered(uint64(n), size(uint64(n)))
		digests[n], sizes[n] = index.DigestOf(plain), int64(len(plain))
		fill := func(db *cachedb.DB) error {
			if ok, err := db.Put(digests[n], cachedb.ClassFile, plain); err != nil || !ok {
				return fmt.Errorf("stored %v: %w", ok, err)
			}
			_, err := db.Get(b.Context(), digests[n], sizes[n], cachedb.ClassFile, nil) // into the memory tier, if there is one
			return err
		}
		if err := errors.Join(fill(disk), fill(memory), os.WriteFile(filepath.Join(plainDir, strconv.Itoa(n)), plain, 0o644)); err != nil {
			b.Fatal(err)
		}
	}
	from := func(db *cachedb.DB) func(n int, p []byte) error {
		return func(n int, p []byte) error {
			if ok, err := db.ReadAt(digests[n], sizes[n], p[:sizes[n]], 0); err != nil || !ok {
				return fmt.Errorf("cached %v: %w", ok, err)
			}
			return nil
		}
	}
	for _, row := range []struct {
		name string
		read func(n int, p []byte) error
	}{{"disk", from(disk)}, {"memory", from(memory)}, {"files", func(n int, p []byte) error {
		f, err := os.Open(filepath.Join(plainDir, strconv.Itoa(n)))
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.ReadFull(f, p[:sizes[n]])
		return err
	}}} {
		for _, threads := range []int{1, 2, 8, 128} {
			b.Run(fmt.Sprintf("%s/threads=%d", row.name, threads), func(b *testing.B) {
				var next atomic.Int64
				var readers sync.WaitGroup
				begun := cpuTime(b)
				b.ResetTimer()
				for range threads {
					readers.Go(func() {
						p := make([]byte, 32<<10)
						for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
							if err := row.read(int(n*7919%files), p); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				readers.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
				b.ReportMetric(float64(cpuTime(b)-begun)/float64(b.N), "cpu-ns/read") // which waiting for locks in vain would raise
			})
		}
	}
}
