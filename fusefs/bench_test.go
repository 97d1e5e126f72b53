package fusefs_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/skimfs/skimfs/fusefs"
	"github.com/skimfs/skimfs/index"
)

const benchFiles = 100_000

// newWide is an image of 100 k small files in 1000 directories.
func newWide(b *testing.B) (*store, index.ImageRef) {
	s := newStore()
	root := newDir(0o755)
	for i := range benchFiles {
		add(root, fmt.Sprintf("dir-%03d/file-%03d", i/100, i%100), s.file(b, 0o644, fmt.Appendf(nil, "file %d\n", i%10)))
	}
	return s, s.image(b, root, index.ImageInfo{})
}

func BenchmarkLookup(b *testing.B) {
	s, ref := newWide(b)
	c, _ := s.newCore(b, fusefs.Config{Tree: s.tree(b, ref.Catalog)})
	if err := c.Prepare(b.Context()); err != nil {
		b.Fatal(err)
	}
	dir := walk(b, c, fusefs.RootID, "dir-500").Node
	name := []byte("file-077")
	b.ResetTimer()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var e fusefs.Entry
		for pb.Next() {
			if err := c.Lookup(dir, name, &e); err != nil {
				b.Error(err)
			}
		}
	})
}

// benchMounted runs a script once for each fresh mount, with readers where the scheduler puts them and with readers that follow the
// client, in turn, and reports the time of one file.
func benchMounted(b *testing.B, files int, script string) {
	s, ref := newWide(b)
	tree := s.tree(b, ref.Catalog)
	var seconds [2]float64
	for b.Loop() {
		for follow := range seconds {
			c, _ := s.newCore(b, fusefs.Config{Tree: tree})
			if err := c.Prepare(b.Context()); err != nil {
				b.Fatal(err)
			}
			dir := mountWith(b, c, fusefs.Options{FollowClient: follow == 1})
			start := time.Now()
			sh(b, script, dir)
			seconds[follow] += time.Since(start).Seconds()
		}
	}
	b.ReportMetric(seconds[0]*1e9/float64(b.N)/float64(files), "ns/file")
	b.ReportMetric(seconds[1]*1e9/float64(b.N)/float64(files), "following-ns/file")
}

func BenchmarkMountedFind(b *testing.B) { benchMounted(b, benchFiles, `find $1 -printf %s >/dev/null`) }

func BenchmarkMountedCat(b *testing.B) {
	benchMounted(b, benchFiles/10, `find $1/dir-0* -type f -print0 | xargs -0 -n 5000 cat >/dev/null`)
}

func BenchmarkMountedCat8(b *testing.B) {
	benchMounted(b, benchFiles/10, `find $1/dir-0* -type f -print0 | xargs -0 -n 500 -P 8 cat >/dev/null`)
}
