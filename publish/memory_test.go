package publish_test

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skimfs/skimfs/publish"
)

// A gigabyte in one file, half zeros, half not, must not need more memory than a small one.
func TestMemoryIsBoundedWhateverTheSize(t *testing.T) {
	if testing.Short() {
		t.Skip("streams a gigabyte")
	}
	const size, limit = 1 << 30, 160 << 20
	dir, _ := writeLayout(t, layoutSpec{large: func(dir string) (string, string, int64) { return writeLargeLayer(t, dir, size) }})
	r := newRepo(t)
	debug.FreeOSMemory()
	stop, peak := make(chan struct{}), atomic.Uint64{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var m runtime.MemStats
		for {
			runtime.ReadMemStats(&m)
			peak.Store(max(peak.Load(), m.HeapInuse))
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	start := time.Now()
	got := r.publish("oci:"+dir, "local/large:1", publish.Options{Bare: true})
	took := time.Since(start)
	close(stop)
	<-done
	t.Logf("%d bytes in %v, at most %d MiB of heap", got.Bytes, took, peak.Load()>>20)
	if got.Bytes != size || peak.Load() > limit {
		t.Errorf("%d bytes with %d MiB of heap, want %d with at most %d", got.Bytes, peak.Load()>>20, size, limit>>20)
	}
	r.verified()
}

// writeLargeLayer adds a blob to a layout: one file, every other MiB zeros, the others of a pattern that differs.
func writeLargeLayer(t *testing.T, dir string, size int64) (diffID, blob string, compressed int64) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	blobHash, diffHash := sha256.New(), sha256.New()
	z, err := gzip.NewWriterLevel(io.MultiWriter(f, blobHash), gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(io.MultiWriter(z, diffHash))
	if err := w.WriteHeader(&tar.Header{Name: "large", Typeflag: tar.TypeReg, Size: size, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	for i := range size >> 20 {
		clear(block)
		if i%2 == 0 {
			copy(block, fmt.Sprintf("block %d", i))
		}
		if _, err := w.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	diffID = "sha256:" + hex.EncodeToString(diffHash.Sum(nil))
	blob = "sha256:" + hex.EncodeToString(blobHash.Sum(nil))
	if err := os.Rename(f.Name(), blobName(dir, blob)); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(blobName(dir, blob))
	if err != nil {
		t.Fatal(err)
	}
	return diffID, blob, st.Size()
}
