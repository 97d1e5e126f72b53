package mountd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/fusefs"
)

// Daemon owns one cache directory and all mounts over it.
type Daemon struct {
	cfg     Config
	place   place
	log     *slog.Logger
	db      *cachedb.DB
	origins *origins
	active  *activity
	ahead   *semaphore.Weighted
	begun   time.Time

	ctx    context.Context // ends when the daemon is to stop
	cancel context.CancelFunc
	wg     sync.WaitGroup

	config    atomic.Pointer[Settings]
	started   *Settings  // what config was at the start
	reloading sync.Mutex // held by reload; taken before a target's lock

	lastID   atomic.Int64
	devices  atomic.Int64 // sent along with requests, so far
	targets  targetLocks
	pinning  sync.Mutex    // held while pins change
	repinned chan struct{} // closed once what the records of pins name is pinned
	leftMu   sync.Mutex    // held while the list of detached mounts changes
	seen     seenImages
	mu       sync.Mutex // guards what follows; taken after a target's lock
	mounts   map[string]*mount
	leaving  map[*mount]bool // detached, with users left
}

// daemonRecord is what Run leaves in the socket directory while the daemon lives. One that is there without a daemon tells of a
// daemon that died.
type daemonRecord struct {
	PID     int           `json:"pid"`
	Version string        `json:"version"`
	Cache   string        `json:"cache"`
	Idle    time.Duration `json:"idle"` // as in Config
}

// inUseWait is how long a daemon waits for the one before it to leave the cache.
const inUseWait = drainTime + 10*time.Second

// Run is a daemon's life: it opens the cache, mounts again what was mounted when the last daemon of this cache died, answers on the
// control socket, and ends with ctx or when it is idle. ready is called when commands can be answered.
func Run(ctx context.Context, cfg Config, ready func()) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d := &Daemon{
		repinned: make(chan struct{}),
		cfg:      cfg, place: newPlace(cfg.Home, cfg.Cache), log: cfg.Log, origins: newOrigins(), ahead: semaphore.NewWeighted(readAhead),
		begun: time.Now(), mounts: map[string]*mount{}, leaving: map[*mount]bool{}, targets: targetLocks{m: map[string]chan struct{}{}},
	}
	d.ctx, d.cancel = context.WithCancel(ctx)
	defer d.cancel()
	if err := d.open(ctx); err != nil {
		return err
	}
	err := d.serve(ready)
	d.origins.close()
	err = errors.Join(err, d.closeCache())
	d.log.Info("daemon ended", "cache", d.place.cache, "err", err)
	return err
}

// closeTime bounds the time for writing down what the cache's index has in memory.
const closeTime = time.Minute

// closeCache leaves the cache clean if it can. A directory that somebody removed, as batch systems do at a job's end, is left alone: its
// index would be written again and again.
func (d *Daemon) closeCache() error {
	if _, err := os.Stat(filepath.Join(d.db.Dir(), "lock")); err != nil {
		return fmt.Errorf("the cache directory was removed while in use: %w", err)
	}
	closed := make(chan error, 1)
	go func() { closed <- d.db.Close() }()
	select {
	case err := <-closed:
		return err
	case <-time.After(closeTime):
		return fmt.Errorf("closing cache %q: not done within %v", d.place.cache, closeTime)
	}
}

