package publish

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Writers of a repository keep order by locks on files below .publish:
//
//	gate        held by who is about to convert, for a moment, and by GC for as long as it runs
//	converting  shared by all who convert; GC takes it alone
//	lock        held by who reads the manifest and replaces it
//	writing-*   one for each who converts, locked by him: one that nobody holds is of a writer that ended without syncing
//
// They are taken in this order. Nobody who waits for the gate holds another, so GC, which waits for the conversions that run, never
// waits for one that waits for it.

// lock waits until no other process replaces the manifest, and keeps others waiting until unlock.
func (r *Repo) lock(ctx context.Context) (unlock func(), err error) {
	return r.flock(ctx, "lock", unix.LOCK_EX)
}

func (r *Repo) flock(ctx context.Context, name string, how int) (unlock func(), err error) {
	dir := filepath.Join(r.dir, privateDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("locking repository: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking repository: %w", err)
	}
	for begun := time.Now(); ; {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return func() { release(f) }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("locking repository %s: %w", r.dir, err)
		}
		if waited := time.Since(begun); waited > time.Second && !r.waiting.Swap(true) {
			r.log.Info("waiting for another writer", "repository", r.name)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for another writer of %s: %w", r.dir, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// join begins a conversion beside others: it refuses a repository that can't be signed, opens the store to write, and leaves a mark
// until all is on disk. After a writer that ended without syncing, what is found among the objects is checked before it is used.
func (r *Repo) join(ctx context.Context) (end func(), err error) {
	if err := isMirrorOf(r.dir); err != nil {
		return nil, err
	}
	open, err := r.flock(ctx, "gate", unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer open()
	if err := r.mayPublish(ctx); err != nil {
		return nil, err
	}
	// Alone for the moment: temporary files that a killed writer left can go. Beside others they may be theirs.
	alone, unlockAlone := r.tryAlone()
	finish, err := r.mark(alone)
	if unlockAlone != nil {
		unlockAlone()
	}
	if err != nil {
		return nil, err
	}
	leave, err := r.flock(ctx, "converting", unix.LOCK_SH)
	if err != nil {
		finish()
		return nil, err
	}
	return func() {
		finish()
		leave()
	}, nil
}

// mayPublish reads the manifest and refuses before the work what signing would refuse after it.
func (r *Repo) mayPublish(ctx context.Context) error {
	unlock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := r.reload(); err != nil {
		return err
	}
	_, err = r.authorize(r.now())
	return err
}

// release gives a lock back and closes its file. Closing alone would not, while a child that another goroutine forks holds the file too.
func release(f *os.File) {
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	f.Close()
}

func (r *Repo) tryAlone() (bool, func()) {
	f, err := os.OpenFile(filepath.Join(r.dir, privateDir, "converting"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return false, nil
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		f.Close()
		return false, nil
	}
	return true, func() { release(f) }
}

// begin waits until nobody converts, and keeps everybody out until end.
func (r *Repo) begin(ctx context.Context) (end func(), err error) {
	if err := isMirrorOf(r.dir); err != nil {
		return nil, err
	}
	var held []func()
	release := func() {
		for i := len(held) - 1; i >= 0; i-- {
			held[i]()
		}
	}
	for _, name := range []string{"gate", "converting", "lock"} {
		unlock, err := r.flock(ctx, name, unix.LOCK_EX)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, unlock)
	}
	if err := r.reload(); err != nil {
		release()
		return nil, err
	}
	finish, err := r.mark(true)
	if err != nil {
		release()
		return nil, err
	}
	return func() {
		finish()
		release()
	}, nil
}

// mark opens the store to write and leaves a mark of it. The returned function syncs and takes it away, with those of writers that
// ended without.
func (r *Repo) mark(alone bool) (finish func(), err error) {
	if r.store, err = openStore(r.dir); err != nil {
		return nil, err
	}
	dead, others, err := r.marks()
	if err != nil {
		return nil, err
	}
	// What others have written may not be on disk yet, and will be used.
	r.store.dirty.Store(len(dead) > 0 || others)
	r.store.doubt = len(dead) > 0
	if len(dead) > 0 && alone {
		if err := r.store.sweep(); err != nil {
			return nil, fmt.Errorf("removing temporary files of an interrupted publish: %w", err)
		}
	}
	f, err := os.CreateTemp(filepath.Join(r.dir, privateDir), "writing-*")
	if err != nil {
		return nil, fmt.Errorf("beginning to write: %w", err)
	}
	if err := errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_EX), syncDir(filepath.Dir(f.Name()))); err != nil {
		f.Close()
		return nil, fmt.Errorf("beginning to write: %w", err)
	}
	r.own = f.Name()
	return func() {
		defer f.Close()
		if r.store.sync() != nil {
			return
		}
		os.Remove(f.Name())
		if alone {
			for _, path := range dead {
				os.Remove(path)
			}
		}
	}, nil
}

// marks lists the marks of writers that ended without syncing, and says whether others write now.
func (r *Repo) marks() (dead []string, others bool, err error) {
	dir := filepath.Join(r.dir, privateDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, false, fmt.Errorf("beginning to write: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !strings.HasPrefix(e.Name(), "writing") || path == r.own {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			continue // it ended well just now
		}
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); {
		case err == nil:
			dead = append(dead, path)
		case errors.Is(err, unix.EWOULDBLOCK):
			others = true
		}
		f.Close()
	}
	return dead, others, nil
}

// reviseShared is revise for one who converts beside others: the manifest may have changed since it was read.
func (r *Repo) reviseShared(ctx context.Context, edit func(t *nameTree) error) (changed bool, err error) {
	unlock, err := r.lock(ctx)
	if err != nil {
		return false, err
	}
	defer unlock()
	if err := r.reload(); err != nil {
		return false, err
	}
	if _, others, err := r.marks(); err != nil || others {
		r.store.dirty.Store(true)
	}
	return r.revise(ctx, edit)
}
