package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// K12: a prefetch fills the lower cache whole, heals it, says what it can't write, and keeps its rate; nodes without network have it all then.
func TestPrefetchK12FillsALowerCache(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, login, compute := serveWorld(t, w), newNode(t, w), newNode(t, w)
	dir := filepath.Join(t.TempDir(), "lower")
	args := []string{"prefetch", "--lower", "-o", "cache_lower=" + dir, s.image()}
	if r := login.run(args...); r.status != exitFailed || !strings.Contains(r.stderr, "lower cache") {
		t.Errorf("into a directory that isn't there: %+v", r)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if out := login.ok(args...); !strings.Contains(out, " stored in the lower cache") {
		t.Error(out)
	}
	if out := login.ok(args...); strings.Contains(out, "stored") {
		t.Errorf("all was there: %s", out)
	}
	damaged := lowerChunks(t, dir)[0]
	b := flip(read(t, damaged))
	if err := os.Remove(damaged); err != nil {
		t.Fatal(err)
	}
	writeTest(t, damaged, string(b))
	if out := login.ok(args...); !strings.Contains(out, ", 1 stored in the lower cache") {
		t.Errorf("one is damaged: %s", out)
	}
	begun := time.Now()
	login.ok("cache", "evict", s.image())
	login.ok("prefetch", "--rate", "3MB", s.image(), "big")
	if took := time.Since(begun); took < time.Duration(bigSize-1<<20)*time.Second/3_000_000 {
		t.Errorf("%d bytes at 3 MB/s took %v", bigSize, took)
	}
	s.Close()
	target := compute.target("m")
	if r := compute.alone("mount", s.image(), target, "-o", "timeout_direct=1s,cache_lower="+dir); r.status != 0 {
		t.Fatalf("%+v\n%s", r, compute.log())
	}
	if compute.read(filepath.Join(target, "big")) != string(w.big) || compute.read(filepath.Join(target, "usr/lib/a")) != "lib a" {
		t.Error("wrong bytes")
	}
	if r := login.run("prefetch", "--lower", s.image()); r.status != exitUsage || !strings.Contains(r.stderr, "cache_lower=DIR") {
		t.Errorf("without a lower cache: %+v", r)
	}
}
