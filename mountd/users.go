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
	wanted := map[string]leftMount{}
	for _, l := range left {
		wanted[l.Dev] = l
	}
	at := leftMount{Target: target, Dev: e.dev}
	if mounted {
		wanted[e.dev] = at
	}
	seen, asked := make(chan MountUser, 2*len(dirs)), 0
	for _, dir := range dirs {
		pid, err := strconv.Atoi(dir.Name())
		if err != nil {
			continue
		}
		for _, uses := range []func(proc string, at leftMount, wanted map[string]leftMount) map[string][]string{linkUses, mapUses} {
			asked++
			go func() {
				proc, u := filepath.Join("/proc", dir.Name()), MountUser{PID: pid}
				for dev, what := range uses(proc, at, wanted) {
					switch {
					case mounted && dev == e.dev:
						u.Uses, u.Left = what, false
					case len(u.Uses) == 0 && !taken(proc, wanted[dev]):
						u.Uses, u.Left = what, true
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

// linkUses tells which directories and files of a process lie on wanted devices, by device.
func linkUses(proc string, at leftMount, wanted map[string]leftMount) map[string][]string {
	uses := map[string][]string{}
	add := func(what, link string) {
		dev := deviceOf(link, at)
		if _, ok := wanted[dev]; ok && !slices.Contains(uses[dev], what) {
			uses[dev] = append(uses[dev], what)
		}
	}
	for _, what := range []string{"cwd", "root", "exe"} {
		add(what, filepath.Join(proc, what))
	}
	list, _ := os.ReadDir(filepath.Join(proc, "fd")) // another user's, or gone
	for _, e := range list {
		add("fd", filepath.Join(proc, "fd", e.Name()))
	}
	return uses
}

// mapUses tells which wanted devices have files that a process maps.
func mapUses(proc string, _ leftMount, wanted map[string]leftMount) map[string][]string {
	uses := map[string][]string{}
	// Lines are "start-end perms offset major:minor inode path", the device in two digits of hex at least.
	text, err := os.ReadFile(filepath.Join(proc, "maps"))
	if err != nil {
		return nil
	}
	for dev := range wanted {
		major, minor, _ := strings.Cut(dev, ":")
		a, _ := strconv.Atoi(major)
		b, _ := strconv.Atoi(minor)
		if dev != "" && bytes.Contains(text, fmt.Appendf(nil, " %02x:%02x ", a, b)) {
			uses[dev] = []string{"map"}
		}
	}
	return uses
}

// deviceOf returns the device that a link in /proc leads to, "" if that can't be known. Where the kernel doesn't tell, the text of a path below what is
// mounted tells.
func deviceOf(link string, at leftMount) string {
	path, err := os.Readlink(link) // the kernel's text: nothing is looked up
	if err != nil || !strings.HasPrefix(path, "/") {
		return ""
	}
	var st unix.Statx_t
	// Asked for nothing and with what it knows, the kernel tells the device alone; who may enter the mount doesn't matter.
	err = unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0, &st)
	switch {
	case err == nil:
		return fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor)
	case !errors.Is(err, unix.ENOENT) && covers(at.Target, path):
		return at.Dev
	}
	return ""
}
