package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skimfs/skimfs/fetch"
	"github.com/skimfs/skimfs/index"
)

func TestObjectDirect(t *testing.T) {
	obj, other := newObject(t, 5000), newObject(t, 4999)
	noCache := "no-cache"
	wrongDigest := func(err error) bool {
		var e *index.DigestError
		return errors.As(err, &e)
	}
	isStatus := func(code int) func(error) bool {
		return func(err error) bool {
			var e *fetch.Error
			return errors.As(err, &e) && e.Status == code
		}
	}
	malformed := func(err error) bool { return errors.Is(err, index.ErrFormat) }
	temporary := func(err error) bool {
		var e *fetch.Error
		return errors.As(err, &e) && e.Temporary()
	}
	swap := func(w http.ResponseWriter, _ *http.Request, _ []byte) { right(w, nil, other.wire) }
	twin := newObject(t, 5000) // of equal size, with other bytes
	twin.plain[0] ^= 1
	enc, err := index.NewObjectEncoder()
	if err != nil {
		t.Fatal(err)
	}
	lie := func(w http.ResponseWriter, _ *http.Request, _ []byte) { right(w, nil, enc.Encode(nil, twin.plain)) }

	for _, tt := range []struct {
		name    string
		servers [][]answer
		caches  [][]string       // Cache-Control of each request to each server
		fails   func(error) bool // nil: the object arrives
		errors  map[string]int64
	}{
		{"right digest", [][]answer{{right}}, [][]string{{""}}, nil, nil},
		{"D10 wrong body then right past the caches", [][]answer{{flipped, right}}, [][]string{{"", noCache}}, nil, map[string]int64{"content": 1}},
		{"D10 wrong body for ever", [][]answer{{flipped}}, [][]string{{"", noCache}}, func(err error) bool { return wrongDigest(err) || malformed(err) }, map[string]int64{"content": 2}},
		{"D10 wrong body then next mirror", [][]answer{{flipped}, {right}}, [][]string{{"", noCache}, {""}}, nil, map[string]int64{"content": 2}},
		{"sound frame of other content", [][]answer{{lie}}, [][]string{{"", noCache}}, wrongDigest, map[string]int64{"content": 2}},
		{"sound frame of another size", [][]answer{{swap}}, [][]string{{"", noCache}}, malformed, map[string]int64{"content": 2}},
		{"404 then fixed past the caches", [][]answer{{status(404), right}}, [][]string{{"", noCache}}, nil, map[string]int64{"missing": 1}},
		{"404 then next mirror", [][]answer{{status(404)}, {right}}, [][]string{{"", noCache}, {""}}, nil, map[string]int64{"missing": 2}},
		{"404 everywhere", [][]answer{{status(404)}, {status(404)}}, [][]string{{"", noCache}, {"", noCache}}, func(err error) bool {
			return isStatus(404)(err) && !errors.Is(err, fs.ErrNotExist) && !temporary(err)
		}, map[string]int64{"missing": 4}},
		{"W05 cut off is tried again", [][]answer{{cutOff, right}}, [][]string{{"", ""}}, nil, map[string]int64{"transfer": 1}},
		{"W06 cut off twice goes to the next mirror", [][]answer{{cutOff}, {right}}, [][]string{{"", ""}, {""}}, nil, map[string]int64{"transfer": 2}},
		{"cut off for ever", [][]answer{{cutOff}}, [][]string{{"", ""}}, temporary, map[string]int64{"transfer": 2}},
		{"short with the right length", [][]answer{{short, right}}, [][]string{{"", noCache}}, nil, map[string]int64{"content": 1}},
		{"garbage appended", [][]answer{{appended}}, [][]string{{"", noCache}}, malformed, map[string]int64{"content": 2}},
		{"too long as announced", [][]answer{{announcedTooLong}, {right}}, [][]string{{"", noCache}, {""}}, nil, map[string]int64{"content": 2}},
		{"too long unannounced", [][]answer{{endless}, {right}}, [][]string{{"", noCache}, {""}}, nil, map[string]int64{"content": 2}},
		{"captive portal", [][]answer{{captivePortal}}, [][]string{{"", noCache}}, malformed, map[string]int64{"content": 2}},
		{"encoding not asked for", [][]answer{{gzipped}, {right}}, [][]string{{"", noCache}, {""}}, nil, map[string]int64{"content": 2}},
		{"W15 redirect within the server", [][]answer{{status(302, "Location", "/elsewhere"), right}}, [][]string{{"", ""}}, nil, nil},
		{"W15 redirect loop", [][]answer{{status(302, "Location", "/elsewhere")}, {right}}, [][]string{{"", "", "", "", ""}, {""}}, nil, map[string]int64{"redirect": 1}},
		{"W15 redirect to nowhere", [][]answer{{status(307)}}, [][]string{{""}}, isStatus(307), map[string]int64{"redirect": 1}},
		{"W15 redirect to a file", [][]answer{{status(301, "Location", "file:///etc/passwd")}}, [][]string{{""}}, isStatus(301), map[string]int64{"redirect": 1}},
		{"W05 500 is not retried", [][]answer{{status(500)}, {right}}, [][]string{{""}, {""}}, nil, map[string]int64{"status": 1}},
		{"W05 400 is the host's", [][]answer{{status(400)}, {right}}, [][]string{{""}, {""}}, nil, map[string]int64{"status": 1}},
		{"403 without a proxy is the host's", [][]answer{{status(403)}, {right}}, [][]string{{""}, {""}}, nil, map[string]int64{"status": 1}},
		{"W05 429 is tried again", [][]answer{{status(429), right}}, [][]string{{"", ""}}, nil, map[string]int64{"busy": 1}},
		{"503 is tried again, then next mirror", [][]answer{{status(503)}, {right}}, [][]string{{"", ""}, {""}}, nil, map[string]int64{"busy": 2}},
		{"502 everywhere", [][]answer{{status(502)}, {status(502)}}, [][]string{{""}, {""}}, func(err error) bool { return isStatus(502)(err) && temporary(err) }, map[string]int64{"status": 2}},
		{"W06 no retry after a try past the caches", [][]answer{{flipped, cutOff}, {right}}, [][]string{{"", noCache}, {""}}, nil, map[string]int64{"content": 1, "transfer": 1}},
		{"partial content is no content", [][]answer{{status(206)}}, [][]string{{""}}, isStatus(206), map[string]int64{"status": 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var nodes []*node
			var urls []string
			for _, answers := range tt.servers {
				n := newNode(t, obj.wire, answers...)
				nodes, urls = append(nodes, n), append(urls, n.URL)
			}
			c := newClient(t, fetch.Config{Servers: urls})
			got, err := c.Object(t.Context(), obj.digest, int64(len(obj.plain)))
			switch {
			case tt.fails == nil && (err != nil || !bytes.Equal(got, obj.plain)):
				t.Errorf("got %d bytes, error %v; want the object", len(got), err)
			case tt.fails != nil && (got != nil || err == nil || !tt.fails(err)):
				t.Errorf("got %d bytes, error %v; want no bytes and another error", len(got), err)
			}
			total := 0
			for i, n := range nodes {
				if got := n.header("Cache-Control"); !slices.Equal(got, tt.caches[i]) {
					t.Errorf("server %d: requests with Cache-Control %q, want %q", i, got, tt.caches[i])
				}
				if got := n.header("Pragma"); !slices.Equal(got, tt.caches[i]) {
					t.Errorf("server %d: requests with Pragma %q, want %q", i, got, tt.caches[i])
				}
				for _, r := range n.requests {
					if e := r.Header.Get("Accept-Encoding"); e != "identity" || r.Header.Get("Range") != "" {
						t.Errorf("server %d: Accept-Encoding %q, Range %q", i, e, r.Header.Get("Range"))
					}
				}
				total += n.count()
			}
			s := c.Stats()
			if s.Requests != int64(total) {
				t.Errorf("Stats count %d requests, servers saw %d", s.Requests, total)
			}
			if !maps.Equal(s.Errors, tt.errors) && len(s.Errors)+len(tt.errors) > 0 {
				t.Errorf("errors %v, want %v", s.Errors, tt.errors)
			}
		})
	}
}

