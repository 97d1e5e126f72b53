package mountd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/skimfs/skimfs/fetch"
	"github.com/skimfs/skimfs/index"
)

// revision is a repository at a manifest that was accepted.
type revision struct {
	*repository
	*index.Manifest
	view    *index.View
	offline bool          // no server answered: it is the last one accepted
	pin     string        // it was asked for by revision or date, and is recorded under this name
	warning error         // why the newest one isn't used, or what else is wrong with the trust in this one; nil if nothing is
	record  *acceptedRoot // to be remembered once its root catalog is here; nil if it is already
}

// errRollback marks a manifest older than one accepted before.
var errRollback = errors.New("older than accepted before")

// trustTime bounds the time for manifest and whitelist together.
const trustTime = 30 * time.Second

// newest returns the newest revision of src that the servers have, with its root catalog loaded and recorded as accepted. With fresh,
// caches on the way are passed by.
func (d *Daemon) newest(ctx context.Context, g *origin, src Source, o Options, fresh bool) (*revision, error) {
	var rev *revision
	var err error
	if o.pinned() {
		rev, err = d.trustPinned(ctx, g, src, o)
	} else {
		rev, err = d.trust(ctx, g, src, o, fresh)
	}
	if err != nil {
		return nil, err
	}
	g.ttl.Store(int64(rev.TTL))
	if rev.view, err = g.viewOf(ctx, rev.Root); err != nil {
		return nil, fmt.Errorf("root catalog of %s, revision %d: %w", rev.where(), rev.Revision, err)
	}
	// Not before: what can't be had must not take the place of what can.
	switch {
	case rev.record != nil && rev.pin != "":
		err = rev.rememberPin(rev.pin, rev.record)
	case rev.record != nil:
		if err = rev.rememberRoot(rev.record); err == nil && g.lower != nil && !rev.offline {
			_ = rev.share(ctx) // a failure is logged; the mount goes on without
		}
	}
	return rev, err
}

// viewOf returns a view of the name tree under root.
func (g *origin) viewOf(ctx context.Context, root index.CatalogRef) (*index.View, error) {
	g.mu.Lock()
	view, have := g.view, g.root
	g.mu.Unlock()
	if view != nil && have == root {
		return view, nil
	}
	c, err := g.catalog(ctx, root)
	if err != nil {
		return nil, err
	}
	if view, err = index.NewView(c, g.catalog); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.view, g.root = view, root
	return view, nil
}

// trust fetches and checks manifest and whitelist.
func (d *Daemon) trust(ctx context.Context, g *origin, src Source, o Options, fresh bool) (*revision, error) {
	limited, cancel := context.WithTimeout(ctx, trustTime)
	defer cancel()
	r := &repository{origin: g, name: src.Name}
	name, want := src.Name, src.Name
	if want == "" && g.expects(o.PublicKey) {
		want = g.named()
	}
	manifest, below, err := r.note(limited, "manifest", o.ttl(time.Duration(g.ttl.Load())), fresh, func(b []byte) error {
		got, err := index.ManifestName(b)
		switch {
		case err != nil, want == "", got == want:
		case src.Name != "":
			err = fmt.Errorf("manifest is of repository %q, want %q: %w", got, want, index.ErrSignature)
		default:
			err = fmt.Errorf("manifest is of repository %q, where %q was accepted before (if it moved here, mount it by its name, with server=URL): %w", got, want, index.ErrSignature)
		}
		if err == nil {
			name = got
		}
		return err
	})
	var transfer *fetch.Error
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.As(err, &transfer) && transfer.Status == http.StatusNotFound:
		return nil, problem(NotFound, "no repository at %s: %w", strings.Join(g.servers, ", "), err)
	case err != nil && KindOf(err) == Unreachable:
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("manifest of %s: %w", src, err)
	}
	r.name = name
	if r.key, err = findKey(d.keyDirs(), name, o.PublicKey); err != nil {
		return nil, err
	}
	rev, err := r.verify(limited, manifest, below != nil)
	if err == nil && below != nil {
		rev.offline, rev.warning = true, below
	}
	return rev, err
}

