package publishd_test

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publishd"
)

// Layers come no faster than all jobs together may read.
func TestBytesPerSecondAreLimited(t *testing.T) {
	t.Parallel()
	const each, rate = 1 << 20, 256 << 10
	registry := testkit.StartRegistry(t)
	registry.Push(testkit.Noise(t, 1, each), "a/image:1")
	registry.Push(testkit.Noise(t, 1, each+1), "b/image:1")
	s := newService(t, "--jobs", "2", "--rate", fmt.Sprint(rate))
	begun := time.Now()
	for _, o := range []publishd.Operation{s.submit(publishd.Request{Source: registry.Addr + "/a/image:1"}), s.submit(publishd.Request{Source: registry.Addr + "/b/image:1"})} {
		if done := s.done(o.ID()); done.Metadata.State != publishd.Succeeded {
			t.Errorf("%s: %+v", done.Metadata.State, done.Error)
		}
	}
	// What fits the buckets comes at once.
	if took, least := time.Since(begun), (2*each-256<<10)*time.Second/rate; took < least {
		t.Errorf("%d bytes at %d per second took %v, want at least %v", 2*each, rate, took, least)
	}
}

// A registry is asked no more often than it was said, by the service and its workers together.
func TestRequestsPerSecondAreLimited(t *testing.T) {
	t.Parallel()
	const limit = 3
	registry := testkit.StartRegistry(t)
	registry.Push(testkit.Noise(t, 8, 1000), "a/image:1")
	registry.Push(testkit.Noise(t, 8, 1001), "b/image:1")
	g := newGate(t, registry.Addr)
	var mu sync.Mutex
	var at []time.Time
	g.set(func(http.ResponseWriter, *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		at = append(at, time.Now())
		return false
	})
	s := newService(t, "--jobs", "2", "--requests", fmt.Sprint(limit))
	a, b := s.submit(publishd.Request{Source: g.ref("a/image:1")}), s.submit(publishd.Request{Source: g.ref("b/image:1")})
	for _, o := range []publishd.Operation{a, b} {
		if done := s.done(o.ID()); done.Metadata.State != publishd.Succeeded {
			t.Errorf("%s: %+v", done.Metadata.State, done.Error)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(at) < 20 {
		t.Fatalf("%d requests for 16 layers", len(at))
	}
	// In no two seconds more than that many, and what had been saved up.
	for i := range at {
		n := 0
		for _, other := range at[i:] {
			if other.Sub(at[i]) < 2*time.Second {
				n++
			}
		}
		if n > 3*limit {
			t.Errorf("%d requests within two seconds, at most %d a second are allowed", n, limit)
			break
		}
	}
}

// occupied is a service whose one running job waits for its registry, and the worker that does it.
func occupied(t *testing.T, args ...string) (s *service, worker int, release func()) {
	t.Helper()
	s, release = holding(t, args...)
	s.await("the worker", func() bool {
		for _, pid := range testkit.Processes(s.home) {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
			if strings.Contains(string(cmdline), "publishd-worker") && strings.Contains(string(environ), "SKIMFS_WORKER_POLITE=1") {
				worker = pid
			}
		}
		return worker != 0
	})
	return s, worker, release
}

// What converts comes after all else on this machine, has the memory it may have, and leaves nothing when it is cancelled.
func TestAWorkerIsPoliteBoundedAndGone(t *testing.T) {
	t.Parallel()
	s, worker, release := occupied(t, "--memory", "1GiB")
	defer release()
	// As large as --reserve, too: each size counts for itself.
	s.await("the limit of memory", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", worker))
		return err == nil && strings.Contains(string(b), fmt.Sprintf("Max data size             %d ", 2<<30+512<<20))
	})
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", worker))
	if err != nil || len(threads) < 2 {
		t.Fatalf("%d threads: %v", len(threads), err)
	}
	for _, thread := range threads {
		id, _ := strconv.Atoi(filepath.Base(thread))
		b, err := os.ReadFile(filepath.Join(thread, "stat"))
		if err != nil {
			continue // it ended
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		if nice := strings.Fields(rest)[16]; nice != "15" {
			t.Errorf("a thread of the worker has the priority %s, want 15", nice)
		}
		const ofProcess = 1
		if class, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ofProcess, uintptr(id), 0); errno == 0 && class != 2<<13|7 {
			t.Errorf("a thread of the worker has the disk priority %#x, want the lowest of best effort", class)
		}
	}
	all, err := s.List(t.Context(), url.Values{})
	if err != nil || len(all) != 1 {
		t.Fatalf("%d operations: %v", len(all), err)
	}
	if _, err := s.Cancel(t.Context(), all[0].ID()); err != nil {
		t.Fatal(err)
	}
	s.done(all[0].ID())
	s.await("the worker to be gone", func() bool { return unix.Kill(worker, 0) == unix.ESRCH })
	if left, _ := filepath.Glob(filepath.Join(s.home, "state", "publishd", "spool", "*")); len(left) > 0 {
		t.Errorf("it left %q", left)
	}
	if left := strings.TrimSpace(testkit.Run(t, "find", s.repo, "-path", "*/.publish/*", "-type", "f", "-size", "+0", "-name", "*tmp*")); left != "" {
		t.Errorf("in the repository it left %s", left)
	}
}

// A job that needs more memory than it may have fails, and says so.
func TestAJobThatNeedsTooMuchMemoryFails(t *testing.T) {
	t.Parallel()
	s := newService(t, "--memory", "24MiB")
	o := s.done(s.submit(publishd.Request{Source: "oci:" + testkit.Noise(t, 2, 6<<20), As: "local/x:1"}).ID())
	if o.Error == nil || o.Error.Reason != "LIMIT_EXCEEDED" || o.Metadata.Attempt != 1 {
		t.Errorf("%s after %d attempts: %+v\n%s", o.Metadata.State, o.Metadata.Attempt, o.Error, s.ok("op", "logs", o.ID()))
	}
}

// A build's processes have the memory that they may have.
func TestABuildHasItsLimits(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t)
	g, release := held(t)
	defer release()
	dir := tree(t, "x")
	write(t, filepath.Join(dir, "Containerfile"), "FROM "+g.ref("a/image:1")+"\nCOPY file /srv/added\n")
	s := newService(t, "--memory", "1GiB")
	s.submit(publishd.Request{Kind: publishd.Build, Source: dir, As: "local/built:1"})
	s.await("buildah with its limit of memory", func() bool {
		all, _ := filepath.Glob("/proc/[0-9]*")
		for _, p := range all {
			cmdline, _ := os.ReadFile(filepath.Join(p, "cmdline"))
			limits, _ := os.ReadFile(filepath.Join(p, "limits"))
			if strings.Contains(string(cmdline), "buildah\x00--root\x00"+s.home) && strings.Contains(string(limits), fmt.Sprintf("Max data size             %d ", 1<<30)) {
				return true
			}
		}
		return false
	})
}

