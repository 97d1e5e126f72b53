package cachedb_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

// archived returns a small archive and what it holds.
func archived(t testing.TB) ([]byte, map[index.Digest][]byte) {
	t.Helper()
	objects := map[index.Digest][]byte{}
	h := cachedb.ArchiveHeader{Repository: "images.example.org", Revision: 7, Servers: []string{"http://a/images"}, Manifest: []byte("manifest"), Whitelist: []byte("whitelist")}
	var order []index.Digest
	for n, size := range []int{1, 511, 512, 513, 40_000} {
		plain := content(uint64(n), size)
		d := index.DigestOf(plain)
		objects[d] = plain
		order = append(order, d)
		h.Objects++
		h.Bytes += int64(size)
	}
	var b bytes.Buffer
	a, err := cachedb.NewArchiveWriter(&b, h)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range order {
		if err := a.Object(d, objects[d]); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), objects
}

// unpack reads an archive, and checks that all it gives is what its digest says.
func unpack(t testing.TB, b []byte) (h cachedb.ArchiveHeader, objects map[index.Digest][]byte, err error) {
	objects = map[index.Digest][]byte{}
	err = cachedb.ReadArchive(bytes.NewReader(b), func(got cachedb.ArchiveHeader) error {
		h = got
		return nil
	}, func(d index.Digest, plain []byte) error {
		if index.DigestOf(plain) != d {
			t.Errorf("object %v is not what it says", d)
		}
		objects[d] = plain
		return nil
	})
	return h, objects, err
}

func TestArchiveComesOutAsItWentIn(t *testing.T) {
	t.Parallel()
	b, want := archived(t)
	h, got, err := unpack(t, b)
	if err != nil || !maps.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("%d of %d objects, %v", len(got), len(want), err)
	}
	if h.Repository != "images.example.org" || h.Revision != 7 || string(h.Manifest) != "manifest" || string(h.Whitelist) != "whitelist" || len(h.Servers) != 1 {
		t.Errorf("%+v", h)
	}
	// Unpacked, it is a lower cache.
	dir := scratchDir(t)
	cmd := exec.Command("tar", "-xf", "-", "-C", dir)
	cmd.Stdin = bytes.NewReader(b)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	l := newLower(t, dir)
	for d, plain := range want {
		if got, err := l.Get(t.Context(), d, int64(len(plain))); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%v: %v", d, err)
		}
	}
	if note, err := l.Note(t.Context(), "images.example.org", "manifest"); err != nil || string(note) != "manifest" {
		t.Errorf("%q %v", note, err)
	}
	if fi, err := os.Stat(lowerFile(dir, index.DigestOf(content(4, 40_000)))); err != nil || fi.Mode().Perm()&0o222 != 0 {
		t.Errorf("%v %v", fi, err)
	}
}

func TestArchiveThatIsNotWholeIsRefused(t *testing.T) {
	t.Parallel()
	b, want := archived(t)
	end := len(b) - 1024 - (512 - 40_000%512) // the rest fills up the last block, and is two empty ones
	for n := 0; n < end; n += 97 {
		if _, got, err := unpack(t, b[:n]); !errors.Is(err, cachedb.ErrArchive) || len(got) > len(want) {
			t.Fatalf("cut after %d of %d bytes: %v", n, len(b), err)
		}
	}
	for n := 512; n < end; n += 512 { // at the edges of its blocks
		if _, _, err := unpack(t, b[:n]); !errors.Is(err, cachedb.ErrArchive) {
			t.Fatalf("cut after %d of %d bytes: %v", n, len(b), err)
		}
	}
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		c := bytes.Clone(b)
		at := rng.IntN(end)
		c[at] ^= 1 << rng.IntN(8)
		h, got, err := unpack(t, c)
		if err == nil && (len(got) != len(want) || h.Objects != int64(len(want))) {
			t.Fatalf("seed %d: bit flipped at %d: %d objects and no error", seed, at, len(got))
		}
	}
	for name, garbage := range map[string][]byte{
		"empty": nil, "text": []byte("<html>404</html>"), "zeros": make([]byte, 10_000), "random": content(9, 100_000),
		"another tar": tarOf(t, map[string]string{"etc/passwd": "root"}), "huge header": tarOf(t, map[string]string{"skimfs-export": strings.Repeat(" ", 1<<20)}),
		"newer":           tarOf(t, map[string]string{"skimfs-export": `{"version":2}`}),
		"a billion files": tarOf(t, map[string]string{"skimfs-export": `{"version":1,"repository":"a.b","objects":1000000000,"bytes":1000000000000}`}),
	} {
		if _, _, err := unpack(t, garbage); !errors.Is(err, cachedb.ErrArchive) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func tarOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range files {
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}), func() error {
			_, err := io.WriteString(w, text)
			return err
		}()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func FuzzReadArchive(f *testing.F) {
	b, _ := archived(f)
	f.Add(b)
	f.Add(b[:2048])
	f.Add(tarOf(f, map[string]string{"skimfs-export": `{"version":1,"repository":"a.b","objects":1,"bytes":9}`}))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, objects, err := unpack(t, b)
		if err == nil && int64(len(objects)) > h.Objects {
			t.Error(fmt.Sprint(len(objects), " objects, ", h.Objects, " announced"))
		}
	})
}
