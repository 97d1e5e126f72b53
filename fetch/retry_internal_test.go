package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"
)

func TestW05Judge(t *testing.T) {
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	through := func(err error) error { return &net.OpError{Op: "proxyconnect", Net: "tcp", Err: err} }
	for _, tt := range []struct {
		name    string
		err     error
		proxied bool
		side    side
		kind    kind
		again   bool
	}{
		{"refused", dial(syscall.ECONNREFUSED), false, sideHost, kindConnect, true},
		{"refused by the proxy", through(dial(syscall.ECONNREFUSED)), true, sideProxy, kindConnect, true},
		{"connecting takes too long", dial(os.ErrDeadlineExceeded), false, sideHost, kindConnect, true},
		{"no network", dial(syscall.ENETUNREACH), true, sideProxy, kindConnect, false},
		{"no such host", dial(&net.DNSError{Err: "no such host", IsNotFound: true}), false, sideHost, kindDNS, false},
		{"no such proxy", through(dial(&net.DNSError{Err: "no such host"})), true, sideProxy, kindDNS, false},
		{"no descriptors left", through(dial(os.NewSyscallError("socket", syscall.EMFILE))), true, sideLocal, kindResource, false},
		{"no ports left", dial(syscall.EADDRNOTAVAIL), false, sideLocal, kindResource, false},
		{"reset", &net.OpError{Op: "read", Err: syscall.ECONNRESET}, false, sideHost, kindTransfer, true},
		{"reset by the proxy", &net.OpError{Op: "read", Err: syscall.ECONNRESET}, true, sideProxy, kindTransfer, true},
		{"cut off", io.ErrUnexpectedEOF, false, sideHost, kindTransfer, true},
		{"not HTTP", errors.New("malformed HTTP response"), true, sideProxy, kindTransfer, true},
		{"no first byte", errSilent, true, sideProxy, kindTimeout, true},
		{"no first byte, the transport's words", &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, false, sideHost, kindTimeout, true},
		{"slow", errSlow, false, sideHost, kindSlow, true},
		{"certificate", &tls.CertificateVerificationError{Err: errors.New("unknown authority")}, true, sideHost, kindTLS, false},
		{"proxy's certificate", through(&tls.CertificateVerificationError{Err: errors.New("unknown authority")}), true, sideProxy, kindTLS, false},
		{"CONNECT refused", &statusError{403}, true, sideProxy, kindStatus, false},
		{"too long", errTooLong, true, sideData, kindContent, false},
		{"encoded", errEncoded, false, sideData, kindContent, false},
	} {
		f := judge(fmt.Errorf("wrapped: %w", tt.err), tt.proxied)
		if f.side != tt.side || f.kind != tt.kind || f.again != tt.again {
			t.Errorf("%s: %s %s again=%v, want %s %s again=%v", tt.name, f.side, f.kind, f.again, tt.side, tt.kind, tt.again)
		}
	}
}

func TestW05JudgeStatus(t *testing.T) {
	squid := http.Header{"X-Squid-Error": {"ERR_ACCESS_DENIED 0"}}
	for _, tt := range []struct {
		code    int
		header  http.Header
		proxied bool
		side    side
		kind    kind
		again   bool
	}{
		{500, nil, false, sideHost, kindStatus, false},
		{500, nil, true, sideHost, kindStatus, false},
		{500, squid, true, sideProxy, kindStatus, false},
		{500, squid, false, sideHost, kindStatus, false},
		{504, http.Header{"Proxy-Status": {"cache; error=connection_timeout"}}, true, sideProxy, kindStatus, false},
		{504, http.Header{"Proxy-Status": {"cache; received-status=504"}}, true, sideHost, kindStatus, false},
		{400, nil, true, sideHost, kindStatus, false},
		{401, nil, true, sideHost, kindStatus, false},
		{403, nil, true, sideProxy, kindStatus, false},
		{403, nil, false, sideHost, kindStatus, false},
		{407, nil, true, sideProxy, kindStatus, false},
		{404, nil, true, sideData, kindMissing, false},
		{404, squid, true, sideProxy, kindStatus, false},
		{410, nil, false, sideData, kindMissing, false},
		{429, nil, false, sideHost, kindBusy, true},
		{503, nil, false, sideHost, kindBusy, true},
		{302, nil, true, sideHost, kindRedirect, false},
		{308, nil, false, sideHost, kindRedirect, false},
	} {
		f := judgeStatus(tt.code, tt.header, tt.proxied)
		if f.side != tt.side || f.kind != tt.kind || f.again != tt.again || f.status != tt.code {
			t.Errorf("%d %v proxied=%v: %s %s again=%v, want %s %s again=%v", tt.code, tt.header, tt.proxied, f.side, f.kind, f.again, tt.side, tt.kind, tt.again)
		}
	}
}

