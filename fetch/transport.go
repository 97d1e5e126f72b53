package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"
	"time"
)

// connect gives m the connections that lead through it. Their limits hold whatever the caller's context says.
func (c *Client) connect(m *member) {
	limit := c.limit(m)
	dialer := &net.Dialer{Timeout: limit}
	t := &http.Transport{
		Proxy: func(*http.Request) (*url.URL, error) { return m.url, nil },
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c.count.dials.add(1)
			if m.addr != "" {
				return dialer.DialContext(ctx, network, net.JoinHostPort(m.addr, m.url.Port()))
			}
			return dialAny(ctx, dialer, network, addr)
		},
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
			if answer.StatusCode != http.StatusOK {
				return &statusError{answer.StatusCode}
			}
			return nil
		},
		TLSClientConfig:        &tls.Config{RootCAs: c.roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    limit,
		ResponseHeaderTimeout:  limit,
		DisableCompression:     true, // digests are checked over what came
		MaxIdleConnsPerHost:    c.cfg.Connections,
		IdleConnTimeout:        time.Minute, // less than squid's and nginx's
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         16 << 10,
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	m.transport, m.tripper = t, t
	m.paths = make([]atomic.Pointer[pathCounters], len(c.cfg.Servers))
}

// limit is how long to wait through m for a connection, for the first byte, and for each window of a transfer.
func (c *Client) limit(m *member) time.Duration {
	if m.Direct() {
		return c.cfg.TimeoutDirect
	}
	return c.cfg.Timeout
}

// try makes one request and reads the whole answer. The fault is nil if w's check accepted it.
func (c *Client) try(ctx context.Context, r *route, w *want) ([]byte, *fault) {
	select { // waiting here is nobody's fault
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctxFault(ctx)
	}
	begin, count := time.Now(), c.counted(r)
	body, first, f := c.receive(ctx, r, w)
	<-c.slots
	count.requests.Inc()
	count.bytes.Add(len(body))
	c.timed(r.path, begin, first, f)
	if f != nil {
		c.count.failed(count, f)
		return nil, f
	}
	defer buffers.put(body)
	count.seconds.UpdateDuration(begin)
	plain, err := w.check(body)
	if err != nil {
		f = &fault{side: sideData, kind: kindContent, status: http.StatusOK, err: err}
		c.count.failed(count, f)
		return nil, f
	}
	return plain, nil
}

// timed notes how long p took to the first byte (0: there was none) of a request that began then, and whether others were served meanwhile.
func (c *Client) timed(p path, begin time.Time, first time.Duration, f *fault) {
	late := f != nil && (f.kind == kindTimeout || f.kind == kindSlow)
	if first == 0 && (late || f != nil && errors.Is(f.err, errOvertaken)) {
		first = time.Since(begin)
	}
	if first == 0 {
		return
	}
	c.change("slow", nil, func(now time.Time) {
		c.proxies.timed(p.proxy, first)
		switch {
		case f == nil:
			p.proxy.whole, p.server.whole = now, now
		case late && f.side == sideProxy:
			f.alive = p.proxy.whole.After(begin)
		case late && f.side == sideHost:
			f.alive = p.server.whole.After(begin)
		}
	})
}

// counted returns the counters of r's path.
func (c *Client) counted(r *route) *pathCounters {
	at := &r.proxy.paths[r.server.number]
	n := at.Load()
	if n == nil {
		n = c.count.path(r.proxy, r.server)
		at.Store(n)
	}
	return n
}

