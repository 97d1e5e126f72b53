package mountd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/skimfs/skimfs/fetch"
	"github.com/skimfs/skimfs/index"
)

// pinned reports whether the options name a state of the repository, which is shown for ever.
func (o Options) pinned() bool { return o.Revision != 0 || !o.Date.IsZero() }

// pin names the state, in the key of its record.
func (o Options) pin() string {
	if o.Revision != 0 {
		return "revision=" + strconv.FormatUint(o.Revision, 10)
	}
	return "date=" + o.Date.UTC().Format(time.RFC3339)
}

// trustPinned returns the revision that the options name. It is checked as a current one is, but may be older than what was accepted before:
// that is what was asked for.
func (d *Daemon) trustPinned(ctx context.Context, g *origin, src Source, o Options) (*revision, error) {
	ctx, cancel := context.WithTimeout(ctx, trustTime)
	defer cancel()
	current := o
	current.Revision, current.Date = 0, time.Time{}
	now, err := d.trust(ctx, g, src, current, false)
	if err != nil {
		return nil, err
	}
	r := now.repository
	known := r.pinnedRoot(o.pin())
	want := o.Revision
	switch {
	case want == 0 && !now.Time.After(o.Date), want == now.Revision:
		want = now.Revision
	case want > now.Revision:
		return nil, problem(NotFound, "%s has no revision %d yet: its current one is %d", r.where(), want, now.Revision)
	case want == 0:
		if want, err = r.revisionAt(ctx, o.Date, now.Revision); err != nil {
			return nil, err
		}
	}
	text, err := r.revisionNote(ctx, want)
	if err != nil {
		return nil, err
	}
	rev, err := r.verifyWith(ctx, text, known, false)
	if err != nil && KindOf(err) != Unreachable {
		rev, err = r.verifyWith(ctx, text, known, true)
	}
	if err != nil {
		return nil, fmt.Errorf("revision %d of %s: %w", want, r.name, err)
	}
	if rev.Revision != want {
		return nil, problem(Damaged, "revision %d of %s calls itself %d", want, r.where(), rev.Revision)
	}
	rev.pin = o.pin()
	return rev, nil
}

// immutable is how long a proxy may keep what never changes.
const immutable = 365 * 24 * time.Hour

// revisionNote fetches the manifest of a past revision, checked for its form only.
func (r *repository) revisionNote(ctx context.Context, n uint64) ([]byte, error) {
	text, err := r.client.FileChecked(ctx, "revisions/"+strconv.FormatUint(n, 10), immutable, index.MaxNote, false, func(b []byte) error {
		name, err := index.ManifestName(b)
		if err == nil && name != r.name {
			err = fmt.Errorf("revision %d is of repository %q, want %q: %w", n, name, r.name, index.ErrSignature)
		}
		return err
	})
	var transfer *fetch.Error
	if errors.As(err, &transfer) && transfer.Status == http.StatusNotFound {
		return nil, &Error{NotFound, fmt.Errorf("%s has no revision %d any more: %w", r.where(), n, err)}
	}
	return text, err
}

// revisionTime reads the time out of a manifest whose signature nobody has checked yet: it only guides the search.
func revisionTime(text []byte) (time.Time, error) {
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte("time ")); ok {
			return time.Parse(time.RFC3339, strings.TrimSpace(string(value)))
		}
	}
	return time.Time{}, fmt.Errorf("manifest without a time: %w", index.ErrFormat)
}

// revisionGap is how many numbers in a row may be missing: a publish that is killed leaves one out.
const revisionGap = 16

// revisionAt finds the last revision below current that is no younger than date.
func (r *repository) revisionAt(ctx context.Context, date time.Time, current uint64) (uint64, error) {
	var best uint64
	lo, hi := uint64(1), current // the answer is in [lo, hi), or best
	for lo < hi {
		at := lo + (hi-lo)/2
		n, text, err := r.revisionFrom(ctx, at, hi)
		if err != nil {
			return 0, err
		}
		if text == nil { // none between at and hi
			if at-lo > revisionGap || hi-at > revisionGap {
				lo = at + 1 // what is this old was collected
			} else {
				hi = at
			}
			continue
		}
		t, err := revisionTime(text)
		if err != nil {
			return 0, fmt.Errorf("revision %d of %s: %w", n, r.where(), err)
		}
		if t.After(date) {
			hi = at
		} else {
			best, lo = n, n+1
		}
	}
	if best == 0 {
		return 0, problem(NotFound, "%s has no revision from %s or before any more", r.where(), date.UTC().Format(time.RFC3339))
	}
	return best, nil
}

// revisionFrom returns the first revision from n on and below end, looking no further than a gap; text is nil if there is none.
func (r *repository) revisionFrom(ctx context.Context, n, end uint64) (uint64, []byte, error) {
	for last := min(end, n+revisionGap); n < last; n++ {
		text, err := r.revisionNote(ctx, n)
		if err == nil {
			return n, text, nil
		}
		if KindOf(err) != NotFound {
			return 0, nil, err
		}
	}
	return 0, nil, nil
}

// pinnedRoot returns what was accepted under a pin, nil if nothing was.
func (r *repository) pinnedRoot(pin string) *acceptedRoot {
	b, err := r.db.State(r.state("pin/" + pin))
	if err != nil {
		return nil
	}
	a := &acceptedRoot{}
	if err := json.Unmarshal(b, a); err != nil {
		r.log.Error("record of a pinned revision is damaged", "repository", r.name, "pin", pin, "err", err)
		return nil
	}
	return a
}

// rememberPin records what was accepted under a pin.
func (r *repository) rememberPin(pin string, a *acceptedRoot) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	r.remember(r.state("pin/"+pin), b)
	return nil
}

// digestPath turns a path with REPOSITORY@sha256:HEX, an image by the digest of its image manifest, into where the image lies.
func digestPath(path string) string {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		_, hex, ok := strings.Cut(part, "@sha256:")
		if !ok {
			continue
		}
		plain := strings.TrimSuffix(hex, "-bare")
		if _, err := index.ParseDigest("sha256:" + plain); err != nil {
			return path
		}
		return strings.Join(append([]string{".flat", plain[:2], hex}, parts[i+1:]...), "/")
	}
	return path
}