func TestBoundedTime(t *testing.T) {
	obj := newObject(t, 5000)
	limit := 500 * time.Millisecond
	for _, tt := range []struct {
		name     string
		answer   answer
		deadline time.Duration
		want     error // nil: temporary
		requests int
	}{
		{"silent server ends at the caller's deadline", silent, 300 * time.Millisecond, context.DeadlineExceeded, 1},
		{"W10 silent server ends by itself", silent, time.Minute, nil, 2},
		{"W10 trickle ends by itself", trickle, time.Minute, nil, 2},
		{"trickle ends at the caller's deadline", trickle, 300 * time.Millisecond, context.DeadlineExceeded, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, obj.wire, tt.answer)
			c := newClient(t, fetch.Config{Servers: []string{n.URL}, TimeoutDirect: limit, LowSpeed: 4096})
			ctx, cancel := context.WithTimeout(t.Context(), tt.deadline)
			defer cancel()
			start := time.Now()
			got, err := c.Object(ctx, obj.digest, 5000)
			var e *fetch.Error
			if got != nil || !errors.As(err, &e) || !e.Temporary() || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %d bytes, error %v", len(got), err)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
			if n.count() != tt.requests {
				t.Errorf("%d requests, want %d", n.count(), tt.requests)
			}
		})
	}
}

