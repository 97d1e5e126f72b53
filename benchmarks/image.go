package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/klauspost/compress/gzip"
)

// The image of many files: manyDirs directories with manyPerDir files of manySize bytes each, every
// one different.
const manyDirs, manyPerDir, manySize = 1000, 100, 8 << 10

// bigName is the large file of the big image, of bigSize bytes.
const bigName, bigSize = "srv/big", 1 << 30

// manyLayers writes the image of many files in four layers.
func manyLayers() []func(*tar.Writer) error {
	const layers = 4
	var all []func(*tar.Writer) error
	for layer := range layers {
		all = append(all, func(w *tar.Writer) error {
			for d := layer * manyDirs / layers; d < (layer+1)*manyDirs/layers; d++ {
				dir := fmt.Sprintf("d%04d/", d)
				if err := addDir(w, dir); err != nil {
					return err
				}
				for f := range manyPerDir {
					content := hexText(make([]byte, manySize), rand.NewPCG(uint64(d), uint64(f)), manySize/16)
					if err := addFile(w, fmt.Sprintf("%sf%02d", dir, f), manySize, bytes.NewReader(content)); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return all
}

// bigLayers writes the image with the large file.
func bigLayers() []func(*tar.Writer) error {
	return []func(*tar.Writer) error{func(w *tar.Writer) error {
		if err := addDir(w, "srv/"); err != nil {
			return err
		}
		return addFile(w, bigName, bigSize, &hexReader{source: rand.NewPCG(3, 4)})
	}}
}

// hexText fills buf with random hexadecimal digits, which compress to half their size, up to n;
// what follows repeats them, and compresses to nothing.
func hexText(buf []byte, source *rand.PCG, n int) []byte {
	const digits = "0123456789abcdef"
	for i := 0; i < n; i += 16 {
		for j, bits := 0, source.Uint64(); j < 16; j, bits = j+1, bits>>4 {
			buf[i+j] = digits[bits&15]
		}
	}
	for i := n; i < len(buf); i += n {
		copy(buf[i:], buf[:n])
	}
	return buf
}

// hexReader is an endless text of hexadecimal digits.
type hexReader struct {
	source *rand.PCG
	left   []byte
	buf    [64 << 10]byte
}

func (r *hexReader) Read(p []byte) (int, error) {
	if len(r.left) == 0 {
		r.left = hexText(r.buf[:], r.source, len(r.buf))
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

var imageTime = time.Unix(1_700_000_000, 0)

func addDir(w *tar.Writer, name string) error {
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: imageTime})
}

func addFile(w *tar.Writer, name string, size int64, content io.Reader) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: imageTime}); err != nil {
		return err
	}
	_, err := io.CopyN(w, content, size)
	return err
}

// writeLayout writes an OCI layout with one image, tagged "latest", whose layers the functions fill.
func writeLayout(s *scope, layers []func(*tar.Writer) error) string {
	dir := s.TempDir()
	blobs := filepath.Join(dir, "blobs", "sha256")
	s.check(os.MkdirAll(blobs, 0o755))
	var diffIDs []string
	var descriptors []any
	for _, fill := range layers {
		blob, diffID, err := writeLayer(blobs, fill)
		s.check(err)
		descriptors, diffIDs = append(descriptors, blob), append(diffIDs, diffID)
	}
	const manifestType = "application/vnd.oci.image.manifest.v1+json"
	config := jsonBlob(s, blobs, "application/vnd.oci.image.config.v1+json", map[string]any{
		"created": imageTime.UTC(), "architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	manifest := jsonBlob(s, blobs, manifestType, map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": descriptors,
	})
	manifest.Annotations = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{manifest}})
	s.check(err)
	s.check(os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644))
	s.check(os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
	return dir
}

type blobDescriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func jsonBlob(s *scope, blobs, mediaType string, v any) blobDescriptor {
	data, err := json.Marshal(v)
	s.check(err)
	sum := sha256.Sum256(data)
	name := hex.EncodeToString(sum[:])
	s.check(os.WriteFile(filepath.Join(blobs, name), data, 0o644))
	return blobDescriptor{MediaType: mediaType, Digest: "sha256:" + name, Size: int64(len(data))}
}

// writeLayer writes one layer as a gzip blob and returns its descriptor and the digest of its tar file.
func writeLayer(blobs string, fill func(*tar.Writer) error) (blob blobDescriptor, diffID string, err error) {
	f, err := os.CreateTemp(blobs, "layer-")
	if err != nil {
		return blob, "", err
	}
	defer f.Close()
	plain, packed := sha256.New(), sha256.New()
	file := bufio.NewWriterSize(io.MultiWriter(f, packed), 1<<20)
	compressor, err := gzip.NewWriterLevel(file, gzip.BestSpeed)
	if err != nil {
		return blob, "", err
	}
	w := tar.NewWriter(io.MultiWriter(compressor, plain))
	if err := fill(w); err != nil {
		return blob, "", err
	}
	for _, finish := range []func() error{w.Close, compressor.Close, file.Flush} {
		if err := finish(); err != nil {
			return blob, "", err
		}
	}
	info, err := f.Stat()
	if err != nil {
		return blob, "", err
	}
	name := hex.EncodeToString(packed.Sum(nil))
	blob = blobDescriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: "sha256:" + name, Size: info.Size()}
	return blob, "sha256:" + hex.EncodeToString(plain.Sum(nil)), os.Rename(f.Name(), filepath.Join(blobs, name))
}
