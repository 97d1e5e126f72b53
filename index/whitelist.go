package index

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

const whitelistTitle = "skimfs whitelist v1"

// ClockTolerance is how far a whitelist's time may lie ahead of the reader's clock.
const ClockTolerance = 10 * time.Minute

// Whitelist says which keys may sign a repository's manifests (docs/format.md, section 7).
type Whitelist struct {
	Name            string    // of the repository
	Time            time.Time // from when on it counts; written as UTC in whole seconds
	Expires         time.Time // from when on it no longer does; likewise
	Keys            []string  // verifier texts of keys that may sign manifests, at least one
	RevokedKeys     []string  // verifier texts of keys that may not, even if they are in Keys
	RevokedRoots    []Digest  // root catalogs that are refused
	MinimumRevision uint64    // revisions below it are refused; 0 for none
}

func (w *Whitelist) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nname %s\ntime %s\nexpires %s\n", whitelistTitle, w.Name, w.Time.UTC().Format(noteTime), w.Expires.UTC().Format(noteTime))
	for _, k := range w.Keys {
		fmt.Fprintf(&b, "key %s\n", strings.TrimSpace(k))
	}
	for _, k := range w.RevokedKeys {
		fmt.Fprintf(&b, "revoked-key %s\n", strings.TrimSpace(k))
	}
	for _, d := range w.RevokedRoots {
		fmt.Fprintf(&b, "revoked-root %v\n", d)
	}
	if w.MinimumRevision > 0 {
		fmt.Fprintf(&b, "minimum-revision %d\n", w.MinimumRevision)
	}
	return b.String()
}

// Sign returns the whitelist as a note signed by the repository's master key. Values that the format can't hold give an error that
// wraps ErrFormat.
func (w *Whitelist) Sign(master note.Signer) ([]byte, error) {
	text := w.text()
	if _, err := parseWhitelist(text); err != nil {
		return nil, fmt.Errorf("signing whitelist of %q: %w", w.Name, err)
	}
	return signNote("whitelist", w.Name, text, master)
}

// parseWhitelist reads the text of a whitelist. It ignores nothing: an unknown line may revoke something.
func parseWhitelist(text string) (*Whitelist, error) {
	l, err := newNoteLines("whitelist", whitelistTitle, text)
	if err != nil {
		return nil, err
	}
	w := &Whitelist{}
	if w.Name, err = l.name(); err != nil {
		return nil, err
	}
	if w.Time, err = l.time("time"); err != nil {
		return nil, err
	}
	if w.Expires, err = l.time("expires"); err != nil {
		return nil, err
	}
	if !w.Expires.After(w.Time) {
		return nil, l.bad("expires before it begins, at %s", w.Time.Format(noteTime))
	}
	if w.Keys, err = l.keys("key", w.Name); err != nil {
		return nil, err
	}
	if len(w.Keys) == 0 {
		_, err := l.value("key")
		return nil, err
	}
	if w.RevokedKeys, err = l.keys("revoked-key", w.Name); err != nil {
		return nil, err
	}
	seen := map[Digest]bool{}
	for v, ok := l.maybe("revoked-root"); ok; v, ok = l.maybe("revoked-root") {
		d, err := ParseDigest(v)
		if err != nil || seen[d] {
			return nil, l.bad("%.80q is no digest, or stands here twice", v)
		}
		seen[d] = true
		w.RevokedRoots = append(w.RevokedRoots, d)
	}
	if v, ok := l.maybe("minimum-revision"); ok {
		if w.MinimumRevision, err = l.parse(v, 1, 1<<64-1); err != nil {
			return nil, err
		}
	}
	if l.next < len(l.text) {
		l.next++
		return nil, l.bad("%.40q doesn't belong there", l.text[l.next-1])
	}
	return w, nil
}

