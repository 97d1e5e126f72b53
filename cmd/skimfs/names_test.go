package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// nodeIn is a node whose daemon resolves names as ns says: it runs in a mount namespace of its own, where its mounts are too.
type nodeIn struct {
	*node
	ns *testkit.NameServer
}

// mountIn mounts source in a new namespace; with the node's daemon already there it is the daemon's.
func (n nodeIn) mountIn(source, target, options string) result {
	n.t.Helper()
	return n.sh(`exec unshare --mount sh -c 'mount --bind "$1" /etc/resolv.conf && export SKIMFS_HOME="$2" && exec "$3" mount "$4" "$5" -o "$6"' sh "$@"`,
		n.ns.ResolvConf, n.home, testkit.Build(n.t), source, target, options)
}

// inside runs a shell command where the daemon's mounts are.
func (n nodeIn) inside(script string, args ...string) result {
	n.t.Helper()
	return n.sh(`exec nsenter --mount --target "$@"`, append([]string{strconv.Itoa(n.status().PID), "sh", "-c", script, "sh"}, args...)...)
}

// W02, W12, tests 016, 017, 052 and 079 of CernVM-FS: names of a proxy or an origin that resolve slowly, not at all, to a dead address beside a living one, and
// to others than before.
func names(t *testing.T, w *world, place string) {
	s := serveWorld(t, w)
	named := testkit.NewFaulty(t, s.Listener.Addr().String())
	_, port, err := net.SplitHostPort(named.Addr)
	if err != nil {
		t.Fatal(err)
	}
	const name, here, there, dead = "skimfs.site.test", "127.0.0.1", "127.0.0.2", "127.0.0.9"
	n := nodeIn{newNode(t, w), testkit.StartNameServer(t)}
	target, url := n.target("m"), fmt.Sprintf("http://%s:%s", name, port)
	source, way := s.image(), ",proxy="+url
	if place == "origin" {
		source, way = url+"#"+testImage, ""
	}
	mount := func(limits string) result { return n.mountIn(source, target, limits+way) }

	for _, tt := range []struct {
		what   string
		addrs  []string
		delay  time.Duration
		silent bool
	}{
		{"a silent name server", nil, 0, true},
		{"a name that doesn't exist", nil, 0, false},
		{"an address where nobody is", []string{dead}, 0, false},
		{"a name that takes too long", []string{here}, time.Minute, false},
	} {
		n.ns.Set(name, tt.addrs...)
		n.ns.Answer(tt.delay, tt.silent)
		inTime(t, mountBound, func() {
			if r := mount("deadline=1s,timeout=300ms,timeout_direct=300ms"); r.status != exitMountFailed || !strings.Contains(r.stderr, "hint: ") {
				t.Errorf("%s: status %d, %q", tt.what, r.status, r.stderr)
			}
		})
	}
	if n.ns.Asked() == 0 {
		t.Fatal("the name server was never asked: nothing is measured")
	}

	// Slow, and one of two is dead.
	n.ns.Answer(200*time.Millisecond, false)
	n.ns.Set(name, dead, here)
	n.await("a mount", func() bool { return mount("deadline=20s").status == 0 })
	read := func(path, want string) {
		t.Helper()
		if r := n.inside(`exec cat "$1"`, filepath.Join(target, path)); r.status != 0 || r.stdout != want {
			t.Errorf("%s: status %d, %d bytes, %q\n%s", path, r.status, len(r.stdout), r.stderr, n.log())
		}
	}
	read("etc/motd", "skim\n")
	// The dead one leaves the name.
	n.ns.Set(name, here)
	named.Set(testkit.Sound) // cuts what is open
	read("usr/share/middle", string(w.big[:middleSize]))
	if named.Requests("") == 0 {
		t.Error("nothing went by the name")
	}
	// It moves to another address, and nobody is at the one before.
	moved := testkit.NewFaultyAt(t, there+":"+port, s.Listener.Addr().String())
	n.ns.Set(name, there)
	named.Set(testkit.Refuse)
	n.await("the name's new address", func() bool {
		r := n.inside(`exec cat "$1"`, filepath.Join(target, "big"))
		return r.stdout == string(w.big)
	})
	if moved.Requests("") == 0 {
		t.Error("nothing went to the new address")
	}
	// Another name server, by an edit of resolv.conf, sends it back.
	other := testkit.StartNameServer(t)
	other.Set(name, here)
	n.ns.Answer(0, true)
	conf, err := os.ReadFile(other.ResolvConf)
	if err != nil {
		t.Fatal(err)
	}
	writeTest(t, n.ns.ResolvConf, string(conf))
	named.Set(testkit.Sound)
	moved.Set(testkit.Refuse)
	n.await("the new name server's address", func() bool { return n.inside(`exec cat "$1"`, filepath.Join(target, "usr/lib/a")).stdout == "lib a" })
	if named.Requests("") == 0 || other.Asked() == 0 {
		t.Error("the other name server was not asked, or nothing went where it says")
	}
}

