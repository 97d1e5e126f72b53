package testkit

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// Crowds returns the layout of an image with 100,000 files in two directories, of 60,000 and of
// 40,000. Their contents are few.
func Crowds(t testing.TB) string {
	t.Helper()
	var items []item
	for _, d := range []struct {
		name  string
		files int
	}{{"crowd", 60_000}, {"crowd/throng", 40_000}} {
		items = append(items, dir(d.name, 0o755))
		for i := range d.files {
			f := file(fmt.Sprintf("%s/%d-%s", d.name, i, strings.Repeat("n", i%29)), 0o644, fmt.Sprintf("file %d\n", i%500)).at(int64(1_000_000_000+i), 0)
			if i%1000 == 999 {
				f = hardlink(f.Name, items[len(items)-1].Name)
			}
			items = append(items, f)
		}
	}
	return writeLayout(t, Gzip, layerTar(t, items...))
}

// Platforms returns the layout of an image for amd64 and arm64: an image index with the tag
// "latest". The tags amd64 and arm64 name one image each.
func Platforms(t testing.TB) string {
	t.Helper()
	l := newLayout(t)
	shared := layerTar(t, dir("bin", 0o755), file("bin/shared", 0o755, "for both"), file("bin/replaced", 0o755, "for nobody"))
	var both, tagged []descriptor
	for _, arch := range []string{"amd64", "arm64"} {
		own := layerTar(t, dir("bin", 0o755), file("bin/replaced", 0o755, "for "+arch), whiteout("bin/none"), file("only-"+arch, 0o644, arch))
		m := l.manifest(l.config(arch, []string{digestOf(shared), digestOf(own)}), arch, l.layer(Gzip, shared), l.layer(Gzip, own))
		tagged = append(tagged, m)
		m.Annotations, m.Platform = nil, &platform{"linux", arch}
		both = append(both, m)
	}
	const mediaType = "application/vnd.oci.image.index.v1+json"
	latest := l.json(mediaType, map[string]any{"schemaVersion": 2, "mediaType": mediaType, "manifests": both})
	latest.Annotations = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	l.index(append(tagged, latest)...)
	return l.dir
}

// Giants is an image with a file of 1 GiB, "large", and one of 10 GiB with holes, "sparse".
type Giants struct {
	Layout string
	SHA256 string           // of large, in hex
	Data   map[int64][]byte // all that sparse holds, by offset; the rest are zeros
}

// Sizes of the files of [Giants].
const (
	LargeSize  = 1 << 30
	SparseSize = 10 << 30
)

// NewGiants makes the image, in a few seconds and with little memory.
func NewGiants(t testing.TB) Giants {
	t.Helper()
	const MiB = 1 << 20
	g := Giants{Data: map[int64][]byte{}}
	sparse := item{Header: tar.Header{Typeflag: tar.TypeReg, Name: "sparse", Mode: 0o644, Size: SparseSize, ModTime: epoch}}
	for _, off := range []int64{0, 3*MiB - 2000, 5<<30 + 12_345, SparseSize - 4096} {
		e := extent{off, bytes.Repeat([]byte{byte('a' + len(g.Data))}, 4096)}
		sparse.sparse = append(sparse.sparse, e)
		g.Data[off] = e.data
	}
	l := newLayout(t)
	blob, diffID := l.stream(func(w io.Writer) error {
		tw := tar.NewWriter(w)
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "large", Mode: 0o644, Size: LargeSize, ModTime: epoch}); err != nil {
			return err
		}
		sum := sha256.New()
		for i := range LargeSize / MiB {
			block := bytes.Repeat(fmt.Appendf(nil, "%016d", i), MiB/16) // each MiB is another one
			sum.Write(block)
			if _, err := tw.Write(block); err != nil {
				return err
			}
		}
		g.SHA256 = hex.EncodeToString(sum.Sum(nil))
		if err := tw.Flush(); err != nil {
			return err
		}
		writeSparse(t, w, sparse)
		return tw.Close()
	})
	l.index(l.manifest(l.config(runtime.GOARCH, []string{diffID}), "latest", blob))
	g.Layout = l.dir
	return g
}

// stream writes a zstd layer that nobody need hold in memory, and returns its diff_id with it.
func (l layoutWriter) stream(write func(w io.Writer) error) (blob descriptor, diffID string) {
	l.t.Helper()
	path := filepath.Join(l.dir, "blobs/sha256/layer")
	f, err := os.Create(path)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	plain, packed := sha256.New(), sha256.New()
	z, err := zstd.NewWriter(io.MultiWriter(f, packed), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err == nil {
		err = write(io.MultiWriter(z, plain))
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		l.t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		l.t.Fatal(err)
	}
	name := hex.EncodeToString(packed.Sum(nil))
	if err := os.Rename(path, filepath.Join(filepath.Dir(path), name)); err != nil {
		l.t.Fatal(err)
	}
	return descriptor{MediaType: layerType(Zstd), Digest: "sha256:" + name, Size: info.Size()}, "sha256:" + hex.EncodeToString(plain.Sum(nil))
}

// Noise returns the layout of an image with so many layers, each with a file of so many bytes that can't be compressed.
func Noise(t testing.TB, layers, size int) string {
	t.Helper()
	random := rand.NewChaCha8([32]byte{byte(layers), byte(size), byte(size >> 8), byte(size >> 16)})
	var tars [][]byte
	for n := range layers {
		b := make([]byte, size)
		random.Read(b)
		tars = append(tars, layerTar(t, file(fmt.Sprintf("noise%d", n), 0o644, string(b))))
	}
	return writeLayout(t, Gzip, tars...)
}