func TestCanceledWaiterLeavesAndBlamesNobody(t *testing.T) {
	obj := newObject(t, 5000)
	arrived := make(chan struct{})
	n := newNode(t, obj.wire, func(w http.ResponseWriter, r *http.Request, body []byte) {
		close(arrived)
		silent(w, r, body)
	}, right)
	second := newNode(t, obj.wire, right)
	c := newClient(t, fetch.Config{Servers: []string{n.URL, second.URL}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	_, err := c.Object(ctx, obj.digest, 5000)
	var e *fetch.Error
	if !errors.Is(err, context.Canceled) || !errors.As(err, &e) || e.Temporary() {
		t.Errorf("error %v", err)
	}
	if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil || n.count() != 2 || second.count() != 0 {
		t.Errorf("error %v, %d and %d requests, want 2 and 0", err, n.count(), second.count())
	}
}

func TestUsage(t *testing.T) {
	obj := newObject(t, 5000)
	n := newNode(t, obj.wire, right)
	c := newClient(t, fetch.Config{Servers: []string{n.URL}})
	for name, call := range map[string]func() ([]byte, error){
		"no digest":         func() ([]byte, error) { return c.Object(t.Context(), index.Digest{}, 5000) },
		"size 0":            func() ([]byte, error) { return c.Object(t.Context(), obj.digest, 0) },
		"negative size":     func() ([]byte, error) { return c.Object(t.Context(), obj.digest, -1) },
		"size too large":    func() ([]byte, error) { return c.Object(t.Context(), obj.digest, index.MaxObject+1) },
		"rooted path":       func() ([]byte, error) { return c.File(t.Context(), "/manifest", 0, 100, false) },
		"path upwards":      func() ([]byte, error) { return c.File(t.Context(), "../manifest", 0, 100, false) },
		"limit far too big": func() ([]byte, error) { return c.File(t.Context(), "manifest", 0, 1<<62, false) },
	} {
		if got, err := call(); got != nil || err == nil {
			t.Errorf("%s: got %d bytes, error %v", name, len(got), err)
		}
	}
	c.Close()
	if _, err := c.Object(t.Context(), obj.digest, 5000); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: error %v", err)
	}
	if n.count() != 0 {
		t.Errorf("%d requests, want none", n.count())
	}
	for name, cfg := range map[string]fetch.Config{
		"no server":        {},
		"server's scheme":  {Servers: []string{"ftp://a"}},
		"no server's host": {Servers: []string{"http:///x"}},
		"query":            {Servers: []string{"http://a/?x"}},
		"proxies":          {Servers: []string{"http://a"}, Proxies: "socks5://a:1"},
		"timeout":          {Servers: []string{"http://a"}, Timeout: -1},
	} {
		if _, err := fetch.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCredentialsReachTheServerAndNothingElse(t *testing.T) {
	obj := newObject(t, 5000)
	n := newNode(t, obj.wire, right, status(500))
	var log logBook
	c := newClient(t, fetch.Config{
		Servers: []string{strings.Replace(n.URL, "http://", "http://me:secret@", 1) + "/images/", "http://me:secret@127.0.0.1:1/x"},
		Log:     log.logger(),
	})
	if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
		t.Fatal(err)
	}
	if user, password, ok := n.requests[0].BasicAuth(); !ok || user != "me" || password != "secret" {
		t.Errorf("server saw credentials %q %q", user, password)
	}
	if got, want := n.requests[0].URL.Path, "/images/"+obj.digest.ObjectPath(); got != want {
		t.Errorf("asked for %s, want %s", got, want)
	}
	_, err := c.Object(t.Context(), obj.digest, 5000)
	_, server := c.Path()
	_, badServer := fetch.New(fetch.Config{Servers: []string{"http://me:secret@a b/"}})
	_, badProxy := fetch.ParseProxies("http://me:secret@a:port")
	for _, text := range []string{err.Error(), server, log.String(), badServer.Error(), badProxy.Error()} {
		if text == "" || strings.Contains(text, "secret") {
			t.Errorf("shows credentials or nothing: %q", text)
		}
	}
}

func TestCredentialsReachTheProxy(t *testing.T) {
	obj := newObject(t, 5000)
	n := newNode(t, obj.wire, right) // the proxy has it
	c := newClient(t, fetch.Config{Servers: []string{"http://origin.invalid"}, Proxies: strings.Replace(n.URL, "http://", "http://me:secret@", 1)})
	if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
		t.Fatal(err)
	}
	if got := n.header("Proxy-Authorization"); got[0] != "Basic bWU6c2VjcmV0" || n.requests[0].Header.Get("Authorization") != "" {
		t.Errorf("proxy saw %q", got)
	}
}

func TestCloseLeavesNoConnection(t *testing.T) {
	obj := newObject(t, 5000)
	var open atomic.Int64
	arrived, goOn := make(chan struct{}), make(chan struct{})
	n := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(arrived)
			<-goOn
		}
		right(w, r, obj.wire)
	}))
	n.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Add(-1)
		}
	}
	n.Start()
	t.Cleanup(n.Close)
	c := newClient(t, fetch.Config{Servers: []string{n.URL}})
	if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
		t.Fatal(err)
	}
	late := make(chan error)
	go func() {
		_, err := c.File(t.Context(), "slow", 0, 10_000, false)
		late <- err
	}()
	<-arrived
	c.Close()
	close(goOn)
	if err := <-late; err != nil {
		t.Errorf("request under way at Close: %v", err)
	}
	for end := time.Now().Add(10 * time.Second); open.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections open", open.Load())
		}
	}
}

