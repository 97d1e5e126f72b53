package main

import (
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// silent accepts connections, counts them and never answers, as a dead proxy behind a firewall does.
func silent(t *testing.T) (addr string, dials *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	dials = &atomic.Int64{}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			dials.Add(1)
			t.Cleanup(func() { c.Close() })
		}
	}()
	return l.Addr().String(), dials
}

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
	proxy, atProxy := silent(t)
	server, atServer := silent(t)
	dead := "server=http://" + server + ",proxy=http://" + proxy + ";DIRECT,timeout=1s,timeout_direct=1s"
	all := func() int64 { return atProxy.Load() + atServer.Load() }
	// The first one doesn't know yet.
	inTime(t, 10*time.Second, func() { n.ok("mount", source, target, "-o", dead) })
	for end := time.Now().Add(90 * time.Second); !n.status().Mounts[0].Standing.Offline; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the daemon doesn't notice that no server answers")
		}
	}
	before := all()
	start := time.Now()
	const mounts = 5
	for range mounts {
		n.ok("umount", target)
		r := n.run("mount", source, target, "-o", dead)
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
	// A wait for any of the servers would be 1 s at least, and several for all ways to them.
	if took > mounts*2*time.Second {
		t.Errorf("%d mounts took %v", mounts, took)
	}
	// Background questions in that time: each dials a path a few times.
	if got, most := all()-before, int64(16+8*int(took/(3*time.Second))); got > most {
		t.Errorf("%d mounts and %d reads dialled %d times, want at most %d", mounts, 2*mounts, got, most)
	}
}

// W20: once a server answers, that is noticed by itself.
func TestOfflineW20RecoversByItself(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	s.put("manifest", w.older["manifest"])
	target := n.mount(s.image(), "-o", shortDeadline)
	n.ok("umount", target)
	s.dead.Store(true)
	n.run("mount", s.image(), target, "-o", shortDeadline)
	for end := time.Now().Add(120 * time.Second); !n.status().Mounts[0].Standing.Offline; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not offline")
		}
	}
	s.put("manifest", w.files["manifest"])
	s.dead.Store(false)
	for end := time.Now().Add(120 * time.Second); n.status().Mounts[0].Standing.Offline; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still offline\n%s", n.log())
		}
	}
	n.ok("mount", s.URL+"#"+bigImage, n.target("other"))
	if got := strings.Count(n.log(), "online again"); got != 1 {
		t.Errorf("the log says %d times that it is online again", got)
	}
}
