package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skimfs/skimfs/fetch"
)

// W03: fallback proxies come after all others, and with them DIRECT is used from no list.
func TestW03FallbackProxies(t *testing.T) {
	t.Parallel()
	obj := newObject(t, 5000)
	for _, tt := range []struct {
		name, list, fallback string
		want                 []int // requests to P0, to P1, and to the server
		ok                   bool
	}{
		{"after the list", "DEAD;P0", "P1", []int{1, 0, 1}, true},
		{"when the list is exhausted", "DEAD|DEAD2", "P1", []int{0, 1, 1}, true},
		{"DIRECT is not used from the list", "DEAD;DIRECT", "P1", []int{0, 1, 1}, true},
		{"nor from the fallback", "DEAD", "DEAD2;DIRECT", []int{0, 0, 0}, false},
		{"no list at all", "", "P1", []int{0, 1, 1}, true},
		{"blank means none", "DIRECT", " ", []int{0, 0, 1}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			origin, p0, p1 := newNode(t, obj.wire, right), newNode(t, nil, forward), newNode(t, nil, forward)
			names := strings.NewReplacer("P0", p0.URL, "P1", p1.URL, "DEAD2", deadURL(t), "DEAD", deadURL(t))
			c := newClient(t, fetch.Config{Servers: []string{origin.URL}, Proxies: names.Replace(tt.list), Fallback: names.Replace(tt.fallback)})
			_, err := c.Object(t.Context(), obj.digest, 5000)
			if got := []int{p0.count(), p1.count(), origin.count()}; fmt.Sprint(got) != fmt.Sprint(tt.want) || tt.ok != (err == nil) {
				t.Errorf("requests %v, want %v; error %v", got, tt.want, err)
			}
		})
	}
	if _, err := fetch.New(fetch.Config{Servers: []string{"http://a"}, Fallback: "DIRECT"}); err == nil {
		t.Error("no proxy is left, and nobody says so")
	}
}

// phoneBook is a DNS of one name.
type phoneBook struct {
	mu    sync.Mutex
	addrs []string
	err   error
	asked int
}

func (b *phoneBook) set(err error, addrs ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addrs, b.err = addrs, err
}

func (b *phoneBook) lookup(context.Context, string) ([]net.IPAddr, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked++
	var ips []net.IPAddr
	for _, a := range b.addrs {
		ips = append(ips, net.IPAddr{IP: net.ParseIP(a)})
	}
	return ips, b.err
}

// until polls for a condition.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: ", what)
		}
	}
}

// W02, W12, scenario 052: a proxy's name with several addresses is several proxies, and they follow the name.
func TestW12ProxiesFollowTheirName(t *testing.T) {
	t.Parallel()
	obj := newObject(t, 5000)
	origin, first := newNode(t, obj.wire, right), newNodeAt(t, "127.0.0.2:0", nil, forward)
	_, port, err := net.SplitHostPort(first.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	second, third := newNodeAt(t, "127.0.0.3:"+port, nil, forward), newNodeAt(t, "127.0.0.4:"+port, nil, forward)
	book, log := &phoneBook{}, &logBook{}
	book.set(nil, "127.0.0.3", "127.0.0.2", "::1", "127.0.0.2")
	c := newClient(t, fetch.Config{Servers: []string{origin.URL}, Proxies: "squid.invalid:" + port, Lookup: 20 * time.Millisecond, Log: log.logger()})
	fetch.SetLookup(c, book.lookup)
	get := func() string {
		t.Helper()
		if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
			t.Fatal(err)
		}
		proxy, _ := c.Path()
		return proxy
	}
	begin := get()
	if begin != first.URL && begin != second.URL || first.count()+second.count() != 1 || log.String() != "" {
		t.Fatalf("began at %s, %d and %d requests\n%s", begin, first.count(), second.count(), log.String())
	}
	// The one in use dies: the other one is another proxy.
	used, other := first, second
	if begin == second.URL {
		used, other = second, first
	}
	used.CloseClientConnections()
	used.Close()
	if got := get(); got != other.URL || log.count("proxy switched") != 1 || log.count("reason=connect") != 1 {
		t.Errorf("after a death at %s, want %s\n%s", got, other.URL, log.String())
	}
	// What can't be looked up keeps its addresses.
	book.set(errors.New("the name server is away"))
	asked := book.asked
	until(t, "a lookup that failed", func() bool {
		get()
		book.mu.Lock()
		defer book.mu.Unlock()
		return book.asked > asked+1
	})
	if got := get(); got != other.URL {
		t.Errorf("without a name server at %s, want %s", got, other.URL)
	}
	// The name leads elsewhere.
	book.set(nil, "127.0.0.4", "127.0.0.5")
	until(t, "the new address", func() bool { return get() == third.URL })
	was := third.count()
	if get(); third.count() != was+1 || log.count("addresses of a proxy changed") != 1 {
		t.Errorf("%d requests to the new address\n%s", third.count()-was, log.String())
	}
}

