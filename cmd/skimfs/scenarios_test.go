package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// TestScenariosOfCernVMFS are those of CernVM-FS' own tests, by their numbers, that no other test here covers; docs/scenarios.md lists them all.
func TestScenariosOfCernVMFS(t *testing.T) {
	t.Parallel()
	w := published(t)
	together(t, 4, map[string]func(*testing.T){
		"025 059 572 proxies die one after the other":          func(t *testing.T) { proxiesDieOneByOne(t, w, "") },
		"572 the same with objects spread over the group":      func(t *testing.T) { proxiesDieOneByOne(t, w, ",proxy_shard=yes") },
		"524 a corrupt manifest heals from the mirror":         func(t *testing.T) { noteHealsFromTheMirror(t, w, "manifest") },
		"524 a corrupt whitelist heals from the mirror":        func(t *testing.T) { noteHealsFromTheMirror(t, w, "whitelist") },
		"524 a squid that keeps damaged copies heals for all":  func(t *testing.T) { squidHealsForAll(t, w) },
		"030 a missing root catalog fails the mount, for once": func(t *testing.T) { missingRootCatalog(t, w) },
	})
}

// proxiesDieOneByOne reads through two groups and DIRECT until nobody is left, and then through all again.
func proxiesDieOneByOne(t *testing.T, w *world, options string) {
	n, origin := newNode(t, w), testkit.NewFaulty(t, serveWorld(t, w).Listener.Addr().String())
	one, two, spare := testkit.NewFaulty(t, ""), testkit.NewFaulty(t, ""), testkit.NewFaulty(t, "")
	const deadline = 6 * time.Second
	target := n.mount(origin.URL+"#"+testImage, "-o", "deadline=6s,timeout=500ms,timeout_direct=500ms,proxy="+one.URL+"|"+two.URL+";"+spare.URL+";DIRECT"+options)
	right := func(path, want string) {
		t.Helper()
		if r := n.sh(`exec cat "$1"`, filepath.Join(target, path)); r.stdout != want {
			t.Errorf("%s: status %d, %d bytes, %q\n%s", path, r.status, len(r.stdout), r.stderr, n.log())
		}
	}
	right("etc/motd", "skim\n")
	one.Set(testkit.Refuse)
	right("usr/lib/a", "lib a")
	two.Set(testkit.Silent)
	right("usr/lib/b", "lib b")
	if spare.Requests("") == 0 {
		t.Error("the second group was not used when the first was dead")
	}
	spare.Set(testkit.BadGateway)
	right("usr/share/middle", string(w.big[:middleSize]))
	origin.Set(testkit.Refuse)
	inTime(t, 3*deadline, func() { n.fails(filepath.Join(target, "big")) })
	for _, f := range []*testkit.Faulty{one, two, spare, origin} {
		f.Set(testkit.Sound)
	}
	n.await("a way to be found again", func() bool { return n.sh(`exec cat "$1"`, filepath.Join(target, "big")).stdout == string(w.big) })
}

// noteHealsFromTheMirror mounts for the first time where one server has a damaged note and the other has not.
func noteHealsFromTheMirror(t *testing.T, w *world, note string) {
	n, bad, mirror := newNode(t, w), serveWorld(t, w), serveWorld(t, w)
	bad.change(t, note, flip)
	target := n.target("m")
	if r := n.run("mount", bad.image(), target, "-o", shortDeadline+",server="+mirror.URL); r.status != 0 || r.stderr != "" {
		t.Errorf("mount: status %d, %q\n%s", r.status, r.stderr, n.log())
	}
	if got := n.read(filepath.Join(target, "etc/motd")); got != "skim\n" {
		t.Errorf("read %q", got)
	}
	if bad.requests(note) != 2 || mirror.requests(note) != 1 {
		t.Errorf("the %s was asked for %d times at the bad one and %d times at the mirror, want 2 (once past caches) and 1", note, bad.requests(note), mirror.requests(note))
	}
}

// squidHealsForAll has an origin that flips a bit of each file once, into the copies of a real squid: the first node has them replaced, and the second is served
// from the squid.
func squidHealsForAll(t *testing.T, w *world) {
	origin, squid := testkit.NewFaulty(t, serveWorld(t, w).Listener.Addr().String()), testkit.StartSquid(t, "refresh_pattern /objects/ 525600 100% 525600")
	origin.Set(testkit.FlipOnce)
	object := "/" + w.objects(t, testImage+"/big")[0]
	for range 2 {
		n := newNode(t, w)
		target := n.mount(origin.URL+"#"+testImage, "-o", "proxy="+squid.URL)
		if got := n.read(filepath.Join(target, "big")); got != string(w.big) {
			t.Errorf("%d bytes, not the right ones\n%s", len(got), n.log())
		}
		if got := origin.Requests(object); got != 2 {
			t.Errorf("the origin was asked for %s %d times, want 2: the damaged copy and the right one", object, got)
		}
	}
}

func missingRootCatalog(t *testing.T, w *world) {
	n, s := newNode(t, w), serveWorld(t, w)
	root := w.find(t, testImage).Root.Digest.ObjectPath()
	s.change(t, root, remove)
	target := n.target("m")
	oneHint(t, n.run("mount", s.image(), target, "-o", shortDeadline), exitMountFailed, root, "")
	if mounted(t, target) || strings.Contains(n.log(), "no such file") {
		t.Errorf("mounted, or told that there is no such image\n%s", n.log())
	}
	s.put(root, w.files[root])
	n.ok("mount", s.image(), target)
}

// TestTheScenariosPageNamesTests checks that each test that docs/scenarios.md names exists.
func TestTheScenariosPageNamesTests(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "scenarios.md"))
	if err != nil {
		t.Fatal(err)
	}
	var sources strings.Builder
	for _, pattern := range []string{"*", "*/*", "*/*/*"} {
		files, err := filepath.Glob(filepath.Join("..", "..", pattern+"_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			sources.Write(b)
		}
	}
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(page), -1)
	for _, m := range named {
		if !strings.Contains(sources.String(), "\nfunc "+m[1]+"(") {
			t.Errorf("no test %s", m[1])
		}
	}
	if len(named) < 40 {
		t.Errorf("only %d tests found on the page", len(named))
	}
}
