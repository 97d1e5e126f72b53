package publishd

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"github.com/skimfs/skimfs/publish"
)

// transport carries requests to registries within limits, and to no address that only this machine's owner should reach.
type transport struct {
	base     http.RoundTripper
	bytes    *rate.Limiter // nil: no limit
	requests int           // per second and host; 0: no limit

	mu    sync.Mutex // guards hosts
	hosts map[string]*rate.Limiter
}

func newTransport(bytesPerSecond int64, requests int) *transport {
	dialer := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second, Control: refuse}
	t := &transport{requests: requests, hosts: map[string]*rate.Limiter{}, base: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, ForceAttemptHTTP2: true, MaxIdleConns: 100, MaxIdleConnsPerHost: 8, MaxConnsPerHost: 16,
		IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: time.Minute,
	}}
	if bytesPerSecond > 0 {
		t.bytes = rate.NewLimiter(rate.Limit(bytesPerSecond), 64<<10)
	}
	return t
}

// metadataHosts are addresses, besides link-local ones, at which clouds give credentials to whoever asks from this machine.
var metadataHosts = map[netip.Addr]bool{
	netip.MustParseAddr("fd00:ec2::254"): true, netip.MustParseAddr("100.100.100.200"): true, netip.MustParseAddr("192.0.0.192"): true, netip.MustParseAddr("168.63.129.16"): true,
}

// refuse is asked for each address that a connection is made to, after names were looked up.
func refuse(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, publish.ErrForbidden)
	}
	return refuseAddr(ap.Addr())
}

func refuseAddr(a netip.Addr) error {
	a = a.Unmap().WithZone("")
	if a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || metadataHosts[a] {
		return fmt.Errorf("address %s: %w", a, publish.ErrForbidden)
	}
	return nil
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	// Here as well as when connecting: a proxy would connect for us.
	if a, err := netip.ParseAddr(r.URL.Hostname()); err == nil {
		if err := refuseAddr(a); err != nil {
			return nil, err
		}
	}
	if t.requests > 0 {
		if err := t.host(r.URL.Host).Wait(r.Context()); err != nil {
			return nil, err
		}
	}
	resp, err := t.base.RoundTrip(r)
	if err == nil && t.bytes != nil {
		resp.Body = &slowBody{resp.Body, r.Context(), t.bytes}
	}
	return resp, err
}

func (t *transport) host(name string) *rate.Limiter {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.hosts[name]
	if l == nil {
		l = rate.NewLimiter(rate.Limit(t.requests), max(1, t.requests))
		t.hosts[name] = l
	}
	return l
}

// watched notes what the registry of one job answers.
type watched struct {
	http.RoundTripper
	mu     sync.Mutex // guards what follows
	counts map[string]int
	later  time.Duration
}

func watch(t http.RoundTripper) *watched { return &watched{RoundTripper: t, counts: map[string]int{}} }

func (w *watched) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := w.RoundTripper.RoundTrip(r)
	status, later := "none", time.Duration(0)
	if err == nil {
		status = strconv.Itoa(resp.StatusCode)
		if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
			later = retryAfter(resp.Header.Get("Retry-After"), time.Now())
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[status]++
	w.later = max(w.later, later)
	return resp, err
}

// take returns how many answers came since it was last called, by status, and for how long the registry wants to be left alone.
func (w *watched) take() (counts map[string]int, later time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	counts, w.counts = w.counts, map[string]int{}
	return counts, w.later
}

// retryAfter reads the header: seconds or a date; at most an hour counts.
func retryAfter(text string, now time.Time) time.Duration {
	text = strings.TrimSpace(text)
	if n, err := strconv.ParseInt(text, 10, 32); err == nil && n >= 0 {
		return min(time.Duration(n)*time.Second, time.Hour)
	}
	if at, err := http.ParseTime(text); err == nil && at.After(now) {
		return min(at.Sub(now), time.Hour)
	}
	return 0
}

// slowBody lets bytes through at the limiter's pace.
type slowBody struct {
	io.ReadCloser
	ctx   context.Context // of the request that is answered
	limit *rate.Limiter
}

func (s *slowBody) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p[:min(len(p), s.limit.Burst())])
	if n > 0 {
		if e := s.limit.WaitN(s.ctx, n); e != nil && err == nil {
			err = e
		}
	}
	return n, err
}
