package index

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

const (
	// maxKeyText bounds the text of a key in bytes: a name of at most 253, and about 80 more.
	maxKeyText    = 512
	privatePrefix = "PRIVATE+KEY+"
)

// ValidName returns nil if name can be a repository's: lower-case DNS grammar with at least two labels, such as
// images.example.org.
func ValidName(name string) error {
	bad := func(why string) error { return fmt.Errorf("repository name %.80q: %s: %w", name, why, ErrFormat) }
	labels := strings.Split(name, ".")
	switch {
	case len(name) > 253:
		return bad("longer than 253 bytes")
	case len(labels) < 2:
		return bad("needs at least two labels, as images.example.org has")
	}
	for _, label := range labels {
		switch {
		case label == "" || len(label) > 63:
			return bad("a label has 1 to 63 characters")
		case strings.IndexFunc(label, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }) >= 0:
			return bad("a label has lower-case letters, digits and hyphens only")
		case label[0] == '-' || label[len(label)-1] == '-':
			return bad("a label neither begins nor ends with a hyphen")
		}
	}
	return nil
}

// GenerateKey makes a new Ed25519 key pair for the repository name: the text of the secret signer (NAME.key, NAME.masterkey) and of
// its verifier (NAME.pub, or a key line of a whitelist), one line each, without a newline.
func GenerateKey(name string) (signerText, verifierText string, err error) {
	if err := ValidName(name); err != nil {
		return "", "", fmt.Errorf("generating key: %w", err)
	}
	signerText, verifierText, err = note.GenerateKey(rand.Reader, name)
	if err != nil {
		return "", "", fmt.Errorf("generating key for %s: %w", name, err)
	}
	return signerText, verifierText, nil
}

// ParseVerifier reads the text of a public key, such as the content of NAME.pub. White space around it doesn't matter; all else
// must be as GenerateKey writes it, so that two different texts are two different keys.
func ParseVerifier(text string) (note.Verifier, error) {
	text = strings.TrimSpace(text)
	bad := func(format string, args ...any) (note.Verifier, error) {
		return nil, fmt.Errorf("public key: %s: %w", fmt.Sprintf(format, args...), ErrFormat)
	}
	switch {
	case text == "":
		return bad("the text is empty")
	case strings.HasPrefix(text, privatePrefix):
		return bad("this is a secret key (the public one is in NAME.pub)")
	case len(text) > maxKeyText:
		return bad("%d bytes are too long", len(text))
	}
	v, err := note.NewVerifier(text)
	if err != nil {
		return bad("%.80q: %v", text, err)
	}
	if err := ValidName(v.Name()); err != nil {
		return bad("%v", err)
	}
	// package note reads several spellings of one key: an upper-case hash, spare bits in base64, line breaks.
	raw, err := base64.StdEncoding.DecodeString(strings.SplitN(text, "+", 3)[2])
	if err != nil || text != verifierLine(v, raw) {
		return bad("%.80q is not spelled as it was generated", text)
	}
	return v, nil
}

func verifierLine(v note.Verifier, raw []byte) string {
	return fmt.Sprintf("%s+%08x+%s", v.Name(), v.KeyHash(), base64.StdEncoding.EncodeToString(raw))
}

// ParseSigner reads the text of a secret key, such as the content of NAME.key. White space around it doesn't matter. Its errors never
// quote the text.
func ParseSigner(text string) (note.Signer, error) {
	s, _, err := parseSigner(text)
	return s, err
}

// SignerVerifier returns the verifier's text of a secret key: the public key that belongs to it.
func SignerVerifier(signerText string) (verifierText string, err error) {
	_, verifierText, err = parseSigner(signerText)
	return verifierText, err
}

func parseSigner(text string) (s note.Signer, verifierText string, err error) {
	text = strings.TrimSpace(text)
	bad := func(why string) (note.Signer, string, error) {
		return nil, "", fmt.Errorf("secret key: %s: %w", why, ErrFormat)
	}
	switch {
	case text == "":
		return bad("the text is empty")
	case len(text) > maxKeyText:
		return bad("the text is too long")
	case !strings.HasPrefix(text, privatePrefix):
		return bad("the text doesn't begin with " + privatePrefix)
	}
	if s, err = note.NewSigner(text); err != nil {
		return bad("the text is damaged")
	}
	if err := ValidName(s.Name()); err != nil {
		return bad(err.Error())
	}
	raw, err := base64.StdEncoding.DecodeString(strings.SplitN(text, "+", 5)[4])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return bad("the text is damaged")
	}
	public := ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey)
	verifierText, err = note.NewEd25519VerifierKey(s.Name(), public)
	if err != nil {
		return bad("the text is damaged")
	}
	return s, verifierText, nil
}

// KeyID is a short fingerprint of a public key for people to compare: 16 hex digits of the SHA-256 of its text.
func KeyID(verifierText string) string {
	sum := sha256.Sum256([]byte(strings.TrimSpace(verifierText)))
	return hex.EncodeToString(sum[:8])
}