// A name that leads nowhere is left without a pause, and comes back when it leads somewhere.
func TestW12ANameWithoutAddresses(t *testing.T) {
	t.Parallel()
	obj := newObject(t, 5000)
	origin, named, backup := newNode(t, obj.wire, right), newNodeAt(t, "127.0.0.1:0", nil, forward), newNode(t, nil, forward)
	port := named.URL[strings.LastIndexByte(named.URL, ':')+1:]
	book, log := &phoneBook{}, &logBook{}
	book.set(&net.DNSError{Err: "no such host", Name: "squid.invalid", IsNotFound: true})
	c := newClient(t, fetch.Config{
		Servers: []string{origin.URL}, Proxies: "squid.invalid:" + port + ";" + backup.URL, Log: log.logger(),
		Lookup: 10 * time.Millisecond, ProxyReset: 10 * time.Millisecond, BackoffInit: time.Minute,
	})
	fetch.SetLookup(c, book.lookup)
	if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil || backup.count() != 1 || c.Stats().Errors["dns"] != 1 || log.count("reason=dns") != 1 {
		t.Fatalf("error %v, %d requests to the backup, errors %v\n%s", err, backup.count(), c.Stats().Errors, log.String())
	}
	book.set(nil, "127.0.0.1", "127.0.0.8")
	until(t, "the name's proxy in use", func() bool {
		if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
			t.Fatal(err)
		}
		return named.count() > 0
	})
}

// many makes n requests, some at once, and returns how long the slowest took.
func many(t *testing.T, c *fetch.Client, obj object, n int) (slowest time.Duration) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range n / 4 {
				begin := time.Now()
				if got, err := c.Object(t.Context(), obj.digest, int64(len(obj.plain))); err != nil || !bytes.Equal(got, obj.plain) {
					t.Error(err)
				}
				mu.Lock()
				slowest = max(slowest, time.Since(begin))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return slowest
}

