package publishd_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publishd"
)

// holding is a service with one worker, which a conversion occupies until release is called; what is submitted meanwhile waits.
func holding(t *testing.T, args ...string) (s *service, release func()) {
	t.Helper()
	registry := testkit.StartRegistry(t)
	registry.Push(layout(t), "held/image:1")
	g := newGate(t, registry.Addr)
	free := make(chan struct{})
	config := configOf(t, registry.Addr, "held/image", "1")
	g.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") && !strings.HasSuffix(r.URL.Path, config) {
			select {
			case <-free:
			case <-r.Context().Done():
			}
		}
		return false
	})
	s = newService(t, append([]string{"--jobs", "1"}, args...)...)
	o := s.submit(publishd.Request{Source: g.ref("held/image:1")})
	s.await("the worker to be occupied", func() bool { return s.get(o.ID()).Metadata.State == publishd.Running })
	return s, func() { close(free) }
}

// order returns the names in the order in which their operations began to run.
func (s *service) order(ops map[string]publishd.Operation) (names []string) {
	s.t.Helper()
	began := map[string]time.Time{}
	for name, o := range ops {
		done := s.done(o.ID())
		if done.Metadata.StartTime == nil || done.Metadata.State != publishd.Succeeded {
			s.t.Fatalf("%s: %+v", name, done)
		}
		began[name] = *done.Metadata.StartTime
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return began[a].Compare(began[b]) })
	return names
}

