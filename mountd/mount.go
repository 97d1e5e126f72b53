package mountd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"github.com/skimfs/skimfs/fusefs"
	"github.com/skimfs/skimfs/index"
)

// mountRecord is what the cache's state says of a mount: enough to mount the same again without asking anyone.
type mountRecord struct {
	Source     string               `json:"source"`
	Target     string               `json:"target"`
	Options    Options              `json:"options"`
	Given      Options              `json:"given"` // of these, what was asked for
	Leases     map[string]time.Time `json:"leases,omitempty"`
	Leased     bool                 `json:"leased,omitempty"` // nobody needs it but the leases
	Member     int                  `json:"member,omitempty"` // the user who mounted it as a member of the daemon's group
	Repository string               `json:"repository"`
	Revision   uint64               `json:"revision"`
	Root       index.CatalogRef     `json:"root"`          // of the repository's name tree
	Image      index.CatalogRef     `json:"image"`         // of the image; zero for a mount of the name tree
	Directory  uint32               `json:"directory"`     // its number in the image or the name tree
	TTL        time.Duration        `json:"ttl"`           // of the manifest
	Published  time.Time            `json:"published"`     // that revision
	Dev        string               `json:"dev,omitempty"` // major:minor once mounted
	Offline    bool                 `json:"offline,omitempty"`
	Boot       string               `json:"boot,omitempty"` // as bootID, when it was written
}

const mountState = "mount/"

// mount is a mount's life. fuse is nil while it is lost: recorded, and waiting to be mounted again.
type mount struct {
	id          int64 // in this daemon's life
	record      mountRecord
	begun       time.Time
	tree        *index.Tree
	fuse        *fusefs.Mounted
	core        *fusefs.Core
	counted     atomic.Pointer[[]ImageStatus]
	chunks      *chunks
	metrics     *metrics.Set
	cancel      context.CancelFunc // ends what the mount does in the background
	release     func()             // lets the daemon end
	lost        atomic.Pointer[string]
	dev         atomic.Pointer[string] // major:minor, once it is known
	shown       atomic.Pointer[shown]
	held        atomic.Pointer[holders]
	saving      sync.Mutex           // held while the record is written
	live        atomic.Pointer[live] // the record's, as remounts and reloads have changed them
	version     string
	daemonBegun time.Time
	check       chan chan<- error // asks for a look at the current revision
	changed     chan struct{}     // tells that the time between looks may have changed

	handed bool // mounted by somebody else, who alone can do it again: it is in no record

	over bool // its end has been dealt with; guarded by Daemon.mu

	following sync.WaitGroup
	gone      chan struct{} // closed when it is unmounted
}

func (m *mount) status() MountStatus {
	r := &m.record
	s := MountStatus{
		ID: m.id, Source: r.Source, Target: r.Target, State: "mounted", Kind: "repository", Repository: r.Repository, Revision: r.Revision,
		Root: r.Root.Digest.String(), Mounted: m.begun, Offline: r.Offline, HitRatio: 1,
	}
	if now := m.shown.Load(); now != nil {
		s.Revision, s.Root, s.Offline, s.Since, s.Published = now.revision, now.root.Digest.String(), now.offline, now.since, now.published
		if s.Follows = m.follows(); s.Follows {
			s.Checked, s.CheckError = now.checked, now.err
		}
	}
	if !r.Image.Digest.IsZero() {
		s.Kind, s.Image = "image", r.Image.Digest.String()
	}
	if h := m.held.Load(); h != nil {
		s.Leases = h.status()
	}
	if why := m.lost.Load(); why != nil {
		s.State, s.Error = "lost", *why
	}
	if m.tree != nil {
		if info, ok, err := m.tree.Root().Image(); ok && err == nil {
			s.Manifest, s.Platform = info.Manifest.String(), info.Platform
		}
	}
	if c := m.chunks; c != nil {
		if src, err := ParseSource(r.Source); err == nil {
			s.Standing = c.origin().standing(src, m.options()).status()
		}
		s.FilesFetched, s.ObjectsFetched, s.BytesFetched = c.files.Load(), c.objects.Load(), c.bytes.Load()
		s.Hits, s.Misses, s.Errors = c.hits.Load(), c.misses.Load(), c.errors.Load()
		s.HitRatio = ratio(s.Hits, s.Misses)
	}
	return s
}

