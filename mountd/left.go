package mountd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// leftMount is a mount that was detached, perhaps with programs inside: what a crash left behind, what was unmounted lazily, or by somebody
// who told no daemon. The list of them lies beside the daemon's record, for those who ask without a daemon.
type leftMount struct {
	Target string `json:"target"`
	Source string `json:"source"`
	Dev    string `json:"dev"`
	Boot   string `json:"boot"` // when devices had these numbers
}

const maxLeft = 1000 // lines of the list

// bootID names this life of the kernel.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// leave adds a mount to the list of those that were detached.
func (d *Daemon) leave(target, source, dev string) {
	d.changeLeft(dev, leftMount{target, source, dev, bootID()})
}

// leftBy takes a mount off the list of those that were detached: nobody uses it any more.
func (d *Daemon) leftBy(m *mount) {
	if dev := m.dev.Load(); dev != nil {
		d.changeLeft(*dev)
	}
}

// changeLeft replaces what the list says of a device.
func (d *Daemon) changeLeft(dev string, by ...leftMount) {
	if dev == "" {
		return
	}
	path := d.place.left()
	d.leftMu.Lock()
	defer d.leftMu.Unlock()
	old := readLeft(path)
	list := append(slices.DeleteFunc(slices.Clone(old), func(l leftMount) bool { return l.Dev == dev }), by...)
	if len(list) == len(old) && len(by) == 0 {
		return
	}
	list = list[max(0, len(list)-maxLeft):]
	var b bytes.Buffer
	var err error
	for _, l := range list {
		err = errors.Join(err, json.NewEncoder(&b).Encode(l))
	}
	if len(list) == 0 {
		err = os.Remove(path)
	} else {
		err = errors.Join(err, os.WriteFile(path+".new", b.Bytes(), 0o600), os.Rename(path+".new", path))
	}
	if err != nil {
		d.log.Warn("recording a mount that was detached", "dev", dev, "err", err)
	}
}

// readLeft reads a list of detached mounts: those of this boot whose device number nobody has taken since.
func readLeft(path string) (list []leftMount) {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	table, err := mountTable()
	if err != nil {
		return nil
	}
	boot := bootID()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var l leftMount
		if json.Unmarshal(lines.Bytes(), &l) == nil && l.Boot == boot && !slices.ContainsFunc(table, func(e mountEntry) bool { return e.dev == l.Dev }) {
			list = append(list, l)
		}
	}
	return list
}

// leftAt returns what was detached from target by the daemons of a home.
func leftAt(h Home, target string) (list []leftMount) {
	files, err := filepath.Glob(filepath.Join(escapeGlob(h.Run), "mountd-*.left"))
	if err != nil {
		return nil
	}
	for _, path := range files {
		for _, l := range readLeft(path) {
			if l.Target == target {
				list = append(list, l)
			}
		}
	}
	return list
}

// detached reports whether m has been unmounted by somebody who told no daemon, umount(8) perhaps, while programs inside or another mount
// namespace keep it alive; then it is taken off the list of mounts. The caller holds the target's lock.
func (d *Daemon) detached(m *mount) bool {
	dev := m.dev.Load()
	if m.handed || m.fuse == nil || dev == nil || !d.listed(m) {
		return false
	}
	table, err := mountTable()
	if err != nil || slices.ContainsFunc(table, func(e mountEntry) bool { return e.target == m.record.Target && e.dev == *dev }) {
		return false
	}
	select {
	case <-m.fuse.Done():
	default:
		d.log.Info("unmounted by another program, and still in use", "source", m.record.Source, "target", m.record.Target)
	}
	d.setLeaving(m)
	return true
}

// setLeaving takes a mount that was detached off the list of mounts; its users go on.
func (d *Daemon) setLeaving(m *mount) {
	if dev := m.dev.Load(); dev != nil {
		d.leave(m.record.Target, m.record.Source, *dev)
	}
	d.mu.Lock()
	if !m.over {
		d.leaving[m] = true
	}
	over := m.over
	d.mu.Unlock()
	if over { // nobody was inside, and watch was quicker
		d.leftBy(m)
	}
	d.drop(m)
}

// leaveAll adds those of some mounts that did not end to the list of those that were detached.
func (d *Daemon) leaveAll(all []*mount) {
	for _, m := range all {
		if dev := m.dev.Load(); m.fuse != nil && !m.handed && dev != nil {
			select {
			case <-m.fuse.Done():
			default:
				d.leave(m.record.Target, m.record.Source, *dev)
			}
		}
	}
}

// noticePause is between looks at a list of mounts that keeps changing.
const noticePause = 200 * time.Millisecond

// notice looks for mounts that somebody else detached whenever the kernel's list of mounts changes, until the daemon ends.
func (d *Daemon) notice() {
	if err := d.watchTable(); err != nil {
		d.log.Warn("watching the list of mounts: what others unmount is noticed when it is mounted again", "err", err)
	}
}

func (d *Daemon) watchTable() error {
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer table.Close()
	wake, end, err := os.Pipe()
	if err != nil {
		return err
	}
	defer wake.Close()
	defer context.AfterFunc(d.ctx, func() { end.Close() })()
	for {
		fds := []unix.PollFd{{Fd: int32(table.Fd()), Events: unix.POLLPRI}, {Fd: int32(wake.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			end.Close()
			return fmt.Errorf("poll: %w", err)
		}
		if !d.sleep(noticePause) {
			return nil
		}
		d.mu.Lock()
		all := make([]*mount, 0, len(d.mounts))
		for _, m := range d.mounts {
			all = append(all, m)
		}
		d.mu.Unlock()
		for _, m := range all {
			if unlock, err := d.targets.lock(d.ctx, m.record.Target); err == nil {
				d.detached(m)
				unlock()
			}
		}
	}
}
