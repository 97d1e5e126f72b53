package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// shippedSquid runs squid with packaging/squid/skimfs.conf; only addresses, places and sizes are the test's.
func shippedSquid(t *testing.T) *testkit.Squid {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "packaging", "squid", "skimfs.conf"))
	if err != nil {
		t.Fatal(err)
	}
	return testkit.StartSquidAs(t, func(dir, log, addr string) string {
		text := string(b)
		for directive, line := range map[string]string{"http_port": "http_port " + addr, "cache_dir": "", "cache_mem": "cache_mem 64 MB", "max_filedescriptors": "", "shutdown_lifetime": "shutdown_lifetime 0 seconds"} {
			re := regexp.MustCompile(`(?m)^` + directive + ` .*$`)
			if n := len(re.FindAllString(text, -1)); n != 1 {
				t.Errorf("the shipped configuration has %d lines with %s", n, directive)
			}
			text = re.ReplaceAllLiteralString(text, line)
		}
		return testkit.SquidTestLines(dir, log) + text
	})
}

// W25: the shipped configuration lets many who ask at once cost one request, keeps objects whatever the server says of them, large ones too,
// and manifests no longer than their server says; no-cache reaches the server.
func TestShippedSquidConfigurationW25(t *testing.T) {
	t.Parallel()
	var asked sync.Map // path to *atomic.Int64
	count := func(path string) *atomic.Int64 {
		n, _ := asked.LoadOrStore(path, &atomic.Int64{})
		return n.(*atomic.Int64)
	}
	hex := strings.Repeat("ab", 32)
	object, large, plain := "/objects/ab/"+hex+".zst", "/objects/ab/"+strings.Repeat("cd", 32)+".zst", "/objects/ab/"+strings.Repeat("ef", 32)+".zst"
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := count(r.URL.Path).Add(1)
		switch r.URL.Path {
		case object:
			time.Sleep(500 * time.Millisecond) // for the others to arrive
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
			fmt.Fprint(w, "object")
		case large:
			w.Header().Set("Cache-Control", "max-age=31536000")
			_, _ = w.Write(make([]byte, 6<<20))
		case plain: // a server that says nothing
			w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
			fmt.Fprint(w, "plain")
		case "/manifest", "/whitelist":
			w.Header().Set("Cache-Control", "max-age=2")
			fmt.Fprintf(w, "%d", n)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(origin.Close)
	squid := shippedSquid(t)
	client := &http.Client{Transport: &http.Transport{Proxy: func(*http.Request) (*url.URL, error) { return url.Parse(squid.URL) }, DisableKeepAlives: true}, Timeout: 20 * time.Second}
	get := func(path, cacheControl string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, origin.URL+path, nil)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		if cacheControl != "" {
			req.Header.Set("Cache-Control", cacheControl)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Error(err)
		}
		return resp.StatusCode, string(b)
	}
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if status, body := get(object, ""); status != 200 || body != "object" {
				t.Errorf("status %d, %q", status, body)
			}
		})
	}
	all.Wait()
	if n := count(object).Load(); n != 1 {
		t.Errorf("50 at once: the origin was asked %d times, want 1", n)
	}
	for _, path := range []string{large, plain} {
		get(path, "")
		get(path, "max-age=31536000")
		if n := count(path).Load(); n != 1 {
			t.Errorf("%s: the origin was asked %d times, want 1", path, n)
		}
	}
	// A damaged copy is replaced by whoever notices.
	if get(plain, "no-cache"); count(plain).Load() != 2 {
		t.Error("no-cache for an object got the copy")
	}
	_, first := get("/manifest", "max-age=2")
	if _, again := get("/manifest", "max-age=2"); again != first {
		t.Errorf("a fresh manifest: %q, then %q", first, again)
	}
	if _, fresh := get("/manifest", "no-cache"); fresh == first {
		t.Error("no-cache got the copy")
	}
	end := time.Now().Add(20 * time.Second)
	was := count("/manifest").Load()
	for ; count("/manifest").Load() == was && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		get("/manifest", "")
	}
	if count("/manifest").Load() == was {
		t.Error("the manifest's copy outlived what its server said")
	}
	for range 2 {
		if status, _ := get("/objects/00/none.zst", ""); status != 404 {
			t.Errorf("status %d, want 404", status)
		}
	}
	if n := count("/objects/00/none.zst").Load(); n != 2 {
		t.Errorf("a 404 was kept: asked %d times, want 2", n)
	}
}
