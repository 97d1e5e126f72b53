package fusefs

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/skimfs/skimfs/index"
	"golang.org/x/sync/errgroup"
)

const loadsAtOnce = 8

// Wait is the error of an operation that lacks a catalog; Core.Do loads it.
type Wait struct {
	core    *Core
	ref     index.CatalogRef
	missing *index.Missing // a nested catalog, or
	slot    *slot          // an image
}

func (w *Wait) Error() string { return fmt.Sprintf("catalog %v is not loaded", w.ref) }

// errContent is the error of a Read whose chunk is not on this node.
var errContent = errors.New("content is not on this node")

// Later reports whether err says that an operation has to wait, in Do or ReadWait, rather than that it can't be done.
func Later(err error) bool {
	if err == nil {
		return false
	}
	var w *Wait
	return errors.Is(err, errContent) || errors.As(err, &w)
}

// Do calls op, loads the catalog it lacks, and calls it again until it lacks none. It ends with ctx.
func (c *Core) Do(ctx context.Context, op func() error) error {
	for {
		err := op()
		var w *Wait
		if !errors.As(err, &w) {
			return err
		}
		if err := w.load(ctx); err != nil {
			return err
		}
	}
}

// load is one load of a catalog, however many wait for it.
type load struct {
	done chan struct{}
	cat  *index.Catalog
	err  error
}

// load brings the catalog in. It returns when that is done or ctx has ended; the load itself has a deadline of its own.
func (w *Wait) load(ctx context.Context) error {
	l, err := w.begin()
	if err != nil {
		return err
	}
	select {
	case <-l.done:
	case <-ctx.Done():
		return fmt.Errorf("waiting for catalog %v: %w", w.ref, context.Cause(ctx))
	}
	if l.err != nil {
		return l.err
	}
	return w.put(l.cat)
}

// begin starts a load or joins one.
func (w *Wait) begin() (*load, error) {
	c := w.core
	c.loadMu.Lock()
	defer c.loadMu.Unlock()
	if l := c.loads[w.ref]; l != nil {
		return l, nil
	}
	if c.closed {
		return nil, fmt.Errorf("loading catalog %v: the mount has ended", w.ref)
	}
	l := &load{done: make(chan struct{})}
	c.loads[w.ref] = l
	c.load.Go(func() {
		defer close(l.done)
		defer func() {
			c.loadMu.Lock()
			delete(c.loads, w.ref)
			c.loadMu.Unlock()
		}()
		w.run(l)
	})
	return l, nil
}

func (w *Wait) run(l *load) {
	debug.SetPanicOnFault(true)
	defer func() {
		if p := recover(); p != nil {
			l.err = w.core.errs.panicked("loading a catalog", p)
		}
	}()
	ctx, cancel := context.WithTimeoutCause(w.core.ctx, w.core.cfg.Deadline, errDeadline)
	defer cancel()
	var err error
	if l.cat, err = w.core.cfg.Catalogs(ctx, w.ref); err == nil {
		err = w.put(l.cat)
	}
	if err != nil {
		l.err = &sourceError{err}
	}
}

// put gives the catalog to the tree that lacks it. Doing so twice does no harm.
func (w *Wait) put(cat *index.Catalog) error {
	if w.missing != nil {
		return w.missing.Attach(cat)
	}
	if w.slot.tree.Load() != nil {
		return nil
	}
	t, err := index.NewImage(w.slot.mount.Load().row, cat)
	if err != nil {
		return err
	}
	return w.slot.set(t)
}

// Prepare loads all nested catalogs of the mounted image, several at a time, so that no later operation waits for one. It
// returns the first error but goes on with the rest: what failed is tried again at first touch.
func (c *Core) Prepare(ctx context.Context) error {
	var first error
	failed := map[index.CatalogRef]bool{}
	for {
		parts, err := c.top.tree.Load().Parts()
		if err != nil {
			return err
		}
		var g errgroup.Group
		g.SetLimit(loadsAtOnce)
		var mu sync.Mutex // guards failed
		more := false
		for _, m := range parts {
			mu.Lock()
			skip := failed[m.Ref]
			mu.Unlock()
			if skip {
				continue
			}
			more = true
			g.Go(func() error {
				if err := (&Wait{core: c, missing: m, ref: m.Ref}).load(ctx); err != nil {
					mu.Lock()
					defer mu.Unlock()
					failed[m.Ref] = true
					return err
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil && first == nil {
			first = err
		}
		if !more {
			return first
		}
	}
}