// receive makes one request and returns the body in a buffer of the pool, and how long the first byte took (0: there was none).
func (c *Client) receive(parent context.Context, r *route, w *want) (body []byte, first time.Duration, f *fault) {
	begin, limit, proxied := time.Now(), c.limit(r.proxy), !r.proxy.Direct()
	r.heard.Store(false)
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	g := &guard{cancel: cancel, window: limit, least: int64(float64(c.cfg.LowSpeed) * limit.Seconds())}
	// The transport bounds each phase up to the first byte but a proxy's CONNECT; this bounds their sum.
	silent := time.AfterFunc(3*limit, func() { cancel(errSilent) })
	defer silent.Stop()

	fail := func(err error) *fault {
		if parent.Err() != nil {
			return ctxFault(parent)
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		f := judge(err, proxied)
		if f.kind == kindTimeout || f.kind == kindSlow {
			r.proxy.transport.CloseIdleConnections() // they may be as dead
		}
		return f
	}
	r.attempts++
	c.count.requests.add(1)
	req := c.request(ctx, r, w)
	var resp *http.Response
	for hops := 0; ; hops++ {
		var err error
		if resp, err = r.proxy.tripper.RoundTrip(req); err != nil {
			return nil, 0, fail(err)
		}
		if !isRedirect(resp.StatusCode) || resp.Header.Get("X-Squid-Error") != "" {
			break
		}
		c.count.bytes.add(drain(resp.Body))
		resp.Body.Close()
		to, err := redirected(req.URL, resp, hops)
		if err != nil {
			return nil, 0, &fault{side: sideHost, kind: kindRedirect, status: resp.StatusCode, err: err}
		}
		req = c.follow(req, to, r)
		c.count.requests.add(1)
	}
	defer resp.Body.Close()
	silent.Stop()
	r.heard.Store(true)
	first = time.Since(begin)
	g.start()
	defer g.stop()
	if resp.StatusCode != http.StatusOK {
		c.count.bytes.add(drain(resp.Body))
		// Inside a tunnel the proxy has no voice.
		return nil, first, judgeStatus(resp.StatusCode, resp.Header, proxied && req.URL.Scheme == "http")
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return nil, first, fail(errEncoded)
	}
	body, err := readBody(resp.Body, resp.ContentLength, w.limit, &g.read)
	c.count.bytes.add(g.read.Load())
	if err != nil {
		f := fail(err)
		f.status = resp.StatusCode
		return nil, first, f
	}
	return body, first, nil
}

// request builds the request for one try.
func (c *Client) request(ctx context.Context, r *route, w *want) *http.Request {
	h := http.Header{"User-Agent": c.agent, "Accept-Encoding": identity}
	switch {
	case r.noCache:
		h["Cache-Control"], h["Pragma"] = noCache, noCache
	case w.cache != "":
		h["Cache-Control"] = []string{w.cache}
	}
	u := r.server.file(w.path)
	if auth := c.auth(u, r); auth != "" {
		h["Authorization"] = []string{auth}
	}
	req := &http.Request{
		Method: http.MethodGet, URL: u, Header: h,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	return req.WithContext(ctx)
}

// auth returns the value of the Authorization header for u. What r's server is told, nobody else is.
func (c *Client) auth(u *url.URL, r *route) string {
	if r.server.auth != "" && hostOf(u) == hostOf(r.server.base) {
		return r.server.auth
	}
	return c.cfg.Auth.of(u)
}

// follow returns req for another URL, with the credentials of that one, if it is https or a server of the configuration: who sits on the way to
// some http server must not have them sent in the clear.
func (c *Client) follow(req *http.Request, to *url.URL, r *route) *http.Request {
	next := req.Clone(req.Context())
	next.URL = to
	next.Header.Del("Authorization")
	if auth := c.auth(to, r); auth != "" && (to.Scheme == "https" || c.known[hostOf(to)]) {
		next.Header.Set("Authorization", auth)
	}
	return next
}

// certificates returns the system's and those of file; nil if file is "".
func certificates(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("certificates %q: no certificate in PEM found", file)
	}
	return pool, nil
}

// dialAny connects to one of addr's addresses, beginning with a random one: a name with several is a group of its own. Names are
// resolved anew for each connection.
func dialAny(ctx context.Context, d *net.Dialer, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || net.ParseIP(host) != nil {
		return d.DialContext(ctx, network, addr)
	}
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	var first error
	for i, k := range rand.Perm(len(ips)) {
		share := *d
		share.Timeout = d.Timeout
		if end, ok := ctx.Deadline(); ok { // a dead address leaves time for the others
			share.Timeout = max(time.Until(end)/time.Duration(len(ips)-i), time.Millisecond)
		}
		conn, err := share.DialContext(ctx, network, net.JoinHostPort(ips[k].String(), port))
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

var (
	identity = []string{"identity"}
	noCache  = []string{"no-cache"}
)

// drain reads a short page, so that its connection can be used again, and returns its length.
func drain(r io.Reader) int64 {
	n, _ := io.CopyN(io.Discard, r, 16<<10)
	return n
}

// ctxFault is the fault of a request whose context ended.
func ctxFault(ctx context.Context) *fault {
	f := &fault{side: sideLocal, kind: kindCanceled, err: ctx.Err()}
	if errors.Is(context.Cause(ctx), errOvertaken) {
		f.err = errOvertaken
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		f.kind = kindDeadline
	}
	return f
}

// guard ends a transfer that brings fewer than least bytes in a window.
type guard struct {
	cancel context.CancelCauseFunc
	window time.Duration
	least  int64
	read   atomic.Int64 // bytes so far
	last   int64        // bytes at the last tick
	timer  *time.Timer
}

func (g *guard) start() {
	// Set before it can fire: tick uses it.
	g.timer = time.AfterFunc(time.Hour, g.tick)
	g.timer.Reset(g.window)
}

// stop ends the watch. A tick that runs meanwhile may set the timer once more; that tick finds no progress and is the last.
func (g *guard) stop() { g.timer.Stop() }

func (g *guard) tick() {
	n := g.read.Load()
	if n-g.last < g.least {
		g.cancel(errSlow)
		return
	}
	g.last = n
	g.timer.Reset(g.window)
}
