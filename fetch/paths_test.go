package fetch_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/fetch"
)

func TestW15RedirectTakesNoCredentialsElsewhere(t *testing.T) {
	obj := newObject(t, 5000)
	elsewhere := newNode(t, obj.wire, right)
	n := newNode(t, nil, status(301, "Location", elsewhere.URL+"/there"))
	c := newClient(t, fetch.Config{Servers: []string{strings.Replace(n.URL, "http://", "http://user:secret@", 1)}})
	got, err := c.Object(t.Context(), obj.digest, 5000)
	if err != nil || !bytes.Equal(got, obj.plain) {
		t.Fatalf("got %d bytes, error %v", len(got), err)
	}
	if h := n.header("Authorization"); h[0] == "" {
		t.Error("the server was not told who asks")
	}
	if h := elsewhere.header("Authorization"); len(h) != 1 || h[0] != "" {
		t.Errorf("another host was told %q", h)
	}
}

func TestW22CredentialsByServerFromAFile(t *testing.T) {
	obj := newObject(t, 5000)
	n := newNode(t, obj.wire, right)
	file := filepath.Join(t.TempDir(), "auth")
	host := strings.TrimPrefix(n.URL, "http://")
	if err := os.WriteFile(file, []byte("# ours\nother.example.org basic u:p\n"+host+" bearer t0ken\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	creds, err := fetch.ReadCredentials(file)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, fetch.Config{Servers: []string{n.URL}, Auth: creds})
	if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
		t.Fatal(err)
	}
	if h := n.header("Authorization"); h[0] != "Bearer t0ken" {
		t.Errorf("the server was told %q", h)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := fetch.ReadCredentials(file); err == nil {
		t.Error("a file that others may read was accepted")
	}
	for _, text := range []string{"host", "host bearer", "host token x", "host basic userpassword", "http://host bearer s3cret", "h bearer a\nh bearer b", "h bearer a\x00b"} {
		if _, err := fetch.ParseCredentials([]byte(text)); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: error %v", text, err)
		}
	}
}

// W22: a redirect to a host that has credentials of its own in the file takes them along over https, or to a server of the configuration; not in the
// clear to wherever who sits on the way points.
func TestW15RedirectSendsNoCredentialsInTheClear(t *testing.T) {
	obj := newObject(t, 5000)
	elsewhere, mirror := newNode(t, obj.wire, right), newNode(t, obj.wire, right)
	safe := httptest.NewUnstartedServer(nil)
	told := make(chan string, 1)
	safe.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		told <- r.Header.Get("Authorization")
		right(w, r, obj.wire)
	})
	safe.StartTLS()
	t.Cleanup(safe.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: safe.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, to, want string
		header         func() []string
	}{
		{"http", elsewhere.URL, "", func() []string { return elsewhere.header("Authorization") }},
		{"http to a mirror of the configuration", mirror.URL, "Bearer t0ken", func() []string { return mirror.header("Authorization") }},
		{"https", safe.URL, "Bearer t0ken", func() []string { return []string{<-told} }},
	} {
		n := newNode(t, nil, status(307, "Location", tt.to+"/there"))
		host := tt.to[strings.Index(tt.to, "//")+2:]
		c := newClient(t, fetch.Config{Servers: []string{n.URL, mirror.URL}, Auth: fetch.Credentials{host: "Bearer t0ken"}, CAFile: ca})
		if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
			t.Fatal(err)
		}
		if h := tt.header(); len(h) != 1 || h[0] != tt.want {
			t.Errorf("%s: told %q, want %q", tt.name, h, tt.want)
		}
	}
}

func FuzzParseCredentials(f *testing.F) {
	f.Add([]byte("a.example.org bearer x\nb:80 basic u:p\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		creds, err := fetch.ParseCredentials(text)
		for host, value := range creds {
			if err != nil || host == "" || strings.ContainsAny(value, "\r\n\x00") {
				t.Errorf("%q: %q with error %v", host, value, err)
			}
		}
	})
}

func TestHTTPSWithAGivenCA(t *testing.T) {
	obj := newObject(t, 5000)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { right(w, r, obj.wire) }))
	t.Cleanup(s.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, fetch.Config{Servers: []string{s.URL}, CAFile: file})
	if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
		t.Error(err)
	}
	c = newClient(t, fetch.Config{Servers: []string{s.URL}})
	if _, err := c.Object(t.Context(), obj.digest, 5000); err == nil || c.Stats().Errors["tls"] == 0 {
		t.Errorf("an unknown certificate: error %v, %v", err, c.Stats().Errors)
	}
	if _, err := fetch.New(fetch.Config{Servers: []string{s.URL}, CAFile: os.Args[0]}); err == nil {
		t.Error("a file without certificates was accepted")
	}
}