// lastAccepted returns the revision accepted last, for use without a server; nil if there is none whose root catalog is here.
func (d *Daemon) lastAccepted(g *origin, src Source, o Options) (*revision, error) {
	name := src.Name
	if name == "" {
		name = g.named()
	}
	if name == "" {
		return nil, nil
	}
	key, err := findKey(d.keyDirs(), name, o.PublicKey)
	if err != nil {
		return nil, err
	}
	r := &repository{origin: g, name: name, key: key}
	last := r.accepted()
	if o.pinned() {
		last = r.pinnedRoot(o.pin())
	}
	if last == nil || !g.db.Has(last.Root.Digest) {
		return nil, nil
	}
	if err := r.checkRevoked(last); err != nil {
		return nil, err
	}
	return &revision{repository: r, Manifest: last.manifest(name)}, nil
}

// named returns the name of the repository accepted last from g's servers, "" if there is none.
func (g *origin) named() string {
	b, err := g.db.State(serverState + g.servers[0])
	if err != nil {
		return ""
	}
	return string(b)
}

// expects reports whether a URL stands for the repository accepted last from there: unless the key given is another one's.
func (g *origin) expects(key string) bool {
	v, err := index.ParseVerifier(key)
	return err != nil || v.Name() == g.named()
}

// serverState begins the keys of the records of which repository a server has.
const serverState = "server/"

// acceptedRoot is the state record of the revision accepted last under a name and master key.
type acceptedRoot struct {
	Revision uint64           `json:"revision"`
	Root     index.CatalogRef `json:"root"`
	Time     time.Time        `json:"time"`
	TTL      time.Duration    `json:"ttl"`
	Note     []byte           `json:"note"` // the manifest
}

func (a *acceptedRoot) manifest(name string) *index.Manifest {
	return &index.Manifest{Name: name, Revision: a.Revision, Root: a.Root, Time: a.Time, TTL: a.TTL}
}

// accepted returns what was accepted last, nil if nothing was.
func (r *repository) accepted() *acceptedRoot {
	b, err := r.db.State(r.state("root"))
	if err != nil {
		return nil
	}
	a := &acceptedRoot{}
	if err := json.Unmarshal(b, a); err != nil {
		r.log.Error("record of an accepted root is damaged", "repository", r.name, "err", err)
		return nil
	}
	return a
}

// seenWhitelist returns the newest whitelist seen, nil if there is none.
func (r *repository) seenWhitelist() *index.Whitelist {
	b, err := r.db.State(r.state("whitelist"))
	if err != nil {
		return nil
	}
	w, err := index.OpenWhitelist(b, r.name, r.key)
	if err != nil {
		r.log.Error("record of a whitelist is damaged", "repository", r.name, "err", err)
		return nil
	}
	return w
}

// checkRevoked returns an error if the newest whitelist seen revokes a.
func (r *repository) checkRevoked(a *acceptedRoot) error {
	w := r.seenWhitelist()
	if w == nil {
		return nil
	}
	if err := w.CheckRoot(a.Root.Digest, a.Revision); err != nil {
		return err
	}
	if _, err := index.OpenManifest(a.Note, r.name, w); errors.Is(err, index.ErrRevoked) {
		return err
	}
	return nil
}

// counted returns a, or nil if w revokes the key that signed it: whatever number and time a thief of the key gave it must not stand in the way of the
// publisher's next one.
func (r *repository) counted(a *acceptedRoot, w *index.Whitelist) *acceptedRoot {
	if a != nil && w != nil && w.RevokesSigner(a.Note) {
		return nil
	}
	return a
}

// clock is the time that trust goes by: a clock that was set back does not bring back what has expired.
func clock(last *acceptedRoot) time.Time {
	if now := time.Now(); last == nil || now.After(last.Time) {
		return now
	}
	return last.Time
}

