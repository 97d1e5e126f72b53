package main

import (
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// A node without a disk mounts from a cache in memory, which reports what it takes and leaves nothing on disk but what the next daemon needs to
// mount again.
func TestCacheInMemory(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image(), "-o", "cache=ram:64MiB")
	if n.read(filepath.Join(target, "big")) != string(w.big) {
		t.Error("wrong bytes")
	}
	st := n.status()
	if c := st.Cache; c.Dir != "ram:67108864" || c.Limit != 64<<20 || c.Bytes < bigSize || c.Bytes > c.Limit {
		t.Errorf("%+v", c)
	}
	if out := n.ok("cache", "pin", "-o", "cache=ram:64MiB", s.image()); !strings.Contains(out, "pinned") {
		t.Error(out)
	}
	if out := n.ok("cache", "list", "--cache", "ram:64MiB"); !strings.Contains(out, "pin      ") {
		t.Error(out)
	}
	n.kill(st.PID)
	n.await("the image to be mounted again", func() bool {
		again := n.status()
		return again.PID != st.PID && len(again.Mounts) == 1 && again.Mounts[0].State == "mounted"
	})
	if n.read(filepath.Join(target, "etc/motd")) != "skim\n" {
		t.Error("wrong bytes after a crash")
	}
	if out := n.ok("cache", "list", "--cache", "ram:64MiB"); strings.Contains(out, "pin      ") {
		t.Errorf("a pin of what is gone: %s", out)
	}
	err := filepath.WalkDir(n.home, func(path string, e fs.DirEntry, err error) error {
		if path == target {
			return fs.SkipDir
		}
		if err == nil && (strings.Contains(e.Name(), ".mem") || strings.Contains(e.Name(), ".pack") || e.Name() == "chunks" || e.Name() == "cache") {
			t.Errorf("on disk: %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if r := n.run("mount", s.image(), n.target("x"), "-o", "cache=ram:1MB"); r.status != exitMountUsage || !strings.Contains(r.stderr, "too small") {
		t.Errorf("%+v", r)
	}
	if r := n.run("mount", s.image(), n.target("x"), "-o", "cache=ram:"); r.status != exitMountUsage || !strings.Contains(r.stderr, "no size") {
		t.Errorf("%+v", r)
	}
}
