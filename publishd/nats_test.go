package publishd_test

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publishd"
)

// startNATS runs a real NATS server with JetStream on loopback, on any port if port is -1.
func startNATS(t *testing.T, dir string, port int) *server.Server {
	t.Helper()
	n, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	n.Start()
	if !n.ReadyForConnections(30 * time.Second) {
		t.Fatal("the NATS server does not get ready")
	}
	t.Cleanup(func() {
		n.Shutdown()
		n.WaitForShutdown()
	})
	return n
}

// held is a gate to an image whose layers come when release is called.
func held(t *testing.T) (g *gate, release func()) {
	t.Helper()
	registry := testkit.StartRegistry(t)
	registry.Push(layout(t), "a/image:1")
	config := configOf(t, registry.Addr, "a/image", "1")
	free := make(chan struct{})
	g = newGate(t, registry.Addr)
	g.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") && !strings.HasSuffix(r.URL.Path, config) {
			select {
			case <-free:
			case <-r.Context().Done():
			}
		}
		return false
	})
	return g, func() { close(free) }
}

// Two daemons share a queue in a NATS server of its own, and one is killed while it converts: each job ends once, whoever took it and whoever
// did it; and what is about the files of one daemon's machine is done by that one, once it is back.
func TestDaemonsThatShareAQueueLoseNothingWhenOneIsKilled(t *testing.T) {
	t.Parallel()
	n := startNATS(t, t.TempDir(), -1)
	g, release := held(t)
	a := newService(t, "--nats", n.ClientURL(), "--jobs", "2", "--backoff", "50ms")
	b := a.second("--nats", n.ClientURL(), "--jobs", "2", "--backoff", "50ms")
	ids := map[string]string{}
	submit := func(s *service, name, source string) {
		ids[name] = s.submit(publishd.Request{Source: source, As: name, RequestID: name}).ID()
	}
	for i := range 10 {
		submit([]*service{a, b}[i%2], fmt.Sprintf("local/n%d:1", i), g.ref("a/image:1"))
	}
	both := func() bool { return a.number("skimfs_workers_running") == 2 && b.number("skimfs_workers_running") == 2 }
	a.await("both to convert", both)
	submit(a, "local/of-a:1", "dir:"+tree(t, "a"))
	submit(b, "local/of-b:1", "dir:"+tree(t, "b"))
	if again, err := b.Submit(t.Context(), publishd.Request{Kind: publishd.Convert, Source: g.ref("a/image:1"), As: "local/n0:1", RequestID: "local/n0:1"}); err != nil || again.ID() != ids["local/n0:1"] {
		t.Errorf("the other daemon answers the same request with operation %s (%v), want %s", again.Name, err, ids["local/n0:1"])
	}
	a.kill()
	release()
	for name, id := range ids {
		if name == "local/of-a:1" {
			continue
		}
		// What ran there is taken over when its lease has ended.
		b.awaitFor(2*time.Minute, name, func() bool { return b.get(id).Done })
		if o := b.get(id); o.Metadata.State != publishd.Succeeded {
			t.Errorf("%s is %s: %+v", name, o.Metadata.State, o.Error)
		}
	}
	if m := b.get(ids["local/of-a:1"]).Metadata; m.State != publishd.Queued {
		t.Errorf("a directory of the killed daemon's machine is %s at the other", m.State)
	}
	a.start()
	if o := a.done(ids["local/of-a:1"]); o.Metadata.State != publishd.Succeeded {
		t.Errorf("a directory of the daemon that came back: %+v", o.Error)
	}
	checkOnce(t, b, ids)
}

