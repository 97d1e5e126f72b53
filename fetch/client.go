package fetch

import (
	"context"
	"crypto/x509"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/skimfs/skimfs/index"
)

// Client reads the files of one repository. It is safe for concurrent use.
type Client struct {
	cfg      Config
	agent    []string
	dec      *index.ObjectDecoder
	count    *counters
	slots    chan struct{} // one for each request under way
	throttle throttle
	roots    *x509.CertPool  // nil: the system's
	known    map[string]bool // the configuration's servers, as hostOf names them
	lookup   func(ctx context.Context, host string) ([]net.IPAddr, error)

	background sync.WaitGroup // probes and lookups
	ctx        context.Context
	cancel     context.CancelFunc // ends them, and refuses requests

	mu      sync.Mutex // guards the current path and what is known of the others
	proxies *proxyChain
	servers *stratum
	probing bool
}

// New returns a client. It makes no request.
func New(cfg Config) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("fetch configuration: %w", err)
	}
	groups, err := ParseProxyLists(cfg.Proxies, cfg.Fallback)
	if err != nil {
		return nil, err
	}
	roots, err := certificates(cfg.CAFile)
	if err != nil {
		return nil, err
	}
	servers, err := newStratum(cfg.Servers, cfg.ServerReset, cfg.Probe)
	if err != nil {
		return nil, err
	}
	dec, err := index.NewObjectDecoder()
	if err != nil {
		return nil, err
	}
	c := &Client{
		cfg: cfg, agent: []string{cfg.UserAgent}, dec: dec, count: newCounters(cfg.Metrics),
		slots:   make(chan struct{}, cfg.Connections),
		proxies: newProxyChain(members(groups), cfg.ProxyReset, rand.IntN), servers: servers, roots: roots,
		known: make(map[string]bool), lookup: net.DefaultResolver.LookupIPAddr,
	}
	for _, s := range servers.all {
		c.known[hostOf(s.base)] = true
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	for _, m := range c.proxies.all {
		c.connect(m)
	}
	return c, nil
}

// Close refuses new requests, ends probes and closes idle connections. Requests under way end by themselves.
func (c *Client) Close() {
	c.mu.Lock()
	c.cancel()
	c.mu.Unlock()
	c.background.Wait()
	c.closeIdle()
}

// spawn runs do in the background, unless c is closed. Client.mu is held.
func (c *Client) spawn(do func()) {
	if c.ctx.Err() == nil {
		c.background.Go(do)
	}
}

func (c *Client) closeIdle() {
	c.mu.Lock()
	all := c.proxies.all
	c.mu.Unlock()
	for _, m := range all {
		m.transport.CloseIdleConnections()
	}
}

// Path returns the proxy in use (or "DIRECT") and the server in use, both without credentials.
func (c *Client) Path() (proxy, server string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.proxies.cur.String(), c.servers.cur.String()
}

// Object returns the plain content, size bytes, that d names. Nothing is returned before all of it was verified.
func (c *Client) Object(ctx context.Context, d index.Digest, size int64) ([]byte, error) {
	w := &want{path: d.ObjectPath(), object: true, limit: index.MaxObjectLen(size), check: objectCheck(c.dec, d, size)}
	if d.IsZero() || size <= 0 || size > index.MaxObject {
		return nil, c.refuse(w, fmt.Errorf("object %v of %d bytes: %w", d, size, index.ErrFormat))
	}
	return c.get(ctx, w)
}

// File returns the file at path (relative, slash-separated), at most limit bytes. A cache on the way may answer with a
// copy not older than maxAge/2, in whole seconds; with noCache it has to ask the server. Nothing is verified.
func (c *Client) File(ctx context.Context, path string, maxAge time.Duration, limit int64, noCache bool) ([]byte, error) {
	return c.FileChecked(ctx, path, maxAge, limit, noCache, func([]byte) error { return nil })
}

