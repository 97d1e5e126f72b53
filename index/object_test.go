package index_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/skimfs/skimfs/index"
)

func coder(t testing.TB) (*index.ObjectEncoder, *index.ObjectDecoder) {
	t.Helper()
	enc, err := index.NewObjectEncoder()
	if err != nil {
		t.Fatal(err)
	}
	dec, err := index.NewObjectDecoder()
	if err != nil {
		t.Fatal(err)
	}
	return enc, dec
}

// noise returns n bytes that don't compress.
func noise(n int) []byte {
	r := rand.NewChaCha8([32]byte{1})
	b := make([]byte, n)
	r.Read(b)
	return b
}

func TestObjectRoundTrip(t *testing.T) {
	enc, dec := coder(t)
	for _, size := range []int{1, 255, 256, 257, 1<<16 + 255, 1<<16 + 256, 1<<17 - 1, 1 << 17, 1<<20 - 1, 1 << 20, 1<<20 + 1, index.MaxObject} {
		for name, plain := range map[string][]byte{"noise": noise(size), "zeros": make([]byte, size), "text": bytes.Repeat([]byte("skim "), size/5+1)[:size]} {
			object := enc.Encode([]byte("prefix"), plain)[len("prefix"):]
			if int64(len(object)) > index.MaxObjectLen(int64(size)) {
				t.Errorf("%s of %d bytes: object of %d bytes is above MaxObjectLen %d", name, size, len(object), index.MaxObjectLen(int64(size)))
			}
			got, err := dec.Decode(object, index.DigestOf(plain), int64(size))
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%s of %d bytes: %d bytes back, %v", name, size, len(got), err)
			}
		}
	}
}

func TestObjectRefused(t *testing.T) {
	enc, dec := coder(t)
	plain := bytes.Repeat([]byte("skimfs "), 1000)
	d, size := index.DigestOf(plain), int64(len(plain))
	object := enc.Encode(nil, plain)
	with := func(opts ...zstd.EOption) []byte {
		w, err := zstd.NewWriter(nil, opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		return w.EncodeAll(plain, nil)
	}
	stream := func() []byte { // no content size
		var b bytes.Buffer
		w, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(plain[:10])
		w.Flush()
		w.Write(plain[10:])
		w.Close()
		return b.Bytes()
	}
	// A frame header that states 7000 bytes and a window of 16 MiB.
	window := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x40, 14 << 3, 0x58, 0x1a, 1, 0, 0}
	dictionary := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x61, 7, 0x58, 0x1a, 1, 0, 0}
	if got, err := dec.Decode(with(zstd.WithEncoderCRC(true)), d, size); err != nil || len(got) != len(plain) {
		t.Errorf("a checksum is allowed: %v", err)
	}
	for _, row := range []struct {
		name   string
		object []byte
		size   int64
		says   string
	}{
		{"empty", nil, size, "header"},
		{"no zstd", []byte("hello, this is no zstd"), size, "header"},
		{"another size", object, size + 1, "states 7000 bytes, want 7001"},
		{"size zero", object, 0, "outside"},
		{"negative size", object, -1, "outside"},
		{"size above the limit", object, index.MaxObject + 1, "outside"},
		{"no content size", stream(), size, "states"},
		{"bytes after the frame", append(bytes.Clone(object), 0), size, "1 bytes after"},
		{"two frames", append(bytes.Clone(object), object...), size, "after the zstd frame"},
		{"skippable frame first", append([]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0}, object...), size, "skippable"},
		{"large window", window, size, "window"},
		{"dictionary", dictionary, size, "dictionary"},
	} {
		if err := index.CheckFrame(row.object, row.size); !errors.Is(err, index.ErrFormat) || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: CheckFrame: %v, want %q", row.name, err, row.says)
		}
		if got, err := dec.Decode(row.object, d, row.size); !errors.Is(err, index.ErrFormat) || got != nil || !strings.Contains(err.Error(), d.Hex()) {
			t.Errorf("%s: Decode: %v", row.name, err)
		}
	}
	for n := range len(object) {
		if err := index.CheckFrame(object[:n], size); !errors.Is(err, index.ErrFormat) {
			t.Fatalf("first %d of %d bytes: %v", n, len(object), err)
		}
	}
	other := bytes.Repeat([]byte("skimFS "), 1000)
	_, err := dec.Decode(enc.Encode(nil, other), d, size)
	var wrong *index.DigestError
	if !errors.As(err, &wrong) || wrong.Want != d || wrong.Got != index.DigestOf(other) {
		t.Errorf("other content of the same size: %v", err)
	}
	// A frame of 64 MiB of zeros that claims to be small.
	bomb := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x40, 0, 0x58, 0x1a}
	for range 511 {
		bomb = append(bomb, 2, 0, 16, 0) // RLE of 128 KiB
	}
	bomb = append(bomb, 3, 0, 16, 0)
	if n := allocated(func() { _, err = dec.Decode(bomb, d, size) }); n > 1<<20 || !errors.Is(err, index.ErrFormat) {
		t.Errorf("decompression bomb: %d bytes allocated, %v", n, err)
	}
}