// Through one daemon one sees, awaits and cancels what another does; a recipe that both look after is expanded once.
func TestDaemonsThatShareAQueueAreOne(t *testing.T) {
	t.Parallel()
	n := startNATS(t, t.TempDir(), -1)
	g, release := held(t)
	defer release()
	a := newService(t, "--nats", n.ClientURL(), "--jobs", "1")
	o := a.submit(publishd.Request{Source: g.ref("a/image:1"), As: "local/a:1"})
	a.await("it to run", func() bool { return a.get(o.ID()).Metadata.State == publishd.Running })
	b := a.second("--nats", n.ClientURL(), "--jobs", "1")
	if m := b.get(o.ID()).Metadata; m.State != publishd.Running {
		t.Errorf("the other daemon says it is %s", m.State)
	}
	if _, err := b.Cancel(t.Context(), o.ID()); err != nil {
		t.Fatal(err)
	}
	if done := b.done(o.ID()); done.Metadata.State != publishd.Cancelled {
		t.Errorf("cancelled through the other daemon it is %s", done.Metadata.State)
	}
	a.await("its worker to end", func() bool { return a.number("skimfs_workers_running") == 0 })

	registry := testkit.StartRegistry(t)
	var want []string
	text := "version: 1\ninput:\n"
	for i := range 20 {
		name := fmt.Sprintf("b/image%02d:1", i)
		want = append(want, registry.Addr+"/"+name)
		text += "  - " + registry.Push(testkit.Empty(t, testkit.Gzip), name) + "\n"
	}
	recipe := a.submit(publishd.Request{Kind: publishd.ConvertMany, Source: text})
	if done := b.done(recipe.ID()); done.Metadata.State != publishd.Succeeded || len(done.Response) != len(want) {
		t.Errorf("a recipe is %s with %d results: %+v", done.Metadata.State, len(done.Response), done.Error)
	}
	all, err := a.List(t.Context(), url.Values{"parent": {recipe.ID()}})
	var got []string
	for _, o := range all {
		got = append(got, o.Metadata.As)
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("its images are %q (%v), want %q", got, err, want)
	}
}

// While the NATS server is away nothing new is accepted, at once, and questions are answered; when it is back everything goes on.
func TestAQueueThatGoesAwayAndComesBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := startNATS(t, dir, -1)
	g, release := held(t)
	s := newService(t, "--nats", n.ClientURL(), "--jobs", "1")
	running := s.submit(publishd.Request{Source: g.ref("a/image:1"), As: "local/a:1"})
	s.await("it to run", func() bool { return s.get(running.ID()).Metadata.State == publishd.Running })
	port := n.Addr().(*net.TCPAddr).Port
	n.Shutdown()
	n.WaitForShutdown()
	later := publishd.Request{Kind: publishd.Convert, Source: g.ref("a/image:1"), As: "local/b:1", RequestID: "b"}
	begun := time.Now()
	if _, err := s.Submit(t.Context(), later); publishd.ReasonOf(err) != publishd.ServiceUnavailable || time.Since(begun) > 5*time.Second {
		t.Errorf("without a queue a submission gives %v after %v", err, time.Since(begun))
	}
	if _, errs, status := s.run("submit", g.ref("a/image:1"), "local/c:1"); status != 75 || strings.Count(errs, "\n") != 2 {
		t.Errorf("submit without a queue: status %d, want 75, a line and a hint\n%s", status, errs)
	}
	if m := s.get(running.ID()).Metadata; m.State != publishd.Running {
		t.Errorf("without a queue what runs is %s", m.State)
	}
	release()
	s.await("it to end, of which nothing can be written", func() bool { return s.number("skimfs_workers_running") == 0 })
	startNATS(t, dir, port)
	ids := map[string]string{"local/a:1": running.ID()}
	s.await("submissions to be taken", func() bool {
		o, err := s.Submit(t.Context(), later)
		ids["local/b:1"] = o.Name[min(len(o.Name), len("operations/")):]
		return err == nil
	})
	for name, id := range ids {
		if o := s.done(id); o.Metadata.State != publishd.Succeeded {
			t.Errorf("%s is %s: %+v", name, o.Metadata.State, o.Error)
		}
	}
	checkOnce(t, s, ids)
}

// What is not there, and what is no queue, is said with a hint.
func TestAnUnusableNATSServerIsSaidToBe(t *testing.T) {
	t.Parallel()
	plain, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	plain.Start()
	t.Cleanup(plain.Shutdown)
	if !plain.ReadyForConnections(30 * time.Second) {
		t.Fatal("the NATS server does not get ready")
	}
	s := newService(t)
	s.stop()
	for claim, url := range map[string]string{"nobody listens": "nats://127.0.0.1:1", "it has no JetStream": plain.ClientURL()} {
		_, errs, status := s.run("publishd", "--repo", s.repo, "--nats", url)
		if status != 1 || strings.Count(errs, "\n") != 2 || !strings.Contains(errs, "hint: --nats") {
			t.Errorf("%s: status %d, want a line and a hint\n%s", claim, status, errs)
		}
	}
}
