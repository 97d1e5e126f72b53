package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// inTime calls f and checks that it took no longer than a deadline of reads allows, on a machine that does much else.
func inTime(t *testing.T, limit time.Duration, f func()) {
	t.Helper()
	begun := time.Now()
	f()
	if took := time.Since(begun); took > limit {
		t.Errorf("it took %v, want less than %v", took, limit)
	}
}

const (
	shortDeadline = "deadline=3s,timeout_direct=1s"
	slack         = 12 * time.Second // for what the machine does besides
)

func TestAnObjectMissingEverywhereIsAnErrorInTime(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, mirror, n := serveWorld(t, w), serveWorld(t, w), newNode(t, w)
	for _, srv := range []*server{s, mirror} {
		srv.change(t, w.objects(t, testImage+"/etc/motd")[0], remove)
	}
	target := n.mount(s.image(), "-o", shortDeadline+",server="+mirror.URL)
	inTime(t, slack, func() { n.fails(filepath.Join(target, "etc/motd")) })
	if got := n.sh(`ls "$1/etc"`, target); got.status != 0 || !strings.Contains(got.stdout, "motd") {
		t.Errorf("ls: %q %q", got.stdout, got.stderr)
	}
	if got := n.read(filepath.Join(target, "usr/lib/a")); got != "lib a" {
		t.Errorf("another file is %q", got)
	}
	if m := n.status().Mounts[0]; m.Errors == 0 {
		t.Error("the error isn't counted")
	}
}

func TestAFlippedBitHealsFromTheMirror(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, mirror, n := serveWorld(t, w), serveWorld(t, w), newNode(t, w)
	object := w.objects(t, testImage+"/big")[0]
	s.change(t, object, flip)
	target := n.mount(s.image(), "-o", shortDeadline+",server="+mirror.URL)
	if got := n.read(filepath.Join(target, "big")); got != string(w.big) {
		t.Error("wrong bytes")
	}
	if s.requests(object) != 2 || mirror.requests(object) != 1 {
		t.Errorf("the origin was asked %d times, the mirror %d: want 2 (once past caches) and 1", s.requests(object), mirror.requests(object))
	}
	if f := n.status().Fetch; f.Refreshes == 0 {
		t.Errorf("no try past the caches is counted: %+v", f)
	}
}

func TestAFlippedBitEverywhereIsAnErrorAndNothingIsStored(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	s.change(t, w.objects(t, testImage+"/etc/motd")[0], flip)
	target := n.mount(s.image(), "-o", shortDeadline)
	inTime(t, slack, func() { n.fails(filepath.Join(target, "etc/motd")) })
	if got := n.ok("stat", s.image(), "etc/motd", "-o", shortDeadline); !strings.Contains(got, "objects 1, 0 of them cached") {
		t.Errorf("stat: %s", got)
	}
	s.put(w.objects(t, testImage+"/etc/motd")[0], w.files[w.objects(t, testImage+"/etc/motd")[0]])
	if got := n.read(filepath.Join(target, "etc/motd")); got != "skim\n" {
		t.Errorf("after the origin healed: %q", got)
	}
}

func TestATruncatedRootCatalogFailsTheMount(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	digest := w.find(t, testImage).Root.Digest
	s.change(t, digest.ObjectPath(), truncate)
	target := n.target("m")
	r := n.run("mount", s.image(), target, "-o", shortDeadline)
	oneHint(t, r, exitMountFailed, fmt.Sprintf("%s.*%s/%s", digest, s.URL, digest.ObjectPath()), "repo verify")
	if mounted(t, target) || len(n.status().Mounts) != 0 {
		t.Error("it is mounted")
	}
	s.put(digest.ObjectPath(), w.files[digest.ObjectPath()])
	n.ok("mount", s.image(), target)
}

