package cachedb

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/index"
)

// Lower is a cache below the node's own: a directory on a shared filesystem that many nodes use at once. It holds plain files,
//
//	<2 hex>/<64 hex>                  an object's plain content, named by its SHA-256
//	notes/<repository>/manifest       signed notes, and whitelist beside it
//	servers/<SHA-256 of a URL>        the name of the repository there
//
// each of which appears whole, by a rename. Nobody owns it and nothing in it is trusted: whoever may write there can only make a file useless.
// Files may be removed at any time. What the filesystem does not answer is left to itself: a caller waits as long as its context says.
type Lower struct {
	dir     string
	log     *slog.Logger
	slots   *semaphore.Weighted // operations under way
	writing *semaphore.Weighted // of these, what PutLater began
	late    atomic.Int32        // operations nobody waits for any more
	pause   atomic.Int64        // nothing is written until then, Unix ns
	wg      sync.WaitGroup
	count   lowerCounters
}

const (
	lowerSlots  = 32
	lowerWrites = 8
	lowerPause  = time.Minute      // after a write that went wrong
	lowerTime   = 30 * time.Second // for a write that nobody waits for
	lowerClose  = 2 * time.Second
)

// NewLower returns the lower cache in dir, which need not be there yet and is never created: a filesystem that is not mounted must not be
// filled in its place. It touches nothing.
func NewLower(dir string, log *slog.Logger) *Lower {
	l := &Lower{dir: dir, log: log, slots: semaphore.NewWeighted(lowerSlots), writing: semaphore.NewWeighted(lowerWrites)}
	l.count.init()
	return l
}

// Dir returns the directory.
func (l *Lower) Dir() string { return l.dir }

// Late reports whether the filesystem owes answers that nobody waits for any more: it hangs, or is very slow.
func (l *Lower) Late() bool { return l.late.Load() > 0 }

// Close waits a little for what is under way. What hangs in the kernel ends with the process.
func (l *Lower) Close() {
	done := make(chan struct{})
	go func() { l.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(lowerClose):
	}
}

// do runs f on the directory. When ctx ends first f goes on alone: it must keep what it does to itself.
func (l *Lower) do(ctx context.Context, f func(root *os.Root) error) error {
	if err := l.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	done := make(chan error, 1)
	var left atomic.Bool // one side has left
	l.wg.Go(func() {
		defer l.slots.Release(1)
		err := func() error {
			root, err := os.OpenRoot(l.dir)
			if err != nil {
				return err
			}
			defer root.Close()
			return f(root)
		}()
		if left.Swap(true) {
			l.late.Add(-1)
		}
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		l.late.Add(1)
		if left.Swap(true) {
			l.late.Add(-1) // it has just ended
		}
		return ctx.Err()
	}
}

func lowerPath(d index.Digest) string {
	sum := d.Sum()
	h := hex.EncodeToString(sum[:])
	return h[:2] + "/" + h
}

// Get returns object d of size bytes, checked against its digest. The error is fs.ErrNotExist wrapped if it is not there. Nobody may change
// the result.
func (l *Lower) Get(ctx context.Context, d index.Digest, size int64) ([]byte, error) {
	if size <= 0 || size > index.MaxObject || d.Algorithm() != index.SHA256 {
		return nil, fmt.Errorf("getting object %v: size %d: %w", d, size, fs.ErrInvalid)
	}
	answer := make(chan []byte, 1)
	err := l.do(ctx, func(root *os.Root) error {
		b, err := readRegular(root, lowerPath(d), size, size)
		if err == nil && sha256.Sum256(b) != d.Sum() {
			err = fmt.Errorf("content does not match its digest: %w", errDamaged)
		}
		answer <- b
		return err
	})
	switch {
	case err == nil:
		l.count.hits.add(1)
		return <-answer, nil
	case errors.Is(err, fs.ErrNotExist):
		l.count.misses.add(1)
	case errors.Is(err, errDamaged):
		l.count.damaged.add(1)
		l.log.Warn("lower cache: not the object", "dir", l.dir, "digest", d, "err", err)
	case ctx.Err() != nil:
		l.count.slow.add(1)
	default:
		l.count.failed.add(1)
	}
	return nil, fmt.Errorf("lower cache %q: %w", l.dir, err)
}

// readRegular reads a regular file of least to most bytes. It opens nothing that could make it wait, and goes by what it opened.
func readRegular(root *os.Root, name string, least, most int64) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() < least || st.Size() > most {
		return nil, fmt.Errorf("%v, %d bytes: %w", st.Mode(), st.Size(), errDamaged)
	}
	b := make([]byte, st.Size())
	if _, err := io.ReadFull(f, b); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("file is short: %w", errDamaged)
	} else if err != nil {
		return nil, err
	}
	return b, nil
}

// Has reports whether there is a file of the right length in the place of d. Only Get tells whether it is the object.
func (l *Lower) Has(ctx context.Context, d index.Digest, size int64) bool {
	return l.do(ctx, func(root *os.Root) error {
		st, err := root.Lstat(lowerPath(d))
		if err == nil && (!st.Mode().IsRegular() || st.Size() != size) {
			err = errDamaged
		}
		return err
	}) == nil
}

