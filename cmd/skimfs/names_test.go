package main

import (
	"fmt"
	"net"
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

// W02, W12, tests 016, 017, 052 and 079 of CernVM-FS: names of proxies that resolve slowly, not at all, to a dead address beside a living one, and to
// others than before.
func TestNamesOfProxiesW12(t *testing.T) {
	t.Parallel()
	w := published(t)
	s := serveWorld(t, w)
	proxy := testkit.NewFaulty(t, s.Listener.Addr().String())
	_, port, err := net.SplitHostPort(proxy.Addr)
	if err != nil {
		t.Fatal(err)
	}
	const name, here, dead = "squid.site.test", "127.0.0.1", "127.0.0.9"
	n := nodeIn{newNode(t, w), testkit.StartNameServer(t)}
	target := n.target("m")
	options := fmt.Sprintf("deadline=3s,timeout=1s,proxy=http://%s:%s", name, port)
	mount := func() result { return n.mountIn(s.image(), target, options) }

	for what, answer := range map[string]func(){
		"a silent name server":       func() { n.ns.Answer(0, true) },
		"a name that doesn't exist":  func() { n.ns.Answer(0, false) },
		"an address where nobody is": func() { n.ns.Set(name, dead) },
		"a name that takes too long": func() { n.ns.Answer(time.Minute, false) },
	} {
		answer()
		inTime(t, mountBound, func() {
			if r := mount(); r.status != exitMountFailed || !strings.Contains(r.stderr, "hint: ") {
				t.Errorf("%s: status %d, %q", what, r.status, r.stderr)
			}
		})
	}
	if n.ns.Asked() == 0 {
		t.Fatal("the name server was never asked: nothing is measured")
	}

	// Slow, and one of two is dead.
	n.ns.Answer(200*time.Millisecond, false)
	n.ns.Set(name, dead, here)
	n.await("a mount", func() bool { return mount().status == 0 })
	read := func(path, want string) {
		t.Helper()
		if r := n.inside(`exec cat "$1"`, filepath.Join(target, path)); r.status != 0 || r.stdout != want {
			t.Errorf("%s: status %d, %d bytes, %q\n%s", path, r.status, len(r.stdout), r.stderr, n.log())
		}
	}
	read("etc/motd", "skim\n")
	// The dead one leaves the name.
	n.ns.Set(name, here)
	proxy.Set(testkit.Sound) // cuts what is open
	read("big", string(w.big))
	if proxy.Requests("") == 0 {
		t.Error("nothing went through the proxy")
	}
}
