package main

import (
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
)

// closedPort is an address where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// W03, W07, W16, N18: real squids as the environment, a group and a fallback name them. What is in use shows in status and in xattrs, a switch is logged
// once with its cause, and counters tell the ways apart.
func TestWaysThroughRealSquidsW07(t *testing.T) {
	t.Parallel()
	w := published(t)
	s := serveWorld(t, w)
	squid, spare := testkit.StartSquid(t), testkit.StartSquid(t)
	dead := closedPort(t)
	inUse := func(t *testing.T, n *node, target, proxy, list string) {
		t.Helper()
		for name, want := range map[string]string{"proxy": proxy, "proxy_list": list, "host": s.URL} {
			if got := n.sh(`getfattr --only-values -n "user.skimfs.$2" "$1"`, target, name).stdout; got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		for _, o := range n.status().Origins {
			if o.InUse && (o.Proxy != proxy || o.Server != s.URL) {
				t.Errorf("status says %s by %s, want %s by %s", o.Server, o.Proxy, s.URL, proxy)
			}
		}
	}
	t.Run("W16 auto takes http_proxy", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, w)
		n.env = []string{"http_proxy=" + squid.URL}
		target := n.mount(s.image(), "-o", "proxy=auto")
		inUse(t, n, target, squid.URL, squid.URL)
	})
	t.Run("W16 auto without http_proxy is DIRECT", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, w)
		n.env = []string{"http_proxy="}
		target := n.mount(s.image(), "-o", "proxy=auto")
		inUse(t, n, target, "DIRECT", "DIRECT")
	})
	t.Run("W16 nobody looks at http_proxy unasked", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, w)
		n.env = []string{"http_proxy=" + dead}
		target := n.mount(s.image())
		inUse(t, n, target, "DIRECT", "DIRECT")
	})
	t.Run("W03 the fallback", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, w)
		target := n.mount(s.image(), "-o", "proxy="+dead+";DIRECT,fallback_proxy="+spare.URL)
		if got := n.read(filepath.Join(target, "etc/motd")); got != "skim\n" {
			t.Errorf("read %q", got)
		}
		inUse(t, n, target, spare.URL, dead+";DIRECT;"+spare.URL)
		if got := n.log(); strings.Count(got, "proxy switched") != 1 || strings.Count(got, "reason=connect") != 1 {
			t.Errorf("log:\n%s", got)
		}
		exposed := n.exposed()
		for _, want := range []string{
			fmt.Sprintf(`skimfs_fetch_path_errors_total{proxy=%q,server=%q,kind="connect"} `, strings.TrimPrefix(dead, "http://"), strings.TrimPrefix(s.URL, "http://")),
			fmt.Sprintf(`skimfs_fetch_path_seconds_count{proxy=%q,server=%q} `, spare.Addr, strings.TrimPrefix(s.URL, "http://")),
		} {
			if !strings.Contains(exposed, want) {
				t.Errorf("no %s in /metrics", want)
			}
		}
	})
	t.Run("W18 the origin's log tells whose job it was", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, w)
		var agents sync.Map
		origin := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			agents.Store(r.UserAgent(), true)
			s.ServeHTTP(rw, r)
		}))
		t.Cleanup(origin.Close)
		target := n.mount(origin.URL+"#"+testImage, "-o", "user_agent=job 4711,proxy="+squid.URL)
		n.read(filepath.Join(target, "etc/motd"))
		agents.Range(func(agent, _ any) bool {
			if s := agent.(string); !strings.HasPrefix(s, "skimfs/") || !strings.HasSuffix(s, " (job 4711)") {
				t.Errorf("it was told %q", s)
			}
			return true
		})
		for _, bad := range []string{"a(b", "a\nX-Evil: 1", strings.Repeat("a", 201)} {
			if r := n.run("mount", origin.URL, n.target("bad"), "-o", "user_agent="+bad); r.status != exitMountUsage || !strings.Contains(r.stderr, "user_agent") {
				t.Errorf("%.20q: status %d, %q", bad, r.status, r.stderr)
			}
		}
	})
	t.Run("W07 one of a group dies", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, w)
		one, two := testkit.StartSquid(t), testkit.StartSquid(t)
		target := n.mount(s.image(), "-o", "proxy="+one.URL+"|"+two.URL)
		left, other := one, two
		if n.status().Origins[0].Proxy == two.URL {
			left, other = two, one
		}
		left.Stop()
		if got := n.read(filepath.Join(target, "big")); got != string(w.big) {
			t.Errorf("read %d bytes", len(got))
		}
		inUse(t, n, target, other.URL, one.URL+"|"+two.URL)
		if got := n.log(); strings.Count(got, "proxy switched") != 1 {
			t.Errorf("log:\n%s", got)
		}
	})
}

