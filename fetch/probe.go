package fetch

import (
	"context"
	"slices"
	"sync"
	"time"
)

// probeFile is asked for to find out whether a way leads to the repository. It is small, and every repository has it.
const probeFile = "manifest"

// maintain begins, in the background, what has become due: lookups of names, probes of what failed before. It waits for nothing but the first
// addresses of the current proxy.
func (c *Client) maintain(ctx context.Context) {
	c.mu.Lock()
	now := time.Now()
	for _, m := range c.proxies.all {
		if m.group <= c.proxies.cur.group && m.due(now, c.cfg.Lookup) {
			m.name.asking = true
			c.spawn(func() { c.lookUp(m.Proxy, m.name) })
		}
	}
	if !c.probing && (len(c.proxies.due(now)) > 0 || len(c.servers.due(now)) > 0) {
		c.probing = true
		c.spawn(c.probe)
	}
	first := c.proxies.cur.name
	c.mu.Unlock()
	if first != nil {
		select {
		case <-first.known:
		case <-ctx.Done():
		case <-c.ctx.Done():
		}
	}
}

// probe asks what failed some time ago, and goes back to what answers (row W08). No reader waits for it.
func (c *Client) probe() {
	c.mu.Lock()
	now := time.Now()
	proxies, servers := c.proxies.due(now), c.servers.due(now)
	cur := path{c.proxies.cur, c.servers.cur}
	c.mu.Unlock()

	tries := 1
	if c.servers.sort {
		tries = 2 // the first one may have to connect
	}
	ways := make([]path, 0, len(proxies)+len(servers))
	for _, m := range proxies {
		ways = append(ways, path{m, cur.server})
	}
	for _, s := range servers {
		ways = append(ways, path{cur.proxy, s})
	}
	took, faults := make([]time.Duration, len(ways)), make([]*fault, len(ways))
	var asking sync.WaitGroup
	for i, w := range ways {
		asking.Go(func() { took[i], faults[i] = c.ask(w, tries) })
	}
	asking.Wait()

	if c.ctx.Err() != nil {
		return
	}
	reason := "reset"
	if c.servers.sort && len(servers) > 0 {
		reason = "round trip"
	}
	c.change(reason, nil, func(now time.Time) {
		c.probing = false
		for i, m := range proxies {
			if f := faults[i]; f != nil && f.side == sideProxy {
				m.since = now
			} else if m.burned {
				c.proxies.heal(m)
			}
		}
		if len(servers) == 0 {
			return
		}
		took, faults := took[len(proxies):], faults[len(proxies):]
		c.servers.since = now
		if c.servers.sort {
			c.servers.order(took)
		}
		for _, s := range c.servers.all {
			if i := slices.Index(servers, s); i >= 0 && faults[i] == nil {
				c.servers.cur = s
				break
			}
		}
	})
}

// ask asks the server of w itself, past the caches, so many times, and returns how long the last took.
func (c *Client) ask(w path, tries int) (time.Duration, *fault) {
	probe := &want{path: probeFile, limit: maxFile, check: func([]byte) ([]byte, error) { return nil, nil }}
	var took time.Duration
	for range tries {
		begin := time.Now()
		if _, f := c.try(c.ctx, &route{path: w, noCache: true}, probe); f != nil {
			c.count.probesNo.add(1)
			return 0, f
		}
		took = time.Since(begin)
	}
	c.count.probesYes.add(1)
	return took, nil
}
