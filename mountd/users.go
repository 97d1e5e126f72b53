package mountd

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// MountUser is a process that uses a mount. Field names in JSON are stable.
type MountUser struct {
	PID     int      `json:"pid"`
	Command string   `json:"command"`
	Uses    []string `json:"uses"` // "cwd", "root", "exe", "fd", "map"
}

// MountUsers lists the processes that use the mount at target, live or dead. It reads /proc alone and touches no mount: paths are compared as text and a
// mapping by its device. Of other users' processes only root sees all.
func MountUsers(target string) ([]MountUser, error) {
	table, err := mountTable()
	if err != nil {
		return nil, err
	}
	e, ok := mountedAt(table, target)
	if !ok || e.fstype != "fuse.skimfs" {
		return nil, problem(NotMounted, "nothing of skimfs is mounted on %q", target)
	}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	out := []MountUser{}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(dir.Name())
		if err != nil {
			continue
		}
		if uses := processUses(filepath.Join("/proc", dir.Name()), target, e.dev); len(uses) > 0 {
			name, _ := os.ReadFile(filepath.Join("/proc", dir.Name(), "comm")) // it may be gone
			out = append(out, MountUser{pid, strings.TrimSpace(string(name)), uses})
		}
	}
	return out, nil
}

func processUses(proc, target, dev string) (uses []string) {
	inside := func(link string) bool {
		path, err := os.Readlink(link) // the kernel's text: nothing is looked up
		return err == nil && covers(target, path)
	}
	for _, what := range []string{"cwd", "root", "exe"} {
		if inside(filepath.Join(proc, what)) {
			uses = append(uses, what)
		}
	}
	if list, err := os.ReadDir(filepath.Join(proc, "fd")); err == nil && slices.ContainsFunc(list, func(e os.DirEntry) bool { return inside(filepath.Join(proc, "fd", e.Name())) }) {
		uses = append(uses, "fd")
	}
	// Lines are "start-end perms offset major:minor inode path", the device in two digits of hex at least.
	if maps, err := os.ReadFile(filepath.Join(proc, "maps")); err == nil {
		major, minor, _ := strings.Cut(dev, ":")
		a, _ := strconv.Atoi(major)
		b, _ := strconv.Atoi(minor)
		if bytes.Contains(maps, fmt.Appendf(nil, " %02x:%02x ", a, b)) {
			uses = append(uses, "map")
		}
	}
	return uses
}
