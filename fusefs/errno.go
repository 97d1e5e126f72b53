package fusefs

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

var (
	errNotDir   = errors.New("not a directory")
	errIsDir    = errors.New("is a directory")
	errInvalid  = errors.New("the node is of another type")
	errStale    = errors.New("the node is no longer there")
	errNoAttr   = errors.New("no such attribute")
	errRange    = errors.New("the buffer is too small")
	errReadOnly = errors.New("read-only filesystem")
	errNoSys    = errors.New("not served, do not ask again")
	errLongName = errors.New("the name has more than 255 bytes")
	errNoIoctl  = errors.New("no such ioctl")
	errKilled   = errors.New("the requester is being killed")
	errDeadline = errors.New("no answer within the deadline")
)

// errnoOf lists what is not EIO.
var errnoOf = []struct {
	err   error
	errno syscall.Errno
}{
	{errNoAttr, syscall.ENODATA},
	{errNoSys, syscall.ENOSYS},
	{fs.ErrNotExist, syscall.ENOENT},
	{errRange, syscall.ERANGE},
	{errReadOnly, syscall.EROFS},
	{errKilled, syscall.EINTR},
	{errStale, syscall.ESTALE},
	{errNotDir, syscall.ENOTDIR},
	{errIsDir, syscall.EISDIR},
	{errInvalid, syscall.EINVAL},
	{errLongName, syscall.ENAMETOOLONG},
	{errNoIoctl, syscall.ENOTTY},
	{fs.ErrPermission, syscall.EACCES},
}

var errnoNames = map[syscall.Errno]string{
	syscall.ENODATA: "ENODATA", syscall.ENOSYS: "ENOSYS", syscall.ENOENT: "ENOENT", syscall.ERANGE: "ERANGE", syscall.EROFS: "EROFS",
	syscall.EINTR: "EINTR", syscall.ESTALE: "ESTALE", syscall.ENOTDIR: "ENOTDIR", syscall.EISDIR: "EISDIR", syscall.EINVAL: "EINVAL",
	syscall.ENOTTY: "ENOTTY", syscall.EACCES: "EACCES", syscall.ENAMETOOLONG: "ENAMETOOLONG", syscall.EIO: "EIO",
}

const (
	logBurst  = 20 // lines
	logWindow = 10 * time.Second
)

// errnos picks the errno for each error, counts it, and logs what is EIO.
type errnos struct {
	log    *slog.Logger
	counts map[syscall.Errno]*metrics.Counter
	panics *metrics.Counter

	mu      sync.Mutex // guards what follows
	since   time.Time
	lines   int
	dropped int
}

func newErrnos(log *slog.Logger, set *metrics.Set, labels string) *errnos {
	e := &errnos{log: log, counts: map[syscall.Errno]*metrics.Counter{}}
	for errno, name := range errnoNames {
		e.counts[errno] = set.GetOrCreateCounter(metricName("skimfs_fuse_errors_total", labels, "errno", name))
	}
	e.panics = set.GetOrCreateCounter(metricName("skimfs_fuse_panics_total", labels))
	return e
}

// sourceError is an error of the source of chunks or catalogs: EIO whatever caused it. A firewall's "permission denied" says nothing
// about the file.
type sourceError struct{ err error }

func (s *sourceError) Error() string { return s.err.Error() }
func (s *sourceError) Unwrap() error { return s.err }

// pick returns the errno for err, which must not be nil.
func (e *errnos) pick(op op, id NodeID, err error) syscall.Errno {
	var source *sourceError
	outside := errors.As(err, &source)
	for _, row := range errnoOf {
		if errors.Is(err, row.err) && (!outside || row.errno == syscall.EINTR) {
			e.counts[row.errno].Inc()
			return row.errno
		}
	}
	e.counts[syscall.EIO].Inc()
	if log, dropped := e.mayLog(); log {
		e.log.Error("input/output error", "op", op.String(), "inode", uint64(id), "err", err, "suppressed", dropped)
	}
	return syscall.EIO
}

// mayLog limits the lines of a mount whose network is gone, and tells how many were left out.
func (e *errnos) mayLog() (bool, int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := time.Now(); now.Sub(e.since) > logWindow {
		e.since, e.lines = now, 0
	}
	if e.lines++; e.lines > logBurst {
		e.dropped++
		return false, 0
	}
	dropped := e.dropped
	e.dropped = 0
	return true, dropped
}

// panicError is a panic turned into an error: a bug, or a fault in mapped memory.
type panicError struct {
	while string
	value any
}

func (p *panicError) Error() string { return fmt.Sprintf("panic while %s: %v", p.while, p.value) }

// panicked counts a recovered panic, logs it with its stack and returns it as an error.
func (e *errnos) panicked(while string, value any) error {
	e.panics.Inc()
	e.log.Error("panic", "while", while, "value", fmt.Sprint(value), "stack", string(debug.Stack()))
	return &panicError{while, value}
}