// W02, W07, W12, test 052 of CernVM-FS: real squids that one name leads to are a group. One of them dies, and is left; the name leads elsewhere, and they
// follow it.
func squidsByOneName(t *testing.T, w *world) {
	s, one := serveWorld(t, w), testkit.StartSquid(t)
	_, port, err := net.SplitHostPort(one.Addr)
	if err != nil {
		t.Fatal(err)
	}
	two, three := testkit.StartSquidAt(t, "127.0.0.2:"+port), testkit.StartSquidAt(t, "127.0.0.3:"+port)
	const name = "squid.site.test"
	n := nodeIn{newNode(t, w), testkit.StartNameServer(t)}
	n.ns.Set(name, "127.0.0.1", "127.0.0.2")
	target, way := n.target("m"), "deadline=20s,proxy=http://"+name+":"+port
	if r := n.mountIn(s.image(), target, way); r.status != 0 {
		t.Fatalf("status %d, %s\n%s", r.status, r.stderr, n.log())
	}
	inUse := func() string { return n.status().Origins[0].Proxy }
	read := func(path, want string) {
		t.Helper()
		if r := n.inside(`exec cat "$1"`, filepath.Join(target, path)); r.status != 0 || r.stdout != want {
			t.Errorf("%s: status %d, %d bytes, %q\n%s", path, r.status, len(r.stdout), r.stderr, n.log())
		}
	}
	used, other := one, two
	if inUse() == two.URL {
		used, other = two, one
	}
	if inUse() != used.URL || len(used.Log()) == 0 || len(other.Log()) != 0 {
		t.Fatalf("in use %s; %d requests through %s, %d through %s", inUse(), len(used.Log()), used.URL, len(other.Log()), other.URL)
	}
	used.Stop()
	read("etc/motd", "skim\n")
	if inUse() != other.URL || len(other.Log()) == 0 || strings.Count(n.log(), "proxy switched") != 1 || strings.Count(n.log(), "reason=connect") != 1 {
		t.Errorf("in use %s, want %s\n%s", inUse(), other.URL, n.log())
	}
	// The dead one's address leaves the name for another one.
	n.ns.Set(name, strings.TrimSuffix(other.Addr, ":"+port), "127.0.0.3")
	n.await("the name's new address", func() bool {
		n.ok("ls", s.URL, "-o", way)
		return strings.Contains(n.log(), "addresses of a proxy changed")
	})
	other.Stop()
	read("big", string(w.big))
	if len(three.Log()) == 0 {
		t.Errorf("nothing came through %s\n%s", three.URL, n.log())
	}
	// A busy machine may make it slow, too, and the dead one be tried once more.
	n.await("the living squid to be in use", func() bool {
		n.ok("ls", s.URL, "-o", way)
		return inUse() == three.URL
	})
}
