package mountd

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"github.com/skimfs/skimfs/fusefs"
)

const (
	restoreTime  = 15 * time.Second // for each mount before the daemon is ready without it
	restoreFirst = time.Second      // pause before a lost mount is tried again, doubled each time
	restoreLast  = time.Minute
	drainTime    = 30 * time.Second // for reads under way when the daemon is to end: as long as a read takes by default
	leaveTime    = 2 * time.Second  // for programs to leave mounts that are detached
)

// restore cleans up after a daemon that died and mounts again what it had mounted: the same digests at the same places.
func (d *Daemon) restore() {
	var all sync.WaitGroup
	for key, b := range d.db.States(mountState) {
		var r mountRecord
		if err := json.Unmarshal(b, &r); err != nil || mountState+r.Target != key {
			d.log.Error("record of a mount is damaged", "key", key, "err", err)
			continue
		}
		if !d.outlives(&r) {
			d.log.Info("a mount of before the reboot is not made again", "source", r.Source, "target", r.Target)
			if err := d.db.DeleteState(key); err != nil {
				d.log.Error("forgetting a mount", "target", r.Target, "err", err)
			}
			continue
		}
		all.Go(func() { d.restoreOne(r) })
	}
	all.Wait()
}

// outlives reports whether a mount is to be made again, should the node have been booted since. The batch jobs whose leases it had are gone then,
// and what a daemon on demand had mounted, the user had for that session.
func (d *Daemon) outlives(r *mountRecord) bool {
	if boot := bootID(); r.Boot == boot || r.Boot == "" || boot == "" {
		return true
	}
	r.Leases = nil
	return !r.Leased && d.cfg.Idle == 0
}

func (d *Daemon) restoreOne(r mountRecord) {
	if err := d.clean(r); err != nil {
		d.log.Error("cleaning up a dead mount", "target", r.Target, "err", err)
	}
	ctx, cancel := context.WithTimeout(d.ctx, restoreTime)
	defer cancel()
	err := d.again(ctx, r)
	if err == nil {
		return
	}
	d.log.Error("mounting again", "source", r.Source, "target", r.Target, "err", err)
	release, ok := d.active.hold()
	if !ok {
		return
	}
	why := err.Error()
	waiting, stop := context.WithCancel(d.ctx)
	lost := &mount{id: d.lastID.Add(1), record: r, begun: time.Now(), metrics: metrics.NewSet(), release: release, gone: make(chan struct{}), cancel: stop}
	lost.lost.Store(&why)
	lost.held.Store(&holders{r.Leases, !r.Leased})
	d.mu.Lock()
	d.mounts[r.Target] = lost
	d.mu.Unlock()
	d.wg.Go(func() { d.retry(waiting, lost) })
}

// clean removes the dead mount that r tells of, if it is still there.
func (d *Daemon) clean(r mountRecord) error {
	table, err := mountTable()
	if err != nil {
		return err
	}
	e, ok := mountedAt(table, r.Target)
	if !ok || e.fstype != "fuse.skimfs" || r.Dev != "" && e.dev != r.Dev {
		return nil
	}
	d.log.Info("removing a dead mount", "target", r.Target, "dev", e.dev)
	path, done, err := (&mount{record: r}).unmountPath()
	if err != nil {
		return err
	}
	defer done()
	if err := fusefs.Unmount(path, true); err != nil {
		return err
	}
	d.leave(r.Target, r.Source, e.dev)
	return nil
}

// again mounts what r tells of.
func (d *Daemon) again(ctx context.Context, r mountRecord) error {
	src, err := ParseSource(r.Source)
	if err != nil {
		return err
	}
	unlock, err := d.targets.lock(ctx, r.Target)
	if err != nil {
		return err
	}
	defer unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := d.checkPlace(r.Target); err != nil {
		return err
	}
	g, err := d.origins.take(src, r.Options, d.db, d.cfg.Version, d.log)
	if err != nil {
		return err
	}
	r.Dev = ""
	if _, err := d.attach(ctx, g, r, nil, true); err != nil {
		d.origins.release(g)
		return err
	}
	return nil
}

// retry tries to mount a lost mount again until that succeeds or somebody unmounts it.
func (d *Daemon) retry(ctx context.Context, lost *mount) {
	for pause := restoreFirst; ; pause = min(2*pause, restoreLast) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		limited, cancel := context.WithTimeout(ctx, restoreTime)
		err := d.again(limited, lost.record)
		cancel()
		if err == nil {
			close(lost.gone)
			lost.release()
			return
		}
		if ctx.Err() != nil {
			return
		}
		why := err.Error()
		lost.lost.Store(&why)
	}
}

// takeDown unmounts everything at the daemon's end, after what is being read: lazily, so that nothing hangs on who still reads, and never by force. A system
// daemon's mounts stay recorded, its successor mounts them again; those of one started on demand end with it.
func (d *Daemon) takeDown() {
	d.mu.Lock()
	var all []*mount
	for _, m := range d.mounts {
		all = append(all, m)
	}
	for m := range d.leaving {
		all = append(all, m)
	}
	d.mu.Unlock()
	d.drain(all)
	end := time.After(leaveTime)
	for _, m := range all {
		d.mu.Lock()
		listed := d.mounts[m.record.Target] == m
		d.mu.Unlock()
		if listed && m.fuse != nil && !m.handed {
			path, done, err := m.unmountPath()
			if err == nil {
				err = fusefs.Unmount(path, true)
				done()
			}
			if err != nil {
				d.log.Error("unmounting at the end", "target", m.record.Target, "err", err)
			}
		}
		if listed && d.cfg.Idle > 0 {
			d.forget(m)
		}
	}
	for _, m := range all {
		if m.fuse == nil {
			continue
		}
		select {
		case <-m.fuse.Done():
		case <-end:
			d.log.Warn("processes still use mounts that end with the daemon", "target", m.record.Target)
			d.leaveAll(all)
			return
		}
	}
}

// drain lets reads that are under way finish.
func (d *Daemon) drain(all []*mount) {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	for _, m := range all {
		if m.fuse == nil {
			continue
		}
		if err := m.fuse.Drain(ctx); err != nil {
			d.log.Warn("ending before all reads are answered", "target", m.record.Target, "err", err)
			return
		}
	}
}