// mount answers a MountRequest. device is what was sent along with it, or nil.
func (d *Daemon) mount(ctx context.Context, req MountRequest, device *os.File) (*MountReply, error) {
	begun := time.Now()
	reply, err := d.mountLocked(ctx, req, device)
	if err != nil {
		metricMountErrors.Inc()
		d.log.Error("mounting", "source", req.Source, "target", req.Target, "err", err)
		return nil, err
	}
	if !reply.Already {
		metricMounts.Inc()
		metricMountTime.UpdateDuration(begun)
	}
	return reply, nil
}

func (d *Daemon) mountLocked(ctx context.Context, req MountRequest, device *os.File) (*MountReply, error) {
	if err := d.checkDevice(ctx, &req, device); err != nil {
		return nil, err
	}
	if req.Remount {
		return d.remount(ctx, req)
	}
	src, err := ParseSource(req.Source)
	if err != nil {
		return nil, err
	}
	given := req.Options
	if err := d.checkMember(ctx, src, given); err != nil {
		return nil, err
	}
	if req.Options, err = d.effective(src, given); err != nil {
		return nil, err
	}
	if err := errors.Join(req.Options.check(), checkLease(req.Lease, req.LeaseTime)); err != nil {
		return nil, err
	}
	if limit := d.db.Limit(); req.Quota > 0 && req.Quota != limit {
		return nil, problem(Conflict, "the daemon of cache %q runs with a limit of %d bytes, not %d", d.place.cache, limit, req.Quota)
	}
	unlock, err := d.targets.lock(ctx, req.Target)
	if err != nil {
		return nil, err
	}
	defer unlock()
	d.mu.Lock()
	old := d.mounts[req.Target]
	d.mu.Unlock()
	if old != nil {
		if err := old.mayChange(ctx); err != nil {
			return nil, err
		}
		if d.detached(old) {
			old = nil
		}
	}
	if old != nil && old.fuse != nil {
		if old.record.Source != src.String() || !old.live.Load().given.same(given) {
			what := old.record.Source
			if what == src.String() {
				what += " with other options"
			}
			return nil, problem(Busy, "target %q is busy: %s is mounted there", req.Target, what)
		}
		if err := d.lease(old, req); err != nil {
			return nil, err
		}
		return &MountReply{MountStatus: old.status(), Already: true}, nil
	}
	if device == nil {
		if err := d.checkPlace(req.Target); err != nil {
			return nil, err
		}
	}
	if old != nil {
		d.dropLost(old) // and now asked for anew
	}
	g, err := d.origins.take(src, req.Options, d.db, d.cfg.Version, d.log)
	if err != nil {
		return nil, err
	}
	record, warning, err := d.resolve(ctx, g, src, req)
	if err != nil {
		d.origins.release(g)
		return nil, err
	}
	first := holders{}.with(req)
	record.Member, _ = memberOf(ctx)
	record.Given, record.Leases, record.Leased = given, first.leases, !first.stay
	m, err := d.attach(ctx, g, record, device, false)
	if err != nil {
		d.origins.release(g)
		return nil, err
	}
	reply := &MountReply{MountStatus: m.status()}
	if warning != nil {
		d.log.Warn("mounted at the revision accepted last", "target", req.Target, "revision", record.Revision, "err", warning)
		reply.Warning = warning.Error()
	}
	return reply, nil
}

