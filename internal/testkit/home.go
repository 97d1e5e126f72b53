package testkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Home makes a directory for SKIMFS_HOME, with a subdirectory mnt for mount points. At the end of
// the test, failed or not, whatever is mounted below it is detached and every process that was
// started with this SKIMFS_HOME is ended; one that had to be killed fails the test.
func Home(t testing.TB) string {
	t.Helper()
	// Not t.TempDir: its path grows with the test's name, and a socket's path has 107 bytes.
	home, err := os.MkdirTemp("", "skimfs-home-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(home, "mnt"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(detachBelow(home), endProcesses(home)); err != nil {
			t.Errorf("cleaning up %s: %v", home, err)
		}
		// What still were mounted there would be emptied.
		if below, err := MountsBelow(home); err != nil || len(below) > 0 {
			t.Errorf("%s stays: mounted: %q, %v", home, below, err)
			return
		}
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	return home
}

// Command prepares a skimfs command, as [Build] makes it, in a home.
func Command(t testing.TB, home string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(Build(t), args...)
	cmd.Env = append(os.Environ(), "SKIMFS_HOME="+home)
	return cmd
}

// MountsBelow returns the mount points below a directory, the deepest first. It asks the kernel's
// table and touches no mount.
func MountsBelow(dir string) ([]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range bytes.Lines(table) {
		fields := strings.Fields(string(line))
		if len(fields) < 5 {
			continue
		}
		if point := unescape(fields[4]); strings.HasPrefix(point, strings.TrimSuffix(dir, "/")+"/") {
			points = append(points, point)
		}
	}
	slices.Reverse(points) // the table is in the order of mounting
	return points, nil
}

// unescape undoes the octal escapes of blanks in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func detachBelow(dir string) error {
	points, err := MountsBelow(dir)
	for _, point := range points {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		// In another process: this one may serve the mount.
		args := []string{"umount", "-l", point}
		if os.Getuid() != 0 {
			args = []string{"fusermount3", "-u", "-z", point}
		}
		if out, e := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), e, out))
		}
		cancel()
	}
	return err
}

// endProcesses asks all processes of a home to end and kills those that don't within 10 s.
func endProcesses(home string) error {
	started := Processes(home)
	for _, pid := range started {
		unix.Kill(pid, unix.SIGTERM)
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if len(Processes(home)) == 0 {
			return nil
		}
	}
	var err error
	for _, pid := range Processes(home) {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		err = errors.Join(err, fmt.Errorf("process %d had to be killed: %q", pid, bytes.ReplaceAll(cmdline, []byte{0}, []byte(" "))))
		unix.Kill(pid, unix.SIGKILL)
	}
	return err
}

// Processes returns the ids of the processes that were started with SKIMFS_HOME set to home, but
// for this one.
func Processes(home string) []int {
	var pids []int
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		environ, err := os.ReadFile(path)
		if err != nil || pid == os.Getpid() {
			continue
		}
		if slices.Contains(strings.Split(string(environ), "\x00"), "SKIMFS_HOME="+home) {
			pids = append(pids, pid)
		}
	}
	return pids
}