func TestW17ConnectionsAreKept(t *testing.T) {
	obj := newObject(t, 5000)
	n := newNode(t, obj.wire, right)
	c := newClient(t, fetch.Config{Servers: []string{n.URL}})
	fetchAll := func(parallel, each int) {
		var wg sync.WaitGroup
		for range parallel {
			wg.Go(func() {
				for range each {
					if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
	fetchAll(1, 10)
	if s := c.Stats(); s.Dials != 1 || s.Requests != 10 || s.Bytes != int64(10*len(obj.wire)) {
		t.Errorf("10 in a row: %+v", s)
	}
	fetchAll(100, 5)
	if s := c.Stats(); s.Dials > 2*32 || s.Requests != 510 {
		t.Errorf("100 side by side: %+v", s)
	}
}

func TestW17ThirtyTwoAtOnce(t *testing.T) {
	obj := newObject(t, 5000)
	var all sync.WaitGroup
	all.Add(32)
	n := newNode(t, obj.wire, func(w http.ResponseWriter, r *http.Request, body []byte) {
		all.Done()
		all.Wait()
		right(w, r, body)
	})
	c := newClient(t, fetch.Config{Servers: []string{n.URL}})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if _, err := c.Object(ctx, obj.digest, 5000); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestFile(t *testing.T) {
	note := bytes.Repeat([]byte("skimfs manifest v1\n"), 10_000)
	for _, tt := range []struct {
		name    string
		maxAge  time.Duration
		noCache bool
		answers []answer
		limit   int64
		caches  []string
		ok      bool
	}{
		{"half the age", 4 * time.Minute, false, []answer{right}, 1 << 20, []string{"max-age=120"}, true},
		{"a second", time.Second, false, []answer{right}, 1 << 20, []string{"max-age=0"}, true},
		{"past the caches", time.Minute, true, []answer{right}, 1 << 20, []string{"no-cache"}, true},
		{"as long as allowed", time.Minute, false, []answer{right}, int64(len(note)), []string{"max-age=30"}, true},
		{"longer than allowed", time.Minute, false, []answer{right}, int64(len(note)) - 1, []string{"max-age=30", "no-cache"}, false},
		{"length not announced", time.Minute, false, []answer{inPieces}, 1 << 20, []string{"max-age=30"}, true},
		{"endless", time.Minute, false, []answer{endless}, 1000, []string{"max-age=30", "no-cache"}, false},
		{"missing", time.Minute, true, []answer{status(404)}, 1 << 20, []string{"no-cache"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, note, tt.answers...)
			c := newClient(t, fetch.Config{Servers: []string{n.URL}})
			got, err := c.File(t.Context(), "manifest", tt.maxAge, tt.limit, tt.noCache)
			if tt.ok != (err == nil && bytes.Equal(got, note)) {
				t.Errorf("got %d bytes, error %v", len(got), err)
			}
			if got := n.header("Cache-Control"); !slices.Equal(got, tt.caches) {
				t.Errorf("Cache-Control %q, want %q", got, tt.caches)
			}
		})
	}
}

func TestW19RefusedNoteComesFromTheNextMirror(t *testing.T) {
	note, errBad := []byte("signed"), errors.New("not signed")
	portal, good := newNode(t, note, captivePortal), newNode(t, note, right)
	c := newClient(t, fetch.Config{Servers: []string{portal.URL, good.URL}})
	check := func(b []byte) error {
		if !bytes.Equal(b, note) {
			return errBad
		}
		return nil
	}
	got, err := c.FileChecked(t.Context(), "manifest", time.Minute, 1000, false, check)
	if err != nil || !bytes.Equal(got, note) || portal.count() != 2 || good.count() != 1 {
		t.Errorf("got %q, error %v, %d and %d requests", got, err, portal.count(), good.count())
	}
	if _, server := c.Path(); server != good.URL {
		t.Errorf("in use: %s", server)
	}
	only := newClient(t, fetch.Config{Servers: []string{portal.URL}})
	if _, err := only.FileChecked(t.Context(), "manifest", time.Minute, 1000, false, check); !errors.Is(err, errBad) {
		t.Errorf("error %v, want the check's", err)
	}
}

// TestHealsItself: a fault of any one answer, injected between client and network, costs a retry and nothing else.
func TestHealsItself(t *testing.T) {
	obj := newObject(t, 100_000)
	n := newNode(t, obj.wire, right)
	for name, spoil := range map[string]func(*http.Response) (*http.Response, error){
		"fails": func(r *http.Response) (*http.Response, error) { r.Body.Close(); return nil, errors.New("lost") },
		"truncates": func(r *http.Response) (*http.Response, error) {
			r.Body = &spoiled{body: r.Body, left: 1000}
			return r, nil
		},
		"corrupts": func(r *http.Response) (*http.Response, error) {
			r.Body = &spoiled{body: r.Body, left: 1 << 30, flip: true}
			return r, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, fetch.Config{Servers: []string{n.URL}})
			third := &everyThird{spoil: spoil}
			fetch.WrapTransports(c, func(rt http.RoundTripper) http.RoundTripper { third.RoundTripper = rt; return third })
			for range 10 {
				got, err := c.Object(t.Context(), obj.digest, int64(len(obj.plain)))
				if err != nil || !bytes.Equal(got, obj.plain) {
					t.Fatalf("got %d bytes, error %v", len(got), err)
				}
			}
			if s := c.Stats(); s.Requests != 14 || s.Retries+s.Refreshes != 4 {
				t.Errorf("%+v", s)
			}
		})
	}
}