// W15, W22: an https server with a certificate of the site's own and a token that only it is told, through a squid's tunnel.
func TestGuardedServerThroughASquidW22(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n, squid := serveWorld(t, w), newNode(t, w), testkit.StartSquid(t)
	var told atomic.Bool
	elsewhere := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			told.Store(true)
		}
		s.ServeHTTP(rw, r)
	}))
	elsewhere.StartTLS()
	t.Cleanup(elsewhere.Close)
	guarded := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer t0ken":
			rw.WriteHeader(http.StatusUnauthorized)
		case strings.HasPrefix(r.URL.Path, "/objects/"):
			http.Redirect(rw, r, elsewhere.URL+r.URL.Path, http.StatusTemporaryRedirect)
		default:
			s.ServeHTTP(rw, r)
		}
	}))
	t.Cleanup(guarded.Close)
	ca, auth := filepath.Join(t.TempDir(), "ca.pem"), filepath.Join(t.TempDir(), "auth")
	writeTest(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: guarded.Certificate().Raw})))
	if err := os.WriteFile(auth, []byte(strings.TrimPrefix(guarded.URL, "https://")+" bearer t0ken\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	source, way := guarded.URL+"#"+testImage, shortDeadline+",proxy="+squid.URL+";DIRECT"
	target := n.target("m")
	oneHint(t, n.run("mount", source, target, "-o", way), exitMountFailed, "certificate", "proxy")
	oneHint(t, n.run("mount", source, target, "-o", way+",ca="+ca), exitMountFailed, "401", "auth=FILE")
	n.ok("mount", source, target, "-o", way+",ca="+ca+",auth="+auth)
	if got := n.read(filepath.Join(target, "big")); got != string(w.big) {
		t.Errorf("read %d bytes", len(got))
	}
	if told.Load() {
		t.Error("another host was told the token")
	}
	if strings.Contains(n.log(), "t0ken") || strings.Contains(n.log(), "proxy switched") {
		t.Errorf("log:\n%s", n.log())
	}
	dir := filepath.Join(t.TempDir(), "mirror")
	n.ok("repo", "mirror", guarded.URL, dir, "--pubkey", w.pub(), "--ca", ca, "--auth", auth, "--proxy", squid.URL)
	for _, r := range squid.Log() {
		if r.Method != "CONNECT" {
			t.Errorf("the squid saw %s %s", r.Method, r.URI)
		}
	}
}

// One transfer for an object, whoever asks in whichever mount of the daemon; and an error is no lasting one.
func TestMountsShareTransfersW21(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	targets := []string{n.target("a"), n.target("b"), n.target("c")}
	n.ok("mount", s.image(), targets[0])
	n.ok("mount", s.image(), targets[1], "-o", "deadline=20s")
	n.ok("mount", testName, targets[2], "-o", "server="+s.URL)
	targets[2] = filepath.Join(targets[2], testImage)
	objects := w.objects(t, testImage+"/big")
	s.change(t, objects[0], remove)
	for range 2 {
		n.fails(filepath.Join(targets[0], "big"))
	}
	s.put(objects[0], w.files[objects[0]])
	before := map[string]int{}
	for _, o := range objects {
		before[o] = s.requests(o)
	}
	var readers sync.WaitGroup
	for i := range 12 {
		readers.Go(func() {
			if r := n.sh(`exec cat "$1"`, filepath.Join(targets[i%3], "big")); r.stdout != string(w.big) {
				t.Errorf("status %d, %d bytes, %q", r.status, len(r.stdout), r.stderr)
			}
		})
	}
	readers.Wait()
	for i, o := range objects {
		if got := s.requests(o) - before[o]; got > 1 || got != 1 && i == 0 {
			t.Errorf("object %d was asked for %d times", i, got)
		}
	}
}