func TestATruncatedNestedCatalogHealsWithoutANewMount(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	f := w.find(t, bigImage)
	cat, _, err := f.Node()
	if err != nil {
		t.Fatal(err)
	}
	if cat.NestedCount() == 0 {
		t.Fatal("the image has no nested catalog")
	}
	var nested []string
	for i := range cat.NestedCount() {
		row, err := cat.Nested(i)
		if err != nil {
			t.Fatal(err)
		}
		nested = append(nested, row.Catalog.Digest.ObjectPath())
		s.change(t, row.Catalog.Digest.ObjectPath(), truncate)
	}
	target := n.mount(s.URL+"#"+bigImage, "-o", shortDeadline)
	list := `for d in "$1"/many/d*; do ls "$d"; done`
	r := n.sh(list, target)
	if !strings.Contains(r.stderr, "Input/output error") || strings.Contains(r.stderr, "No such file") {
		t.Errorf("ls: %.300q, want input/output errors only", r.stderr)
	}
	for _, path := range nested {
		s.put(path, w.files[path])
	}
	r = n.sh(list, target)
	if got := strings.Count(r.stdout, "\n"); r.status != 0 || got != 17*1100 {
		t.Errorf("after the origin healed: %d names, %.300q", got, r.stderr)
	}
}

func TestAStoppedServerLeavesWhatIsCached(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image(), "-o", shortDeadline)
	n.read(filepath.Join(target, "big"))
	s.Close()
	inTime(t, slack, func() { n.fails(filepath.Join(target, "etc/motd")) })
	if got := n.read(filepath.Join(target, "big")); got != string(w.big) {
		t.Error("what is cached has wrong bytes")
	}
	// Another mount of it needs the manifest, which nobody gives: it goes by what was accepted.
	n.ok("umount", target)
	var r result
	inTime(t, 2*slack, func() { r = n.run("mount", s.image(), target, "-o", shortDeadline) })
	if r.status != 0 || !strings.Contains(r.stderr, "no server answers") {
		t.Fatalf("offline: status %d, %q\n%s", r.status, r.stderr, n.log())
	}
	if got := n.read(filepath.Join(target, "big")); got != string(w.big) {
		t.Error("offline: wrong bytes")
	}
	if m := n.status().Mounts[0]; !m.Offline {
		t.Errorf("status doesn't say that it is offline: %+v", m)
	}
	// So does a new daemon.
	n.ok("umount", target)
	n.kill(n.status().PID)
	if r := n.run("mount", s.image(), target, "-o", shortDeadline); r.status != 0 {
		t.Errorf("offline with a new daemon: status %d, %q", r.status, r.stderr)
	}
	// What was never seen can't be had.
	other := n.target("other")
	inTime(t, 2*slack, func() {
		oneHint(t, n.run("mount", s.URL+"#"+bigImage, other, "-o", shortDeadline), exitMountFailed, "connection refused", "network")
	})
}

func TestAFullCacheDiskStillAnswersRight(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	cache := filepath.Join(n.home, "cache")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	if r := n.sh(`exec mount -t tmpfs -o size=160m,mode=0700 skimfs-test "$1"`, cache); r.status != 0 {
		t.Fatal(r.stderr)
	}
	target := n.mount(s.image(), "-o", shortDeadline)
	pid := n.status().PID
	if r := n.sh(`dd if=/dev/zero of="$1/full" bs=1M 2>/dev/null; df --output=avail "$1" | tail -1`, cache); strings.TrimSpace(r.stdout) != "0" {
		t.Fatalf("the disk isn't full: %q %q", r.stdout, r.stderr)
	}
	for range 2 {
		if got := n.read(filepath.Join(target, "big")); got != string(w.big) {
			t.Error("wrong bytes from a node whose disk is full")
		}
	}
	st := n.status()
	if st.PID != pid || st.Cache.Uncached == 0 {
		t.Errorf("pid %d, was %d; %d objects uncached, want some", st.PID, pid, st.Cache.Uncached)
	}
	if r := n.sh(`exec rm "$1/full"`, cache); r.status != 0 {
		t.Fatal(r.stderr)
	}
	n.ok("umount", target)
}
