package index_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/skimfs/skimfs/index"
)

func FuzzDigest(f *testing.F) {
	for _, s := range []string{"", "none", "sha256:", index.DigestOf(nil).String(), "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709", "sha256:\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := index.ParseDigest(s)
		if err == nil && d.String() != s || err != nil && !errors.Is(err, index.ErrFormat) {
			t.Errorf("ParseDigest(%q) = %v, %v", s, d, err)
		}
	})
}

func FuzzObject(f *testing.F) {
	enc, dec := coder(f)
	for _, plain := range [][]byte{{1}, noise(300), make([]byte, 1<<18), bytes.Repeat([]byte("skim "), 100)} {
		f.Add(enc.Encode(nil, plain), int64(len(plain)))
	}
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x40, 14 << 3, 0x58, 0x1a, 1, 0, 0}, int64(7000))
	f.Add([]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0}, int64(1))
	f.Fuzz(func(t *testing.T, object []byte, size int64) {
		size = min(size, 1<<20) // more only takes longer
		frame := index.CheckFrame(object, size)
		got, err := dec.Decode(object, index.DigestOf(nil), size)
		var wrong *index.DigestError
		switch {
		case err == nil:
			t.Error("decoded to the digest of nothing")
		case !errors.As(err, &wrong) && !errors.Is(err, index.ErrFormat), got != nil, frame != nil && !errors.Is(frame, index.ErrFormat):
			t.Errorf("error %v, frame %v, %d bytes", err, frame, len(got))
		case frame != nil && errors.As(err, &wrong):
			t.Errorf("decoded although %v", frame)
		}
	})
}

// FuzzCatalog wants no panic, no endless loop, no error but ErrFormat, and that what Verify accepts can be read in full.
func FuzzCatalog(f *testing.F) {
	catalogs := good(f)
	for _, b := range catalogs {
		f.Add(b)
	}
	for _, h := range hostileSamples {
		r := newRaw(f, bytes.Clone(catalogs[h.of]))
		h.damage(r)
		f.Add(r.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := index.NewCatalog(b)
		if err != nil {
			if !errors.Is(err, index.ErrFormat) {
				t.Errorf("NewCatalog: %v", err)
			}
			return
		}
		entries := readAll(b)
		err = c.Verify()
		if err != nil && !errors.Is(err, index.ErrFormat) {
			t.Errorf("Verify: %v", err)
		}
		if err == nil && uint32(entries) < min(c.Nodes()-1, 20_000) {
			t.Errorf("%d entries were read of a good catalog with %d nodes", entries, c.Nodes())
		}
		v, err := index.NewView(c, func(context.Context, index.CatalogRef) (*index.Catalog, error) { return c, nil })
		if err != nil {
			return
		}
		for _, path := range []string{"etc/passwd", "lib/hard", "tmp/..", "a/a000001", "a/l/b"} {
			v.Resolve(t.Context(), path, true)
		}
		if err := v.Verify(t.Context()); err != nil && !errors.Is(err, index.ErrFormat) {
			t.Errorf("View.Verify: %v", err)
		}
	})
}

func FuzzChunkList(f *testing.F) {
	s := newStore()
	ref, _ := s.image(f, flat("a-name-long-enough-for-a-catalog-above-three-mebibytes-", 20000))
	list, err := s.get(f.Context(), ref.Catalog.Digest, ref.Catalog.ObjectSize())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(list, ref.Catalog.Size)
	f.Add(list, int64(-1))
	f.Add([]byte("skimlst\n"), int64(1<<62))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		chunks, err := index.DecodeChunkList(b, size)
		if err != nil {
			if !errors.Is(err, index.ErrFormat) {
				t.Error(err)
			}
			return
		}
		at := int64(0)
		for _, c := range chunks {
			if c.Offset != at || c.Size <= 0 || c.IsHole() {
				t.Errorf("chunk %+v at %d", c, at)
			}
			at += c.Size
		}
		if at != size {
			t.Errorf("chunks hold %d of %d bytes", at, size)
		}
	})
}

