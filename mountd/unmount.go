package mountd

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"time"

	"github.com/skimfs/skimfs/fusefs"
)

// unmount removes the mount at target. With lazy it disappears at once and ends when its last user leaves.
func (d *Daemon) unmount(ctx context.Context, target string, lazy bool) error {
	unlock, err := d.targets.lock(ctx, target)
	if err != nil {
		return err
	}
	defer unlock()
	d.mu.Lock()
	m := d.mounts[target]
	d.mu.Unlock()
	if m != nil {
		if err := m.mayChange(ctx); err != nil {
			return err
		}
	}
	return d.unmountLocked(target, lazy)
}

// unmountLocked is unmount by a caller that holds the target's lock.
func (d *Daemon) unmountLocked(target string, lazy bool) error {
	d.mu.Lock()
	m := d.mounts[target]
	d.mu.Unlock()
	if m == nil {
		return problem(NotMounted, "nothing of this daemon is mounted at %q", target)
	}
	if m.fuse == nil {
		d.dropLost(m)
		return nil
	}
	if d.detached(m) {
		return problem(NotMounted, "nothing is mounted at %q any more: another program unmounted it", target)
	}
	if m.handed {
		return problem(Usage, "%s was mounted by another program and ends when that one unmounts it", target)
	}
	path, done, err := m.unmountPath()
	if err != nil {
		return err
	}
	err = fusefs.Unmount(path, lazy)
	done()
	if err != nil {
		if errors.Is(err, syscall.EBUSY) || strings.Contains(err.Error(), "busy") { // fusermount3 only has words
			return problem(Busy, "target %q is busy: processes use the mount of %s there: %w", target, m.record.Source, err)
		}
		return err
	}
	if lazy {
		d.setLeaving(m)
		return nil
	}
	select {
	case <-m.gone:
	case <-time.After(time.Second):
		d.setLeaving(m) // it lives on in another mount namespace; here it is gone
	}
	return nil
}
