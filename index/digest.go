package index

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Algorithm says what a Digest was computed over.
type Algorithm uint8

const (
	// SHA256 is SHA-256 of the plain (uncompressed) content: every object skimfs publishes.
	SHA256 Algorithm = 1
	// sha1Zlib (2) is reserved: SHA-1 over zlib bytes, as CVMFS names its objects.
)

// Digest identifies content: an algorithm tag and 32 bytes. It is comparable; the zero value names nothing.
type Digest struct {
	alg Algorithm
	sum [sha256.Size]byte
}

// DigestOf returns the SHA-256 digest of plain.
func DigestOf(plain []byte) Digest { return Digest{SHA256, sha256.Sum256(plain)} }

// SHA256Digest wraps a finished SHA-256 sum.
func SHA256Digest(sum [sha256.Size]byte) Digest { return Digest{SHA256, sum} }

// ParseDigest reads "sha256:" followed by 64 lower-case hex digits.
func ParseDigest(s string) (Digest, error) {
	text, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(text) != 2*sha256.Size || strings.ToLower(text) != text {
		return Digest{}, fmt.Errorf("digest %q: want sha256: and 64 lower-case hex digits: %w", s, ErrFormat)
	}
	d := Digest{alg: SHA256}
	if _, err := hex.Decode(d.sum[:], []byte(text)); err != nil {
		return Digest{}, fmt.Errorf("digest %q: %w: %w", s, err, ErrFormat)
	}
	return d, nil
}

// Algorithm returns the tag.
func (d Digest) Algorithm() Algorithm { return d.alg }

// Sum returns the 32 bytes.
func (d Digest) Sum() [sha256.Size]byte { return d.sum }

// IsZero reports whether d names nothing.
func (d Digest) IsZero() bool { return d == Digest{} }

// Hex returns the sum as 64 hex digits, without the algorithm.
func (d Digest) Hex() string { return hex.EncodeToString(d.sum[:]) }

// String returns the form that ParseDigest reads, and "none" for the zero value.
func (d Digest) String() string {
	if d.IsZero() {
		return "none"
	}
	return "sha256:" + d.Hex()
}

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(b []byte) (err error) {
	if string(b) == "none" {
		*d = Digest{}
		return nil
	}
	*d, err = ParseDigest(string(b))
	return err
}

// ObjectPath is where a repository keeps the object d, relative to its root: objects/<2 hex>/<64 hex>.zst.
func (d Digest) ObjectPath() string {
	h := d.Hex()
	return "objects/" + h[:2] + "/" + h + ".zst"
}
