package testkit_test

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// get asks through a proxy if one is given, and returns status and body.
func get(t *testing.T, rawURL, proxy string) (int, []byte) {
	t.Helper()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	if proxy != "" {
		u, err := url.Parse(proxy)
		if err != nil {
			t.Fatal(err)
		}
		transport.Proxy = http.ProxyURL(u)
	}
	resp, err := (&http.Client{Transport: transport}).Get(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

func repository(t *testing.T) (dir string, object []byte) {
	t.Helper()
	dir, object = t.TempDir(), bytes.Repeat([]byte("skim "), 300<<10) // 1.5 MB
	for path, content := range map[string][]byte{"objects/ab/cd.zst": object, "manifest": []byte("m\n"), "whitelist": []byte("w\n")} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir, object
}

func TestNginxServesAndItsLogCountsByClass(t *testing.T) {
	dir, object := repository(t)
	s := testkit.StartNginx(t, dir)
	for _, path := range []string{"/objects/ab/cd.zst", "/objects/ab/cd.zst", "/manifest", "/whitelist"} {
		if status, _ := get(t, s.URL+path, ""); status != 200 {
			t.Fatalf("%s: status %d, want 200", path, status)
		}
	}
	if status, _ := get(t, s.URL+"/objects/no", ""); status != 404 {
		t.Errorf("a missing object: status %d, want 404", status)
	}
	log := s.Log()
	for class, want := range map[string]int{"objects": 3, "manifest": 1, "whitelist": 1, "other": 0} {
		if got := log.Class(class).Count(); got != want {
			t.Errorf("the log has %d requests of class %s, want %d", got, class, want)
		}
	}
	if got, want := log.Class("objects").Bytes(), int64(2*len(object)); got < want || got > want+2000 {
		t.Errorf("the log has %d bytes of objects, want %d and some headers", got, want)
	}
	if got := log.Since(3).Count(); got != log.Count()-3 {
		t.Errorf("Since(3) leaves %d of %d", got, log.Count())
	}
}

func TestAStoppedNginxRefusesAndComesBackOnItsPort(t *testing.T) {
	dir, _ := repository(t)
	s := testkit.StartNginx(t, dir)
	get(t, s.URL+"/manifest", "")
	s.Stop()
	if _, err := http.Get(s.URL + "/manifest"); err == nil {
		t.Error("a stopped server answers")
	}
	if got := s.Log().Count(); got != 1 {
		t.Errorf("the log of a stopped server has %d requests, want 1", got)
	}
	s.Start()
	if status, _ := get(t, s.URL+"/manifest", ""); status != 200 {
		t.Errorf("after the restart: status %d, want 200", status)
	}
}

func TestSquidAnswersTheSecondAskerAlone(t *testing.T) {
	dir, object := repository(t)
	origin, squid := testkit.StartNginx(t, dir), testkit.StartSquid(t)
	for range 2 {
		if status, body := get(t, origin.URL+"/objects/ab/cd.zst", squid.URL); status != 200 || !bytes.Equal(body, object) {
			t.Fatalf("through squid: status %d, %d bytes, want 200, %d bytes", status, len(body), len(object))
		}
	}
	if got := origin.Log().Class("objects"); got.Count() != 1 || got[0].Via == "" {
		t.Errorf("the origin saw %+v, want one request that squid made", got)
	}
	log := squid.Log()
	if log.Count() != 2 || log[0].Hit() || !log[1].Hit() {
		t.Errorf("squid's log is %+v, want a miss, then a hit", log)
	}
	squid.Stop()
	squid.Start()
	get(t, origin.URL+"/objects/ab/cd.zst", squid.URL)
	if got := origin.Log().Class("objects").Count(); got != 2 {
		t.Errorf("the origin saw %d requests, want 2: a squid started anew has an empty cache", got)
	}
}

func TestRegistryTakesAndGivesAnImage(t *testing.T) {
	r := testkit.StartRegistry(t)
	ref := r.Push(testkit.Whiteouts(t, testkit.Gzip), "library/whiteouts:1")
	got := testkit.Run(t, "skopeo", "inspect", "--tls-verify=false", "docker://"+ref)
	if !strings.Contains(got, `"Layers"`) {
		t.Errorf("skopeo inspect %s: %s", ref, got)
	}
}

func TestDelayProxyKeepsRoundTripAndBandwidth(t *testing.T) {
	dir, object := repository(t)
	origin := testkit.StartNginx(t, dir)
	const rtt = 100 * time.Millisecond
	slow := testkit.NewDelayProxy(t, origin.Addr, rtt, 0)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	timed := func(url string) time.Duration {
		start := time.Now()
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("status %d, %v", resp.StatusCode, err)
		}
		if strings.HasSuffix(url, ".zst") && !bytes.Equal(body, object) {
			t.Fatal("the object changed on its way")
		}
		return time.Since(start)
	}
	// A busy machine makes everything slower, nothing faster.
	if got := timed(slow.URL + "/manifest"); got < 2*rtt {
		t.Errorf("a first request took %v, want two round trips of %v", got, rtt)
	}
	quickest := timed(slow.URL + "/manifest")
	for range 5 {
		quickest = min(quickest, timed(slow.URL+"/manifest"))
	}
	if quickest < rtt || quickest >= 2*rtt {
		t.Errorf("a request on an open connection took %v, want one round trip of %v", quickest, rtt)
	}
	// 1.5 MB at 16 Mbit/s take 770 ms.
	narrow := testkit.NewDelayProxy(t, origin.Addr, 0, 16)
	want := time.Duration(float64(len(object)) / 2e6 * 1e9)
	if got := timed(narrow.URL + "/objects/ab/cd.zst"); got < want {
		t.Errorf("%d bytes at 16 Mbit/s took %v, want %v at least", len(object), got, want)
	}
	if up, down := narrow.Bytes(); up == 0 || down < int64(len(object)) {
		t.Errorf("counted %d bytes up, %d down", up, down)
	}
}
