package publishd_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publishd"
)

// scrape returns the lines of /metrics by name and labels.
func (s *service) scrape() map[string]string {
	s.t.Helper()
	resp, err := s.http().Get("http://publishd/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	values := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if i := strings.LastIndex(line, " "); i > 0 && line[0] != '#' {
			values[line[:i]] = strings.TrimSpace(line[i:])
		}
	}
	return values
}

// What /metrics shows is what the page lists, with the labels it lists; and it counts what workers do, which are processes of their own.
func TestMetricsAreThoseOfThePage(t *testing.T) {
	t.Parallel()
	registry := testkit.StartRegistry(t)
	registry.Push(layout(t), "a/image:1")
	g := newGate(t, registry.Addr)
	var n atomic.Int32
	g.set(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") && n.Add(1) == 1 {
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		return false
	})
	s := newService(t, "--backoff", "10ms")
	s.done(s.submit(publishd.Request{Source: g.ref("a/image:1"), As: "local/a:1"}).ID())
	s.done(s.submit(publishd.Request{Source: g.ref("a/none:1")}).ID())
	var values map[string]string
	s.await("the last end to be counted, which is right after it shows", func() bool {
		values = s.scrape()
		return values[`skimfs_jobs_ended_total{kind="convert",result="FAILED"}`] != ""
	})
	host := strings.TrimPrefix(g.URL, "http://")
	for _, name := range []string{
		`skimfs_jobs_ended_total{kind="convert",result="SUCCEEDED"}`, `skimfs_jobs_ended_total{kind="convert",result="FAILED"}`, `skimfs_job_retries_total{reason="RATE_LIMITED"}`,
		`skimfs_job_duration_seconds_count{kind="convert",result="SUCCEEDED"}`, `skimfs_job_queue_wait_seconds_count`, `skimfs_convert_bytes_total{direction="read"}`, `skimfs_convert_bytes_total{direction="written"}`,
		`skimfs_registry_requests_total{code="200",registry="` + host + `"}`, `skimfs_registry_requests_total{code="429",registry="` + host + `"}`, `skimfs_registry_requests_total{code="404",registry="` + host + `"}`,
		`skimfs_publish_objects_written_total`, `skimfs_publish_revisions_total`, `skimfs_operations`,
	} {
		if v := values[name]; v == "" || v == "0" {
			t.Errorf("%s is %q", name, v)
		}
	}
	page, err := os.ReadFile(filepath.Join("..", "docs", "publishd.md"))
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]string{} // name → labels
	for _, row := range regexp.MustCompile(`(?m)^\| (`+"`skimfs_[^|]*"+`) \| (?:gauge|counter|histogram) \| ([^|]*)\|`).FindAllStringSubmatch(string(page), -1) {
		for _, name := range regexp.MustCompile(`skimfs_\w+`).FindAllString(row[1], -1) {
			listed[name] = strings.Join(regexp.MustCompile(`\w+`).FindAllString(row[2], -1), ",")
		}
	}
	seen := map[string]bool{}
	for name := range values {
		base, rest, _ := strings.Cut(name, "{")
		if !strings.HasPrefix(base, "skimfs_") || strings.HasPrefix(base, "skimfs_publish_") {
			continue
		}
		var labels []string
		for _, m := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(rest, -1) {
			if m[1] != "vmrange" {
				labels = append(labels, m[1])
			}
		}
		slices.Sort(labels)
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			base = strings.TrimSuffix(base, suffix)
		}
		seen[base] = true
		if want, ok := listed[base]; !ok || want != strings.Join(labels, ",") {
			t.Errorf("%s has the labels %q, the page says %q (listed: %t)", base, labels, want, ok)
		}
	}
	for name := range listed {
		if !seen[name] {
			t.Errorf("the page lists %s, which is not there", name)
		}
	}
}

// No credential is in what the service says, writes or keeps: not the registry's, not those in addresses that a registry sends.
func TestNoLogHoldsASecret(t *testing.T) {
	registry := testkit.StartRegistry(t)
	registry.Push(layout(t), "a/image:1")
	g := newGate(t, registry.Addr)
	host := strings.TrimPrefix(g.URL, "http://")
	config := t.TempDir()
	write(t, filepath.Join(config, "config.json"), `{"auths":{"`+host+`":{"username":"bee","password":"s3cr3t-password"}}}`)
	t.Setenv("DOCKER_CONFIG", config)
	var entered atomic.Bool
	g.set(func(w http.ResponseWriter, r *http.Request) bool {
		user, password, ok := r.BasicAuth()
		if !ok || user != "bee" || password != "s3cr3t-password" {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		entered.Store(true)
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, "http://127.0.0.1:1/blob?X-Amz-Signature=s3cr3t-signature&token=s3cr3t-token", http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	s := newService(t, "--backoff", "10ms", "--attempts", "2")
	o := s.done(s.submit(publishd.Request{Source: host + "/a/image:1"}).ID())
	if !entered.Load() || o.Metadata.State != publishd.Failed {
		t.Fatalf("%s, %+v", o.Metadata.State, o.Error)
	}
	log := s.ok("op", "logs", o.ID())
	if !strings.Contains(log, "REGISTRY_UNAVAILABLE") && !strings.Contains(s.log(), "REGISTRY_UNAVAILABLE") {
		t.Errorf("the logs don't say what happened:\n%s\n%s", log, s.log())
	}
	s.stop()
	err := filepath.WalkDir(s.home, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), "s3cr3t") {
			t.Errorf("%s holds a secret", strings.TrimPrefix(path, s.home))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for text, want := range map[string]string{
		"GET https://u:pw@r.example.org/v2/": "GET https://[redacted]r.example.org/v2/", "Authorization: Bearer abcdefgh": "Authorization: Bearer [redacted]",
		`{"password":"x"}`: `{"password":"[redacted]"}`, "no secret here": "no secret here",
	} {
		if got := publishd.Redact(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}
