package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// W20: with every server and proxy silent a cached image mounts, and cached files are read, without anybody waiting for the network: one mount
// waits for a second, once, and one question at a time goes out in the background.
func TestOfflineW20MountsAndReadsWithoutWaiting(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	// It is named, so that the origin is another set of servers and proxies later on.
	source := testName + "/" + testImage
	target := n.target("m")
	n.ok("mount", source, target, "-o", "server="+s.URL)
	n.read(filepath.Join(target, "big"))
	n.read(filepath.Join(target, "etc/motd"))
	n.ok("umount", target)
	s.Close()
	proxy, server := testkit.NewFaulty(t, ""), testkit.NewFaulty(t, "")
	proxy.Set(testkit.Silent)
	server.Set(testkit.Silent)
	dead := "server=" + server.URL + ",proxy=" + proxy.URL + ";DIRECT,timeout=1s,timeout_direct=1s"
	all := func() int64 { return proxy.Connections() + server.Connections() }
	// The first one doesn't know yet.
	inTime(t, 10*time.Second, func() { n.ok("mount", source, target, "-o", dead) })
	n.await("the daemon to notice that no server answers", n.offline)
	before := all()
	start := time.Now()
	const mounts = 5
	fastest := time.Minute
	for range mounts {
		n.ok("umount", target)
		asked := time.Now()
		r := n.run("mount", source, target, "-o", dead)
		fastest = min(fastest, time.Since(asked))
		if r.status != 0 || !strings.Contains(r.stderr, "no server answers: revision 3, accepted before") {
			t.Fatalf("status %d, %q\n%s", r.status, r.stderr, n.log())
		}
		if got := n.read(filepath.Join(target, "big")); got != string(w.big) {
			t.Error("wrong bytes")
		}
		if got := n.read(filepath.Join(target, "etc/motd")); got != "skim\n" {
			t.Error("wrong bytes")
		}
	}
	took := time.Since(start)
	// A wait for any of the servers would be 1 s at least, and each mount would have it; what a busy machine adds, not all have.
	if fastest >= time.Second {
		t.Errorf("the fastest of %d mounts took %v", mounts, fastest)
	}
	// Background questions in that time: each dials a path a few times.
	if got, most := all()-before, int64(16+8*int(took/(3*time.Second))); got > most {
		t.Errorf("%d mounts and %d reads dialled %d times, want at most %d", mounts, 2*mounts, got, most)
	}
}

// W20, 078: once a server answers, that is noticed by itself, and each change is told once.
func TestOfflineW20RecoversByItself(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	server := testkit.NewFaulty(t, s.Listener.Addr().String())
	s.put("manifest", w.older["manifest"])
	source := server.URL + "#" + testImage
	target := n.mount(source, "-o", shortDeadline)
	n.ok("umount", target)
	server.Set(testkit.Refuse)
	n.run("mount", source, target, "-o", shortDeadline)
	n.await("the daemon to notice that no server answers", n.offline)
	s.put("manifest", w.files["manifest"])
	server.Set(testkit.Sound)
	n.await("the daemon to notice that a server answers", func() bool { return !n.offline() })
	n.ok("mount", server.URL+"#"+bigImage, n.target("other"))
	for _, said := range []string{"offline: no server answers", "online again"} {
		if got := strings.Count(n.log(), said); got != 1 {
			t.Errorf("the log says %d times %q", got, said)
		}
	}
}

// offline reports whether no server answered when the daemon last asked.
func (n *node) offline() bool {
	n.t.Helper()
	return n.metric("skimfs_repositories_offline") == 1
}
