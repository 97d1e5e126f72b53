package fetch

import (
	"context"
	"log/slog"
	"slices"
	"time"
)

// route is one request's way through the paths. It belongs to the goroutine that makes the request.
type route struct {
	p, s     int // the path of the next try, as indices into proxyChain.all and stratum.all
	proxy    *Proxy
	server   *server
	noCache  bool
	retries  int // on this path
	attempts int // HTTP requests made
	tried    [][2]int
	suspects []suspect
}

// suspect is a proxy or server whose content was refused. It is to blame only once another one has the right content.
type suspect struct {
	ofProxy bool
	index   int
	fault   *fault
}

func (r *route) free(p, s int) bool { return !slices.Contains(r.tried, [2]int{p, s}) }

// route begins a request on the current path, after a reset if one is due.
func (c *Client) route(w *want) *route {
	c.mu.Lock()
	now := time.Now()
	l := c.watch()
	c.proxies.refresh(now)
	c.servers.refresh(now)
	r := &route{noCache: w.noCache}
	p := c.proxies.cur
	if c.cfg.Shard {
		p = c.proxies.shard(w.path)
	}
	c.aim(r, p, c.servers.cur)
	l.compare(c)
	c.mu.Unlock()
	l.write(c, nil)
	return r
}

// aim sets the path of r's next try. Client.mu is held.
func (c *Client) aim(r *route, p, s int) {
	r.p, r.s, r.retries = p, s, 0
	r.proxy, r.server = c.proxies.all[p], c.servers.all[s]
}

// ways says what r can still do.
func (c *Client) ways(r *route) ways {
	w := ways{retries: r.retries, maxRetries: c.cfg.MaxRetries, noCache: r.noCache}
	for p := range c.proxies.all { // the lists never change
		for s := range c.servers.all {
			switch {
			case p == r.p && s == r.s, !r.free(p, s):
			case s == r.s:
				w.proxy = true
			case p == r.p:
				w.server = true
			default:
				w.other = true
			}
		}
	}
	return w
}

// move puts r on another path after the fault f, and everybody else too if f is enough to blame the old one for.
func (c *Client) move(r *route, w *want, f *fault, to step) {
	r.tried = append(r.tried, [2]int{r.p, r.s})
	if f.side == sideData {
		if to == nextProxy { // what all servers were suspected of is more likely the proxy's doing
			r.suspects = slices.DeleteFunc(r.suspects, func(s suspect) bool { return !s.ofProxy })
			r.suspects = append(r.suspects, suspect{true, r.p, f})
		} else {
			r.suspects = append(r.suspects, suspect{false, r.s, f})
		}
	}
	if to == nextServer || f.side == sideData {
		r.noCache = w.noCache
	}
	c.change(f, func(now time.Time) {
		p, s := r.p, r.s
		switch {
		case to == nextProxy:
			if f.side == sideProxy {
				c.proxies.burn(p, now)
			}
			p = c.proxies.next(func(i int) bool { return r.free(i, s) })
		case f.side == sideProxy: // all proxies failed for this server
			if c.servers.leave(s, now) {
				c.proxies.restart()
			}
			s = c.servers.next(func(j int) bool {
				return c.proxies.next(func(i int) bool { return r.free(i, j) }) >= 0
			})
			p = c.proxies.next(func(i int) bool { return r.free(i, s) })
		default:
			if f.side == sideHost {
				c.servers.leave(s, now)
			}
			s = c.servers.next(func(j int) bool { return r.free(p, j) })
		}
		c.aim(r, p, s)
	})
}

// left reports whether others left what f is the fault of, for a path that r has not tried.
func (c *Client) left(r *route, f *fault) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, s := c.proxies.cur, c.servers.cur
	if c.cfg.Shard && f.side == sideProxy && !c.proxies.burned[r.p] {
		return false // it is not the current one, and nobody left it
	}
	return r.free(p, s) && (f.side == sideProxy && p != r.p || f.side == sideHost && s != r.s)
}

// blame leaves r's path for the requests to come, if f is the path's fault.
func (c *Client) blame(r *route, f *fault) {
	c.change(f, func(now time.Time) {
		switch f.side {
		case sideProxy:
			c.proxies.burn(r.p, now)
		case sideHost:
			c.servers.leave(r.s, now)
		}
	})
}

// arrived convicts the suspects of r: another path had what was wanted.
func (c *Client) arrived(r *route) {
	for _, s := range r.suspects {
		c.change(s.fault, func(now time.Time) {
			switch {
			case s.ofProxy && s.index != r.p:
				c.proxies.burn(s.index, now)
			case !s.ofProxy && s.index != r.s:
				c.servers.leave(s.index, now)
			}
		})
	}
}

// change runs do on the current path under the lock, and counts and logs what it changed because of f.
func (c *Client) change(f *fault, do func(now time.Time)) {
	c.mu.Lock()
	l := c.watch()
	do(time.Now())
	l.compare(c)
	c.mu.Unlock()
	l.write(c, f)
}

// pathChange is the current path before and after.
type pathChange struct{ p, s, newP, newS int }

func (c *Client) watch() pathChange { return pathChange{p: c.proxies.cur, s: c.servers.cur} }

func (l *pathChange) compare(c *Client) { l.newP, l.newS = c.proxies.cur, c.servers.cur }

// write logs the change, whose reason is f, or the end of the reset time if f is nil.
func (l *pathChange) write(c *Client, f *fault) {
	level, attrs := slog.LevelInfo, []any{"reason", "reset"}
	if f != nil {
		level, attrs = slog.LevelWarn, []any{"reason", string(f.kind), "side", string(f.side), "err", f.err}
	}
	log := func(msg string, from, to any, n *counter) {
		if f != nil {
			n.add(1)
		}
		c.cfg.Log.Log(context.Background(), level, msg, append([]any{"from", from, "to", to}, attrs...)...)
	}
	if l.p != l.newP {
		log("proxy switched", c.proxies.all[l.p].String(), c.proxies.all[l.newP].String(), &c.count.proxies)
	}
	if l.s != l.newS {
		log("server switched", c.servers.all[l.s].String(), c.servers.all[l.newS].String(), &c.count.servers)
	}
}
