package publishd_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publishd"
)

// Each way in which a registry fails has its reason; what may pass is tried again, what won't is not.
func TestRegistryFailuresHaveTheirReasons(t *testing.T) {
	t.Parallel()
	registry := testkit.StartRegistry(t)
	registry.Push(layout(t), "a/image:1")
	s := newService(t, "--backoff", "20ms", "--attempts", "2", "--registry-timeout", "10s")
	status := func(path string, code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, path) {
				return false
			}
			w.WriteHeader(code)
			return true
		}
	}
	for _, row := range []struct {
		claim    string
		answer   func(http.ResponseWriter, *http.Request) bool
		name     string
		want     publishd.Reason
		attempts int
	}{
		{"no such image", nil, "a/none:1", "IMAGE_NOT_FOUND", 1},
		{"not allowed", status("/manifests/", 401), "a/image:1", "AUTH_REQUIRED", 1},
		{"forbidden", status("/manifests/", 403), "a/image:1", "AUTH_REQUIRED", 1},
		{"its own fault", status("/manifests/", 500), "a/image:1", "REGISTRY_UNAVAILABLE", 2},
		{"too many", status("/manifests/", 429), "a/image:1", "RATE_LIMITED", 2},
		{"a blob that is other bytes", func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/blobs/") {
				fmt.Fprint(w, strings.Repeat("other bytes", 100_000))
				return true
			}
			return false
		}, "a/image:1", "CORRUPT_LAYER", 1},
	} {
		// A registry of its own for each: one that fails is left alone for a while.
		g := newGate(t, registry.Addr)
		g.set(row.answer)
		o := s.done(s.submit(publishd.Request{Source: g.ref(row.name)}).ID())
		if o.Error == nil || o.Error.Reason != row.want || o.Metadata.Attempt != row.attempts {
			t.Errorf("%s: %s after %d attempts: %+v, want %s after %d", row.claim, o.Metadata.State, o.Metadata.Attempt, o.Error, row.want, row.attempts)
		}
	}
	// One failure, then it is well.
	g := newGate(t, registry.Addr)
	var n atomic.Int32
	g.set(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") && n.Add(1) <= 3 {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		return false
	})
	if o := s.done(s.submit(publishd.Request{Source: g.ref("a/image:1")}).ID()); o.Metadata.State != publishd.Succeeded || o.Metadata.Attempt < 2 {
		t.Errorf("after a passing failure: %s, attempt %d, %+v", o.Metadata.State, o.Metadata.Attempt, o.Error)
	}
	if _, err := s.Submit(t.Context(), publishd.Request{Kind: publishd.Convert, Source: "docker://169.254.169.254/a/b:1"}); err != nil {
		t.Fatal(err)
	}
	if o, err := s.Find(t.Context(), "169.254.169.254/a/b:1"); err != nil || s.done(o.ID()).Error.Reason != publishd.PermissionDenied {
		t.Errorf("a link-local registry: %v, %+v", err, o)
	}
}

// Many who want one image share its conversion, which ends when the last of them leaves and leaves nothing behind.
func TestOperationsShareAJobAndTheLastCancelEndsIt(t *testing.T) {
	t.Parallel()
	registry := testkit.StartRegistry(t)
	registry.Push(layout(t), "a/image:1")
	g := newGate(t, registry.Addr)
	config := configOf(t, registry.Addr, "a/image", "1")
	held, release := make(chan struct{}, 100), make(chan struct{})
	g.set(func(_ http.ResponseWriter, r *http.Request) bool {
		// Not the config, which is read to resolve.
		if strings.Contains(r.URL.Path, "/blobs/") && !strings.HasSuffix(r.URL.Path, config) {
			held <- struct{}{}
			<-release
		}
		return false
	})
	defer close(release)
	s := newService(t, "--jobs", "1")
	manifests := make([]publishd.Operation, 20)
	for i := range manifests {
		manifests[i] = s.submit(publishd.Request{Source: g.ref("a/image:1"), As: "local/shared:1"})
	}
	jobs := map[string]bool{}
	s.await("the operations to share a job", func() bool {
		clear(jobs)
		for _, o := range manifests {
			jobs[s.get(o.ID()).Metadata.Job] = true
		}
		return len(jobs) == 1 && s.get(manifests[0].ID()).Metadata.State == publishd.Running
	})
	for i, o := range manifests {
		got, err := s.Cancel(t.Context(), o.ID())
		if err != nil {
			t.Fatal(err)
		}
		if last := i == len(manifests)-1; !last {
			if got.Metadata.State != publishd.Cancelled || s.get(manifests[19].ID()).Metadata.State != publishd.Running {
				t.Fatalf("after %d cancels: %s, the job is %s", i+1, got.Metadata.State, s.get(manifests[19].ID()).Metadata.State)
			}
		}
	}
	if o := s.done(manifests[19].ID()); o.Metadata.State != publishd.Cancelled || o.Error.Reason != publishd.CancelledReason {
		t.Errorf("the last one is %s: %+v", o.Metadata.State, o.Error)
	}
	if out := s.ok("repo", "ls", s.repo, "--keys", s.keys); strings.Contains(out, "shared") {
		t.Errorf("a cancelled image was published:\n%s", out)
	}
}

// configOf returns the digest of an image's config.
func configOf(t *testing.T, address, repository, tag string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/v2/"+repository+"/manifests/"+tag, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var m struct{ Config struct{ Digest string } }
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil || m.Config.Digest == "" {
		t.Fatalf("manifest of %s:%s: %v", repository, tag, err)
	}
	return m.Config.Digest
}
