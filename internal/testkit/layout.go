package testkit

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Compression of an image's layers.
type Compression string

const (
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
)

// item is one entry of a layer.
type item struct {
	tar.Header
	content []byte
	sparse  []extent // instead of content: what a file of Size bytes holds, in order; the rest are holes
}

// epoch is the mtime of what has no other.
var epoch = time.Unix(1_600_000_000, 0)

func dir(name string, mode int64) item {
	return item{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}}
}

func file(name string, mode int64, content string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content: []byte(content)}
}

func symlink(name, target string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func hardlink(name, target string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}

// whiteout removes name, which stands below.
func whiteout(name string) item {
	return file(filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name)), 0, "")
}

// opaque removes all that lies below in a directory.
func opaque(name string) item { return file(name+"/.wh..wh..opq", 0, "") }

func (i item) owned(uid, gid int) item { i.Uid, i.Gid = uid, gid; return i }
func (i item) at(sec, nsec int64) item { i.ModTime = time.Unix(sec, nsec); return i }

func (i item) xattr(name, value string) item {
	records := map[string]string{"SCHILY.xattr." + name: value}
	for k, v := range i.PAXRecords {
		records[k] = v
	}
	i.PAXRecords = records
	return i
}

// layerTar writes items as a tar archive.
func layerTar(t testing.TB, items ...item) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, i := range items {
		if i.ModTime.IsZero() {
			i.ModTime = epoch
		}
		if i.sparse != nil {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			writeSparse(t, &buf, i)
			continue
		}
		i.Size, i.Format = int64(len(i.content)), tar.FormatPAX
		if err := w.WriteHeader(&i.Header); err != nil {
			t.Fatalf("%q: %v", i.Name, err)
		}
		if _, err := w.Write(i.content); err != nil {
			t.Fatalf("%q: %v", i.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// writeLayout writes an OCI layout with one image, tagged "latest", and returns its directory.
func writeLayout(t testing.TB, c Compression, layers ...[]byte) string {
	t.Helper()
	l := newLayout(t)
	diffIDs, blobs := []string{}, []descriptor{}
	for _, plain := range layers {
		diffIDs = append(diffIDs, digestOf(plain))
		blobs = append(blobs, l.layer(c, plain))
	}
	l.index(l.manifest(l.config(runtime.GOARCH, diffIDs), "latest", blobs...))
	return l.dir
}

// newLayout makes the directory of a layout.
func newLayout(t testing.TB) layoutWriter {
	t.Helper()
	l := layoutWriter{t: t, dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(l.dir, "blobs/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	return l
}

// layer writes the blob of a layer.
func (l layoutWriter) layer(c Compression, plain []byte) descriptor {
	l.t.Helper()
	return l.blob(layerType(c), compress(l.t, c, plain))
}

func layerType(c Compression) string { return "application/vnd.oci.image.layer.v1.tar+" + string(c) }

// config writes the config of an image for linux on an architecture.
func (l layoutWriter) config(arch string, diffIDs []string) descriptor {
	l.t.Helper()
	return l.json("application/vnd.oci.image.config.v1+json", map[string]any{
		"created":      epoch.UTC(),
		"architecture": arch,
		"os":           "linux",
		"config": map[string]any{
			"Env":        []string{"PATH=/usr/bin:/bin", `QUOTED=it's "quoted" $value`},
			"Entrypoint": []string{"/bin/sh", "-c"},
			"Cmd":        []string{"echo 'hello world'"},
			"WorkingDir": "/",
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
}

// manifest writes an image manifest and tags its descriptor.
func (l layoutWriter) manifest(config descriptor, tag string, layers ...descriptor) descriptor {
	l.t.Helper()
	const mediaType = "application/vnd.oci.image.manifest.v1+json"
	m := l.json(mediaType, map[string]any{"schemaVersion": 2, "mediaType": mediaType, "config": config, "layers": layers})
	m.Annotations = map[string]string{"org.opencontainers.image.ref.name": tag}
	return m
}

// index writes what makes a directory of blobs a layout.
func (l layoutWriter) index(manifests ...descriptor) {
	l.t.Helper()
	l.file("index.json", marshal(l.t, map[string]any{"schemaVersion": 2, "manifests": manifests}))
	l.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Platform    *platform         `json:"platform,omitempty"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
}

type layoutWriter struct {
	t   testing.TB
	dir string
}

func (l layoutWriter) file(name string, data []byte) {
	l.t.Helper()
	if err := os.WriteFile(filepath.Join(l.dir, name), data, 0o644); err != nil {
		l.t.Fatal(err)
	}
}

func (l layoutWriter) blob(mediaType string, data []byte) descriptor {
	l.t.Helper()
	d := descriptor{MediaType: mediaType, Digest: digestOf(data), Size: int64(len(data))}
	l.file("blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:"), data)
	return d
}

func (l layoutWriter) json(mediaType string, v any) descriptor {
	l.t.Helper()
	return l.blob(mediaType, marshal(l.t, v))
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func compress(t testing.TB, c Compression, plain []byte) []byte {
	t.Helper()
	switch c {
	case Gzip:
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	case Zstd:
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		return w.EncodeAll(plain, nil)
	default:
		panic(fmt.Sprintf("testkit: compression %q", c))
	}
}