// W11: a slow squid is used less and not abandoned, and used again when it is quick.
func TestW11SlowIsNotDead(t *testing.T) {
	t.Parallel()
	obj := newObject(t, 5000)
	for _, shard := range []bool{false, true} {
		t.Run(fmt.Sprintf("sharded=%v", shard), func(t *testing.T) {
			t.Parallel()
			const slow = 100 * time.Millisecond
			objects := []object{obj}
			if shard {
				for i := range 199 { // of which the slow one keeps an eighth of its half
					objects = append(objects, newObject(t, 100+i))
				}
			}
			wire := map[string][]byte{}
			for _, o := range objects {
				wire["/"+o.digest.ObjectPath()] = o.wire
			}
			serve := func(w http.ResponseWriter, r *http.Request, _ []byte) { right(w, r, wire[r.URL.Path]) }
			origin, a, b := newNode(t, nil, serve), newNode(t, nil, forward), newNode(t, nil, forward)
			log := &logBook{}
			c := newClient(t, fetch.Config{Servers: []string{origin.URL}, Proxies: a.URL + "|" + b.URL, Shard: shard, Log: log.logger()})
			run := func(n int) (toA, toB int) {
				wasA, wasB := a.count(), b.count()
				for i := range n {
					many(t, c, objects[i%len(objects)], 4)
				}
				return a.count() - wasA, b.count() - wasB
			}
			a.answer(late(slow, forward))
			run(24)
			toA, toB := run(max(48, len(objects)))
			if toA == 0 || toA > (toA+toB)/4 {
				t.Errorf("%d requests to the slow one, %d to the other", toA, toB)
			}
			// Now the other one is slow, and the first one quick again.
			a.answer(forward)
			b.answer(late(slow, forward))
			until(t, "the slow one is used less", func() bool {
				toA, toB := run(16)
				return toB <= (toA+toB)/4
			})
			if s := c.Stats(); len(s.Errors) != 0 || s.Failovers != 0 || s.Hedges*20 > s.Requests {
				t.Errorf("%+v\n%s", s, log.String())
			}
			if n := log.count("\n"); !shard && (n == 0 || n > 2 || log.count("reason=slow") != n) {
				t.Errorf("log:\n%s", log.String())
			}
		})
	}
}

// W11: an answer that doesn't come is overtaken by a second request inside the group, of which there are at most 5 %.
func TestW11SecondRequestOvertakes(t *testing.T) {
	t.Parallel()
	obj := newObject(t, 5000)
	origin := newNode(t, obj.wire, right)
	var mu sync.Mutex
	turn, stuck := 0, false
	hiccup := func(w http.ResponseWriter, r *http.Request, body []byte) {
		mu.Lock()
		turn++
		sticks := turn >= 60 && !stuck // one at a time: second requests get through
		if sticks {
			turn, stuck = 0, true
		}
		mu.Unlock()
		if sticks {
			late(15*time.Second, forward)(w, r, body)
			mu.Lock()
			stuck = false
			mu.Unlock()
			return
		}
		forward(w, r, body)
	}
	a, b := newNode(t, nil, hiccup), newNode(t, nil, hiccup)
	set := newSet()
	c := newClient(t, fetch.Config{Servers: []string{origin.URL}, Proxies: a.URL + "|" + b.URL, Timeout: 20 * time.Second, Metrics: set})
	slowest := many(t, c, obj, 800)
	s := c.Stats()
	if slowest > 10*time.Second || s.Hedges < 6 || s.Hedges > 40 || s.Requests != 800+s.Hedges || len(s.Errors) != 0 || s.Failovers != 0 {
		t.Errorf("the slowest request took %v, %+v", slowest, s)
	}
	var out bytes.Buffer
	set.WritePrometheus(&out)
	if text := out.String(); !strings.Contains(text, fmt.Sprintf("skimfs_fetch_hedges_total %d\n", s.Hedges)) || strings.Contains(text, "path_errors") {
		t.Errorf("metrics:\n%s", text)
	}
}

// W11: what times out while others are served is not left.
func TestW11TimeoutOfOneObjectSwitchesNothing(t *testing.T) {
	t.Parallel()
	obj, stuck := newObject(t, 5000), newObject(t, 6000)
	wire := map[string][]byte{"/" + obj.digest.ObjectPath(): obj.wire, "/" + stuck.digest.ObjectPath(): stuck.wire}
	origin := newNode(t, nil, func(w http.ResponseWriter, r *http.Request, _ []byte) { right(w, r, wire[r.URL.Path]) })
	p := newNode(t, nil, func(w http.ResponseWriter, r *http.Request, body []byte) {
		if strings.HasSuffix(r.URL.Path, stuck.digest.ObjectPath()) {
			silent(w, r, body)
			return
		}
		forward(w, r, body)
	})
	log := &logBook{}
	c := newClient(t, fetch.Config{Servers: []string{origin.URL}, Proxies: p.URL + ";DIRECT", Timeout: 300 * time.Millisecond, Log: log.logger()})
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
					t.Error(err)
				}
			}
		}
	})
	if _, err := c.Object(t.Context(), stuck.digest, 6000); err != nil {
		t.Error(err)
	}
	close(done)
	wg.Wait()
	if proxy, _ := c.Path(); proxy != p.URL || log.String() != "" {
		t.Errorf("in use %s\n%s", proxy, log.String())
	}
}