// open takes the cache over.
func (d *Daemon) open(ctx context.Context) error {
	if d.cfg.Load != nil {
		s, err := d.cfg.Load()
		if err != nil {
			return &Error{Usage, err}
		}
		d.config.Store(s)
		d.started = s
	}
	if err := checkRun(d.place.run, d.cfg.Group); err != nil {
		return err
	}
	if err := fusefs.PrepareHelper(d.place.helper()); err != nil {
		return err
	}
	c, err := d.cacheConfig()
	if err != nil {
		return err
	}
	for end := time.Now().Add(inUseWait); ; {
		d.db, err = cachedb.Open(c)
		if !errors.Is(err, cachedb.ErrInUse) || time.Now().After(end) || ctx.Err() != nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil || !c.RAM {
		return err
	}
	// What was pinned went with the daemon before.
	for key := range d.db.States(pinState) {
		err = errors.Join(err, d.db.DeleteState(key))
	}
	return err
}

// cacheConfig says how the cache is opened.
func (d *Daemon) cacheConfig() (cachedb.Config, error) {
	c := cachedb.Config{Log: d.log, Large: d.cfg.Large}
	if limit, ok := ramLimit(d.place.cache); ok {
		c.Dir, c.RAM, c.Limit = d.place.ram(), true, limit
		return c, nil
	}
	real, err := cacheDir(d.place.cache)
	if err != nil {
		return c, err
	}
	d.place.cache = real
	if m := d.cfg.Memory; m != nil {
		if c.Memory = *m; c.Memory == 0 {
			c.Memory = -1
		}
	}
	c.Dir, c.Limit = real, cmp.Or(d.cfg.Quota, d.settings().Quota) // else what the cache remembers
	return c, nil
}

// serve answers until the daemon is to end, and takes everything down.
func (d *Daemon) serve(ready func()) error {
	if err := d.writeRecord(); err != nil {
		return err
	}
	listener, given, err := d.listen()
	if err != nil {
		return err
	}
	if err := d.serveMetrics(); err != nil {
		listener.Close()
		return err
	}
	d.active = newActivity(d.cfg.Idle, d.cancel)
	release, _ := d.active.hold()
	d.restore()
	server := d.server()
	failed := make(chan error, 1)
	d.wg.Go(func() { failed <- server.Serve(descriptorListener{listener}) })
	d.wg.Go(d.reloadOnSignal)
	d.wg.Go(d.sweep)
	d.wg.Go(d.notice)
	d.wg.Go(d.markInUse)
	d.wg.Go(func() { watchdog(d.ctx, d.log, d.alive) })
	d.log.Info("daemon ready", "cache", d.place.cache, "socket", d.place.socket(), "mounts", len(d.mounts))
	notifyReady(d.log, len(d.mounts))
	if ready != nil {
		ready()
	}
	release()
	select {
	case <-d.ctx.Done():
		err = nil
	case err = <-failed:
	}
	notifyStopping(d.log)
	d.active.end()
	// From here on a new command starts the next daemon, which waits for the cache.
	if !given { // systemd keeps its own, and starts the next daemon for who connects
		os.Remove(d.place.socket())
	}
	d.cancel()
	stop, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if server.Shutdown(stop) != nil {
		server.Close()
	}
	d.takeDown()
	d.wg.Wait()
	os.Remove(d.place.record())
	return err
}

func (d *Daemon) reloadOnSignal() {
	for {
		select {
		case <-d.cfg.Reload:
			notify(d.log, sd.SdNotifyReloading)
			if _, err := d.reload(); err != nil {
				d.log.Error("reloading the configuration: it stays as it was", "err", err)
			}
			notify(d.log, sd.SdNotifyReady)
		case <-d.ctx.Done():
			return
		}
	}
}

// alive returns when the daemon's locks can be had.
func (d *Daemon) alive() {
	d.mu.Lock()
	defer d.mu.Unlock()
}

func (d *Daemon) writeRecord() error {
	b, err := json.Marshal(daemonRecord{os.Getpid(), d.cfg.Version, d.place.cache, d.cfg.Idle})
	if err != nil {
		return err
	}
	path := d.place.record()
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("recording the daemon: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("recording the daemon: %w", err)
	}
	return nil
}

// giveSocket lets the daemon's user and a group use a socket.
func giveSocket(path string, group uint32) error {
	if group == 0 {
		return os.Chmod(path, 0o600)
	}
	if err := os.Lchown(path, -1, int(group)); err != nil {
		return err
	}
	return os.Chmod(path, 0o660)
}

// listenUnix listens at path, which whoever holds the cache may take over.
func listenUnix(path string, group uint32) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	var l *net.UnixListener
	err := shortPath(path, func(short string) (err error) {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("control socket %q: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := giveSocket(path, group); err != nil {
		l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

// maxSocketPath is what a sockaddr_un holds, in bytes.
const maxSocketPath = 107

// shortPath calls f with a name for path that fits into a socket address.
func shortPath(path string, f func(short string) error) error {
	if len(path) <= maxSocketPath {
		return f(path)
	}
	dir, name := filepath.Split(path)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", fd, name))
}

// targetLocks let one at a time change what is mounted at a target.
type targetLocks struct {
	mu sync.Mutex // guards m
	m  map[string]chan struct{}
}

// lock waits for the target until ctx ends.
func (l *targetLocks) lock(ctx context.Context, target string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		busy := l.m[target]
		if busy == nil {
			mine := make(chan struct{})
			l.m[target] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.m, target)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
