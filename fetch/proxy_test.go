package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"github.com/skimfs/skimfs/fetch"
)

// listed writes groups as a proxy list, without credentials.
func listed(groups []fetch.ProxyGroup) string {
	var names []string
	for _, g := range groups {
		var group []string
		for _, p := range g {
			group = append(group, p.String())
		}
		names = append(names, strings.Join(group, "|"))
	}
	return strings.Join(names, ";")
}

func TestW01ParseProxies(t *testing.T) {
	for _, tt := range []struct{ name, list, want, err string }{
		{"groups and members", "http://a:3128|http://b:3128;http://c:3128;DIRECT", "http://a:3128|http://b:3128;http://c:3128;DIRECT", ""},
		{"no list is DIRECT", "", "DIRECT", ""},
		{"blank list is DIRECT", " \n", "DIRECT", ""},
		{"missing scheme", "a:3128|b:3128", "http://a:3128|http://b:3128", ""},
		{"spaces around names", "  http://a:3128 |\tb:3128 ; DIRECT ", "http://a:3128|http://b:3128;DIRECT", ""},
		{"empty names", ";http://a:3128||;;", "http://a:3128", ""},
		{"one listed twice", "a:3128|http://A:3128/;a:3128;DIRECT", "http://a:3128;DIRECT", ""},
		{"addresses", "10.0.0.1:3128|[2001:db8::1]:3128", "http://10.0.0.1:3128|http://[2001:db8::1]:3128", ""},
		{"https proxy", "https://a:443", "https://a:443", ""},
		{"credentials are hidden", "http://me:secret@a:3128", "http://a:3128", ""},
		{"small letters", "direct", "DIRECT", ""},
		{"only separators", ";|", "", `names no proxy`},
		{"no port", "http://a", "", `proxy "http://a": no port`},
		{"bad port", "a:99999", "", `port "99999" is outside`},
		{"port zero", "a:0", "", `port "0" is outside`},
		{"no host", "http://:3128", "", "no host name"},
		{"another scheme", "socks5://a:1080", "", `scheme "socks5" is not supported`},
		{"a path", "http://a:3128/x", "", "only scheme, host and port"},
		{"a query", "http://a:3128?", "", "only scheme, host and port"},
		{"two names in one", "http://a:3128 http://b:3128", "", "not a URL"},
		{"comma", "a:3128,b:3128", "", "not a URL"},
		{"zone of an address", "[fe80::1%25eth0]:3128", "", "that no host name has"},
		{"discovery", "auto;DIRECT", "", "not supported"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			groups, err := fetch.ParseProxies(tt.list)
			if tt.err == "" && (err != nil || listed(groups) != tt.want) {
				t.Errorf("got %s, error %v; want %s", listed(groups), err, tt.want)
			}
			if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("got %s, error %v; want an error with %q", listed(groups), err, tt.err)
			}
		})
	}
}

func FuzzParseProxies(f *testing.F) {
	for _, list := range []string{"", "http://a:3128|http://b:3128;http://c:3128;DIRECT", "a:1|;b:2", "http://u:p@[::1%25eth0]:3128", "http://%zz:1", "//a:1", "a@b:1", "auto"} {
		f.Add(list)
	}
	f.Fuzz(func(t *testing.T, list string) {
		groups, err := fetch.ParseProxies(list)
		if err != nil {
			return
		}
		if len(groups) == 0 {
			t.Fatalf("%q: no group and no error", list)
		}
		for _, g := range groups {
			if len(g) == 0 {
				t.Fatalf("%q: an empty group", list)
			}
			for _, p := range g {
				if strings.Contains(p.String(), "@") {
					t.Errorf("%q: shows credentials: %s", list, p)
				}
			}
		}
		again, err := fetch.ParseProxies(listed(groups))
		if err != nil || !strings.Contains(list, "@") && listed(again) != listed(groups) {
			t.Errorf("%q: written as %s, read as %s, error %v", list, listed(groups), listed(again), err)
		}
	})
}