// W08: nobody is made to try what is still dead: it is probed in the background, and used once it answers.
func TestW08ProbeBeforeReturn(t *testing.T) {
	t.Parallel()
	obj := newObject(t, 5000)
	origin, p1 := newNode(t, obj.wire, right), newNode(t, nil, forward)
	p0, s0 := newNode(t, nil, hangUp), newNode(t, obj.wire, status(500))
	log := &logBook{}
	c := newClient(t, fetch.Config{
		Servers: []string{s0.URL, origin.URL}, Proxies: p0.URL + ";" + p1.URL, Log: log.logger(),
		ProxyReset: 30 * time.Millisecond, ServerReset: 30 * time.Millisecond,
	})
	get := func() {
		t.Helper()
		if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
			t.Fatal(err)
		}
	}
	get()
	failed := c.Stats()
	was, wasServer := p0.count(), s0.count()
	until(t, "some probes", func() bool {
		get()
		return p0.count() > was+3 && s0.count() > wasServer+3
	})
	if s := c.Stats(); s.Errors["transfer"] != failed.Errors["transfer"] || s.Errors["status"] != failed.Errors["status"] || s.Failovers != failed.Failovers {
		t.Errorf("readers tried what is dead: %v, then %v", failed.Errors, s.Errors)
	}
	p0.answer(forward)
	s0.answer(right)
	until(t, "the return", func() bool {
		get()
		proxy, server := c.Path()
		return proxy == p0.URL && server == s0.URL
	})
	if log.count("reason=reset") != 2 || log.count("\n") != 4 {
		t.Errorf("log:\n%s", log.String())
	}
}

// W14: servers in the order of their measured round trip, with those that don't answer at the end.
func TestW14ServersByRoundTrip(t *testing.T) {
	t.Parallel()
	obj := newObject(t, 5000)
	far, near, dead := newNode(t, obj.wire, late(200*time.Millisecond, right)), newNode(t, obj.wire, right), deadURL(t)
	p := newNode(t, nil, forward)
	log := &logBook{}
	c := newClient(t, fetch.Config{Servers: []string{far.URL, dead, near.URL}, Proxies: p.URL, Probe: true, Log: log.logger()})
	get := func() {
		t.Helper()
		if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the near one in use", func() bool {
		get()
		_, server := c.Path()
		return server == near.URL
	})
	if log.count("server switched") != 1 || log.count(`reason="round trip"`) != 1 {
		t.Errorf("log:\n%s", log.String())
	}
	// The next in order is the far one, not the dead one.
	near.answer(status(500))
	get()
	if _, server := c.Path(); server != far.URL {
		t.Errorf("then %s", server)
	}
	if h := near.header("Cache-Control"); h[0] != "no-cache" {
		t.Errorf("a probe asks with %q", h[0])
	}
}

func TestPathErrorsByKind(t *testing.T) {
	t.Parallel()
	obj := newObject(t, 5000)
	origin, bad, p := newNode(t, obj.wire, right), newNode(t, nil, status(403)), newNode(t, nil, forward)
	set := newSet()
	c := newClient(t, fetch.Config{Servers: []string{origin.URL}, Proxies: bad.URL + ";" + p.URL, Metrics: set})
	if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	set.WritePrometheus(&out)
	want := fmt.Sprintf("skimfs_fetch_path_errors_total{proxy=%q,server=%q,kind=\"status\"} 1\n", strings.TrimPrefix(bad.URL, "http://"), strings.TrimPrefix(origin.URL, "http://"))
	if !strings.Contains(out.String(), want) || strings.Count(out.String(), "path_errors") != 1 {
		t.Errorf("want %q in\n%s", want, out.String())
	}
}
