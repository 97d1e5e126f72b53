package publishd

import (
	"bytes"
	"context"
	"encoding/json"
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
	direct   map[bool]http.RoundTripper // by whether he who asks is at this machine
	proxied  http.RoundTripper          // connects to the proxies that the environment names
	bytes    *rate.Limiter              // nil: no limit
	requests float64                    // per second and host; 0: no limit

	mu    sync.Mutex // guards hosts
	hosts map[string]*rate.Limiter
}

func newTransport(bytesPerSecond int64, requests float64) *transport {
	t := &transport{requests: requests, hosts: map[string]*rate.Limiter{}, direct: map[bool]http.RoundTripper{}}
	for _, here := range []bool{false, true} {
		t.direct[here] = baseTransport(func(_, address string, _ syscall.RawConn) error { return refuse(address, here) })
	}
	proxied := baseTransport(nil)
	proxied.Proxy = http.ProxyFromEnvironment
	t.proxied = proxied
	if bytesPerSecond > 0 {
		t.bytes = rate.NewLimiter(rate.Limit(bytesPerSecond), 64<<10)
	}
	return t
}

func baseTransport(control func(network, address string, c syscall.RawConn) error) *http.Transport {
	dialer := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second, Control: control}
	return &http.Transport{
		DialContext: dialer.DialContext, ForceAttemptHTTP2: true, MaxIdleConns: 100, MaxIdleConnsPerHost: 8, MaxConnsPerHost: 16,
		IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: time.Minute,
	}
}

// of returns the transport for somebody who is at this machine, or is not.
func (t *transport) of(here bool) http.RoundTripper { return asker{t, here} }

type asker struct {
	*transport
	here bool
}

func (a asker) RoundTrip(r *http.Request) (*http.Response, error) {
	base := a.direct[a.here]
	switch proxy, err := http.ProxyFromEnvironment(r); {
	case err != nil:
		return nil, err
	case proxy != nil: // it looks the name up and connects for us
		if err := refuseName(r.Context(), r.URL.Hostname(), a.here); err != nil {
			return nil, err
		}
		base = a.proxied
	}
	if a.requests > 0 {
		if err := a.host(r.URL.Host).Wait(r.Context()); err != nil {
			return nil, err
		}
	}
	resp, err := base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	onlyRegistryErrors(resp)
	if a.bytes != nil {
		resp.Body = &slowBody{resp.Body, r.Context(), a.bytes}
	}
	return resp, nil
}

// onlyRegistryErrors empties an answer that is an error and not in the form of a registry's: it would be quoted, and who named the address need not
// be somebody who may read what is there.
func onlyRegistryErrors(resp *http.Response) {
	if resp.StatusCode < 400 {
		return
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // half an error is none
	resp.Body.Close()
	var e struct {
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &e) != nil || len(e.Errors) == 0 || e.Errors[0].Code == "" {
		body = nil
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
}

// metadataHosts are addresses, besides link-local ones, at which clouds give credentials to whoever asks from this machine; metadataNames are what
// they are called, for proxies in such clouds.
var (
	metadataHosts = map[netip.Addr]bool{
		netip.MustParseAddr("fd00:ec2::254"): true, netip.MustParseAddr("100.100.100.200"): true, netip.MustParseAddr("192.0.0.192"): true, netip.MustParseAddr("168.63.129.16"): true,
	}
	metadataNames = map[string]bool{"metadata": true, "metadata.google.internal": true, "metadata.goog": true, "instance-data": true, "instance-data.ec2.internal": true, "metadata.tencentyun.com": true}
)

// refuse is asked for each address that a connection is made to, after names were looked up.
func refuse(address string, here bool) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, publish.ErrForbidden)
	}
	return refuseAddr(ap.Addr(), here)
}

func refuseAddr(a netip.Addr, here bool) error {
	a = embedded(a.Unmap().WithZone(""))
	if a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || metadataHosts[a] || a.IsLoopback() && !here {
		return fmt.Errorf("address %s: %w", a, publish.ErrForbidden)
	}
	return nil
}

// embedded returns the IPv4 address to which a gateway would translate a: of NAT64, of 6to4, or compatible with IPv4.
func embedded(a netip.Addr) netip.Addr {
	b := a.As16()
	switch {
	case !a.Is6() || a == netip.IPv6Loopback() || a.IsUnspecified():
	case [12]byte(b[:]) == [12]byte{0, 0x64, 0xff, 0x9b}, [12]byte(b[:]) == [12]byte{}:
		return netip.AddrFrom4([4]byte(b[12:]))
	case [2]byte(b[:]) == [2]byte{0x20, 0x02}:
		return netip.AddrFrom4([4]byte(b[2:]))
	}
	return a
}

// refuseName is asked for the host of a request that a proxy makes for us, who may read more forms of an address than we do.
func refuseName(ctx context.Context, host string, here bool) error {
	host = strings.ToLower(strings.TrimRight(host, "."))
	if a, err := netip.ParseAddr(host); err == nil {
		return refuseAddr(a, here)
	}
	last := host[strings.LastIndex(host, ".")+1:]
	if _, err := strconv.ParseUint(last, 0, 64); err == nil || strings.Trim(last, "0123456789") == "" || metadataNames[host] || !here && last == "localhost" {
		return fmt.Errorf("address %q: %w", host, publish.ErrForbidden)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	found, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", host) // that we don't know it need not mean anything
	for _, a := range found {
		if err := refuseAddr(a, here); err != nil {
			return err
		}
	}
	return nil
}

func (t *transport) host(name string) *rate.Limiter {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.hosts[name]
	if l == nil {
		l = rate.NewLimiter(rate.Limit(t.requests), max(1, int(t.requests)))
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