// keys reads the lines with verifiers of the repository name. Two of them never have the same short hash, which names them in
// signatures.
func (l *noteLines) keys(key, name string) ([]string, error) {
	var out []string
	seen := map[uint32]bool{}
	for text, ok := l.maybe(key); ok; text, ok = l.maybe(key) {
		v, err := ParseVerifier(text)
		switch {
		case err != nil:
			return nil, l.bad("%w", err)
		case text != strings.TrimSpace(text):
			return nil, l.bad("spaces around the key")
		case v.Name() != name:
			return nil, l.bad("a key of %q in a whitelist of %q", v.Name(), name)
		case seen[v.KeyHash()]:
			return nil, l.bad("a second key with hash %08x", v.KeyHash())
		}
		seen[v.KeyHash()] = true
		out = append(out, text)
	}
	return out, nil
}

// OpenWhitelist checks the form of b, that it is the whitelist of the repository name, and that the master key signed it. Its time is the
// caller's to check, with CheckTime.
func OpenWhitelist(b []byte, name string, master note.Verifier) (*Whitelist, error) {
	text, err := noteText(b, "whitelist")
	if err != nil {
		return nil, err
	}
	w, err := parseWhitelist(text)
	if err != nil {
		return nil, err
	}
	if w.Name != name || master.Name() != name {
		return nil, fmt.Errorf("whitelist is of repository %q and the master key of %q, want %q: %w", w.Name, master.Name(), name, ErrSignature)
	}
	if err := signedBy(b, master); err != nil {
		return nil, fmt.Errorf("whitelist of %s: signed by %s, the master key is %s: %v: %w", name, signerNames(b), keyNames([]note.Verifier{master}), err, ErrSignature)
	}
	return w, nil
}

// CheckTime returns nil if the whitelist counts at now, else an error that wraps ErrExpired. A whitelist from up to ClockTolerance
// ahead of now counts already; one that has expired by now doesn't.
func (w *Whitelist) CheckTime(now time.Time) error {
	switch {
	case !now.Before(w.Expires):
		return fmt.Errorf("whitelist of %s: it is %s, expired at %s: %w", w.Name, now.UTC().Format(noteTime), w.Expires.Format(noteTime), ErrExpired)
	case w.Time.After(now.Add(ClockTolerance)):
		return fmt.Errorf("whitelist of %s: it is %s, not valid before %s (is the clock right?): %w", w.Name, now.UTC().Format(noteTime), w.Time.Format(noteTime), ErrExpired)
	}
	return nil
}

// CheckRoot returns nil unless the whitelist revokes the root catalog or the revision; then the error wraps ErrRevoked.
func (w *Whitelist) CheckRoot(root Digest, revision uint64) error {
	if slices.Contains(w.RevokedRoots, root) {
		return fmt.Errorf("revision %d has root %v, which the whitelist of %s revokes: %w", revision, root, w.Time.Format(noteTime), ErrRevoked)
	}
	if revision < w.MinimumRevision {
		return fmt.Errorf("revision %d is below the minimum %d in the whitelist of %s: %w", revision, w.MinimumRevision, w.Time.Format(noteTime), ErrRevoked)
	}
	return nil
}

// RevokesSigner reports whether w refuses the note b because a key that it revokes signed it.
func (w *Whitelist) RevokesSigner(b []byte) bool { return errors.Is(w.checkSigned(b), ErrRevoked) }

// checkSigned returns nil if one of the whitelist's keys that aren't revoked signed the note b.
func (w *Whitelist) checkSigned(b []byte) error {
	var good, revoked []note.Verifier
	isRevoked := map[string]bool{}
	for _, text := range w.RevokedKeys {
		v, err := ParseVerifier(text)
		if err != nil {
			return err
		}
		isRevoked[strings.TrimSpace(text)] = true
		revoked = append(revoked, v)
	}
	for _, text := range w.Keys {
		v, err := ParseVerifier(text)
		if err != nil {
			return err
		}
		if !isRevoked[strings.TrimSpace(text)] {
			good = append(good, v)
		}
	}
	err := signedBy(b, good...)
	if err == nil {
		return nil
	}
	if signedBy(b, revoked...) == nil {
		return fmt.Errorf("signed by %s, which the whitelist of %s revokes: %w", signerNames(b), w.Time.Format(noteTime), ErrRevoked)
	}
	return fmt.Errorf("signed by %s, the whitelist of %s accepts %s: %v: %w", signerNames(b), w.Time.Format(noteTime), keyNames(good), err, ErrSignature)
}
