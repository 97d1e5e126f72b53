package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"bazil.org/fuse"
	"golang.org/x/sys/unix"
)

// Options says how to mount. A mount is always read-only and nodev, nosuid unless the options say otherwise, and the kernel checks permissions itself.
type Options struct {
	// Source is shown as the device in the list of mounts; empty is "skimfs".
	Source string
	// AllowOther lets users other than the mounting one in. An unprivileged user needs user_allow_other in /etc/fuse.conf.
	AllowOther bool
	// Readers is the number of goroutines that read requests; 0 is one for each CPU, 2 to 8.
	Readers int
	// FollowClient keeps the readers on the CPU of the thread whose requests they read.
	FollowClient bool
	// Suid has set-user-ID bits and file capabilities count. Only root may.
	Suid bool
	// Directory, if there is one, is the target, opened: it is mounted on whatever the target's path leads to by now.
	Directory *os.File
	// Device, if there is one, is mounted already, by whoever opened it, and its kernel waits for the first answer. Source and AllowOther are
	// his. It need not be mounted read-only: what would write is refused here.
	Device *os.File
}

const (
	readAheadBytes = 1 << 20 // the kernel takes the smaller of this and its own, 128 KiB
	maxBackground  = 64
	congestion     = 48
	leastInherited = 10
)

// Mounted is a mounted Core.
type Mounted struct {
	core   *Core
	target string
	done   chan struct{}
}

// mounting is held while the helper runs: its report has one place.
var mounting sync.Mutex

// Mount mounts core on the directory target and serves it until it is unmounted. It returns when the mount answers. PrepareHelper
// must have been called. With a Device, target is only a name for it, and the caller closes it afterwards.
func Mount(core *Core, target string, o Options) (*Mounted, error) {
	at, err := filepath.Abs(target)
	if err != nil {
		return nil, fmt.Errorf("mounting: %w", err)
	}
	switch {
	case o.Directory != nil:
		target, at = at, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), o.Directory.Fd())
	case o.Device == nil:
		target = at
	default:
		// Without close-on-exec, so that the helper has it; not 3, which is the helper's socket.
		fd, err := unix.FcntlInt(o.Device.Fd(), unix.F_DUPFD, leastInherited)
		if err != nil {
			return nil, fmt.Errorf("mounting on %s: %w", target, err)
		}
		defer unix.Close(fd)
		at = "/dev/fd/" + strconv.Itoa(fd)
	}
	if o.Source == "" {
		o.Source = subtype
	}
	options := []fuse.MountOption{fuse.FSName(o.Source), fuse.Subtype(subtype), fuse.ReadOnly(), fuse.DefaultPermissions(),
		fuse.MaxReadahead(readAheadBytes), fuse.AsyncRead(), fuse.MaxBackground(maxBackground), fuse.CongestionThreshold(congestion)}
	if o.AllowOther {
		options = append(options, fuse.AllowOther())
	}
	if o.Suid {
		options = append(options, fuse.AllowSUID())
	}
	if !core.Repository() {
		options = append(options, fuse.CacheSymlinks())
	}
	conn, err := connect(at, options)
	if err != nil {
		return nil, fmt.Errorf("mounting on %s: %w", target, err)
	}
	m := &Mounted{core: core, target: target, done: make(chan struct{})}
	s := newServer(core, conn, o)
	go func() {
		defer close(m.done)
		s.wait()
	}()
	return m, nil
}

// connect has the helper mount, and turns its report into the error.
func connect(target string, options []fuse.MountOption) (*fuse.Conn, error) {
	mounting.Lock()
	defer mounting.Unlock()
	report := os.Getenv(reportVariable)
	if report == "" {
		return nil, errors.New("no mount helper is prepared")
	}
	if err := os.Remove(report); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	conn, err := fuse.Mount(target, options...)
	if err == nil {
		return conn, nil
	}
	if text, readErr := os.ReadFile(report); readErr == nil && len(text) > 0 {
		return nil, reported(strings.TrimSpace(string(text)))
	}
	return nil, err
}

// Core returns what is mounted.
func (m *Mounted) Core() *Core { return m.core }

// Target returns the absolute path of the mountpoint.
func (m *Mounted) Target() string { return m.target }

// Done is closed when the connection has ended: the mount is gone from all mount namespaces, or was aborted. The Core is not
// used any more then.
func (m *Mounted) Done() <-chan struct{} { return m.done }

// Wait waits for Done.
func (m *Mounted) Wait() { <-m.done }

// Drain returns when the requests that wait for content now are answered, or with ctx's error.
func (m *Mounted) Drain(ctx context.Context) error { return m.core.stats.drain(ctx) }

// Unmount removes the mount from this mount namespace. With lazy it disappears now and ends when its last user leaves; else a mount
// in use is an error (EBUSY as root). It never forces. A user's mount is removed by the system's fusermount3.
func Unmount(target string, lazy bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		err := unix.Unmount(target, flags)
		if err == nil || !errors.Is(err, unix.EPERM) {
			return pathError("unmounting", target, err)
		}
	}
	args := []string{"-u", "--", target}
	if lazy {
		args = []string{"-u", "-z", "--", target}
	}
	if text, err := runSystem(args, nil); err != nil {
		return pathError("unmounting", target, fmt.Errorf("%w: %s", err, text))
	}
	return nil
}

func pathError(act, path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", act, path, err)
}