func TestW04ShardingKeepsObjectsAtTheirProxies(t *testing.T) {
	objects := make([]object, 60)
	wire := map[string][]byte{}
	for i := range objects {
		objects[i] = newObject(t, 100+i)
		wire[objects[i].digest.ObjectPath()] = objects[i].wire
	}
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		right(w, r, wire[strings.TrimPrefix(r.URL.Path, "/")])
	}))
	t.Cleanup(origin.Close)
	a, b, d := newNode(t, nil, forward), newNode(t, nil, forward), newNode(t, nil, forward)
	proxies := []*node{a, b, d}
	list := a.URL + "|" + b.URL + "|" + d.URL
	where := func(c *fetch.Client) (by [60]int) {
		for i, o := range objects {
			before := [3]int{a.count(), b.count(), d.count()}
			if _, err := c.Object(t.Context(), o.digest, int64(len(o.plain))); err != nil {
				t.Fatal(err)
			}
			by[i] = -1
			for k, p := range proxies {
				if p.count() > before[k] {
					by[i] = k
				}
			}
		}
		return by
	}
	one := where(newClient(t, fetch.Config{Servers: []string{origin.URL}, Proxies: list, Shard: true}))
	two := where(newClient(t, fetch.Config{Servers: []string{origin.URL}, Proxies: list, Shard: true}))
	if one != two {
		t.Errorf("two clients differ:\n%v\n%v", one, two)
	}
	var share [3]int
	for _, k := range one {
		share[k]++
	}
	for k, n := range share {
		if n < 8 {
			t.Errorf("proxy %d has %d of 60 objects", k, n)
		}
	}
	d.Close()
	c := newClient(t, fetch.Config{Servers: []string{origin.URL}, Proxies: list, Shard: true})
	three := where(c)
	if n := c.Stats().Errors["connect"]; n > 2 {
		t.Errorf("the dead proxy was asked %d times, want a try and its retry", n)
	}
	for i := range one {
		if one[i] != 2 && three[i] != one[i] {
			t.Errorf("object %d went from proxy %d to %d though only the third is dead", i, one[i], three[i])
		}
	}
}

func TestRetryAfterIsObeyed(t *testing.T) {
	t.Parallel()
	obj := newObject(t, 5000)
	for _, code := range []int{429, 503} {
		n := newNode(t, obj.wire, status(code, "Retry-After", "1"), right)
		c := newClient(t, fetch.Config{Servers: []string{n.URL}})
		begin := time.Now()
		if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d < time.Second {
			t.Errorf("%d: asked again after %v", code, d)
		}
	}
}

// What one reader was told holds for all: nobody asks that server before, and who has a mirror asks there.
func TestRetryAfterHoldsForAllReaders(t *testing.T) {
	t.Parallel()
	obj, other := newObject(t, 5000), newObject(t, 600)
	serve := func(w http.ResponseWriter, r *http.Request, _ []byte) {
		if strings.HasSuffix(r.URL.Path, other.digest.ObjectPath()) {
			right(w, r, other.wire)
			return
		}
		right(w, r, obj.wire)
	}
	n, mirror := newNode(t, nil, status(429, "Retry-After", "2"), serve), newNode(t, nil, serve)
	read := func(c *fetch.Client, limit time.Duration) error {
		ctx, cancel := timeout(t, limit)
		defer cancel()
		_, err := c.Object(ctx, other.digest, 600)
		return err
	}
	c := newClient(t, fetch.Config{Servers: []string{n.URL}})
	begin := time.Now()
	first := make(chan error)
	go func() {
		_, err := c.Object(t.Context(), obj.digest, 5000)
		first <- err
	}()
	until(t, "the first answer", func() bool { return c.Stats().Errors["busy"] == 1 })
	// Who can't wait so long learns why at once.
	var e *fetch.Error
	if err := read(c, 500*time.Millisecond); !errors.As(err, &e) || e.Status != 429 || !strings.Contains(err.Error(), "not to be asked") || n.count() != 1 {
		t.Errorf("a short wait: %v, %d requests", err, n.count())
	}
	if err := read(c, 30*time.Second); err != nil || time.Since(begin) < 2*time.Second {
		t.Errorf("a long wait: %v after %v", err, time.Since(begin))
	}
	if err := <-first; err != nil || n.count() != 3 || c.Stats().Errors["busy"] != 1 {
		t.Errorf("%v, %d requests, %v", err, n.count(), c.Stats().Errors)
	}
	n.answer(status(503, "Retry-After", "60"))
	c = newClient(t, fetch.Config{Servers: []string{n.URL, mirror.URL}})
	for range 3 {
		if err := read(c, 20*time.Second); err != nil {
			t.Error(err)
		}
	}
	if n.count() != 4 || mirror.count() != 3 {
		t.Errorf("%d requests to the one that rests, %d to the mirror, want 4 and 3", n.count(), mirror.count())
	}
}

