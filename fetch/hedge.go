package fetch

import (
	"context"
	"errors"
	"sync"
	"time"
)

// errOvertaken ends the slower one of two requests for the same object.
var errOvertaken = errors.New("another proxy was quicker")

// attempt makes r's next try. If its proxy takes longer to begin its answer than the group does 95 times of 100, a second request goes through
// another member, and the first right answer counts.
func (c *Client) attempt(ctx context.Context, r *route, w *want) ([]byte, *fault) {
	other, wait := c.second(r, w)
	if other == nil {
		return c.try(ctx, r, w)
	}
	type result struct {
		r     *route
		plain []byte
		f     *fault
	}
	ctx, cancel := context.WithCancelCause(ctx)
	results := make(chan result, 2)
	var trying sync.WaitGroup
	begin := func(r *route) {
		trying.Go(func() {
			plain, f := c.try(ctx, r, w)
			results <- result{r, plain, f}
		})
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	begin(r)
	second := &route{path: path{other, r.server}, noCache: r.noCache}
	defer func() { r.attempts += second.attempts }()
	defer trying.Wait()
	defer cancel(errOvertaken)
	var failed *fault // of the first
	for left := 1; ; {
		select {
		case <-timer.C:
			switch {
			case r.heard.Load():
			case c.spend():
				c.count.hedges.add(1)
				left++
				begin(second)
			default: // others earn it meanwhile
				timer.Reset(wait)
			}
		case got := <-results:
			left--
			switch {
			case got.f == nil && got.r == second:
				c.count.hedgesWon.add(1)
				if failed != nil {
					c.count.fault(failed)
				}
				cancel(errOvertaken)
				trying.Wait()
				r.proxy = other
				return got.plain, nil
			case got.f == nil:
				return got.plain, nil
			case got.r == r:
				failed = got.f
			default:
				c.count.fault(got.f)
			}
			if left == 0 {
				return nil, failed
			}
		}
	}
}

// second returns who may help r out, and after how long; nil if nobody may.
func (c *Client) second(r *route, w *want) (*member, time.Duration) {
	if !w.object {
		return nil, 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	g := r.proxy.group
	wait := c.proxies.tails[g].wait
	if wait == 0 {
		return nil, 0
	}
	if c.cfg.Shard && g == c.proxies.cur.group {
		return c.proxies.shard(w.path, r.proxy), wait
	}
	return c.proxies.pick(g, func(m *member) bool { return m.group == g && m != r.proxy && good(m) }), wait
}

func (c *Client) spend() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.proxies.spend()
}
