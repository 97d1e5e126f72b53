package testkit

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func paxSparseLayers(t testing.TB) [][]byte {
	t.Helper()
	return [][]byte{sparseLayer(t, "pax-0.0"), sparseLayer(t, "pax-0.1"), sparseLayer(t, "pax-1.0")}
}

// sparseLayer has GNU tar write files with holes in one of the forms it knows: gnu, or pax and a
// version. Go's own writer knows none.
func sparseLayer(t testing.TB, form string) []byte {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "sparse"), 0o755); err != nil {
		t.Fatal(err)
	}
	prefix := filepath.Join(root, "sparse", form)
	makeHoles(t, prefix+"-middle", 5<<20, 0, 3<<20)
	makeHoles(t, prefix+"-ends", 4<<20, 1<<20+4096)
	makeHoles(t, prefix+"-all", 3<<20)
	makeHoles(t, prefix+"-many", 2<<20, 0, 64<<10, 128<<10, 192<<10, 256<<10, 320<<10, 384<<10)
	args := []string{
		"-C", root, "--sparse", "--hole-detection=raw", "--sort=name", "--owner=0", "--group=0", "--numeric-owner",
		fmt.Sprintf("--mtime=@%d", epoch.Unix()), "--mode=go=rX,u+rwX",
	}
	if version, isPAX := strings.CutPrefix(form, "pax-"); isPAX {
		args = append(args, "--format=pax", "--sparse-version="+version, "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime")
	} else {
		args = append(args, "--format=gnu")
	}
	return withoutPIDs([]byte(Run(t, "tar", append(args, "-cf", "-", "sparse")...)))
}

// makeHoles writes a file of the given size that is empty but for 4 KiB at each offset.
func makeHoles(t testing.TB, path string, size int64, offsets ...int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range offsets {
		if _, err := f.WriteAt(bytes.Repeat([]byte("data"), 1024), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

var pidInName = regexp.MustCompile(`/GNUSparseFile\.\d+/`)

// withoutPIDs takes tar's process id out of the names that it gives to sparse files for readers
// that don't know the form, so that a layer is the same each time.
func withoutPIDs(archive []byte) []byte {
	const block, nameLen, sumAt, sumLen = 512, 100, 148, 8
	for header := range bytesInBlocks(archive, block) {
		name := bytes.TrimRight(header[:nameLen], "\x00")
		fixed := pidInName.ReplaceAll(name, []byte("/GNUSparseFile.0/"))
		if bytes.Equal(name, fixed) {
			continue
		}
		clear(header[:nameLen])
		copy(header, fixed)
		copy(header[sumAt:], strings.Repeat(" ", sumLen))
		sum := 0
		for _, b := range header {
			sum += int(b)
		}
		copy(header[sumAt:], fmt.Sprintf("%06o\x00 ", sum))
	}
	return archive
}

func bytesInBlocks(data []byte, size int) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for ; len(data) >= size; data = data[size:] {
			if !yield(data[:size]) {
				return
			}
		}
	}
}
