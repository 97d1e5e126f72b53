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
	why     error         // of offline
	pin     string        // it was asked for by revision or date, and is recorded under this name
	record  *acceptedRoot // to be remembered once its root catalog is here; nil if it is already
}

// errRollback marks a manifest older than one accepted before.
var errRollback = errors.New("older than accepted before")

// trustTime bounds the time for manifest and whitelist together.
const trustTime = 30 * time.Second

// accept returns the current revision of src as docs/format.md section 7 has it, with its root catalog loaded and recorded. Where no
// server answers it is the one accepted last. With fresh, caches on the way are passed by.
func (d *Daemon) accept(ctx context.Context, g *origin, src Source, o Options, fresh bool) (*revision, error) {
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
		err = rev.rememberRoot(rev.record)
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

// trust finds the manifest to go by.
func (d *Daemon) trust(ctx context.Context, g *origin, src Source, o Options, fresh bool) (*revision, error) {
	limited, cancel := context.WithTimeout(ctx, trustTime)
	defer cancel()
	name := src.Name
	manifest, err := g.client.FileChecked(limited, "manifest", o.ttl(time.Duration(g.ttl.Load())), index.MaxNote, fresh, func(b []byte) error {
		got, err := index.ManifestName(b)
		if err == nil && src.Name != "" && got != src.Name {
			err = fmt.Errorf("manifest is of repository %q, want %q: %w", got, src.Name, index.ErrSignature)
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
		if name == "" {
			if b, stateErr := g.db.State("server/" + g.servers[0]); stateErr == nil {
				name = string(b)
			}
		}
		return d.lastAccepted(g, name, o, err)
	case err != nil:
		return nil, fmt.Errorf("manifest of %s: %w", src, err)
	}
	key, err := findKey(d.cfg.Home.Keys, name, o.PublicKey)
	if err != nil {
		return nil, err
	}
	r := &repository{g, name, key}
	m, record, err := r.verify(limited, manifest)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil && KindOf(err) == Unreachable:
		return d.lastAccepted(g, name, o, err)
	case err != nil:
		return nil, err
	}
	return &revision{repository: r, Manifest: m, record: record}, nil
}

// lastAccepted returns the revision accepted last, for use without a server; why is what asking one ended in.
func (d *Daemon) lastAccepted(g *origin, name string, o Options, why error) (*revision, error) {
	if name == "" {
		return nil, why
	}
	key, err := findKey(d.cfg.Home.Keys, name, o.PublicKey)
	if err != nil {
		return nil, err
	}
	r := &repository{g, name, key}
	last := r.accepted()
	if last == nil {
		return nil, why
	}
	if err := r.checkRevoked(last); err != nil {
		return nil, err
	}
	return &revision{repository: r, Manifest: last.manifest(name), offline: true, why: why}, nil
}

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

// checkRevoked returns an error if the newest whitelist seen revokes a.
func (r *repository) checkRevoked(a *acceptedRoot) error {
	b, err := r.db.State(r.state("whitelist"))
	if err != nil {
		return nil
	}
	w, err := index.OpenWhitelist(b, r.name, r.key)
	if err != nil {
		return fmt.Errorf("recorded whitelist of %s: %w", r.name, err)
	}
	if err := w.CheckRoot(a.Root.Digest, a.Revision); err != nil {
		return err
	}
	if _, err := index.OpenManifest(a.Note, r.name, w); errors.Is(err, index.ErrRevoked) {
		return err
	}
	return nil
}

// verify checks a manifest that a server gave, if need be against whitelist and manifest asked for anew past all caches, and
// returns what to remember of it.
func (r *repository) verify(ctx context.Context, manifest []byte) (*index.Manifest, *acceptedRoot, error) {
	last := r.accepted()
	now := time.Now()
	if last != nil && last.Time.After(now) {
		now = last.Time
	}
	m, record, err := r.verifyWith(ctx, manifest, last, now, false)
	if err == nil || KindOf(err) == Unreachable || ctx.Err() != nil {
		return m, record, err
	}
	// A cache on the way may have kept an old whitelist or manifest, a mirror may lag behind.
	_, refetched := r.client.FileChecked(ctx, "manifest", defaultTTL, index.MaxNote, true, func(b []byte) error {
		var again error
		m, record, again = r.verifyWith(ctx, b, last, now, true)
		return again
	})
	if refetched != nil {
		return nil, nil, refetched
	}
	return m, record, nil
}

// verifyWith checks a manifest against the whitelist.
func (r *repository) verifyWith(ctx context.Context, manifest []byte, last *acceptedRoot, now time.Time, fresh bool) (*index.Manifest, *acceptedRoot, error) {
	var w *index.Whitelist
	var expired error
	whitelist, err := r.client.FileChecked(ctx, "whitelist", defaultTTL, index.MaxNote, fresh, func(b []byte) (err error) {
		if w, err = index.OpenWhitelist(b, r.name, r.key); err != nil {
			return err
		}
		return w.CheckTime(now)
	})
	if err != nil && errors.Is(err, index.ErrExpired) && w != nil && last != nil {
		expired = err // what was accepted before stays so
	} else if err != nil {
		return nil, nil, fmt.Errorf("whitelist of %s: %w", r.name, err)
	}
	m, err := index.OpenManifest(manifest, r.name, w)
	switch {
	case err != nil:
		if errors.Is(err, index.ErrRevoked) && expired == nil {
			r.remember(r.state("whitelist"), whitelist) // so that it is refused offline, too
		}
		return nil, nil, err
	case last != nil && m.Revision < last.Revision:
		return nil, nil, &Error{Rollback, fmt.Errorf("manifest of %s has revision %d, %d was accepted before: %w", r.name, m.Revision, last.Revision, errRollback)}
	case last != nil && m.Revision == last.Revision && m.Root != last.Root:
		return nil, nil, &Error{Rollback, fmt.Errorf("manifest of %s has revision %d with another root than accepted before: %w", r.name, m.Revision, errRollback)}
	case expired != nil && m.Revision != last.Revision:
		return nil, nil, fmt.Errorf("manifest of %s, revision %d: %w", r.name, m.Revision, expired)
	case expired != nil:
		r.log.Warn("the whitelist has expired: only what was accepted before is used", "repository", r.name, "err", expired)
		return m, nil, nil
	}
	r.remember(r.state("whitelist"), whitelist)
	return m, &acceptedRoot{m.Revision, m.Root, m.Time, m.TTL, bytes.Clone(manifest)}, nil
}

// rememberRoot records a as accepted, unless a newer one came in meanwhile.
func (r *repository) rememberRoot(a *acceptedRoot) error {
	if last := r.accepted(); last != nil && last.Revision > a.Revision {
		return nil
	}
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	r.remember(r.state("root"), b)
	r.remember("server/"+r.servers[0], []byte(r.name))
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
