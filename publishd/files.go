package publishd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxLog bounds a job's log in bytes.
const maxLog = 16 << 20

// lockState makes sure that one daemon owns a state directory.
func lockState(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("state directory %s: another publishd uses it", dir)
	}
	return func() {
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN) // a child that is being forked may hold the file too
		f.Close()
	}, nil
}

// removeSpool removes what a job left. What an ordinary user built belongs in part to users of a namespace, in which alone it can be removed.
func removeSpool(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || os.Geteuid() == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if out, e := exec.CommandContext(ctx, "buildah", "unshare", "rm", "-rf", dir).CombinedOutput(); e != nil {
		return fmt.Errorf("%w; buildah unshare: %w: %s", err, e, bytes.TrimSpace(out))
	}
	return nil
}

func (d *Daemon) logPath(job string) string { return filepath.Join(d.cfg.State, "logs", job+".log") }

// limited writes to a file up to a limit.
type limited struct {
	f    *os.File
	mu   sync.Mutex
	left int64
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(int64(len(p)), l.left)
	l.left -= n
	if _, err := l.f.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (l *limited) Close() error { return l.f.Close() }

func (d *Daemon) openLog(job string) (io.WriteCloser, error) {
	f, err := os.OpenFile(d.logPath(job), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &limited{f: f, left: maxLog - st.Size()}, nil
}

func (d *Daemon) removeLog(job string) { _ = os.Remove(d.logPath(job)) }

// Log opens the log of an operation's job.
func (d *Daemon) Log(id string) (io.ReadCloser, error) {
	o, err := d.Get(id)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(d.logPath(o.Metadata.Job))
	if errors.Is(err, fs.ErrNotExist) {
		return io.NopCloser(strings.NewReader("")), nil
	}
	return f, err
}

// asked names what a registry is asked for.
func (j *job) asked() string { return j.Request.Source + "\x00" + j.Request.Platform }

// negatives remembers for a moment what was not found.
type negatives struct {
	mu   sync.Mutex
	seen map[string]negative
}

type negative struct {
	p     *Problem
	until time.Time
}

func (n *negatives) recall(key string, now time.Time) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e, ok := n.seen[key]; ok && now.Before(e.until) {
		return e.p
	}
	delete(n.seen, key)
	return nil
}

func (n *negatives) forget(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.seen, key)
}

func (n *negatives) remember(key string, p *Problem, now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.seen == nil || len(n.seen) > 10_000 {
		n.seen = map[string]negative{}
	}
	n.seen[key] = negative{p, now.Add(negativeLife)}
}