// FuzzManifest signs whatever text it gets: nothing that the parser accepts may be written in another way.
func FuzzManifest(f *testing.F) {
	key := newKey(f, repoName)
	w := sampleWhitelist(key)
	b, err := sampleManifest().Sign(key.signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, textOf(b))
	f.Add([]byte("\n\n— a b\n"), textOf(b)+"colour blue\n")
	f.Add([]byte(nil), "skimfs manifest v1\n")
	f.Fuzz(func(t *testing.T, b []byte, text string) {
		if m, err := index.OpenManifest(b, repoName, w); err == nil {
			if _, err := m.Sign(key.signer); err != nil {
				t.Errorf("accepted, can't be signed: %v", err)
			}
		}
		index.ManifestName(b)
		signed, ok := trySign(text, key)
		if !ok {
			return
		}
		m, err := index.OpenManifest(signed, repoName, w)
		switch {
		case err != nil:
			if !errors.Is(err, index.ErrFormat) && !errors.Is(err, index.ErrSignature) {
				t.Error(err)
			}
		default:
			again, err := m.Sign(key.signer)
			if err != nil || !bytes.HasPrefix([]byte(text), []byte(textOf(again))) {
				t.Errorf("%q was accepted and is written as %q, %v", text, again, err)
			}
		}
	})
}

func FuzzWhitelist(f *testing.F) {
	master, key := newKey(f, repoName), newKey(f, repoName)
	w := sampleWhitelist(key, newKey(f, repoName))
	w.RevokedKeys, w.RevokedRoots, w.MinimumRevision = []string{key.public}, []index.Digest{index.DigestOf(nil)}, 7
	b, err := w.Sign(master.signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, textOf(b))
	f.Add([]byte(nil), "skimfs whitelist v1\nname a.b\n")
	f.Fuzz(func(t *testing.T, b []byte, text string) {
		index.OpenWhitelist(b, repoName, master.verifier)
		signed, ok := trySign(text, master)
		if !ok {
			return
		}
		w, err := index.OpenWhitelist(signed, repoName, master.verifier)
		if err != nil {
			if !errors.Is(err, index.ErrFormat) && !errors.Is(err, index.ErrSignature) {
				t.Error(err)
			}
			return
		}
		again, err := w.Sign(master.signer)
		if err != nil || text != textOf(again) {
			t.Errorf("%q was accepted and is written as %q, %v", text, again, err)
		}
	})
}

func FuzzKeys(f *testing.F) {
	secret, public, err := index.GenerateKey(repoName)
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{"", secret, public, "PRIVATE+KEY+", "a.b+00000000+", "PRIVATE+KEY+a.b+00000000+AA==", "a.b+", "++", repoName} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := index.ParseVerifier(s); err != nil && !errors.Is(err, index.ErrFormat) || err == nil && index.ValidName(v.Name()) != nil {
			t.Errorf("ParseVerifier(%q): %v", s, err)
		}
		if _, err := index.ParseSigner(s); err != nil && !errors.Is(err, index.ErrFormat) {
			t.Errorf("ParseSigner(%q): %v", s, err)
		} else if err == nil {
			if p, err := index.SignerVerifier(s); err != nil {
				t.Errorf("SignerVerifier(%q): %q, %v", s, p, err)
			}
		}
		if err := index.ValidName(s); err != nil && !errors.Is(err, index.ErrFormat) {
			t.Errorf("ValidName(%q): %v", s, err)
		}
		index.KeyID(s)
	})
}

// FuzzImageInfo puts any bytes in the place of the JSON.
func FuzzImageInfo(f *testing.F) {
	b := good(f)["image"]
	at := sections(b)[secImage]
	f.Add(bytes.Clone(b[at[0] : at[0]+at[1]]))
	for _, s := range []string{"", "null", "{}", "[]", `{"entries":1e99}`, `{"manifest":"sha256:"}`, `{"manifest":null}`, "{", "\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		damaged := bytes.Clone(b)
		copy(damaged[at[0]:at[0]+at[1]], append(bytes.Clone(text), bytes.Repeat([]byte(" "), at[1])...))
		c, err := index.NewCatalog(damaged)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Image(); err != nil && !errors.Is(err, index.ErrFormat) {
			t.Error(err)
		}
	})
}