func TestW06W07Decide(t *testing.T) {
	lost := func(s side) *fault { return &fault{side: s, kind: kindTransfer, again: true} }
	refused := func(s side) *fault { return &fault{side: s, kind: kindStatus} }
	wrong, missing := &fault{side: sideData, kind: kindContent}, &fault{side: sideData, kind: kindMissing}
	for _, tt := range []struct {
		name string
		f    *fault
		w    ways
		want step
	}{
		{"a lost transfer is tried again", lost(sideHost), ways{maxRetries: 1, server: true}, retry},
		{"as often as allowed", lost(sideHost), ways{retries: 1, maxRetries: 1, server: true}, nextServer},
		{"never past the caches", lost(sideProxy), ways{maxRetries: 1, noCache: true, proxy: true}, nextProxy},
		{"a refusal is not tried again", refused(sideProxy), ways{maxRetries: 1, proxy: true, server: true}, nextProxy},
		{"all proxies failed", refused(sideProxy), ways{server: true}, nextServer},
		{"all proxies failed, this one for all servers", refused(sideProxy), ways{other: true}, nextServer},
		{"nothing left after a proxy", refused(sideProxy), ways{}, giveUp},
		{"all servers failed through this proxy", refused(sideHost), ways{proxy: true, other: true}, nextProxy},
		{"a host's fault: the next server first", refused(sideHost), ways{proxy: true, server: true, other: true}, nextServer},
		{"nothing left after a host", refused(sideHost), ways{}, giveUp},
		{"wrong content: past the caches", wrong, ways{maxRetries: 1, server: true, proxy: true}, refresh},
		{"then the next server", wrong, ways{noCache: true, server: true, proxy: true}, nextServer},
		{"then the next proxy", wrong, ways{noCache: true, proxy: true}, nextProxy},
		{"missing content: a proxy may say so of itself", missing, ways{noCache: true, proxy: true}, nextProxy},
		{"missing everywhere", missing, ways{noCache: true}, giveUp},
		{"nothing helps a local fault", &fault{side: sideLocal, kind: kindResource}, ways{maxRetries: 1, proxy: true, server: true, other: true}, giveUp},
	} {
		if got := decide(tt.f, tt.w); got != tt.want {
			t.Errorf("%s: step %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestW06Pause(t *testing.T) {
	for _, tt := range []struct {
		n    int
		r    float64
		want time.Duration
	}{
		{0, 1, 2 * time.Second}, {0, 0.25, 500 * time.Millisecond}, {1, 1, 4 * time.Second}, {2, 0.5, 4 * time.Second},
		{3, 1, 10 * time.Second}, {1000, 1, 10 * time.Second}, {1000, 0.001, 10 * time.Second},
	} {
		if got := pause(tt.n, tt.r, 2*time.Second, 10*time.Second); got != tt.want {
			t.Errorf("pause(%d, %v) = %v, want %v", tt.n, tt.r, got, tt.want)
		}
	}
}

func chainOf(t *testing.T, list string, reset time.Duration) *proxyChain {
	t.Helper()
	groups, err := ParseProxies(list)
	if err != nil {
		t.Fatal(err)
	}
	return newProxyChain(members(groups), reset, rand.IntN)
}

func TestW02RandomMemberAtStart(t *testing.T) {
	seen := map[string]int{}
	for range 3000 {
		seen[chainOf(t, "a:1|b:1|c:1;d:1", 0).cur.String()]++
	}
	if seen["http://d:1"] != 0 || min(seen["http://a:1"], seen["http://b:1"], seen["http://c:1"]) < 800 {
		t.Errorf("starts at %v of 3000", seen)
	}
}

func TestW07Burn(t *testing.T) {
	now := time.Unix(1e9, 0)
	ch := chainOf(t, "a:1|b:1;c:1", time.Minute)
	first, other := ch.all[0], ch.all[1]
	if ch.cur != first {
		first, other = other, first
	}
	if ch.burn(first, now); ch.cur != other {
		t.Errorf("after the first burn at %v, want %v", ch.cur, other)
	}
	if ch.burn(first, now); ch.cur != other {
		t.Errorf("a late report about a burned proxy moved the chain to %v", ch.cur)
	}
	if ch.burn(other, now); ch.cur != ch.all[2] {
		t.Errorf("group exhausted: at %v, want the next group", ch.cur)
	}
	if ch.burn(ch.all[2], now); ch.cur.group != 0 || !ch.all[2].burned || first.burned {
		t.Errorf("all exhausted: at %v, want group 0", ch.cur)
	}
	alone := chainOf(t, "a:1", time.Minute)
	if alone.burn(alone.cur, now); alone.cur.burned {
		t.Errorf("the only proxy is left")
	}
}

func TestW08DueAndHeal(t *testing.T) {
	now := time.Unix(1e9, 0)
	ch := chainOf(t, "a:1;b:1", time.Minute)
	a, b := ch.all[0], ch.all[1]
	ch.burn(a, now)
	if len(ch.due(now.Add(59*time.Second))) != 0 || ch.cur != b {
		t.Errorf("due before its time")
	}
	if due := ch.due(now.Add(60 * time.Second)); len(due) != 1 || due[0] != a {
		t.Errorf("due at its time: %v", due)
	}
	if ch.heal(a); ch.cur != a || a.burned {
		t.Errorf("healed and at %v", ch.cur)
	}
	never := chainOf(t, "a:1;b:1", -1)
	never.burn(never.all[0], now)
	if len(never.due(now.Add(time.Hour))) != 0 {
		t.Errorf("due though told never")
	}
	same := chainOf(t, "a:1|b:1", time.Minute)
	was := same.cur
	same.burn(was, now)
	if same.heal(was); same.cur == was || was.burned {
		t.Errorf("inside the first group the working proxy is kept and the other trusted again")
	}
	st, err := newStratum([]string{"http://a", "http://b", "http://c"}, time.Minute, false)
	if err != nil {
		t.Fatal(err)
	}
	st.leave(st.all[0], now)
	st.leave(st.all[0], now) // late report
	if st.cur != st.all[1] {
		t.Errorf("at server %v, want b", st.cur)
	}
	st.leave(st.all[1], now.Add(50*time.Second))
	if len(st.due(now.Add(59*time.Second))) != 0 || len(st.due(now.Add(time.Minute))) != 2 {
		t.Errorf("servers due: %v", st.due(now.Add(time.Minute)))
	}
}

// TestRequestEnds: whatever fails how, a request tries each path a bounded number of times.
func TestRequestEnds(t *testing.T) {
	const proxies, servers, retries = 3, 3, 1
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		c, err := New(Config{Servers: []string{"http://a", "http://b", "http://c"}, Proxies: "a:1|b:1;DIRECT", MaxRetries: retries, BackoffInit: 1, BackoffMax: 1})
		if err != nil {
			t.Fatal(err)
		}
		c.lookup = func(context.Context, string) ([]net.IPAddr, error) { return nil, errors.New("no name server") }
		faults := make([]func() (*http.Response, error), proxies)
		for i := range faults {
			faults[i] = func() (*http.Response, error) {
				switch rnd.IntN(4) {
				case 0:
					return nil, errors.New("lost")
				case 1:
					return nil, &net.OpError{Op: "dial", Err: &net.DNSError{}}
				}
				code := []int{200, 302, 400, 403, 404, 429, 500, 503}[rnd.IntN(8)]
				h := http.Header{}
				if rnd.IntN(3) == 0 {
					h.Set("X-Squid-Error", "x")
				}
				return &http.Response{StatusCode: code, Header: h, Body: http.NoBody}, nil
			}
			c.proxies.all[i].tripper = tripper(faults[i])
		}
		_, err = c.FileChecked(context.Background(), "manifest", 0, 1, false, func([]byte) error { return errSlow })
		var e *Error
		if !errors.As(err, &e) || e.Attempts > proxies*servers*(retries+2) {
			t.Fatalf("error %v", err)
		}
		c.Close()
	}
}

type tripper func() (*http.Response, error)

func (f tripper) RoundTrip(*http.Request) (*http.Response, error) { return f() }
