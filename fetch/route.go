package fetch

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"
)

// path is a way to the repository.
type path struct {
	proxy  *member
	server *server
}

// route is one request's way through the paths. It belongs to the goroutine that makes the request.
type route struct {
	path     // of the next try
	noCache  bool
	retries  int // on this path
	attempts int // HTTP requests made
	tried    []path
	suspects []suspect
	heard    atomic.Bool // the first byte of the try under way came
}

// suspect is a proxy or server whose answer was refused. It is to blame only once another one has the right content.
type suspect struct {
	proxy  *member // or
	server *server
	fault  *fault
}

func (r *route) free(m *member, s *server) bool { return !slices.Contains(r.tried, path{m, s}) }

// route begins a request on the current path.
func (c *Client) route(w *want) *route {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &route{noCache: w.noCache}
	m := c.proxies.cur
	switch {
	case c.cfg.Shard:
		m = c.proxies.shard(w.path, nil)
	case w.object:
		m = c.proxies.turn()
	}
	c.aim(r, m, c.servers.cur)
	if m != c.proxies.cur && !c.cfg.Shard {
		r.retries = c.cfg.MaxRetries // asked out of curiosity: not twice
	}
	return r
}

// aim sets the path of r's next try. Client.mu is held.
func (c *Client) aim(r *route, m *member, s *server) {
	r.path, r.retries = path{m, s}, 0
}

// ways says what r can still do.
func (c *Client) ways(r *route) ways {
	c.mu.Lock()
	proxies, servers := c.proxies.all, c.servers.all
	c.mu.Unlock()
	w := ways{retries: r.retries, maxRetries: c.cfg.MaxRetries, noCache: r.noCache}
	for _, m := range proxies {
		for _, s := range servers {
			switch {
			case m == r.proxy && s == r.server, !r.free(m, s):
			case s == r.server:
				w.proxy = true
			case m == r.proxy:
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
	r.tried = append(r.tried, r.path)
	switch {
	case to == nextProxy && f.side != sideProxy: // what all servers were suspected of is more likely the proxy's doing
		r.suspects = slices.DeleteFunc(r.suspects, func(s suspect) bool { return s.server != nil })
		r.suspects = append(r.suspects, suspect{proxy: r.proxy, fault: f})
	case f.side == sideData:
		r.suspects = append(r.suspects, suspect{server: r.server, fault: f})
	}
	if to == nextServer || f.side == sideData {
		r.noCache = w.noCache
	}
	c.change(string(f.kind), f, func(now time.Time) {
		m, s := r.proxy, r.server
		switch {
		case to == nextProxy:
			if f.side == sideProxy {
				c.accuse(r.path, f, now)
			}
			m = c.proxies.next(func(m *member) bool { return r.free(m, s) })
		case f.side == sideProxy: // all proxies failed for this server
			if !f.alive && c.servers.leave(s, now) {
				c.proxies.restart()
			}
			s = c.servers.next(func(s *server) bool {
				return c.proxies.next(func(m *member) bool { return r.free(m, s) }) != nil
			})
			if s != nil {
				m = c.proxies.next(func(m *member) bool { return r.free(m, s) })
			}
		default:
			c.accuse(r.path, f, now)
			s = c.servers.next(func(s *server) bool { return r.free(m, s) })
		}
		if m != nil && s != nil { // else the proxies' names lead elsewhere by now: this path gets one try more
			c.aim(r, m, s)
		}
	})
}

// accuse leaves what f is the fault of, unless others were served well meanwhile: slow is not dead (row W11). Client.mu is held.
func (c *Client) accuse(p path, f *fault, now time.Time) {
	switch {
	case f.alive:
	case f.side == sideProxy:
		c.proxies.burn(p.proxy, now)
	case f.side == sideHost:
		c.servers.leave(p.server, now)
	}
}

// left reports whether others left what f is the fault of, for a path that r has not tried.
func (c *Client) left(r *route, f *fault) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, s := c.proxies.cur, c.servers.cur
	return r.free(m, s) && (f.side == sideProxy && r.proxy.burned && m != r.proxy || f.side == sideHost && s != r.server)
}

// blame leaves r's path for the requests to come, if f is the path's fault.
func (c *Client) blame(r *route, f *fault) {
	c.change(string(f.kind), f, func(now time.Time) { c.accuse(r.path, f, now) })
}

// arrived convicts the suspects of r: another path had what was wanted.
func (c *Client) arrived(r *route) {
	for _, s := range r.suspects {
		c.change(string(s.fault.kind), s.fault, func(now time.Time) {
			switch {
			case s.proxy != nil && s.proxy != r.proxy:
				c.proxies.burn(s.proxy, now)
			case s.server != nil && s.server != r.server:
				c.servers.leave(s.server, now)
			}
		})
	}
}

// change runs do on the current path under the lock, and logs, and if it was for the fault f counts, what it changed.
func (c *Client) change(reason string, f *fault, do func(now time.Time)) {
	c.mu.Lock()
	old := path{c.proxies.cur, c.servers.cur}
	do(time.Now())
	now := path{c.proxies.cur, c.servers.cur}
	c.mu.Unlock()
	if old == now {
		return
	}
	level, attrs := slog.LevelInfo, []any{"reason", reason}
	if f != nil {
		level, attrs = slog.LevelWarn, append(attrs, "side", string(f.side), "err", f.err)
	}
	switched := func(what, from, to string, n *counter) {
		if f != nil {
			n.add(1)
		}
		c.cfg.Log.Log(context.Background(), level, what+" switched", append([]any{"from", from, "to", to}, attrs...)...)
	}
	if old.proxy != now.proxy {
		switched("proxy", old.proxy.String(), now.proxy.String(), &c.count.proxies)
	}
	if old.server != now.server {
		switched("server", old.server.String(), now.server.String(), &c.count.servers)
	}
}
