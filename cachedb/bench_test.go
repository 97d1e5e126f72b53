package cachedb_test

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

func BenchmarkReadAt(b *testing.B) {
	for _, row := range []struct{ object, read int }{{4 << 10, 4 << 10}, {1 << 20, 4 << 10}, {1 << 20, 128 << 10}, {1 << 20, 1 << 20}} {
		b.Run(fmt.Sprintf("object=%dKiB/read=%dKiB", row.object>>10, row.read>>10), func(b *testing.B) {
			const objects = 100
			db := open(b, cachedb.Config{Dir: b.TempDir()})
			var digests [objects]index.Digest
			for i := range digests {
				digests[i] = put(b, db, content(uint64(i), row.object))
			}
			b.SetBytes(int64(row.read))
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				p := make([]byte, row.read)
				for i := 0; pb.Next(); i++ {
					off := int64(i * row.read % (row.object - row.read + 1))
					if ok, err := db.ReadAt(digests[i%objects], int64(row.object), p, off); !ok || err != nil {
						b.Error(ok, err)
						return
					}
				}
			})
		})
	}
}

func BenchmarkPut(b *testing.B) {
	for _, size := range []int{4 << 10, 32 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			db := open(b, cachedb.Config{Dir: b.TempDir(), Limit: 1 << 30})
			plain := content(1, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				// Not what the digest says, but only reads after an unclean stop would mind.
				if ok, err := db.Put(index.DigestOf(fmt.Append(nil, i)), cachedb.ClassFile, plain); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}

// BenchmarkMillion reports what a million small objects cost: anonymous memory, index, reopening. It runs once.
func BenchmarkMillion(b *testing.B) {
	if os.Getenv("SKIMFS_BENCH_MILLION") == "" {
		b.Skip("set SKIMFS_BENCH_MILLION to run it")
	}
	const objects = 1_000_000
	dir := b.TempDir()
	plain := content(1, 256)
	db := open(b, cachedb.Config{Dir: dir})
	begun := time.Now()
	for i := range objects {
		if ok, err := db.Put(index.DigestOf(fmt.Append(nil, i)), cachedb.ClassFile, plain); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
	b.ReportMetric(float64(time.Since(begun).Microseconds())/objects, "µs/put")
	b.ReportMetric(anonymous(b), "MiB-anon-filled")
	closeDB(b, db)
	b.ReportMetric(float64(du(b, dir+"/index"))/(1<<20), "MiB-index")
	begun = time.Now()
	db = open(b, cachedb.Config{Dir: dir})
	b.ReportMetric(time.Since(begun).Seconds(), "s-reopen")
	b.ReportMetric(anonymous(b), "MiB-anon-reopened")
	if n := db.Stats().Objects; n != objects {
		b.Errorf("%d objects", n)
	}
}

// anonymous is the process's anonymous memory in MiB, garbage left out.
func anonymous(b *testing.B) float64 {
	debug.FreeOSMemory()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	var kb float64
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	fmt.Sscan(rest, &kb)
	return kb / 1024
}
