package index

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// MaxNote is the largest size in bytes of a manifest or a whitelist.
const MaxNote = 64 << 10

// noteTime is how notes write a time: UTC, whole seconds.
const noteTime = "2006-01-02T15:04:05Z"

// noteText returns the text of the signed note b, whoever signed it.
func noteText(b []byte, what string) (string, error) {
	if len(b) > MaxNote {
		return "", fmt.Errorf("%s: %d bytes are above the limit of %d: %w", what, len(b), MaxNote, ErrFormat)
	}
	_, err := note.Open(b, nil)
	var unverified *note.UnverifiedNoteError
	if !errors.As(err, &unverified) {
		return "", fmt.Errorf("%s: %d bytes are not a signed note: %w", what, len(b), ErrFormat)
	}
	return unverified.Note.Text, nil
}

// noteLines reads the lines of a note's text, "key value" each, in the order they are asked for.
type noteLines struct {
	what string // "manifest", for errors
	text []string
	next int
}

// newNoteLines starts behind the first line, which must be title.
func newNoteLines(what, title, text string) (*noteLines, error) {
	l := &noteLines{what: what, text: strings.Split(strings.TrimSuffix(text, "\n"), "\n")}
	if l.text[0] != title {
		return nil, fmt.Errorf("%s: line 1: %.40q where %q belongs: %w", what, l.text[0], title, ErrFormat)
	}
	for i, line := range l.text {
		if line == "" {
			return nil, fmt.Errorf("%s: line %d is empty: %w", what, i+1, ErrFormat)
		}
	}
	l.next = 1
	return l, nil
}

// bad is an error about the line read last.
func (l *noteLines) bad(format string, args ...any) error {
	return fmt.Errorf("%s: line %d: %w: %w", l.what, l.next, fmt.Errorf(format, args...), ErrFormat)
}

// maybe returns the value of the next line if its key is key.
func (l *noteLines) maybe(key string) (value string, ok bool) {
	if l.next == len(l.text) {
		return "", false
	}
	k, value, ok := strings.Cut(l.text[l.next], " ")
	if !ok || k != key || value == "" {
		return "", false
	}
	l.next++
	return value, true
}

// value returns the value of the next line, whose key must be key.
func (l *noteLines) value(key string) (string, error) {
	v, ok := l.maybe(key)
	switch {
	case ok:
		return v, nil
	case l.next == len(l.text):
		return "", fmt.Errorf("%s: ends before its %q line: %w", l.what, key, ErrFormat)
	}
	l.next++
	return "", l.bad("%.40q where %q and a value belong", l.text[l.next-1], key)
}

// number returns the decimal number of the next line.
func (l *noteLines) number(key string, least, most uint64) (uint64, error) {
	v, err := l.value(key)
	if err != nil {
		return 0, err
	}
	return l.parse(v, least, most)
}

func (l *noteLines) parse(v string, least, most uint64) (uint64, error) {
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil || n < least || n > most || strconv.FormatUint(n, 10) != v {
		return 0, l.bad("%.40q is no number from %d to %d", v, least, most)
	}
	return n, nil
}

// time returns the time of the next line.
func (l *noteLines) time(key string) (time.Time, error) {
	v, err := l.value(key)
	if err != nil {
		return time.Time{}, err
	}
	t, err := time.Parse(noteTime, v)
	if err != nil || t.Format(noteTime) != v {
		return time.Time{}, l.bad("%.40q is no time like %s", v, noteTime)
	}
	return t, nil
}

// name returns the repository name of the next line.
func (l *noteLines) name() (string, error) {
	v, err := l.value("name")
	if err != nil {
		return "", err
	}
	if err := ValidName(v); err != nil {
		return "", l.bad("%w", err)
	}
	return v, nil
}

// signNote signs text with a key of the repository name.
func signNote(what, name, text string, signer note.Signer) ([]byte, error) {
	if signer.Name() != name {
		return nil, fmt.Errorf("signing %s of %q: the key belongs to %q: %w", what, name, signer.Name(), ErrSignature)
	}
	b, err := note.Sign(&note.Note{Text: text}, signer)
	if err != nil {
		return nil, fmt.Errorf("signing %s of %q: %w", what, name, err)
	}
	if len(b) > MaxNote {
		return nil, fmt.Errorf("signing %s of %q: %d bytes are above the limit of %d: %w", what, name, len(b), MaxNote, ErrFormat)
	}
	return b, nil
}

// signedBy returns nil if one of the keys signed b, and no key among them has a wrong signature on it.
func signedBy(b []byte, keys ...note.Verifier) error {
	_, err := note.Open(b, note.VerifierList(keys...))
	return err
}

// signerNames lists the keys that b says it is signed with, as in the start of their verifier lines.
func signerNames(b []byte) string {
	_, err := note.Open(b, nil)
	var unverified *note.UnverifiedNoteError
	if !errors.As(err, &unverified) {
		return "nobody"
	}
	var names []string
	for _, s := range unverified.Note.UnverifiedSigs {
		if len(names) == 4 {
			names = append(names, "…")
			break
		}
		names = append(names, fmt.Sprintf("%.80s+%08x", s.Name, s.Hash))
	}
	return strings.Join(names, ", ")
}

func keyNames(keys []note.Verifier) string {
	names := make([]string, 0, len(keys))
	for _, k := range keys {
		names = append(names, fmt.Sprintf("%s+%08x", k.Name(), k.KeyHash()))
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
