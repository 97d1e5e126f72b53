package index

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

const (
	manifestTitle = "skimfs manifest v1"
	// maxSeconds bounds TTL and Retention: 100 years.
	maxSeconds = 100 * 365 * 24 * 3600
)

// features that this program understands in a manifest's requires line. There are none yet.
func knownFeature(string) bool { return false }

var featureText = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// Manifest is the signed pointer to a repository's root catalog at a revision (docs/format.md, section 6).
type Manifest struct {
	Name      string        // of the repository
	Revision  uint64        // from 1 on
	Root      CatalogRef    // of the name tree
	Next      uint32        // the smallest number never used in the name tree, at least 2
	Time      time.Time     // of the publish; written as UTC in whole seconds
	TTL       time.Duration // how long a client may use the manifest without asking for a newer one; written in whole seconds
	Retention time.Duration // how long objects outlive the last revision that needs them; written in whole seconds
	Requires  []string      // features that a reader must know, in ascending order
}

func (m *Manifest) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nname %s\nrevision %d\nroot %v %d\nnext %d\ntime %s\nttl %d\nretention %d\n", manifestTitle, m.Name, m.Revision,
		m.Root.Digest, m.Root.Size, m.Next, m.Time.UTC().Format(noteTime), int64(m.TTL/time.Second), int64(m.Retention/time.Second))
	if len(m.Requires) > 0 {
		fmt.Fprintf(&b, "requires %s\n", strings.Join(m.Requires, ","))
	}
	return b.String()
}

// Sign returns the manifest as a note signed by a key of the repository. Values that the format can't hold give an error that wraps
// ErrFormat.
func (m *Manifest) Sign(signer note.Signer) ([]byte, error) {
	text := m.text()
	if _, err := parseManifest(text); err != nil {
		return nil, fmt.Errorf("signing manifest of %q: %w", m.Name, err)
	}
	return signNote("manifest", m.Name, text, signer)
}

// parseManifest reads the text of a manifest. Lines after those it knows are ignored, unless their key is one of them.
func parseManifest(text string) (*Manifest, error) {
	l, err := newNoteLines("manifest", manifestTitle, text)
	if err != nil {
		return nil, err
	}
	m := &Manifest{}
	var next, ttl, retention uint64
	for _, read := range []func() error{
		func() (err error) { m.Name, err = l.name(); return err },
		func() (err error) { m.Revision, err = l.number("revision", 1, 1<<64-1); return err },
		func() (err error) { m.Root, err = l.root(); return err },
		func() (err error) { next, err = l.number("next", 2, 1<<32-1); return err },
		func() (err error) { m.Time, err = l.time("time"); return err },
		func() (err error) { ttl, err = l.number("ttl", 1, maxSeconds); return err },
		func() (err error) { retention, err = l.number("retention", 0, maxSeconds); return err },
	} {
		if err := read(); err != nil {
			return nil, err
		}
	}
	m.Next, m.TTL, m.Retention = uint32(next), time.Duration(ttl)*time.Second, time.Duration(retention)*time.Second
	if v, ok := l.maybe("requires"); ok {
		m.Requires = strings.Split(v, ",")
		for i, f := range m.Requires {
			if !featureText.MatchString(f) || i > 0 && f <= m.Requires[i-1] {
				return nil, l.bad("feature %.40q: spelling or order", f)
			}
		}
	}
	known := []string{"name", "revision", "root", "next", "time", "ttl", "retention", "requires"}
	for ; l.next < len(l.text); l.next++ {
		if key, _, _ := strings.Cut(l.text[l.next], " "); slices.Contains(known, key) {
			l.next++
			return nil, l.bad("a second %q, or in the wrong place", key)
		}
	}
	return m, nil
}

// root reads a catalog reference.
func (l *noteLines) root() (CatalogRef, error) {
	v, err := l.value("root")
	if err != nil {
		return CatalogRef{}, err
	}
	digest, size, _ := strings.Cut(v, " ")
	d, err := ParseDigest(digest)
	if err != nil {
		return CatalogRef{}, l.bad("%w", err)
	}
	n, err := l.parse(size, 1, MaxCatalog)
	return CatalogRef{d, int64(n)}, err
}

// ManifestName returns the repository's name in the manifest b, whoever signed it: good for choosing a key, no more.
func ManifestName(b []byte) (string, error) {
	text, err := noteText(b, "manifest")
	if err != nil {
		return "", err
	}
	m, err := parseManifest(text)
	if err != nil {
		return "", err
	}
	return m.Name, nil
}

// UnverifiedManifest reads the manifest b, whoever signed it: for whom it is his own file already.
func UnverifiedManifest(b []byte) (*Manifest, error) {
	text, err := noteText(b, "manifest")
	if err != nil {
		return nil, err
	}
	return parseManifest(text)
}

// OpenManifest checks b as docs/format.md section 7 says and returns it: form, name, a signature by a key that w lists and doesn't revoke,
// features, that w revokes neither root nor revision, and that its time is before w's end. Two checks are the caller's: w.CheckTime before it,
// and after it that Revision is not below the last one accepted. Errors wrap ErrFormat, ErrSignature, ErrRevoked or ErrExpired.
func OpenManifest(b []byte, name string, w *Whitelist) (*Manifest, error) {
	text, err := noteText(b, "manifest")
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(text)
	if err != nil {
		return nil, err
	}
	if m.Name != name || w.Name != name {
		return nil, fmt.Errorf("manifest is of repository %q and its whitelist of %q, want %q: %w", m.Name, w.Name, name, ErrSignature)
	}
	if err := w.checkSigned(b); err != nil {
		return nil, fmt.Errorf("manifest of %s, revision %d: %w", name, m.Revision, err)
	}
	for _, f := range m.Requires {
		if !knownFeature(f) {
			return nil, fmt.Errorf("manifest of %s, revision %d: requires %q, which only a newer skimfs knows: %w", name, m.Revision, f, ErrFormat)
		}
	}
	if err := w.CheckRoot(m.Root.Digest, m.Revision); err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", name, err)
	}
	// Readers go by the time of what they accepted last: one from far ahead would end every whitelist for them.
	if !m.Time.Before(w.Expires) {
		return nil, fmt.Errorf("manifest of %s, revision %d: its time is %s, the whitelist ends at %s: %w", name, m.Revision, m.Time.Format(noteTime), w.Expires.Format(noteTime), ErrExpired)
	}
	return m, nil
}