func TestParseDigest(t *testing.T) {
	d := index.DigestOf([]byte("x"))
	if got, err := index.ParseDigest(d.String()); got != d || err != nil {
		t.Errorf("ParseDigest(%v) = %v, %v", d, got, err)
	}
	var u index.Digest
	if text, err := d.MarshalText(); err != nil || u.UnmarshalText(text) != nil || u != d {
		t.Errorf("text round trip gives %v, %v", u, err)
	}
	if err := u.UnmarshalText([]byte("none")); err != nil || !u.IsZero() || u.String() != "none" {
		t.Errorf("none gives %v, %v", u, err)
	}
	if want := "objects/" + d.Hex()[:2] + "/" + d.Hex() + ".zst"; d.ObjectPath() != want {
		t.Errorf("path %q, want %q", d.ObjectPath(), want)
	}
	h := d.Hex()
	for _, text := range []string{"", "none", h, "sha256:", "sha256:" + h[:63], "sha256:" + h + "0", "sha256:" + strings.ToUpper(h), "SHA256:" + h, "sha1:" + h[:40],
		"sha256:" + h[:63] + "g", " sha256:" + h, "sha256:" + h + "\n", "sha256:" + h[:62] + "ä"} {
		if got, err := index.ParseDigest(text); !errors.Is(err, index.ErrFormat) || !got.IsZero() {
			t.Errorf("ParseDigest(%q) = %v, %v", text, got, err)
		}
	}
}

func TestChunkList(t *testing.T) {
	s := newStore()
	ref, c := s.image(t, flat("a-name-long-enough-for-a-catalog-above-three-mebibytes-", 30000))
	if !ref.Catalog.Listed() || ref.Catalog.ObjectSize() != 24+40*6 {
		t.Fatalf("catalog %v: listed %v, object of %d bytes", ref.Catalog, ref.Catalog.Listed(), ref.Catalog.ObjectSize())
	}
	if c.Nodes() != 30001 {
		t.Errorf("%d nodes", c.Nodes())
	}
	list, err := s.get(t.Context(), ref.Catalog.Digest, ref.Catalog.ObjectSize())
	if err != nil {
		t.Fatal(err)
	}
	size := ref.Catalog.Size
	chunks, err := index.DecodeChunkList(list, size)
	if err != nil || len(chunks) != 6 || chunks[5].Offset+chunks[5].Size != size {
		t.Fatalf("chunks %v, %v", chunks, err)
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"empty":              func(b []byte) []byte { return nil },
		"truncated":          func(b []byte) []byte { return b[:len(b)-1] },
		"a row more":         func(b []byte) []byte { return append(b, b[24:64]...) },
		"magic":              func(b []byte) []byte { b[0] = 0; return b },
		"version":            func(b []byte) []byte { b[8] = 2; return b },
		"shift":              func(b []byte) []byte { b[12] = 21; return b },
		"size":               func(b []byte) []byte { b[16]++; return b },
		"size of 64 bits":    func(b []byte) []byte { b[23] = 255; return b },
		"rows out of order":  func(b []byte) []byte { b[24] = 1; return b },
		"hole":               func(b []byte) []byte { clear(b[28:64]); return b },
		"unknown digest tag": func(b []byte) []byte { b[28] = 2; return b },
		"reserved bytes":     func(b []byte) []byte { b[29] = 1; return b },
	} {
		if got, err := index.DecodeChunkList(damage(bytes.Clone(list)), size); !errors.Is(err, index.ErrFormat) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, size := range []int64{-1, 0, index.ListThreshold, index.MaxCatalog + 1, 1<<63 - 1} {
		if _, err := index.DecodeChunkList(list, size); !errors.Is(err, index.ErrFormat) {
			t.Errorf("size %d: %v", size, err)
		}
	}
	for _, size := range []int64{-1, 0, index.MaxCatalog + 1, 1<<63 - 1} {
		if _, err := s.load(t.Context(), index.CatalogRef{Digest: ref.Catalog.Digest, Size: size}); !errors.Is(err, index.ErrFormat) {
			t.Errorf("loading %d bytes: %v", size, err)
		}
	}
	gone := errors.New("gone")
	for n := range 7 { // the list, then its chunks
		at := 0
		_, err := ref.Catalog.Load(t.Context(), func(ctx context.Context, d index.Digest, size int64) ([]byte, error) {
			s.mu.Lock()
			at++
			mine := at
			s.mu.Unlock()
			if mine == n+1 {
				return nil, gone
			}
			return s.get(ctx, d, size)
		})
		if !errors.Is(err, gone) || !strings.Contains(err.Error(), ref.Catalog.Digest.Hex()) {
			t.Errorf("object %d is gone: %v", n, err)
		}
	}
	_, err = ref.Catalog.Load(t.Context(), func(ctx context.Context, d index.Digest, size int64) ([]byte, error) {
		b, err := s.get(ctx, d, size)
		if d != ref.Catalog.Digest {
			b = append(bytes.Clone(b), 1)
		}
		return b, err
	})
	if !errors.Is(err, index.ErrFormat) {
		t.Errorf("chunks with a byte too many: %v", err)
	}
	for size, want := range map[int64]string{index.ListThreshold: "false 3145728", index.ListThreshold + 1: "true 184"} {
		r := index.CatalogRef{Size: size}
		if got := fmt.Sprint(r.Listed(), r.ObjectSize()); got != want {
			t.Errorf("catalog of %d bytes: %s, want %s", size, got, want)
		}
	}
}