// verify checks a manifest, if need be against whitelist and manifest asked for anew past all caches: not when no server answers, as offline
// says.
func (r *repository) verify(ctx context.Context, manifest []byte, offline bool) (*revision, error) {
	last := r.accepted()
	rev, err := r.verifyWith(ctx, manifest, last, false)
	if err == nil && rev.warning == nil || KindOf(err) == Unreachable || offline || ctx.Err() != nil {
		return rev, err
	}
	// A cache on the way may have kept an old whitelist or manifest, a mirror may lag behind.
	var newer *revision
	_, refetched := r.client.FileChecked(ctx, "manifest", defaultTTL, index.MaxNote, true, func(b []byte) (err error) {
		newer, err = r.verifyWith(ctx, b, last, true)
		return err
	})
	switch {
	case refetched == nil:
		return newer, nil
	case err == nil:
		return rev, nil
	}
	return nil, refetched
}

// verifyWith checks a manifest against the whitelist, and against what was accepted last.
func (r *repository) verifyWith(ctx context.Context, manifest []byte, last *acceptedRoot, fresh bool) (*revision, error) {
	checkTime := func(w *index.Whitelist) error { return w.CheckTime(clock(r.counted(r.accepted(), w))) }
	var w *index.Whitelist
	var expired error
	whitelist, _, err := r.note(ctx, "whitelist", defaultTTL, fresh, func(b []byte) (err error) {
		if w, err = index.OpenWhitelist(b, r.name, r.key); err != nil {
			return err
		}
		return checkTime(w)
	})
	last = r.counted(last, w)
	if err != nil && errors.Is(err, index.ErrExpired) && w != nil && last != nil {
		expired = err // what was accepted before stays so
	} else if err != nil {
		return nil, fmt.Errorf("whitelist of %s: %w", r.name, err)
	}
	// An older one, replayed, would bring back what a newer one revoked.
	if seen := r.seenWhitelist(); seen != nil && seen.Time.After(w.Time) {
		w, whitelist = seen, nil
		last = r.counted(last, w)
		if expired = checkTime(w); expired != nil && last == nil {
			return nil, expired
		}
	}
	m, err := index.OpenManifest(manifest, r.name, w)
	switch {
	case expired != nil && errors.Is(err, index.ErrExpired): // signed after that
		return nil, fmt.Errorf("manifest of %s: %w", r.name, expired)
	case err != nil:
		if errors.Is(err, index.ErrRevoked) && expired == nil {
			r.rememberWhitelist(whitelist) // so that it is refused offline, too
		}
		return nil, err
	case last != nil && m.Revision < last.Revision:
		return nil, &Error{Rollback, fmt.Errorf("manifest of %s has revision %d, %d was accepted before: %w", r.name, m.Revision, last.Revision, errRollback)}
	case last != nil && m.Revision == last.Revision && m.Root != last.Root:
		return nil, &Error{Rollback, fmt.Errorf("manifest of %s has revision %d with another root than accepted before: %w", r.name, m.Revision, errRollback)}
	case expired != nil && m.Revision != last.Revision:
		return nil, fmt.Errorf("manifest of %s, revision %d: %w", r.name, m.Revision, expired)
	case expired != nil:
		return &revision{repository: r, Manifest: m, warning: expired}, nil
	}
	r.rememberWhitelist(whitelist)
	return &revision{repository: r, Manifest: m, record: &acceptedRoot{m.Revision, m.Root, m.Time, m.TTL, bytes.Clone(manifest)}}, nil
}

// rememberWhitelist records the newest whitelist; nil if that is recorded.
func (r *repository) rememberWhitelist(b []byte) {
	if b != nil {
		r.remember(r.state("whitelist"), b)
	}
}

// rememberRoot records a as accepted, unless a newer one came in meanwhile.
func (r *repository) rememberRoot(a *acceptedRoot) error {
	if last := r.counted(r.accepted(), r.seenWhitelist()); last != nil && last.Revision > a.Revision {
		return nil
	}
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	r.remember(r.state("root"), b)
	r.remember(serverState+r.servers[0], []byte(r.name))
	return nil
}

// remember writes a state record. Without room on the disk what was accepted before stays recorded.
func (r *repository) remember(key string, b []byte) {
	if old, err := r.db.State(key); err == nil && bytes.Equal(old, b) {
		return
	}
	if err := r.db.SetState(key, b); err != nil {
		r.log.Error("recording what was accepted", "key", key, "err", err)
	}
}