// checkPlace refuses a target that is taken, lies in one of our own mounts, or would hide what the daemon needs. It touches no mount.
func (d *Daemon) checkPlace(target string) error {
	if !filepath.IsAbs(target) || filepath.Clean(target) != target {
		return problem(Usage, "target %q is not a clean absolute path", target)
	}
	if err := d.place.checkHidden(target); err != nil {
		return err
	}
	table, err := mountTable()
	if err != nil {
		return err
	}
	if e, ok := mountedAt(table, target); ok {
		return problem(Busy, "target %q is busy: %s (%s) is mounted there", target, e.source, e.fstype)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for other := range d.mounts {
		if other != target && covers(other, target) {
			return problem(Target, "target %q lies inside the mount at %q", target, other)
		}
	}
	return nil
}

// CheckHidden refuses a target that would hide what the daemon of a cache directory ("" is the home's) needs.
func CheckHidden(h Home, cache, target string) error { return newPlace(h, cache).checkHidden(target) }

func (p place) checkHidden(target string) error {
	for what, path := range map[string]string{"cache": p.cache, "control socket": realPath(p.run), "state": realPath(p.state)} {
		if covers(target, path) {
			return problem(Target, "a mount at %q would hide the %s in %q", target, what, path)
		}
	}
	return nil
}

// resolve finds what to mount, at the revision to go by; warning says why that isn't the newest.
func (d *Daemon) resolve(ctx context.Context, g *origin, src Source, req MountRequest) (r mountRecord, warning, err error) {
	rev, f, err := d.find(ctx, g, src, req.Options, true)
	if err != nil {
		return r, nil, err
	}
	_, n, err := f.Node()
	if err != nil {
		return r, nil, err
	}
	if !n.IsDir() {
		return r, nil, problem(NotFound, "%s is not a directory: only directories can be mounted", src)
	}
	return mountRecord{
		Source: src.String(), Target: req.Target, Options: req.Options, Repository: rev.name, Revision: rev.Revision, Root: rev.Root,
		Image: f.Root, Directory: f.Num, TTL: rev.TTL, Published: rev.Time, Offline: rev.offline,
	}, rev.warning, nil
}

// find resolves the path of src in the current revision. A path that isn't there is looked for once more in what the servers have, past
// all caches on the way.
func (d *Daemon) find(ctx context.Context, g *origin, src Source, o Options, follow bool) (*revision, index.File, error) {
	rev, err := d.accept(ctx, g, src, o, false)
	if err != nil {
		return nil, index.File{}, err
	}
	path := digestPath(src.Path)
	f, err := rev.view.Resolve(ctx, path, follow)
	if errors.Is(err, fs.ErrNotExist) && !o.pinned() {
		newer, askErr := d.await(ctx, g, src, o, true)
		switch {
		case askErr == nil && newer.Revision != rev.Revision:
			rev = newer
			f, err = rev.view.Resolve(ctx, path, follow)
		case askErr != nil && rev.warning != nil:
			return nil, f, fmt.Errorf("no %q in %s, revision %d, and no newer one: %w", src.Path, rev.where(), rev.Revision, askErr)
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, f, &Error{NotFound, fmt.Errorf("no %q in %s, revision %d: %w", src.Path, rev.where(), rev.Revision, fs.ErrNotExist)}
	case err != nil:
		return nil, f, fmt.Errorf("finding %q in %s: %w", src.Path, rev.where(), err)
	}
	return rev, f, nil
}

// attach loads what r names and mounts it, or serves it to a device that is mounted. The caller holds the target's lock.
func (d *Daemon) attach(ctx context.Context, g *origin, r mountRecord, device *os.File, known bool) (_ *mount, err error) {
	release, ok := d.active.hold()
	if !ok {
		return nil, problem(Stopping, "the daemon is about to end")
	}
	m := &mount{id: d.lastID.Add(1), record: r, begun: time.Now(), metrics: metrics.NewSet(), release: release, gone: make(chan struct{}),
		check: make(chan chan<- error), changed: make(chan struct{}, 1), version: d.cfg.Version, daemonBegun: d.begun, handed: device != nil}
	m.live.Store(&live{r.Options, r.Given})
	m.held.Store(&holders{r.Leases, !r.Leased})
	m.shown.Store(&shown{revision: r.Revision, root: r.Root, ttl: r.TTL, published: r.Published, since: m.begun, offline: r.Offline, checked: checkedAt(r, known)})
	background, cancel := context.WithCancel(d.ctx)
	m.cancel = cancel
	defer func() {
		if err != nil {
			cancel()
			release()
		}
	}()
	ref := r.Image
	if ref.Digest.IsZero() {
		ref = r.Root
	}
	root, err := g.catalog(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("root catalog of %s: %w", r.Source, err)
	}
	if m.tree, err = index.NewTree(root); err != nil {
		return nil, fmt.Errorf("root catalog of %s: %w", r.Source, err)
	}
	if err := reach(ctx, m.tree, r.Directory, g.catalog); err != nil {
		return nil, fmt.Errorf("catalogs of %s: %w", r.Source, err)
	}
	m.gauges()
	m.chunks = newChunks(g, r.Options, d.ahead, background)
	core, err := fusefs.New(fusefs.Config{
		Tree: m.tree, Root: r.Directory, Chunks: m.chunks, Catalogs: m.chunks.catalog, Deadline: r.Options.patience(), Owner: owner(r.Options),
		MapUID: r.Options.UIDMap.mapper(), MapGID: r.Options.GIDMap.mapper(), WorldReadable: r.Options.WorldReadable,
		TTL: namesValid(r.Options.ttl(r.TTL)), SqfsAlias: r.Options.SqfsAlias, Magic: m.magic, MagicNames: m.magicNames, Log: d.log.With("mount", r.Target), Metrics: m.metrics, Labels: fmt.Sprintf("mount=\"%d\"", m.id),
	})
	if err != nil {
		return nil, err
	}
	at, err := r.opened()
	if err != nil {
		core.Close()
		return nil, err
	}
	if at != nil {
		defer at.Close()
	}
	// Recorded first: should this process be killed now, its successor finds what is mounted.
	if err := d.save(m); err != nil {
		core.Close()
		return nil, err
	}
	if d.ctx.Err() == nil {
		m.core = core
		m.fuse, err = fusefs.Mount(core, r.Target, fusefs.Options{
			Source: r.Source, AllowOther: r.Options.AllowOther || os.Geteuid() == 0, FollowClient: r.Options.FollowClient, Suid: r.Options.Suid && os.Geteuid() == 0,
			Device: device, Directory: at,
		})
	} else {
		err = problem(Stopping, "the daemon is about to end")
	}
	if err != nil {
		core.Close()
		if !known {
			d.forget(m)
		}
		return nil, mountError(r.Target, err)
	}
	d.mu.Lock()
	d.mounts[r.Target] = m
	d.mu.Unlock()
	d.log.Info("mounted", "source", r.Source, "target", r.Target, "repository", r.Repository, "revision", r.Revision, "catalog", ref.Digest)
	if !m.handed {
		d.wg.Go(func() { d.saveDevice(background, m) })
	}
	d.wg.Go(func() { d.prepare(background, m, core) })
	d.wg.Go(func() { d.watch(m, core) })
	if m.follows() {
		m.following.Add(1)
		d.wg.Go(func() {
			defer m.following.Done()
			d.follow(background, m, core, known || r.Offline)
		})
	}
	return m, nil
}

// opened is the target of a member's mount, opened; nil for others.
func (r *mountRecord) opened() (*os.File, error) {
	if r.Member == 0 {
		return nil, nil
	}
	return memberTarget(r.Target, r.Member)
}

// prepare loads the nested catalogs of an image in the background.
func (d *Daemon) prepare(ctx context.Context, m *mount, core *fusefs.Core) {
	if core.Repository() {
		return
	}
	if err := core.Prepare(ctx); err != nil && ctx.Err() == nil {
		d.log.Warn("loading nested catalogs: each is tried again when it is needed", "source", m.record.Source, "err", err)
	}
}

// watch waits for the end of a mount, whoever ended it.
func (d *Daemon) watch(m *mount, core *fusefs.Core) {
	select {
	case <-m.fuse.Done():
	case <-d.ctx.Done():
		// takeDown waits a little for Done.
		return
	}
	d.drop(m)
	m.following.Wait() // drop ended what it does
	core.Close()
	m.chunks.fetching.Wait()
	d.mu.Lock()
	delete(d.leaving, m)
	m.over = true
	d.mu.Unlock()
	d.leftBy(m)
	d.origins.release(m.chunks.origin())
	m.release()
	d.log.Info("unmounted", "source", m.record.Source, "target", m.record.Target)
}

// drop takes m off the list of mounts and out of the records.
func (d *Daemon) drop(m *mount) {
	d.mu.Lock()
	mine := d.mounts[m.record.Target] == m
	if mine {
		delete(d.mounts, m.record.Target)
	}
	d.mu.Unlock()
	if mine {
		d.forget(m)
		close(m.gone)
		m.cancel()
	}
}

// dropLost drops a mount that waits to be mounted again.
func (d *Daemon) dropLost(m *mount) {
	d.drop(m)
	m.release()
}

// options are those that hold now.
func (m *mount) options() Options { return m.live.Load().now }

// current is the record of what m shows now.
func (m *mount) current() mountRecord {
	r := m.record
	if now := m.shown.Load(); now != nil {
		r.Revision, r.Root, r.TTL, r.Published = now.revision, now.root, now.ttl, now.published
	}
	if o := m.live.Load(); o != nil {
		r.Options, r.Given = o.now, o.given
	}
	if h := m.held.Load(); h != nil {
		r.Leases, r.Leased = h.leases, !h.stay
	}
	if dev := m.dev.Load(); dev != nil {
		r.Dev = *dev
	}
	return r
}

func (d *Daemon) save(m *mount) error {
	if m.handed {
		return nil
	}
	m.saving.Lock()
	defer m.saving.Unlock()
	return d.saveRecord(m.current())
}

func (d *Daemon) saveRecord(r mountRecord) error {
	r.Boot = bootID()
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return d.db.SetState(mountState+r.Target, b)
}

// checkedAt is when a server told of r: at mount time, unless the mount is restored or no server answered.
func checkedAt(r mountRecord, known bool) time.Time {
	if known || r.Offline {
		return time.Time{}
	}
	return time.Now()
}

// saveDevice adds the mount's device number to its record, by which the next daemon knows the mount from another one at the same place.
// Nobody waits for it: a record without says the same, only less sharply.
func (d *Daemon) saveDevice(ctx context.Context, m *mount) {
	unlock, err := d.targets.lock(ctx, m.record.Target)
	if err != nil {
		return
	}
	defer unlock()
	table, err := mountTable()
	if err != nil || !d.listed(m) {
		return
	}
	e, ok := mountedAt(table, m.record.Target)
	if !ok {
		return
	}
	m.dev.Store(&e.dev)
	if err := d.save(m); err != nil {
		d.log.Warn("recording a mount", "target", m.record.Target, "err", err)
	}
	// Whoever took the mount down meanwhile has forgotten it already.
	if !d.listed(m) || d.ctx.Err() != nil && d.cfg.Idle > 0 {
		d.forget(m)
	}
}

// listed reports whether m is the mount at its target.
func (d *Daemon) listed(m *mount) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mounts[m.record.Target] == m
}

func (d *Daemon) forget(m *mount) {
	if err := d.db.DeleteState(mountState + m.record.Target); err != nil {
		d.log.Error("forgetting a mount", "target", m.record.Target, "err", err)
	}
}

// owner returns who is shown to own everything: root sees the image's owners, a user himself, unless the options say otherwise.
func owner(o Options) (owner fusefs.Owner) {
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	if owner.UID = o.UID; owner.UID == nil && o.UIDMap == nil && (uid != 0 || o.GID != nil && o.GIDMap == nil) {
		owner.UID = &uid
	}
	if owner.GID = o.GID; owner.GID == nil && o.GIDMap == nil && (uid != 0 || o.UID != nil && o.UIDMap == nil) {
		owner.GID = &gid
	}
	return owner
}

// mountError gives the error of a mount its kind.
func mountError(target string, err error) error {
	if _, statErr := os.Stat("/dev/fuse"); statErr != nil {
		return &Error{NoFuse, fmt.Errorf("mounting on %s: /dev/fuse: %w", target, errors.Unwrap(statErr))}
	}
	if strings.Contains(err.Error(), "/dev/fuse") {
		return &Error{NoFuse, err}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		switch errno {
		case syscall.ENOENT, syscall.ENOTDIR:
			return &Error{Target, err}
		case syscall.EBUSY:
			return &Error{Busy, err}
		case syscall.ENODEV, syscall.ENXIO:
			return &Error{NoFuse, err}
		}
	}
	return err
}