// Room on the disk is set aside for a job before it begins: another one that would fit alone is BLOCKED meanwhile.
func TestRoomForWhatRunsIsSetAside(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t)
	const layer, disk = 4 << 20, 64 << 20
	registry := testkit.StartRegistry(t)
	registry.Push(testkit.Noise(t, 1, layer), "a/image:1")
	registry.Push(testkit.Noise(t, 1, layer+1), "b/image:1")
	g := newGate(t, registry.Addr)
	free := make(chan struct{})
	s := newService(t)
	s.stop()
	small := t.TempDir()
	testkit.Run(t, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%d", disk), "publishd-test", small)
	t.Cleanup(func() { testkit.Run(t, "umount", "-l", small) })
	s.repo = filepath.Join(small, "repo")
	s.ok("repo", "create", s.repo, "--name", "small.example.org", "--keys", s.keys)
	// Each job needs twice its layer: there is room for one and a half.
	s.args = []string{"--keys", s.keys, "--jobs", "2", "--reserve", fmt.Sprint(disk - 3*layer)}
	s.start()
	configs := configOf(t, registry.Addr, "a/image", "1") + configOf(t, registry.Addr, "b/image", "1")
	g.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") && !strings.Contains(configs, filepath.Base(r.URL.Path)) {
			select {
			case <-free:
			case <-r.Context().Done():
			}
		}
		return false
	})
	a := s.submit(publishd.Request{Source: g.ref("a/image:1")})
	s.await("the first to run", func() bool { return s.get(a.ID()).Metadata.State == publishd.Running })
	if got := s.number("skimfs_disk_reserved_bytes"); got < 2*layer {
		t.Errorf("%g bytes are set aside, want at least %d", got, 2*layer)
	}
	b := s.submit(publishd.Request{Source: g.ref("b/image:1")})
	s.await("the second to be blocked", func() bool { return s.get(b.ID()).Metadata.State == publishd.Blocked })
	if p := s.get(b.ID()).Metadata.Problem; p == nil || p.Reason != publishd.NoSpace {
		t.Errorf("it is blocked because of %+v", p)
	}
	if _, err := s.Cancel(t.Context(), b.ID()); err != nil {
		t.Error(err)
	}
	close(free)
	if done := s.done(a.ID()); done.Metadata.State != publishd.Succeeded {
		t.Errorf("the first is %s: %+v", done.Metadata.State, done.Error)
	}
}

