package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// TestCrowds: 100,000 files in two directories of one image, in catalogs of their own.
func TestCrowds(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	t.Parallel()
	layout := testkit.Crowds(t)
	const name = "local/crowds:latest"
	repo := publish(t, image{"oci:" + layout + ":latest", name, []string{"--bare"}})
	if n := repo.results[name].Catalogs; n < 3 {
		t.Errorf("%d catalogs, want one for each directory: nothing nested is tested", n)
	}
	n := newNode(t)
	mounted := n.mount(t, repo, testkit.StartNginx(t, repo.dir).URL, name, "")

	t.Run("seekdir leads back to where telldir was", func(t *testing.T) {
		seekdir := filepath.Join(t.TempDir(), "seekdir")
		testkit.Run(t, "gcc", "-O1", "-Wall", "-o", seekdir, "testdata/seekdir.c")
		for _, d := range []struct {
			path    string
			entries int
		}{{"crowd", 60_001}, {"crowd/throng", 40_000}, {".", 1}} {
			testkit.Run(t, seekdir, filepath.Join(mounted, d.path), fmt.Sprint(d.entries))
		}
	})
	t.Run("equals what umoci unpacks", func(t *testing.T) {
		start := time.Now()
		unpacked := testkit.Unpack(t, layout, "latest")
		t.Logf("umoci took %v", time.Since(start).Round(time.Millisecond))
		start = time.Now()
		checkOracle(t, mounted, unpacked, true)
		t.Logf("reading and comparing took %v", time.Since(start).Round(time.Millisecond))
	})
}

// TestGiants: a file of 1 GiB arrives whole, one of 10 GiB costs what it holds.
func TestGiants(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	t.Parallel()
	const name = "local/giants:latest"
	start := time.Now()
	giants := testkit.NewGiants(t)
	made := time.Now()
	repo := publish(t, image{"oci:" + giants.Layout + ":latest", name, []string{"--bare"}})
	t.Logf("made in %v, published in %v", made.Sub(start).Round(time.Millisecond), time.Since(made).Round(time.Millisecond))
	n := newNode(t)
	mounted := n.mount(t, repo, testkit.StartNginx(t, repo.dir).URL, name, "")

	// Data at the start, over the edge of two chunks, in the middle, at the end: five chunks hold some.
	const chunks = 5
	t.Run("holes are no objects", func(t *testing.T) {
		p := repo.results[name]
		if want := int64(testkit.LargeSize>>20 + chunks); p.Objects != want {
			t.Errorf("%d objects, want %d", p.Objects, want)
		}
		if want := int64(testkit.LargeSize + testkit.SparseSize); p.Bytes != want {
			t.Errorf("%d bytes published, want %d", p.Bytes, want)
		}
	})
	t.Run("a sparse file reads as zeros but for its data", func(t *testing.T) {
		path := filepath.Join(mounted, "sparse")
		if got := strings.TrimSpace(output(t, "stat", "-c", "%s", path)); got != fmt.Sprint(int64(testkit.SparseSize)) {
			t.Errorf("size is %s", got)
		}
		before := n.counters(t)
		for off := int64(100 << 20); off < testkit.SparseSize-(200<<20); off += 999_999_937 {
			checkSparse(t, giants, path, off, 1<<20)
		}
		if after := n.counters(t); after.FileObjects != before.FileObjects {
			t.Errorf("reading holes fetched %d objects", after.FileObjects-before.FileObjects)
		}
		for off := range giants.Data {
			checkSparse(t, giants, path, max(0, off-5000), 16<<10)
		}
		if after := n.counters(t); after.FileObjects-before.FileObjects != chunks {
			t.Errorf("reading all data fetched %d objects, want %d", after.FileObjects-before.FileObjects, chunks)
		}
	})
	t.Run("1 GiB has its digest", func(t *testing.T) {
		start := time.Now()
		if got, _, _ := strings.Cut(output(t, "sha256sum", filepath.Join(mounted, "large")), " "); got != giants.SHA256 {
			t.Errorf("sha256 is %s, want %s", got, giants.SHA256)
		}
		t.Logf("read cold in %v", time.Since(start).Round(time.Millisecond))
	})
}

// checkSparse compares size bytes at off with what the file of holes has there, up to its end.
func checkSparse(t *testing.T, g testkit.Giants, path string, off, size int64) {
	t.Helper()
	size = min(size, testkit.SparseSize-off)
	want := make([]byte, size)
	for at, data := range g.Data {
		if end := at + int64(len(data)); at < off+size && end > off {
			from := max(at, off)
			copy(want[from-off:], data[from-at:])
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, size+1)
	n, err := f.ReadAt(got, off)
	if n < len(want) || !bytes.Equal(got[:size], want) {
		t.Errorf("%d bytes at %d are not what they were (%d read, %v)", size, off, n, err)
	}
	if off+size == testkit.SparseSize && n != len(want) {
		t.Errorf("the file goes on for %d bytes behind its end", n-len(want))
	}
}

// TestPlatforms: --platform all publishes each image of an index, and each is its own.
func TestPlatforms(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	layout := testkit.Platforms(t)
	const name = "local/platforms:latest"
	repo := publish(t, image{"oci:" + layout + ":latest", name, []string{"--bare", "--platform", "all"}})
	if len(repo.results) != 2 {
		t.Errorf("%d images published, want 2", len(repo.results))
	}
	origin, n := testkit.StartNginx(t, repo.dir), newNode(t)
	for _, arch := range []string{"amd64", "arm64"} {
		t.Run(arch, func(t *testing.T) {
			mounted := n.mount(t, repo, origin.URL, name+"@linux-"+arch, "")
			checkOracle(t, mounted, testkit.Unpack(t, layout, arch), true)
			entries := testkit.Walk(t, mounted)
			if !slices.ContainsFunc(entries, func(e testkit.Entry) bool { return e.Path == "only-"+arch }) {
				t.Errorf("this is not the image for %s", arch)
			}
		})
	}
	t.Run("the name itself is this machine's", func(t *testing.T) {
		mounted := n.mount(t, repo, origin.URL, name, "")
		checkOracle(t, mounted, testkit.Unpack(t, layout, runtime.GOARCH), true)
	})
}
