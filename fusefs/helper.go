package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/fusefs/direct"
)

const (
	// HelperName is the name under which the program must call Fusermount.
	HelperName = direct.HelperName

	subtype         = direct.Subtype
	reportVariable  = "SKIMFS_MOUNT_REPORT"
	reportName      = "report"
	deletedExecSign = " (deleted)"
)

// systemHelpers are where a system keeps its own fusermount3.
var systemHelpers = []string{"/usr/bin/fusermount3", "/bin/fusermount3"}

// PrepareHelper makes dir the home of this process's mount helper: a link named fusermount3 to this very program, which
// must call Fusermount under that name. dir is created with mode 0700 and must belong to this user alone. PATH of the process
// becomes dir, so that nothing else is ever run by that name.
func PrepareHelper(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("preparing the mount helper: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("preparing the mount helper: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("preparing the mount helper in %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("preparing the mount helper in %s: mode %#o, owner %d: it must be a directory that only this user may write: %w",
			dir, st.Mode, st.Uid, fs.ErrPermission)
	}
	program, err := ownProgram()
	if err != nil {
		return fmt.Errorf("preparing the mount helper: %w", err)
	}
	link, next := filepath.Join(dir, HelperName), filepath.Join(dir, HelperName+".next")
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("preparing the mount helper: %w", err)
	}
	if err := os.Symlink(program, next); err != nil {
		return fmt.Errorf("preparing the mount helper: %w", err)
	}
	if err := os.Rename(next, link); err != nil {
		return fmt.Errorf("preparing the mount helper: %w", err)
	}
	return errors.Join(os.Setenv("PATH", dir), os.Setenv(reportVariable, filepath.Join(dir, reportName)))
}

// ownProgram is a path to the running program that outlives its replacement on disk, if /proc allows.
func ownProgram() (string, error) {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", err
	}
	running := fmt.Sprintf("/proc/%d/exe", os.Getpid())
	if st, err := os.Stat(running); err == nil && os.SameFile(st, self) {
		return running, nil
	}
	path, err := os.Executable()
	return strings.TrimSuffix(path, deletedExecSign), err
}

// Fusermount is what the program does under the name fusermount3, with the arguments that follow it; it returns the exit status. As
// root, of a user namespace also, it mounts or unmounts itself. Otherwise, or if it may not, it runs the system's fusermount3.
func Fusermount(args []string) int {
	err := fusermount(args)
	if err == nil {
		return 0
	}
	text := err.Error()
	var errno syscall.Errno
	if errors.As(err, &errno) {
		text = strconv.Itoa(int(errno)) + " " + text
	}
	report := os.Getenv(reportVariable)
	if report == "" || os.WriteFile(report, []byte(text), 0o600) != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", HelperName, err)
	}
	return 1
}

// reportedError is what the helper told: its text and, where it failed in a system call, the errno.
type reportedError struct {
	text  string
	errno syscall.Errno
}

func (e *reportedError) Error() string { return e.text }

func (e *reportedError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

func reported(text string) error {
	number, rest, _ := strings.Cut(text, " ")
	if n, err := strconv.Atoi(number); err == nil && n > 0 {
		return &reportedError{rest, syscall.Errno(n)}
	}
	return &reportedError{text: text}
}

func fusermount(args []string) error {
	a, err := direct.Parse(args)
	if err != nil {
		return err
	}
	if dev, ok := direct.Descriptor(a.Target); ok {
		return passOn(a, dev)
	}
	if os.Geteuid() == 0 {
		switch {
		case a.Unmount:
			err = Unmount(a.Target, a.Lazy)
		default:
			err = mountDirectly(a)
		}
		if !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	text, systemErr := runSystem(args, commSocket())
	if systemErr != nil {
		if err != nil {
			return err // the kernel's own refusal says more
		}
		return fmt.Errorf("%w: %s", systemErr, text)
	}
	return nil
}

// commSocket is the socket over which the descriptor goes, nil if there is none.
func commSocket() *os.File {
	fd, ok := direct.Socket()
	if !ok {
		return nil
	}
	return os.NewFile(uintptr(fd), direct.SocketVariable)
}

// runSystem runs the system's fusermount3 and returns what it said.
func runSystem(args []string, socket *os.File) (string, error) {
	at := slices.IndexFunc(systemHelpers, func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	})
	if at < 0 {
		return "", fmt.Errorf("mounting as a user needs %s (package fuse3): %w", systemHelpers[0], fs.ErrNotExist)
	}
	var said bytes.Buffer
	cmd := exec.Command(systemHelpers[at], args...)
	cmd.Stdout, cmd.Stderr = io.Discard, &said
	if socket != nil {
		cmd.ExtraFiles = []*os.File{socket}
		cmd.Env = append(os.Environ(), direct.SocketVariable+"=3")
	}
	err := cmd.Run()
	return withoutName(said.String()), err
}

// withoutName takes the program's name off the lines it printed.
func withoutName(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, line := range lines {
		if _, rest, ok := strings.Cut(line, HelperName+": "); ok {
			lines[i] = rest
		}
	}
	return strings.Join(lines, "; ")
}

// passOn passes on a device that is mounted already. Whoever mounted it unmounts it.
func passOn(a direct.Args, dev int) error {
	if a.Unmount {
		return nil
	}
	socket, ok := direct.Socket()
	if !ok {
		return errNoSocket
	}
	if err := direct.Pass(dev, socket); err != nil {
		return fmt.Errorf("passing %s on: %w", a.Target, err)
	}
	return nil
}

var errNoSocket = fmt.Errorf("%s names no socket", direct.SocketVariable)

// mountDirectly calls mount(2) and passes the descriptor on.
func mountDirectly(a direct.Args) error {
	socket, ok := direct.Socket()
	if !ok {
		return errNoSocket
	}
	err := direct.Mount(a, socket)
	var device *fs.PathError
	if errors.As(err, &device) {
		return pathError(device.Op, device.Path, device.Err)
	}
	return err
}