func TestThroughProxies(t *testing.T) {
	obj := newObject(t, 5000)
	squidError := status(503, "X-Squid-Error", "ERR_CONNECT_FAIL 111")
	for _, tt := range []struct {
		name    string
		list    string // P0, P1 … stand for the proxies
		proxies [][]answer
		servers [][]answer
		want    []int // requests to each proxy, then to each server
		ok      bool
	}{
		{"through the proxy", "P0", [][]answer{{forward}}, [][]answer{{right}}, []int{1, 1}, true},
		{"W06 dead proxy then next group", "DEAD;P0", [][]answer{{forward}}, [][]answer{{right}}, []int{1, 1}, true},
		{"DIRECT is not used unless listed", "DEAD", nil, [][]answer{{right}}, []int{0}, false},
		{"DIRECT is used if listed", "DEAD;DIRECT", nil, [][]answer{{right}}, []int{1}, true},
		{"DIRECT waits for its turn", "P0;DIRECT", [][]answer{{forward}}, [][]answer{{right}}, []int{1, 1}, true},
		{"W05 403 through a proxy is the proxy's", "P0;P1", [][]answer{{status(403)}, {forward}}, [][]answer{{right}}, []int{1, 1, 1}, true},
		{"W05 407 everywhere", "P0;P1", [][]answer{{status(407)}, {status(407)}}, [][]answer{{right}}, []int{1, 1, 0}, false},
		{"W05 500 through a proxy is the host's", "P0;P1", [][]answer{{forward}, {forward}}, [][]answer{{status(500)}, {right}}, []int{2, 0, 1, 1}, true},
		{"W05 squid's own error is the proxy's", "P0;P1", [][]answer{{squidError}, {forward}}, [][]answer{{right}}, []int{1, 1, 1}, true},
		{"W05 Proxy-Status with an error is the proxy's", "P0;P1", [][]answer{{status(502, "Proxy-Status", "x; error=dns_timeout")}, {forward}}, [][]answer{{right}}, []int{1, 1, 1}, true},
		{"proxy hangs up: again, then the next", "P0;P1", [][]answer{{hangUp}, {forward}}, [][]answer{{right}}, []int{2, 1, 1}, true},
		{"404 through all proxies", "P0;P1", [][]answer{{forward}, {forward}}, [][]answer{{status(404)}}, []int{2, 2, 4}, false},
		{"W05 a proxy's own 404", "P0;P1", [][]answer{{status(404)}, {forward}}, [][]answer{{right}, {right}}, []int{4, 1, 0, 1}, true},
		{"W05 a proxy's own 500", "P0;P1", [][]answer{{status(500)}, {forward}}, [][]answer{{right}, {right}}, []int{2, 1, 0, 1}, true},
		{"W15 a proxy that redirects in a loop", "P0;P1", [][]answer{{status(302, "Location", "/")}, {forward}}, [][]answer{{right}}, []int{5, 1, 1}, true},
		{"poisoned proxy", "P0;P1", [][]answer{{flipped}, {forward}}, [][]answer{{right}}, []int{2, 1, 1}, true},
		{"poisoned proxy healed past its cache", "P0;P1", [][]answer{{flipped, forward}, {forward}}, [][]answer{{right}}, []int{2, 0, 1}, true},
		{"W07 all proxies fail for the first server", "P0;P1", [][]answer{{squidError, forward}, {squidError}}, [][]answer{{right}, {right}}, []int{2, 1, 0, 1}, true},
		{"W07 all proxies and servers fail", "P0;P1", [][]answer{{squidError}, {squidError}}, [][]answer{{right}, {right}}, []int{2, 2, 0, 0}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var nodes []*node
			list := strings.ReplaceAll(tt.list, "DEAD", deadURL(t))
			for i, answers := range tt.proxies {
				n := newNode(t, obj.wire, answers...)
				nodes, list = append(nodes, n), strings.ReplaceAll(list, "P"+string(rune('0'+i)), n.URL)
			}
			var servers []string
			for _, answers := range tt.servers {
				n := newNode(t, obj.wire, answers...)
				nodes, servers = append(nodes, n), append(servers, n.URL)
			}
			c := newClient(t, fetch.Config{Servers: servers, Proxies: list})
			got, err := c.Object(t.Context(), obj.digest, 5000)
			if tt.ok != (err == nil && bytes.Equal(got, obj.plain)) || !tt.ok && got != nil {
				t.Errorf("got %d bytes, error %v", len(got), err)
			}
			var counts []int
			for _, n := range nodes {
				counts = append(counts, n.count())
			}
			if !slices.Equal(counts, tt.want) {
				t.Errorf("requests %v, want %v", counts, tt.want)
			}
		})
	}
}

