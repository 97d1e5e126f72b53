//go:build !race

// The race detector allocates, and drops what pools keep.

package fusefs_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/VictoriaMetrics/metrics"

	"github.com/skimfs/skimfs/fusefs"
	"github.com/skimfs/skimfs/index"
)

// TestMountedRequestsAllocateNothingOfOurs: what is allocated for a request is bazil's: the request, a name's string, and the buffer that
// its reply is copied to.
func TestMountedRequestsAllocateNothingOfOurs(t *testing.T) {
	const files = 20_000
	s := newStore()
	root := newDir(0o755)
	for i := range files {
		add(root, fmt.Sprintf("dir-%02d/file-%03d", i/1000, i%1000), s.file(t, 0o644, []byte("x")))
	}
	ref := s.image(t, root, index.ImageInfo{})
	set := metrics.NewSet()
	c, _ := s.newCore(t, fusefs.Config{Tree: s.tree(t, ref.Catalog), Metrics: set})
	if err := c.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir := mount(t, c)
	for _, test := range []struct {
		claim, op, script string
		own               float64
	}{
		{"lookup: request, name, reply", "lookup", `find $1 -printf %s >/dev/null`, 3},
		{"getattr: request, reply", "getattr", `cd $1 && find . -type f | xargs stat --cached=never -c %s >/dev/null`, 2},
	} {
		t.Run(test.claim, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			n := requests(set, test.op)
			sh(t, test.script, dir)
			n = requests(set, test.op) - n
			runtime.ReadMemStats(&after)
			if n < files*9/10 {
				t.Fatalf("only %d requests", n)
			}
			// Subprocesses and listings allocate too, for all of these requests together.
			each := float64(after.Mallocs-before.Mallocs) / float64(n)
			t.Logf("%d requests, %.2f allocations, %.0f bytes each", n, each, float64(after.TotalAlloc-before.TotalAlloc)/float64(n))
			if each > test.own+0.25 {
				t.Errorf("%.2f allocations a request, want bazil's %v", each, test.own)
			}
		})
	}
}
