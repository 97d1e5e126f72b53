package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/mountd"
)

// K05, K17: what is pinned stays through eviction, a trim and a crash of the daemon; what is damaged is found and repaired.
func TestCacheCommands(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	stat := func(paths ...string) (p mountd.WorkProgress) {
		t.Helper()
		if err := json.Unmarshal([]byte(n.ok(append([]string{"cache", "stat", "--json", s.image()}, paths...)...)), &p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	n.ok("prefetch", s.image(), "/usr")
	if p := stat("usr"); p.CachedObjects != p.Objects || p.Objects < 3 {
		t.Errorf("prefetched: %+v", p)
	}
	if p := stat("big"); p.CachedBytes >= bigSize {
		t.Errorf("prefetch of /usr brought /big: %+v", p)
	}
	if out := n.ok("cache", "pin", s.image()); !strings.Contains(out, "pinned") {
		t.Errorf("pin: %q", out)
	}
	target := n.mount(s.image())
	n.kill(n.status().PID)
	n.ok("cache", "trim", "0")
	for size, says := range map[string]string{"20000": "no unit", "500kB": "too small", "0": "is no size"} {
		if r := n.run("cache", "limit", "set", size); r.status != exitUsage || !strings.Contains(r.stderr, says) {
			t.Errorf("limit set %s: %+v, want %q", size, r, says)
		}
	}
	n.ok("cache", "evict", s.image())
	if p := stat(); p.CachedObjects != p.Objects || p.CachedBytes < bigSize {
		t.Errorf("pinned, killed, trimmed, evicted: %+v", p)
	}
	var report mountd.CacheReport
	if err := json.Unmarshal([]byte(n.ok("cache", "list", "--json")), &report); err != nil || len(report.Pins) != 1 || report.PinnedBytes < bigSize {
		t.Errorf("list: %v %+v", err, report)
	}
	n.await("the mounted image is counted", func() bool {
		report = mountd.CacheReport{}
		return json.Unmarshal([]byte(n.ok("cache", "list", "--json")), &report) == nil && len(report.Images) == 1 &&
			report.Images[0].CachedBytes == report.Images[0].Bytes && report.Images[0].Bytes >= bigSize
	})
	if r := n.run("cache", "pin", "--rate", "no", s.image()); r.status != exitUsage {
		t.Errorf("pin with a wrong rate: %+v", r)
	}
	if out := n.ok("cache", "verify"); !strings.Contains(out, " 0 damaged") {
		t.Errorf("verify: %q", out)
	}
	chunks, err := filepath.Glob(filepath.Join(n.home, "cache", "chunks", "*", "*"))
	if err != nil || len(chunks) == 0 {
		t.Fatal(chunks, err)
	}
	b, err := os.ReadFile(chunks[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(chunks[0], flip(b), 0o600); err != nil {
		t.Fatal(err)
	}
	writeTest(t, filepath.Join(filepath.Dir(chunks[0]), "stray"), "stray")
	for _, args := range [][]string{{"cache", "verify"}, {"cache", "verify", "--repair"}} {
		if r := n.run(args...); r.status != exitDamage || !strings.Contains(r.stdout, "2 damaged") || !strings.Contains(r.stderr, "hint: ") {
			t.Errorf("%q: %+v", args, r)
		}
	}
	if out := n.ok("cache", "verify"); !strings.Contains(out, " 0 damaged") {
		t.Errorf("verify after the repair: %q", out)
	}
	if n.read(filepath.Join(target, "big")) != string(w.big) {
		t.Error("after the repair /big reads wrong")
	}
	if r := n.run("cache", "limit", "set", "1MB"); r.status != exitFailed || !strings.Contains(r.stderr, "hint: `skimfs cache list` lists pins") {
		t.Errorf("a limit below what is pinned: %+v", r)
	}
	n.ok("cache", "unpin", s.image())
	if r := n.run("cache", "unpin", s.image()); r.status != exitFailed || !strings.Contains(r.stderr, "hint: `skimfs cache list`") {
		t.Errorf("unpinned twice: %+v", r)
	}
	n.ok("cache", "evict", s.image(), "big")
	if p := stat("big"); p.CachedBytes >= bigSize {
		t.Errorf("unpinned and evicted: %+v", p)
	}
	// The limit is remembered, and pins are refused that would not fit.
	n.ok("cache", "limit", "set", "4MB")
	n.kill(n.status().PID)
	if out := n.ok("cache", "limit"); !strings.Contains(out, "limit 4.0 MB") {
		t.Errorf("after a crash: %q", out)
	}
	if r := n.run("cache", "pin", s.image()); r.status != exitFailed || !strings.Contains(r.stderr, "three quarters") {
		t.Errorf("pin of more than fits: %+v", r)
	}
}

// A scheduler asks for images that are not mounted: what was counted while they were is known to the next daemon, too, and counted anew when the
// cache changes. An image that left is forgotten.
func TestCacheListTellsOfImagesThatWereMounted(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image())
	n.read(filepath.Join(target, "etc/motd"))
	list := func(ok func(i mountd.ImageStatus) bool) func() bool {
		return func() bool {
			var report mountd.CacheReport
			err := json.Unmarshal([]byte(n.ok("cache", "list", "--json")), &report)
			return err == nil && len(report.Images) == 1 && report.Images[0].Source == s.image() && report.Images[0].Bytes >= bigSize && ok(report.Images[0])
		}
	}
	little := func(i mountd.ImageStatus) bool { return i.CachedBytes > 0 && i.CachedBytes < bigSize }
	n.await("the mounted image is counted", list(func(i mountd.ImageStatus) bool { return i.Target == target && little(i) }))
	n.ok("umount", target)
	if !list(func(i mountd.ImageStatus) bool { return i.Target == "" && little(i) })() {
		t.Errorf("unmounted: %s", n.ok("cache", "list", "--json"))
	}
	n.ok("prefetch", s.image(), "big")
	n.kill(n.status().PID)
	n.await("it is counted anew", list(func(i mountd.ImageStatus) bool { return i.Target == "" && i.CachedBytes >= bigSize }))
	if out := n.ok("cache", "list"); !strings.Contains(out, s.image()+" not mounted: ") {
		t.Errorf("list: %s", out)
	}
	n.ok("cache", "evict", s.image())
	n.await("what left is forgotten", func() bool { return !strings.Contains(n.ok("cache", "list"), " not mounted") })
}