// TestMain names a proxy in the environment before anything can read and keep that.
func TestMain(m *testing.M) {
	trap := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { trapped.Add(1) }))
	for _, name := range []string{"http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"} {
		os.Setenv(name, trap.URL)
	}
	os.Unsetenv("no_proxy")
	os.Unsetenv("NO_PROXY")
	status := m.Run()
	trap.Close()
	os.Exit(status)
}

var trapped atomic.Int64

func TestEnvironmentsProxyIsNotUsed(t *testing.T) {
	obj := newObject(t, 5000)
	// The name isn't loopback, for which the standard library would ignore the environment anyway.
	c := newClient(t, fetch.Config{Servers: []string{"http://origin.invalid"}})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := c.Object(ctx, obj.digest, 5000); err == nil || trapped.Load() != 0 {
		t.Errorf("error %v, %d requests to the environment's proxy", err, trapped.Load())
	}
}

func TestSwitchIsSharedAndLoggedOnce(t *testing.T) {
	obj := newObject(t, 5000)
	good := newNode(t, obj.wire, forward)
	origin := newNode(t, obj.wire, right)
	var log logBook
	set := metrics.NewSet()
	dead := deadURL(t)
	c := newClient(t, fetch.Config{Servers: []string{origin.URL}, Proxies: dead + ";" + good.URL, Log: log.logger(), Metrics: set})
	if proxy, server := c.Path(); proxy != dead || server != origin.URL {
		t.Errorf("begins at %s, %s", proxy, server)
	}
	for range 5 {
		if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
			t.Fatal(err)
		}
	}
	s := c.Stats()
	if s.Proxy != good.URL || s.Failovers != 1 || s.Errors["connect"] != 2 || s.Requests != 7 || s.Retries != 1 {
		t.Errorf("%+v", s)
	}
	if n := log.count("\n"); n != 1 || log.count("proxy switched") != 1 || log.count("reason=connect") != 1 {
		t.Errorf("log:\n%s", log.String())
	}
	var out bytes.Buffer
	set.WritePrometheus(&out)
	for _, line := range []string{
		"skimfs_fetch_requests_total 7\n", `skimfs_fetch_errors_total{side="proxy",kind="connect"} 2` + "\n",
		`skimfs_fetch_failovers_total{of="proxy"} 1` + "\n", `skimfs_fetch_retries_total{why="transfer"} 1` + "\n",
	} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("metrics lack %q:\n%s", line, out.String())
		}
	}
}

func TestMissingEverywhereSwitchesNothing(t *testing.T) {
	obj := newObject(t, 5000)
	a, b := newNode(t, nil, status(404)), newNode(t, nil, status(404))
	var log logBook
	c := newClient(t, fetch.Config{Servers: []string{a.URL, b.URL}, Log: log.logger()})
	_, err := c.Object(t.Context(), obj.digest, 5000)
	if _, server := c.Path(); err == nil || server != a.URL || log.String() != "" {
		t.Errorf("error %v, in use %s, log %q", err, server, log.String())
	}
}

// W05: a proxy with pages of its own is left once another one has the content, and not for what no server has.
func TestProxyIsConvictedByAnother(t *testing.T) {
	obj := newObject(t, 5000)
	for name, page := range map[string]answer{"404": status(404), "500": status(500), "wrong content": flipped} {
		for _, ok := range []bool{true, false} {
			second := page
			if ok {
				second = forward
			}
			p0, p1, origin := newNode(t, obj.wire, page), newNode(t, obj.wire, second), newNode(t, obj.wire, right)
			c := newClient(t, fetch.Config{Servers: []string{origin.URL}, Proxies: p0.URL + ";" + p1.URL})
			_, err := c.Object(t.Context(), obj.digest, 5000)
			want := p0.URL
			if ok {
				want = p1.URL
			}
			if proxy, _ := c.Path(); proxy != want || ok != (err == nil) {
				t.Errorf("%s, right through the second: %v: error %v, in use %s, want %s", name, ok, err, proxy, want)
			}
		}
	}
}

