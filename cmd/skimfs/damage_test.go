package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The cache's index is damaged while the daemon works with it. The daemon goes on or dies of it; the next one, which any command starts, rebuilds
// the index from what is cached, says so, keeps pins and limit, and brings the mount back: all without a server.
func TestADamagedIndexIsRebuiltAndTheMountComesBack(t *testing.T) {
	t.Parallel()
	w := published(t)
	for how, damage := range map[string]func(path string, b []byte) error{
		"flipped": func(path string, b []byte) error { return overwrite(path, flip(b)) },
		"cut":     func(path string, b []byte) error { return os.Truncate(path, int64(len(b)/3)) },
		"removed": func(path string, _ []byte) error { return os.Remove(path) },
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s, n := serveWorld(t, w), newNode(t, w)
			target := n.mount(s.image())
			n.ok("cache", "pin", s.image())
			n.ok("cache", "limit", "set", "1GB")
			n.kill(n.status().PID) // what was in badger's log goes to tables now
			tables := func() []string {
				list, _ := filepath.Glob(filepath.Join(n.home, "cache", "index", "*.sst"))
				return list
			}
			pid := n.status().PID
			n.await("tables", func() bool { return len(tables()) > 0 })
			s.Close()
			files, err := filepath.Glob(filepath.Join(n.home, "cache", "index", "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range files {
				b, err := os.ReadFile(path)
				if err == nil && len(b) > 0 {
					err = damage(path, b)
				}
				if err != nil && !os.IsNotExist(err) { // badger tidies up meanwhile
					t.Fatal(err)
				}
			}
			if got := n.read(filepath.Join(target, "big")); got != string(w.big) {
				t.Error("wrong bytes from the daemon whose index was damaged")
			}
			n.run("cache", "limit", "set", "2GB") // it writes to the index, and may die of it
			if alive(pid) {
				n.kill(pid)
			}
			for range 2 { // the first one may die of what it finds
				if n.run("cache", "trim", "0").status == 0 { // what is pinned stays, though no index tells of it
					break
				}
			}
			if now := n.status().PID; now == pid {
				t.Error("the daemon is the same")
			}
			if log := n.log(); !strings.Contains(log, "rebuilt=true") || how != "removed" && !strings.Contains(log, "index is damaged: moved aside, rebuilding it") {
				t.Errorf("the log does not tell of it:\n%s", log)
			}
			for name, want := range map[string]string{"big": string(w.big), "etc/motd": "skim\n", "usr/lib/a": "lib a"} {
				if got := n.read(filepath.Join(target, name)); got != want {
					t.Errorf("%s: wrong bytes", name)
				}
			}
			n.await("what is pinned", func() bool { return n.status().Cache.PinnedBytes >= bigSize })
			if out := n.ok("cache", "verify"); !strings.Contains(out, " 0 damaged") {
				t.Errorf("verify: %s", out)
			}
			if out := n.ok("cache", "limit"); !strings.Contains(out, "GB") {
				t.Errorf("limit: %s", out)
			}
		})
	}
}

// overwrite changes a file in place, for who has it mapped.
func overwrite(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(b, 0)
	return err
}
