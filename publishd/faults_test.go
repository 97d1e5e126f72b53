package publishd_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publishd"
)

// Each way in which a registry fails has its reason and its hint; what may pass is tried again, what won't is not.
func TestRegistryFailuresHaveTheirReasons(t *testing.T) {
	t.Parallel()
	registry := testkit.StartRegistry(t)
	registry.Push(layout(t), "a/image:1")
	patient := newService(t, "--jobs", "4", "--backoff", "20ms", "--attempts", "2")
	impatient := newService(t, "--jobs", "4", "--backoff", "20ms", "--attempts", "2", "--registry-timeout", "1s", "--stall", "3s")
	type answer = func(http.ResponseWriter, *http.Request) bool
	at := func(path string, answer http.HandlerFunc) answer {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, path) {
				return false
			}
			answer(w, r)
			return true
		}
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "1") // counts with 429 and 503
			w.WriteHeader(code)
		}
	}
	silent := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	short := func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") == "" {
			w.Header().Set("Content-Length", "1000000")
			fmt.Fprint(w, "the beginning")
		}
		panic(http.ErrAbortHandler)
	}
	config := configOf(t, registry.Addr, "a/image", "1")
	layers := func(f http.HandlerFunc) answer {
		return func(w http.ResponseWriter, r *http.Request) bool {
			return !strings.HasSuffix(r.URL.Path, config) && at("/blobs/", f)(w, r)
		}
	}
	rows := []struct {
		claim    string
		s        *service
		answer   answer
		name     string
		want     publishd.Reason
		attempts int
		hint     string
	}{
		{"401", patient, at("/manifests/", status(401)), "a/image:1", "AUTH_REQUIRED", 1, "credentials"},
		{"403", patient, at("/manifests/", status(403)), "a/image:1", "AUTH_REQUIRED", 1, "credentials"},
		{"404, no such image", patient, nil, "a/none:1", "IMAGE_NOT_FOUND", 1, "skimfs resolve"},
		{"404 for a layer", patient, layers(status(404)), "a/image:1", "IMAGE_NOT_FOUND", 1, "skimfs resolve"},
		{"429 with Retry-After", patient, at("/manifests/", status(429)), "a/image:1", "RATE_LIMITED", 2, "credentials"},
		{"429 for a layer", patient, layers(status(429)), "a/image:1", "RATE_LIMITED", 2, "credentials"},
		{"500", patient, at("/manifests/", status(500)), "a/image:1", "REGISTRY_UNAVAILABLE", 2, "op retry"},
		{"503 with Retry-After", patient, at("/manifests/", status(503)), "a/image:1", "REGISTRY_UNAVAILABLE", 2, "op retry"},
		{"a connection that is reset", patient, at("/manifests/", func(w http.ResponseWriter, _ *http.Request) { reset(t, w) }), "a/image:1", "REGISTRY_UNAVAILABLE", 2, "op retry"},
		{"silence", impatient, at("/manifests/", silent), "a/image:1", "REGISTRY_UNAVAILABLE", 2, "op retry"},
		{"a layer that does not come", impatient, layers(silent), "a/image:1", "STALLED", 2, "op retry"},
		{"a layer that is cut off", patient, layers(short), "a/image:1", "REGISTRY_UNAVAILABLE", 2, "op retry"},
		{"a layer that is other bytes", patient, layers(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("other bytes", 100_000)) }), "a/image:1", "CORRUPT_LAYER", 1, "pushed again"},
		{"no registry at all", patient, at("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>Welcome!</html>") }), "a/image:1", "UNSUPPORTED_MEDIA", 1, "is it an image"},
	}
	ids := make([]string, len(rows))
	for i, row := range rows {
		// A registry of its own for each: one that fails is left alone for a while.
		g := newGate(t, registry.Addr)
		g.set(row.answer)
		ids[i] = row.s.submit(publishd.Request{Source: g.ref(row.name)}).ID()
	}
	for i, row := range rows {
		o := row.s.done(ids[i])
		if o.Error == nil || o.Error.Reason != row.want || o.Metadata.Attempt != row.attempts {
			t.Errorf("%s: %s after %d attempts: %+v, want %s after %d", row.claim, o.Metadata.State, o.Metadata.Attempt, o.Error, row.want, row.attempts)
		}
		if _, errs, status := row.s.run("wait", ids[i]); status != 1 || strings.Count(errs, "\n") != 2 || !strings.Contains(errs, row.hint) {
			t.Errorf("%s: status %d, want a line and a hint with %q:\n%s", row.claim, status, row.hint, errs)
		}
		if row.attempts == 2 && strings.Contains(row.claim, "Retry-After") && o.Metadata.EndTime.Sub(o.Metadata.CreateTime) < time.Second {
			t.Errorf("%s: it was asked again after %v", row.claim, o.Metadata.EndTime.Sub(o.Metadata.CreateTime))
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
	if o := patient.done(patient.submit(publishd.Request{Source: g.ref("a/image:1")}).ID()); o.Metadata.State != publishd.Succeeded || o.Metadata.Attempt < 2 {
		t.Errorf("after a passing failure: %s, attempt %d, %+v", o.Metadata.State, o.Metadata.Attempt, o.Error)
	}
}

// reset ends a connection without the answer that was asked for.
func reset(t *testing.T, w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	if err := c.(*net.TCPConn).SetLinger(0); err != nil {
		t.Error(err)
	}
	c.Close()
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
	s.await("the last one to end", func() bool {
		if m := s.get(manifests[0].ID()).Metadata; m.State != publishd.Cancelled {
			t.Errorf("one that was cancelled before is %s", m.State)
		}
		return s.get(manifests[19].ID()).Done
	})
	if o := s.get(manifests[19].ID()); o.Metadata.State != publishd.Cancelled || o.Error.Reason != publishd.CancelledReason {
		t.Errorf("the last one is %s: %+v", o.Metadata.State, o.Error)
	}
	checkHistory(t, s.history(len(manifests)), len(manifests))
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