// FileChecked is File with a check of the content, which must not keep the bytes. Content that the check refuses is
// asked for once more past the caches and then from the next server; the last refusal is the error's cause.
func (c *Client) FileChecked(ctx context.Context, path string, maxAge time.Duration, limit int64, noCache bool, check func([]byte) error) ([]byte, error) {
	w := &want{
		path: path, limit: limit, noCache: noCache,
		cache: "max-age=" + strconv.FormatInt(max(0, int64(maxAge/2/time.Second)), 10),
		check: func(body []byte) ([]byte, error) {
			if err := check(body); err != nil {
				return nil, err
			}
			return slices.Clone(body), nil
		},
	}
	if !fs.ValidPath(path) || path == "." || limit < 0 || limit > maxFile {
		return nil, c.refuse(w, fmt.Errorf("path %q with limit %d: %w", path, limit, fs.ErrInvalid))
	}
	return c.get(ctx, w)
}

// maxFile is the highest limit that File takes, in bytes.
const maxFile = 64 << 20

// want is what a request is for.
type want struct {
	path    string
	object  bool   // two requests at once do no harm
	limit   int64  // most bytes of the body
	cache   string // Cache-Control, unless past the caches
	noCache bool   // past the caches from the first try on
	check   func(body []byte) ([]byte, error)
}

// refuse is the error of a request that is not made.
func (c *Client) refuse(w *want, err error) error {
	return &Error{Op: http.MethodGet, URL: w.path, Err: err, kind: kindUsage}
}

// get asks one path after the other until one gives what w wants.
func (c *Client) get(ctx context.Context, w *want) ([]byte, error) {
	if c.ctx.Err() != nil {
		return nil, c.refuse(w, fs.ErrClosed)
	}
	defer func() {
		if c.ctx.Err() != nil {
			c.closeIdle()
		}
	}()
	if d := c.throttle.wait(w.path, time.Now()); d > 0 && !sleep(ctx, d) {
		f := ctxFault(ctx)
		return nil, &Error{Op: http.MethodGet, URL: w.path, Err: f.err, kind: f.kind}
	}
	c.maintain(ctx)
	r := c.route(w)
	var last error // of the try before
	for {
		plain, f := c.askOrRest(ctx, r, w)
		if f == nil {
			c.arrived(r)
			c.throttle.succeed(w.path)
			return plain, nil
		}
		next := decide(f, c.ways(r))
		wait := pause(r.retries, 1-rand.Float64(), c.cfg.BackoffInit, c.cfg.BackoffMax)
		wait = max(wait, f.after)
		if end, ok := ctx.Deadline(); ok && next == retry && time.Until(end) <= wait {
			r.retries = c.cfg.MaxRetries // no time for a pause: on at once
			next = decide(f, c.ways(r))
		}
		if f.side == sideLocal && last != nil {
			f.err = fmt.Errorf("%w, after: %w", f.err, last)
		}
		last = f.err
		if next == retry && !sleep(ctx, wait) {
			f = ctxFault(ctx)
			f.err = fmt.Errorf("%w, after: %w", f.err, last)
			next = giveUp
		}
		if next == retry && c.left(r, f) {
			r.retries = c.cfg.MaxRetries // others gave this path up meanwhile
			next = decide(f, c.ways(r))
		}
		switch next {
		case retry:
			r.retries++
			c.count.retries.add(1)
		case refresh:
			r.noCache = true
			c.count.refreshes.add(1)
		case giveUp:
			c.blame(r, f)
			if f.side != sideLocal {
				c.throttle.fail(w.path, time.Now())
			}
			return nil, &Error{
				Op: http.MethodGet, URL: shown(r.server.file(w.path)), Proxy: r.proxy.String(),
				Status: f.status, Attempts: r.attempts, Err: f.err, kind: f.kind,
			}
		default:
			c.move(r, w, f, next)
		}
	}
}

// askOrRest makes r's next try. A server that told somebody when to come back is not asked before: that is the same fault once more.
func (c *Client) askOrRest(ctx context.Context, r *route, w *want) ([]byte, *fault) {
	c.mu.Lock()
	f := r.server.resting(time.Now())
	c.mu.Unlock()
	if f != nil {
		return nil, f
	}
	plain, f := c.attempt(ctx, r, w)
	if f != nil {
		c.count.fault(f)
	}
	if f != nil && f.side == sideHost && f.after > 0 {
		c.mu.Lock()
		r.server.rest, r.server.status = time.Now().Add(f.after), f.status
		c.mu.Unlock()
	}
	return plain, f
}

// sleep waits for d and reports whether ctx allowed it.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