func TestW08ResetAfterTime(t *testing.T) {
	obj := newObject(t, 5000)
	// Each fails its first request and is sound afterwards.
	p0, p1 := newNode(t, obj.wire, status(403), forward), newNode(t, obj.wire, forward)
	s0, s1 := newNode(t, obj.wire, status(500), right), newNode(t, obj.wire, right)
	var log logBook
	c := newClient(t, fetch.Config{
		Servers: []string{s0.URL, s1.URL}, Proxies: p0.URL + ";" + p1.URL, Log: log.logger(),
		ProxyReset: 300 * time.Millisecond, ServerReset: 300 * time.Millisecond,
	})
	if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
		t.Fatal(err)
	}
	if proxy, server := c.Path(); proxy != p1.URL || server != s1.URL {
		t.Errorf("after the faults: %s, %s", proxy, server)
	}
	for end := time.Now().Add(20 * time.Second); ; {
		if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
			t.Fatal(err)
		}
		if proxy, server := c.Path(); proxy == p0.URL && server == s0.URL && log.count("reason=reset") > 1 { // the log comes after
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no reset, or none in the log:\n%s", log.String())
		}
	}
	if log.count("reason=reset") != 2 || log.count("\n") != 4 {
		t.Errorf("log:\n%s", log.String())
	}
}

func TestSilentProxyIsLeft(t *testing.T) {
	obj := newObject(t, 5000)
	origin := newNode(t, obj.wire, right)
	mute, good := newNode(t, nil, silent), newNode(t, nil, forward)
	c := newClient(t, fetch.Config{Servers: []string{origin.URL}, Proxies: mute.URL + ";" + good.URL, Timeout: 200 * time.Millisecond})
	if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil || mute.count() != 2 || good.count() != 1 {
		t.Errorf("error %v, %d and %d requests, want 2 and 1", err, mute.count(), good.count())
	}
}

// TestConnectIsBounded: a proxy that never answers CONNECT, and one that refuses it.
func TestConnectIsBounded(t *testing.T) {
	obj := newObject(t, 5000)
	for name, a := range map[string]answer{"silent": silent, "refused": status(http.StatusForbidden)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newNode(t, nil, a)
			c := newClient(t, fetch.Config{Servers: []string{"https://127.0.0.1:1"}, Proxies: p.URL, Timeout: 100 * time.Millisecond})
			start := time.Now()
			_, err := c.Object(t.Context(), obj.digest, 5000)
			var e *fetch.Error
			if !errors.As(err, &e) || time.Since(start) > 10*time.Second {
				t.Errorf("error %v after %v", err, time.Since(start))
			}
			if name == "refused" && (e.Status != 403 || p.count() != 1) {
				t.Errorf("status %d, %d requests", e.Status, p.count())
			}
		})
	}
}

// TestPauseEndsElsewhere: who waits to try a proxy again learns that others gave it up.
func TestPauseEndsElsewhere(t *testing.T) {
	obj := newObject(t, 5000)
	bad, good, origin := newNode(t, nil, hangUp), newNode(t, nil, forward), newNode(t, obj.wire, right)
	c := newClient(t, fetch.Config{Servers: []string{origin.URL}, Proxies: bad.URL + ";" + good.URL, BackoffInit: time.Second})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if bad.count() > 30 || good.count() != 20 {
		t.Errorf("%d requests to the bad proxy, want at most 30 of 40; %d to the good one, want 20", bad.count(), good.count())
	}
	if s := c.Stats(); s.Failovers != 1 {
		t.Errorf("%d switches, want 1", s.Failovers)
	}
}