func TestWhatIsUrgentRunsFirstAndASubmitterOfManyDoesNotKeepOthersOut(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	registry := testkit.StartRegistry(t)
	registry.Push(layout(t), "a/image:1")
	var lines string
	secrets := map[string]string{}
	for _, name := range []string{"many", "few"} {
		secret, line, err := publishd.NewToken(name, publishd.ScopeSubmit)
		if err != nil {
			t.Fatal(err)
		}
		lines += line + "\n"
		secrets[name] = secret
	}
	tokens := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(tokens, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	s, release := holding(t, "--listen", l.Addr().String(), "--tokens", tokens)
	ops := map[string]publishd.Operation{}
	submit := func(who, name string, priority int) {
		c, err := publishd.NewClient("http://"+l.Addr().String(), secrets[who])
		if err != nil {
			t.Fatal(err)
		}
		o, err := c.Submit(t.Context(), publishd.Request{Kind: publishd.Convert, Source: registry.Addr + "/a/image:1", As: "local/" + name + ":1", Priority: &priority})
		if err != nil {
			t.Fatal(err)
		}
		ops[name] = o
	}
	submit("many", "last", 0)
	for i := range 4 {
		submit("many", fmt.Sprintf("many%d", i), 5)
	}
	submit("few", "few", 5)
	submit("many", "urgent", 9)
	s.await("the queue to know them", func() bool { return s.get(ops["last"].ID()).Metadata.QueuePosition == len(ops) })
	release()
	got := s.order(ops)
	if got[0] != "urgent" || got[len(got)-1] != "last" {
		t.Errorf("they ran in the order %q, want the urgent one first and that of priority 0 last", got)
	}
	if slices.Index(got, "few") > 2 {
		t.Errorf("they ran in the order %q: one submitter's four kept the other's one out", got)
	}
}

// With its age a job's priority grows, so that it runs before urgent ones that come later.
func TestNothingWaitsForEver(t *testing.T) {
	t.Parallel()
	s, release := holding(t, "--aging", "20ms")
	lowest, highest := 0, 9
	ops := map[string]publishd.Operation{"old": s.submit(publishd.Request{Source: "dir:" + tree(t, "old"), As: "local/old:1", Priority: &lowest})}
	created := s.get(ops["old"].ID()).Metadata.CreateTime
	s.await("it to age", func() bool { return time.Since(created) > 500*time.Millisecond })
	ops["new"] = s.submit(publishd.Request{Source: "dir:" + tree(t, "new"), As: "local/new:1", Priority: &highest})
	release()
	if got := s.order(ops); got[0] != "old" {
		t.Errorf("they ran in the order %q", got)
	}
}

// Where the disk would become too full, nothing begins, and what waits says why; once there is room it runs.
func TestWhatDoesNotFitOnTheDiskIsBlocked(t *testing.T) {
	t.Parallel()
	s := newService(t, "--reserve", "1000000GB")
	o := s.submit(publishd.Request{Source: "dir:" + tree(t, "x"), As: "local/x:1"})
	s.await("it to be blocked", func() bool { return s.get(o.ID()).Metadata.State == publishd.Blocked })
	m := s.get(o.ID()).Metadata
	if m.Problem == nil || m.Problem.Reason != publishd.NoSpace || m.NextRunTime == nil || m.Attempt != 0 {
		t.Errorf("blocked: %+v, next %v, attempt %d", m.Problem, m.NextRunTime, m.Attempt)
	}
	other := s.submit(publishd.Request{Source: "dir:" + tree(t, "y"), As: "local/y:1"})
	if got, err := s.Cancel(t.Context(), other.ID()); err != nil || got.Metadata.State != publishd.Cancelled {
		t.Errorf("cancelling what is blocked: %v, %+v", err, got)
	}
	s.stop()
	s.args = nil
	s.start()
	if done := s.done(o.ID()); done.Metadata.State != publishd.Succeeded || done.Metadata.Attempt != 1 {
		t.Errorf("with room: %s after %d attempts, %+v", done.Metadata.State, done.Metadata.Attempt, done.Error)
	}
}

// A registry that asks to be left alone is left alone, by all jobs, for as long as it says.
func TestARegistryThatWantsItGetsItsRest(t *testing.T) {
	t.Parallel()
	const rest = 2 * time.Second
	registry := testkit.StartRegistry(t)
	registry.Push(layout(t), "a/image:1")
	g := newGate(t, registry.Addr)
	var first atomic.Pointer[time.Time]
	var early atomic.Int32
	g.set(func(w http.ResponseWriter, _ *http.Request) bool {
		now := time.Now()
		if first.CompareAndSwap(nil, &now) {
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		if now.Sub(*first.Load()) < rest-100*time.Millisecond {
			early.Add(1)
		}
		return false
	})
	s := newService(t, "--backoff", "10ms")
	o := s.submit(publishd.Request{Source: g.ref("a/image:1"), As: "local/a:1"})
	s.await("it to be blocked", func() bool { return s.get(o.ID()).Metadata.State == publishd.Blocked })
	m := s.get(o.ID()).Metadata
	if m.Problem == nil || m.Problem.Reason != publishd.RateLimited || m.NextRunTime == nil || m.NextRunTime.Before(first.Load().Add(rest-100*time.Millisecond)) {
		t.Errorf("blocked: %+v, next %v", m.Problem, m.NextRunTime)
	}
	other := s.submit(publishd.Request{Source: g.ref("a/image:1"), As: "local/b:1"})
	for _, o := range []publishd.Operation{o, other} {
		if done := s.done(o.ID()); done.Metadata.State != publishd.Succeeded {
			t.Errorf("%s: %+v", done.Metadata.State, done.Error)
		}
	}
	if n := early.Load(); n > 0 {
		t.Errorf("it was asked %d times while it rested", n)
	}
}

func TestBackoffDoublesUpToALimitAndIsNeverTheSame(t *testing.T) {
	for attempt, full := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 8: time.Minute, 63: time.Minute} {
		least, most := publishd.Backoff(time.Second, time.Minute, attempt, 0), publishd.Backoff(time.Second, time.Minute, attempt, 1)
		if least != full/2 || most != full {
			t.Errorf("attempt %d: %v to %v, want %v to %v", attempt, least, most, full/2, full)
		}
	}
}
