package testkit

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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

// extent is a part of a file that holds data.
type extent struct {
	offset int64
	data   []byte
}

func (e extent) end() int64 { return e.offset + int64(len(e.data)) }

// writeSparse writes a file with holes as GNU tar does by default, PAX 1.0. archive/tar reads that
// and writes no such thing.
func writeSparse(t testing.TB, w io.Writer, i item) {
	t.Helper()
	table := fmt.Sprintln(len(i.sparse) + 1)
	stored := int64(0)
	for _, e := range i.sparse {
		table += fmt.Sprintf("%d\n%d\n", e.offset, len(e.data))
		stored += int64(len(e.data))
	}
	table += fmt.Sprintf("%d\n0\n", i.Size)
	table += string(make([]byte, -len(table)&511))
	records := map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": i.Name, "GNU.sparse.realsize": fmt.Sprint(i.Size),
		"mtime": fmt.Sprintf("%d.%09d", i.ModTime.Unix(), i.ModTime.Nanosecond()), "uid": fmt.Sprint(i.Uid), "gid": fmt.Sprint(i.Gid),
		"size": fmt.Sprint(int64(len(table)) + stored),
	}
	if i.ModTime.Unix() < 0 { // the fraction counts away from zero
		ns := -i.ModTime.UnixNano()
		records["mtime"] = fmt.Sprintf("-%d.%09d", ns/1e9, ns%1e9)
	}
	maps.Copy(records, i.PAXRecords)
	var pax strings.Builder
	for _, key := range slices.Sorted(maps.Keys(records)) {
		pax.WriteString(paxRecord(key, records[key]))
	}
	var out bytes.Buffer
	out.Write(ustarHeader("PaxHeaders.0/sparse", 'x', 0o644, int64(pax.Len())))
	out.WriteString(pax.String())
	out.Write(make([]byte, -pax.Len()&511))
	out.Write(ustarHeader("GNUSparseFile.0/sparse", '0', i.Mode, 0))
	out.WriteString(table)
	for _, e := range i.sparse {
		out.Write(e.data)
	}
	out.Write(make([]byte, -stored&511))
	if _, err := w.Write(out.Bytes()); err != nil {
		t.Fatal(err)
	}
}

// paxRecord writes a record, whose length counts its own digits.
func paxRecord(key, value string) string {
	text := fmt.Sprintf(" %s=%s\n", key, value)
	n := len(text)
	for n != len(text)+len(fmt.Sprint(n)) {
		n = len(text) + len(fmt.Sprint(n))
	}
	return fmt.Sprint(n) + text
}

// ustarHeader is a tar header with the fields that no PAX record gives.
func ustarHeader(name string, kind byte, mode, size int64) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], fmt.Sprintf("%07o", mode))
	copy(b[108:], "0000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o", size))
	copy(b[136:], "00000000000")
	copy(b[148:], "        ")
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}
