package cachedb

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestReadFullWithAndWithoutPageCache(t *testing.T) {
	content := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(content)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	able := true // whether this filesystem can
	if _, err := unix.Preadv2(int(f.Fd()), [][]byte{make([]byte, 1)}, 0, unix.RWF_NOWAIT); errors.Is(err, unix.EOPNOTSUPP) {
		able = false
	}
	p := make([]byte, 300_000)
	if n := readResident(f, p, 7); able && n != len(p) || !bytes.Equal(p[:n], content[7:7+n]) {
		t.Errorf("%d bytes of what was just written, filesystem able: %v", n, able)
	}
	for _, off := range []int64{0, 1, 4096, 1<<20 - int64(len(p))} {
		want := content[off : off+int64(len(p))]
		for _, resident := range []bool{true, false} {
			if !resident { // but for the first page
				fd, n := int(f.Fd()), 0
				for range 100 { // pages that the kernel is busy with stay
					if err := errors.Join(f.Sync(), unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED), unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM)); err != nil {
						t.Fatal(err)
					}
					if _, err := f.ReadAt(p[:1], off); err != nil {
						t.Fatal(err)
					}
					if n = readResident(f, p, off); n > 0 && n < len(p) || !able {
						break
					}
					time.Sleep(10 * time.Millisecond)
				}
				if able && (n == 0 || n == len(p)) {
					t.Errorf("at %d: %d bytes, where one page is in memory", off, n)
				}
			}
			clear(p)
			if err := readFull(f, p, off); err != nil || !bytes.Equal(p, want) {
				t.Errorf("at %d, resident %v: %v", off, resident, err)
			}
		}
	}
	for _, off := range []int64{1<<20 - 10, 1 << 20, 1 << 21} {
		if err := readFull(f, p, off); !errors.Is(err, errDamaged) {
			t.Errorf("at %d, past the end: %v", off, err)
		}
	}
	if err := readFull(f, nil, 0); err != nil {
		t.Errorf("nothing: %v", err)
	}
	if allocs := testing.AllocsPerRun(100, func() { _ = readFull(f, p, 0) }); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	f.Close()
	if err := readFull(f, p, 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
