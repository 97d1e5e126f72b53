package mountd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

// work brings objects to this node.
type work struct {
	d       *Daemon
	g       *origin
	src     Source
	o       Options
	need    *needed
	rate    int64
	lower   *cachedb.Lower // to be filled, nil: none
	servers *origin        // where objects come from

	mu   sync.Mutex // guards what follows
	p    WorkProgress
	next time.Time // when the rate allows the next object
}

const (
	workers       = 16
	progressEvery = 250 * time.Millisecond
)

// fetch fetches what is missing, and tells w how it goes.
func (k *work) fetch(ctx context.Context, w http.ResponseWriter) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	k.d.wg.Go(func() { done <- k.fetchAll(ctx) })
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			k.mu.Lock()
			p := k.p
			k.mu.Unlock()
			if json.NewEncoder(w).Encode(p) != nil || http.NewResponseController(w).Flush() != nil {
				cancel() // nobody waits
			}
		case <-k.d.ctx.Done():
			cancel()
		}
	}
}

func (k *work) fetchAll(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for digest, size := range k.need.size {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error { return k.bring(ctx, digest, size) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil && context.Cause(ctx) != nil && !errors.Is(context.Cause(ctx), context.Canceled) {
		return context.Cause(ctx)
	}
	return k.d.db.Sync(k.d.ctx)
}

// bring brings an object to where it is missing.
func (k *work) bring(ctx context.Context, digest index.Digest, size int64) error {
	here := k.d.db.Has(digest)
	var plain []byte
	if k.lower != nil {
		plain, _ = k.lower.Get(ctx, digest, size) // the object, not just a file in its place
	}
	lacks := k.lower != nil && plain == nil
	if here && !lacks {
		return nil
	}
	if err := k.pace(ctx, size); err != nil {
		return err
	}
	var err error
	if plain != nil {
		_, err = k.d.db.Put(digest, k.need.class[digest], plain)
	} else {
		plain, _, err = k.servers.object(ctx, digest, size, k.need.class[digest], func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.p.Fetched++
			k.p.FetchedBytes += size
		})
	}
	if err != nil {
		return fmt.Errorf("fetching %v: %w", digest, err)
	}
	if lacks {
		if err := k.lower.Put(ctx, digest, plain); err != nil {
			return err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if lacks {
		k.p.Stored++
	}
	if !here {
		k.p.CachedObjects++
		k.p.CachedBytes += size
	}
	return nil
}

// pace waits until the rate allows size bytes more.
func (k *work) pace(ctx context.Context, size int64) error {
	if k.rate <= 0 {
		return ctx.Err()
	}
	k.mu.Lock()
	if now := time.Now(); k.next.Before(now) {
		k.next = now
	}
	at := k.next
	k.next = at.Add(time.Duration(float64(size) / float64(k.rate) * float64(time.Second)))
	k.mu.Unlock()
	return sleep(ctx, time.Until(at))
}