// Put stores verified plain content, in the place of whatever is there.
func (l *Lower) Put(ctx context.Context, d index.Digest, plain []byte) error {
	err := l.do(ctx, func(root *os.Root) error { return writeLower(root, lowerPath(d), plain) })
	if err != nil {
		l.count.writeErrors.add(1)
		return fmt.Errorf("lower cache %q: storing %v: %w", l.dir, d, err)
	}
	l.count.stored.add(1)
	return nil
}

// PutLater is Put in the background, where others wait for nothing: it does without if too much is being written already, the directory
// belongs to others, or the last write went wrong a moment ago.
func (l *Lower) PutLater(d index.Digest, plain []byte) {
	if l.Late() || time.Now().UnixNano() < l.pause.Load() || !l.writing.TryAcquire(1) {
		return
	}
	l.wg.Go(func() {
		defer l.writing.Release(1)
		ctx, cancel := context.WithTimeout(context.Background(), lowerTime)
		defer cancel()
		l.paused(l.Put(ctx, d, plain))
	})
}

// paused lets no more be written for a while after an error.
func (l *Lower) paused(err error) {
	if err == nil {
		return
	}
	now := time.Now()
	if before := l.pause.Swap(now.Add(lowerPause).UnixNano()); before < now.Add(-lowerPause).UnixNano() && !errors.Is(err, fs.ErrNotExist) &&
		!errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.EROFS) {
		l.log.Warn("lower cache: writing pauses", "dir", l.dir, "err", err)
	}
}

// writeLower makes a file appear whole. A directory made for it is open to whom the whole is open to.
func writeLower(root *os.Root, name string, b []byte) (err error) {
	top, err := root.Stat(".")
	if err != nil {
		return err
	}
	for i := range name {
		if name[i] != '/' {
			continue
		}
		switch err := root.Mkdir(name[:i], 0o700); {
		case errors.Is(err, fs.ErrExist):
		case err != nil:
			return err
		default:
			if err := root.Chmod(name[:i], top.Mode()&(fs.ModePerm|fs.ModeSetgid|fs.ModeSticky)); err != nil {
				return err
			}
		}
	}
	fresh := path.Dir(name) + "/.new-" + strconv.FormatUint(rand.Uint64(), 36)
	f, err := root.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = root.Remove(fresh) // or whoever looks after the directory does
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(top.Mode() & 0o444)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return root.Rename(fresh, name)
}

func notePath(repository, what string) string { return "notes/" + repository + "/" + what }

func serverPath(url string) string {
	sum := sha256.Sum256([]byte(url))
	return "servers/" + hex.EncodeToString(sum[:])
}

// Note returns the note called what, "manifest" or "whitelist", of a repository: whatever somebody put there.
func (l *Lower) Note(ctx context.Context, repository, what string) ([]byte, error) {
	if err := index.ValidName(repository); err != nil {
		return nil, err
	}
	return l.small(ctx, notePath(repository, what))
}

// RepositoryAt returns the name of the repository that somebody found at a URL.
func (l *Lower) RepositoryAt(ctx context.Context, url string) (string, error) {
	b, err := l.small(ctx, serverPath(url))
	if err == nil {
		err = index.ValidName(string(b))
	}
	return string(b), err
}

func (l *Lower) small(ctx context.Context, name string) ([]byte, error) {
	answer := make(chan []byte, 1)
	err := l.do(ctx, func(root *os.Root) error {
		b, err := readRegular(root, name, 1, index.MaxNote)
		answer <- b
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lower cache %q: %w", l.dir, err)
	}
	return <-answer, nil
}

// PutNotes stores a repository's manifest and whitelist, and its name under the URLs it was found at.
func (l *Lower) PutNotes(ctx context.Context, repository string, manifest, whitelist []byte, urls []string) error {
	err := l.do(ctx, func(root *os.Root) error {
		// The whitelist first: it may have to list a new key before a manifest is signed with it.
		err := writeLower(root, notePath(repository, "whitelist"), whitelist)
		if err == nil {
			err = writeLower(root, notePath(repository, "manifest"), manifest)
		}
		for _, u := range urls {
			if err == nil {
				err = writeLower(root, serverPath(u), []byte(repository))
			}
		}
		return err
	})
	if err != nil {
		l.paused(err)
		return fmt.Errorf("lower cache %q: storing the manifest of %s: %w", l.dir, repository, err)
	}
	return nil
}

// LowerStats is a snapshot of what this process did with a lower cache.
type LowerStats struct {
	Hits        int64
	Misses      int64
	Damaged     int64 // files that were not what their names say
	Slow        int64 // reads that took longer than their callers wait
	Failed      int64 // reads that ended with another error
	Stored      int64
	WriteErrors int64
	Late        int64 // operations under way that nobody waits for any more
}

// Stats returns a snapshot.
func (l *Lower) Stats() LowerStats {
	c := &l.count
	return LowerStats{c.hits.n.Load(), c.misses.n.Load(), c.damaged.n.Load(), c.slow.n.Load(), c.failed.n.Load(), c.stored.n.Load(), c.writeErrors.n.Load(), int64(l.late.Load())}
}

type lowerCounters struct {
	hits, misses, damaged, slow, failed, stored, writeErrors counter
}

func (c *lowerCounters) init() {
	c.hits.metric, c.misses.metric, c.damaged.metric = metricLowerHits, metricLowerMisses, metricLowerDamaged
	c.slow.metric, c.failed.metric = metricLowerSlow, metricLowerFailed
	c.stored.metric, c.writeErrors.metric = metricLowerStored, metricLowerWriteErrors
}
