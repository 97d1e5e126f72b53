package mountd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/skimfs/skimfs/fusefs"
)

// mountEntry is a line of /proc/self/mountinfo.
type mountEntry struct {
	dev    string // major:minor
	target string
	fstype string
	source string
}

// mountTable returns what is mounted, in order: of two at the same target the later one hides the other. It touches no mount.
func mountTable() ([]mountEntry, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	return parseMountInfo(b), nil
}

func parseMountInfo(b []byte) []mountEntry {
	var out []mountEntry
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		left, right, ok := strings.Cut(lines.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 2 {
			continue
		}
		out = append(out, mountEntry{dev: l[2], target: unescape(l[4]), fstype: r[0], source: unescape(r[1])})
	}
	return out
}

// unescape undoes the kernel's \ooo for space, tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			var c byte
			if _, err := fmt.Sscanf(s[i+1:i+4], "%03o", &c); err == nil {
				b.WriteByte(c)
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountedAt returns what is visible at target.
func mountedAt(table []mountEntry, target string) (mountEntry, bool) {
	for i := len(table) - 1; i >= 0; i-- {
		if table[i].target == target {
			return table[i], true
		}
	}
	return mountEntry{}, false
}

// ResolveTarget returns the absolute path of a mount target without symlinks. Its last part is not touched if something is
// mounted there, since what is mounted may not answer.
func ResolveTarget(target string) (string, error) {
	abs, err := filepath.Abs(target)
	if err != nil {
		return "", problem(Target, "target %q: %w", target, err)
	}
	table, err := mountTable()
	if err != nil {
		return "", err
	}
	if _, ok := mountedAt(table, abs); ok {
		return abs, nil
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", targetError(target, err)
	}
	real := filepath.Join(dir, filepath.Base(abs))
	if _, ok := mountedAt(table, real); ok {
		return real, nil
	}
	if real, err = filepath.EvalSymlinks(real); err != nil {
		return "", targetError(target, err)
	}
	return real, nil
}

// CheckTarget returns the path of a directory to mount on.
func CheckTarget(target string) (string, error) {
	real, err := ResolveTarget(target)
	if err != nil {
		return "", err
	}
	if !utf8.ValidString(real) {
		return "", problem(Target, "target %q is not UTF-8", real)
	}
	table, err := mountTable()
	if err != nil {
		return "", err
	}
	if _, ok := mountedAt(table, real); ok {
		return real, nil // a directory for sure; the daemon says whether it is the same mount
	}
	st, err := os.Stat(real)
	if err != nil {
		return "", targetError(target, err)
	}
	if !st.IsDir() {
		return "", problem(Target, "target %q is not a directory", target)
	}
	return real, nil
}

func targetError(target string, err error) error {
	if os.IsNotExist(err) {
		return problem(Target, "target %q does not exist", target)
	}
	return problem(Target, "target %q: %w", target, err)
}

// UnmountLeftover removes a mount of skimfs that no daemon answers for; found is false if there is none at target.
func UnmountLeftover(target string, lazy bool) (found bool, err error) {
	table, err := mountTable()
	if err != nil {
		return false, err
	}
	e, ok := mountedAt(table, target)
	if !ok || e.fstype != "fuse.skimfs" {
		return false, nil
	}
	err = fusefs.Unmount(target, lazy)
	if errors.Is(err, syscall.EBUSY) {
		err = &Error{Busy, err}
	}
	return true, err
}