func TestRetryAfterBeyondTheDeadlineGoesToTheMirror(t *testing.T) {
	t.Parallel()
	obj := newObject(t, 5000)
	n, mirror := newNode(t, obj.wire, status(503, "Retry-After", "3600")), newNode(t, obj.wire, right)
	c := newClient(t, fetch.Config{Servers: []string{n.URL, mirror.URL}})
	ctx, cancel := timeout(t, 20*time.Second)
	defer cancel()
	if _, err := c.Object(ctx, obj.digest, 5000); err != nil || n.count() != 1 {
		t.Errorf("error %v after %d requests", err, n.count())
	}
}

func TestD08RepeatedFailuresAreThrottledAndHeal(t *testing.T) {
	t.Parallel()
	obj := newObject(t, 5000)
	other := newObject(t, 600)
	n := newNode(t, nil, func(w http.ResponseWriter, r *http.Request, _ []byte) {
		if strings.HasSuffix(r.URL.Path, other.digest.ObjectPath()) {
			right(w, r, other.wire)
			return
		}
		w.WriteHeader(500)
	})
	c := newClient(t, fetch.Config{Servers: []string{n.URL}})
	begin := time.Now()
	tries := 0
	for ; time.Since(begin) < time.Second; tries++ {
		if _, err := c.Object(t.Context(), obj.digest, 5000); err == nil {
			t.Fatal("no error")
		}
	}
	// 32+64+128+256+512 ms are 992 ms.
	if tries > 7 {
		t.Errorf("%d tries in a second", tries)
	}
	if _, err := c.Object(t.Context(), other.digest, 600); err != nil || time.Since(begin) > 5*time.Second {
		t.Errorf("another object: %v", err)
	}
	n.answer(func(w http.ResponseWriter, r *http.Request, _ []byte) { right(w, r, obj.wire) })
	if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
		t.Errorf("healed: %v", err)
	}
}

func TestW12AServersNameWithSeveralAddresses(t *testing.T) {
	obj := newObject(t, 5000)
	n := newNode(t, obj.wire, right)
	port := n.URL[strings.LastIndexByte(n.URL, ':')+1:]
	for range 4 { // whichever address comes first, ::1 refuses
		c := newClient(t, fetch.Config{Servers: []string{"http://localhost:" + port}})
		if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
			t.Errorf("error %v", err)
		}
	}
	_, err := newClient(t, fetch.Config{Servers: []string{"http://nobody.invalid"}, TimeoutDirect: time.Second}).Object(t.Context(), obj.digest, 5000)
	var fe *fetch.Error
	if !errors.As(err, &fe) {
		t.Errorf("error %v", err)
	}
}

func TestPathMetrics(t *testing.T) {
	obj := newObject(t, 5000)
	origin, p := newNode(t, obj.wire, right), newNode(t, nil, forward)
	set := newSet()
	c := newClient(t, fetch.Config{Servers: []string{origin.URL}, Proxies: p.URL, Metrics: set})
	if _, err := c.Object(t.Context(), obj.digest, 5000); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	set.WritePrometheus(&b)
	labels := fmt.Sprintf(`{proxy=%q,server=%q}`, strings.TrimPrefix(p.URL, "http://"), strings.TrimPrefix(origin.URL, "http://"))
	for _, line := range []string{
		"skimfs_fetch_path_requests_total" + labels + " 1", "skimfs_fetch_path_bytes_total" + labels + " " + strconv.Itoa(len(obj.wire)), "skimfs_fetch_path_seconds_count" + labels + " 1",
	} {
		if !strings.Contains(b.String(), line+"\n") {
			t.Errorf("no %q in\n%s", line, b.String())
		}
	}
}