// A registry feeds so many jobs at a time; what comes from elsewhere does not wait for it.
func TestJobsOfOneRegistryAreLimited(t *testing.T) {
	t.Parallel()
	g, release := held(t)
	defer release()
	s := newService(t, "--jobs", "3", "--per-registry", "1")
	var ids []string
	for i := range 3 {
		ids = append(ids, s.submit(publishd.Request{Source: g.ref("a/image:1"), As: fmt.Sprintf("local/n%d:1", i)}).ID())
	}
	s.await("one to run and all to be resolved", func() bool {
		resolved := 0
		for _, id := range ids {
			if s.get(id).Metadata.Digest != "" {
				resolved++
			}
		}
		return resolved == len(ids) && s.number("skimfs_workers_running") == 1
	})
	if done := s.done(s.submit(publishd.Request{Source: "dir:" + tree(t, "x"), As: "local/x:1"}).ID()); done.Metadata.State != publishd.Succeeded {
		t.Errorf("what is not from the registry is %s", done.Metadata.State)
	}
	s.await("one job of the registry to run, as before", func() bool { return s.number("skimfs_workers_running") == 1 })
}

// A full queue says so; what it holds goes on, and there is room again.
func TestAFullQueueSaysSo(t *testing.T) {
	t.Parallel()
	s, release := holding(t, "--max-queue", "2")
	first := s.submit(publishd.Request{Source: "dir:" + tree(t, "x"), As: "local/x:1"})
	if _, errs, status := s.run("submit", "dir:"+tree(t, "y"), "local/y:1"); status != 75 || !strings.Contains(errs, "queued") || strings.Count(errs, "\n") != 2 {
		t.Errorf("status %d, want 75, a line and a hint\n%s", status, errs)
	}
	resp, err := s.http().Post("http://publishd/v1/images:convert", "application/json", strings.NewReader(`{"source":"dir:/x","as":"local/y:1"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
		t.Errorf("%s with Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	release()
	s.done(first.ID())
	s.await("room", func() bool { _, _, status := s.run("submit", "dir:"+tree(t, "y"), "local/y:1"); return status == 0 })
}

// Whether a job runs, waits in the queue or waits for its registry: at its deadline it fails. A job that somebody else wants for longer goes on.
func TestADeadlineHoldsInEachState(t *testing.T) {
	t.Parallel()
	s, release := holding(t)
	defer release()
	registry := testkit.StartRegistry(t)
	gone := newGate(t, registry.Addr)
	gone.set(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	all, err := s.List(t.Context(), url.Values{})
	if err != nil || len(all) != 1 {
		t.Fatalf("%d operations: %v", len(all), err)
	}
	registry.Push(layout(t), "a/image:1")
	for claim, r := range map[string]publishd.Request{
		"queued":         {Source: "dir:" + tree(t, "x"), As: "local/x:1"},
		"to be retried":  {Source: gone.ref("a/image:1")},
		"a whole recipe": {Kind: publishd.ConvertMany, Source: "version: 1\ninput: ['" + registry.Addr + "/a/image:1']\n"},
	} {
		r.Deadline = "1s"
		begun := time.Now()
		o := s.done(s.submit(r).ID())
		if took := time.Since(begun); o.Error == nil || o.Error.Reason != publishd.DeadlineExceeded || took > 20*time.Second {
			t.Errorf("%s: %s after %v, %+v", claim, o.Metadata.State, took, o.Error)
		}
	}
	// Two want one image, the second for longer.
	r := publishd.Request{Source: registry.Addr + "/a/image:1", As: "local/shared:1", Deadline: "1s"}
	short := s.submit(r)
	r.Deadline = ""
	long := s.submit(r)
	time.Sleep(2500 * time.Millisecond) // more than the shorter one
	if m := s.get(long.ID()).Metadata; m.State != publishd.Queued {
		t.Errorf("the one without a deadline is %s", m.State)
	}
	_ = short
	// What runs.
	running := newService(t, "--jobs", "1")
	g, free := held(t)
	defer free()
	o := running.submit(publishd.Request{Source: g.ref("a/image:1"), Deadline: "3s"})
	running.await("it to run", func() bool { return running.get(o.ID()).Metadata.State == publishd.Running })
	if done := running.done(o.ID()); done.Error == nil || done.Error.Reason != publishd.DeadlineExceeded {
		t.Errorf("what runs: %s, %+v", done.Metadata.State, done.Error)
	}
}

// What ended is forgotten after a time, with its log; also that of a job whose operation was retried.
func TestWhatEndedIsForgottenInTheEnd(t *testing.T) {
	t.Parallel()
	s := newService(t, "--retain", "5s")
	logs := func() []string {
		found, _ := filepath.Glob(filepath.Join(s.home, "state", "publishd", "logs", "*"))
		return found
	}
	id := s.submit(publishd.Request{Source: "dir:/does/not/exist", As: "local/no:1"}).ID()
	s.done(id)
	if n := len(logs()); n != 1 {
		t.Errorf("%d logs of a job", n)
	}
	s.ok("op", "retry", id)
	s.done(id)
	s.await("them to be forgotten", func() bool { return s.number("skimfs_operations") == 0 && len(logs()) == 0 })
}
