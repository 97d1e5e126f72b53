package mountd

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"
	"time"
	"unicode/utf8"
)

const (
	// DefaultLease is how long a lease holds that nobody releases or renews: longer than any batch job.
	DefaultLease = 8 * 24 * time.Hour

	maxLease  = 128         // bytes of a name
	maxLeases = 10_000      // of a mount
	sweepTime = time.Minute // between looks for leases that are over
)

// LeaseStatus tells who needs a mount, and until when.
type LeaseStatus struct {
	Name    string    `json:"name"`
	Expires time.Time `json:"expires"`
}

// ReleaseReply tells what the end of a lease did.
type ReleaseReply struct {
	Unmounted []string `json:"unmounted"` // targets that nobody else needed
	Kept      []string `json:"kept"`      // targets with other leases, or mounted by somebody without one
}

// checkLease refuses names that would not show well in a log.
func checkLease(name string, life time.Duration) error {
	ok := utf8.ValidString(name) && len(name) <= maxLease
	for _, r := range name {
		ok = ok && r > ' ' && r != 0x7f
	}
	if !ok {
		return problem(Usage, "lease %q: want up to %d bytes without spaces", name, maxLease)
	}
	if life < 0 {
		return problem(Usage, "a lease of %v", life)
	}
	return nil
}

// holders are who needs a mount. They are replaced, never changed, by whoever holds the target's lock.
type holders struct {
	leases map[string]time.Time // until when
	stay   bool                 // somebody mounted it without a lease
}

// with returns h and the holder that req tells of.
func (h holders) with(req MountRequest) holders {
	if req.Lease == "" {
		h.stay = true
		return h
	}
	leases := maps.Clone(h.leases)
	if leases == nil {
		leases = map[string]time.Time{}
	}
	life := req.LeaseTime
	if life == 0 {
		life = DefaultLease
	}
	leases[req.Lease] = time.Now().Add(life).UTC().Truncate(time.Second)
	h.leases = leases
	return h
}

// lease adds the holder that req tells of to m. The caller holds the target's lock.
func (d *Daemon) lease(m *mount, req MountRequest) error {
	old := m.held.Load()
	if req.Lease == "" && old.stay {
		return nil
	}
	if len(old.leases) >= maxLeases {
		return problem(Conflict, "target %q has %d leases already", m.record.Target, len(old.leases))
	}
	next := old.with(req)
	m.held.Store(&next)
	return d.save(m)
}

// status lists the leases by name.
func (h *holders) status() []LeaseStatus {
	out := []LeaseStatus{}
	for name, until := range h.leases {
		out = append(out, LeaseStatus{name, until})
	}
	slices.SortFunc(out, func(a, b LeaseStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// release ends the leases for which over is true. Mounts that nobody else needs are detached: at once, and without hurting who is still in.
func (d *Daemon) release(ctx context.Context, over func(name string, until time.Time) bool) (*ReleaseReply, error) {
	reply := &ReleaseReply{Unmounted: []string{}, Kept: []string{}}
	d.mu.Lock()
	var targets []string
	for target, m := range d.mounts {
		if m.mayChange(ctx) != nil {
			continue
		}
		for name, until := range m.held.Load().leases {
			if over(name, until) {
				targets = append(targets, target)
				break
			}
		}
	}
	d.mu.Unlock()
	slices.Sort(targets)
	for _, target := range targets {
		gone, err := d.releaseTarget(ctx, target, over)
		switch {
		case err != nil:
			return reply, err
		case gone:
			reply.Unmounted = append(reply.Unmounted, target)
		default:
			reply.Kept = append(reply.Kept, target)
		}
	}
	return reply, nil
}

func (d *Daemon) releaseTarget(ctx context.Context, target string, over func(name string, until time.Time) bool) (gone bool, err error) {
	unlock, err := d.targets.lock(ctx, target)
	if err != nil {
		return false, err
	}
	defer unlock()
	d.mu.Lock()
	m := d.mounts[target]
	d.mu.Unlock()
	if m == nil {
		return false, nil
	}
	left := holders{leases: map[string]time.Time{}, stay: m.held.Load().stay}
	for name, until := range m.held.Load().leases {
		if !over(name, until) {
			left.leases[name] = until
		}
	}
	m.held.Store(&left)
	if gone = len(left.leases) == 0 && !left.stay; !gone {
		return false, d.save(m)
	}
	d.log.Info("the last lease of a mount ended", "target", target)
	return true, d.unmountLocked(target, true)
}

// sweep ends leases whose time is over, until the daemon ends.
func (d *Daemon) sweep() {
	tick := time.NewTicker(sweepTime)
	defer tick.Stop()
	for {
		now := time.Now()
		if _, err := d.release(d.ctx, func(_ string, until time.Time) bool { return now.After(until) }); err != nil && d.ctx.Err() == nil {
			d.log.Error("ending leases that are over", "err", err)
		}
		select {
		case <-tick.C:
		case <-d.ctx.Done():
			return
		}
	}
}

func (d *Daemon) deleteLease(_ http.ResponseWriter, r *http.Request) (any, error) {
	name := r.URL.Query().Get("lease")
	if name == "" {
		return nil, problem(Usage, "which lease is to end?")
	}
	return d.release(r.Context(), func(n string, _ time.Time) bool { return n == name })
}
