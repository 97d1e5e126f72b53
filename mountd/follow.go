package mountd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/skimfs/skimfs/fusefs"
	"github.com/skimfs/skimfs/index"
)

const (
	retryTTL   = 180 * time.Second // the longest time between checks while they fail
	checkTime  = 2 * time.Minute   // for one check, the catalogs of the new revision included
	leastCheck = 100 * time.Millisecond
	mostTTL    = 24 * time.Hour // whatever a manifest says: a thief of a key might say that nobody need ever ask again
	namesParts = 4              // of the TTL: between checks, and that the kernel may keep a name
)

// shown is the state of a repository that a mount shows. It is replaced, never changed.
type shown struct {
	revision  uint64
	root      index.CatalogRef
	ttl       time.Duration
	published time.Time
	since     time.Time // when the mount began to show it
	checked   time.Time // when a server last said that there is none newer
	offline   bool      // at the last check no server answered
	err       string    // why the last check failed
}

// ttl bounds what the manifest says by the options.
func (o Options) ttl(manifest time.Duration) time.Duration {
	if manifest <= 0 {
		manifest = defaultTTL
	}
	manifest = min(manifest, mostTTL)
	if o.MaxTTL > 0 && o.MaxTTL < manifest {
		return o.MaxTTL
	}
	return manifest
}

// namesValid is how long the kernel may keep a name of the repository. Together with the time between two checks, and with the half of the
// TTL that a proxy may give its copy of the manifest, it makes the TTL: after that a new revision shows.
func namesValid(ttl time.Duration) time.Duration { return max(ttl/namesParts, time.Millisecond) }

// pause is the time until the next check, spread so that nodes which started together don't ask together.
func (s *shown) pause(o Options) time.Duration {
	every := o.ttl(s.ttl)
	if s.err != "" || s.offline {
		every = min(every, retryTTL)
	}
	every = max(every/namesParts, leastCheck)
	return every*9/10 + rand.N(every/5)
}

// follow shows new revisions of a repository that is mounted whole, until ctx ends with the mount. With now it begins with a check.
func (d *Daemon) follow(ctx context.Context, m *mount, core *fusefs.Core, now bool) {
	src, err := ParseSource(m.record.Source)
	if err != nil {
		return
	}
	for {
		var answer chan<- error
		if !now {
			select {
			case <-time.After(m.shown.Load().pause(m.options())):
			case answer = <-m.check:
			case <-m.changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		now = false
		limited, cancel := context.WithTimeout(ctx, checkTime)
		err := d.checkRevision(limited, m, core, src, answer != nil)
		cancel()
		if answer != nil {
			answer <- err
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// checkRevision asks for the current revision and shows it if it is another one. What the kernel knows of images goes on as it was.
func (d *Daemon) checkRevision(ctx context.Context, m *mount, core *fusefs.Core, src Source, fresh bool) error {
	metricRevisionChecks.Inc()
	was := m.shown.Load()
	next := *was
	rev, err := d.acceptWithin(ctx, m.chunks.origin(), src, m.options(), fresh, 0)
	if err == nil && !rev.offline {
		err = rev.warning
	}
	if err == nil && !rev.offline && rev.name != m.record.Repository { // a URL, which somebody else's mount gave another meaning
		err = problem(WrongKey, "%s has the place of %s, which is mounted", rev.where(), m.record.Repository)
	}
	if err == nil && !rev.offline && rev.Root != was.root {
		err = d.switchTo(ctx, m, core, rev)
	}
	switch {
	case ctx.Err() != nil && err != nil && m.done():
		return ctx.Err()
	case err != nil:
		next.err = err.Error()
		metricRevisionErrors.Inc()
		if was.err == "" {
			d.log.Warn("looking for a new revision: the mount stays at the one it shows", "target", m.record.Target, "revision", was.revision, "err", err)
		}
	case rev.offline:
		next.offline, next.err = true, ""
		metricRevisionErrors.Inc()
		if !was.offline {
			d.log.Warn("entering offline mode", "target", m.record.Target, "revision", was.revision, "err", rev.warning)
		}
		err = rev.warning
	default:
		next.offline, next.err, next.checked = false, "", time.Now()
		if rev.Root != was.root {
			next.since = next.checked
		}
		next.revision, next.root, next.ttl, next.published = rev.Revision, rev.Root, rev.TTL, rev.Time
		if was.offline || was.err != "" {
			d.log.Info("recovered from offline mode", "target", m.record.Target, "revision", rev.Revision)
		}
	}
	m.shown.Store(&next)
	core.SetTTL(namesValid(m.options().ttl(next.ttl)))
	return err
}

// switchTo makes a mount show rev.
func (d *Daemon) switchTo(ctx context.Context, m *mount, core *fusefs.Core, rev *revision) error {
	root, err := m.chunks.catalog(ctx, rev.Root)
	if err != nil {
		return fmt.Errorf("root catalog of revision %d: %w", rev.Revision, err)
	}
	tree, err := index.NewTree(root)
	if err != nil {
		return fmt.Errorf("root catalog of revision %d: %w", rev.Revision, err)
	}
	if m.record.Directory > 1 {
		if err := reach(ctx, tree, m.record.Directory, m.chunks.catalog); err != nil {
			return fmt.Errorf("revision %d has the mounted directory no more: %w", rev.Revision, err)
		}
	}
	if err := core.Replace(ctx, tree); err != nil {
		return err
	}
	metricRevisionSwitches.Inc()
	d.log.Info("switched to a new revision", "target", m.record.Target, "repository", rev.name, "from", m.shown.Load().revision, "revision", rev.Revision)
	now := *m.shown.Load()
	now.revision, now.root, now.ttl, now.published = rev.Revision, rev.Root, rev.TTL, rev.Time
	m.shown.Store(&now)
	// Recorded for a daemon that comes after a crash.
	unlock, err := d.targets.lock(ctx, m.record.Target)
	if err != nil {
		return nil
	}
	defer unlock()
	if m.done() {
		return nil
	}
	if err := d.save(m); err != nil {
		d.log.Warn("recording a new revision", "target", m.record.Target, "err", err)
	}
	return nil
}

// done reports whether the mount is gone.
func (m *mount) done() bool {
	select {
	case <-m.gone:
		return true
	default:
		return false
	}
}

// follows reports whether the mount shows new revisions as they come.
func (m *mount) follows() bool { return m.record.Image.Digest.IsZero() && !m.record.Options.pinned() }

// refresh looks for a new revision now, past all caches on the way, and returns when what there is shows.
func (d *Daemon) refresh(ctx context.Context, target string) (*MountStatus, error) {
	d.mu.Lock()
	m := d.mounts[target]
	d.mu.Unlock()
	switch {
	case m == nil || m.fuse == nil:
		return nil, problem(NotMounted, "nothing of this daemon is mounted at %q", target)
	case m.mayChange(ctx) != nil:
		return nil, m.mayChange(ctx)
	case !m.follows():
		s := m.status()
		return &s, nil
	}
	answer := make(chan error, 1)
	select {
	case m.check <- answer:
	case <-m.gone:
		return nil, problem(NotMounted, "it was unmounted from %q", target)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case err := <-answer:
		if err != nil {
			return nil, err
		}
	case <-m.gone:
		return nil, problem(NotMounted, "it was unmounted from %q", target)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s := m.status()
	return &s, nil
}
