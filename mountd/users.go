package mountd

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// MountUser is a process that uses a mount. Field names in JSON are stable.
type MountUser struct {
	PID     int      `json:"pid"`
	Command string   `json:"command"`
	Uses    []string `json:"uses"`           // "cwd", "root", "exe", "fd", "map"
	Left    bool     `json:"left,omitempty"` // it is in a mount that was detached from there: by a crash, or while it was in use
}

// usersTime bounds the look at all processes: one that waits for a filesystem may not let its maps be read, and a working directory on
// another network filesystem may have the kernel ask that one's server.
const usersTime = 5 * time.Second

// MountUsers lists the processes that use what is mounted at target, live or dead, in any mount namespace, and those in what was detached
// from there. It reads /proc and touches no mount: the kernel tells the device of a process's directories and files without asking
// the filesystem. Of other users' processes only root sees all.
func MountUsers(h Home, target string) ([]MountUser, error) {
	table, err := mountTable()
	if err != nil {
		return nil, err
	}
	e, mounted := mountedAt(table, target)
	mounted = mounted && e.fstype == "fuse.skimfs"
	left := leftAt(h, target)
	if !mounted && len(left) == 0 {
		return nil, problem(NotMounted, "nothing of skimfs is mounted on %q", target)
	}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	seen, asked := make(chan MountUser, 2*len(dirs)), 0
	for _, dir := range dirs {
		pid, err := strconv.Atoi(dir.Name())
		if err != nil {
			continue
		}
		for _, uses := range []func(proc, dev, target string) []string{linkUses, mapUses} {
			asked++
			go func() {
				proc, u := filepath.Join("/proc", dir.Name()), MountUser{PID: pid}
				if mounted {
					u.Uses = uses(proc, e.dev, target)
				}
				for _, l := range left {
					if len(u.Uses) == 0 && !taken(proc, l) {
						u.Uses = uses(proc, l.Dev, "")
						u.Left = len(u.Uses) > 0
					}
				}
				seen <- u
			}()
		}
	}
	users, late := map[int]MountUser{}, time.After(usersTime)
	for ; asked > 0; asked-- {
		select {
		case u := <-seen:
			if len(u.Uses) > 0 {
				old := users[u.PID]
				users[u.PID] = MountUser{PID: u.PID, Uses: append(old.Uses, u.Uses...), Left: old.Left || u.Left}
			}
		case <-late:
			asked = 1 // the others are not waited for
		}
	}
	out := []MountUser{}
	for _, pid := range slices.Sorted(maps.Keys(users)) {
		u := users[pid]
		slices.SortFunc(u.Uses, func(a, b string) int { return slices.Index(usesOrder, a) - slices.Index(usesOrder, b) })
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // it may be gone
		u.Command = strings.TrimSpace(string(name))
		out = append(out, u)
	}
	return out, nil
}

var usesOrder = []string{"cwd", "root", "exe", "fd", "map"}

// taken reports whether something else has a detached mount's device number where a process lives.
func taken(proc string, l leftMount) bool {
	b, err := os.ReadFile(filepath.Join(proc, "mountinfo"))
	return err == nil && slices.ContainsFunc(parseMountInfo(b), func(e mountEntry) bool {
		return e.dev == l.Dev && (e.fstype != "fuse.skimfs" || e.source != l.Source)
	})
}

// linkUses tells which directories and files of a process lie on the filesystem with a device number. Where that can't be known, the text of a
// path below target ("": none) tells.
func linkUses(proc, dev, target string) (uses []string) {
	for _, what := range []string{"cwd", "root", "exe"} {
		if linkLeads(filepath.Join(proc, what), dev, target) {
			uses = append(uses, what)
		}
	}
	list, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err == nil && slices.ContainsFunc(list, func(e os.DirEntry) bool { return linkLeads(filepath.Join(proc, "fd", e.Name()), dev, target) }) {
		uses = append(uses, "fd")
	}
	return uses
}

// mapUses tells whether a process maps a file of the filesystem with a device number.
func mapUses(proc, dev, _ string) []string {
	// Lines are "start-end perms offset major:minor inode path", the device in two digits of hex at least.
	text, err := os.ReadFile(filepath.Join(proc, "maps"))
	major, minor, _ := strings.Cut(dev, ":")
	a, _ := strconv.Atoi(major)
	b, _ := strconv.Atoi(minor)
	if err == nil && bytes.Contains(text, fmt.Appendf(nil, " %02x:%02x ", a, b)) {
		return []string{"map"}
	}
	return nil
}

// linkLeads reports whether a link in /proc leads to a filesystem.
func linkLeads(link, dev, target string) bool {
	path, err := os.Readlink(link) // the kernel's text: nothing is looked up
	if err != nil || !strings.HasPrefix(path, "/") {
		return false
	}
	var st unix.Statx_t
	// Asked for nothing and with what it knows, the kernel tells the device alone; who may enter the mount doesn't matter.
	err = unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0, &st)
	if err == nil {
		return fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor) == dev
	}
	return target != "" && !errors.Is(err, unix.ENOENT) && covers(target, path)
}
