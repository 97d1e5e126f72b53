package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/mountd"
)

// lowerChunks returns the files of a lower cache that hold objects.
func lowerChunks(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "??", strings.Repeat("?", 64)))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func (n *node) lower() mountd.LowerStatus {
	n.t.Helper()
	for _, l := range n.status().Cache.Lower {
		return l
	}
	n.t.Fatal("no lower cache in the status")
	return mountd.LowerStatus{}
}

// K12, K13: what one node fetched another reads from the lower cache, manifest included, without any server; every byte is checked, damage is
// healed, and a directory that can't be written is read all the same.
func TestLowerCacheK12ServesNodesWithoutNetwork(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, first := serveWorld(t, w), newNode(t, w)
	dir := t.TempDir()
	with := []string{"-o", "cache_lower=" + dir + ",timeout_direct=1s"}
	target := first.mount(s.image(), with...)
	for _, name := range []string{"big", "etc/motd", "usr/lib/a"} {
		first.read(filepath.Join(target, name))
	}
	first.await("the lower cache to be filled", func() bool { return len(lowerChunks(t, dir)) >= 4+3 })
	objects := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := 0
		for path, times := range s.asked {
			if strings.HasPrefix(path, "objects/") {
				n += times
			}
		}
		return n
	}
	before := objects()
	// A node with a server fetches no object again.
	second := newNode(t, w)
	target = second.mount(s.image(), with...)
	if second.read(filepath.Join(target, "big")) != string(w.big) {
		t.Error("wrong bytes through the lower cache")
	}
	if got := objects(); got != before {
		t.Errorf("%d objects were fetched again", got-before)
	}
	// Damaged there, right here, and healed.
	for _, path := range lowerChunks(t, dir) {
		b, err := os.ReadFile(path)
		if err == nil {
			err = errors.Join(os.Remove(path), os.WriteFile(path, flip(b), 0o444))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	third := newNode(t, w)
	target = third.mount(s.image(), with...)
	if third.read(filepath.Join(target, "big")) != string(w.big) || third.read(filepath.Join(target, "etc/motd")) != "skim\n" || third.read(filepath.Join(target, "usr/lib/a")) != "lib a" {
		t.Error("wrong bytes over a damaged lower cache")
	}
	third.await("the lower cache to be healed", func() bool {
		for _, path := range lowerChunks(t, dir) {
			b, err := os.ReadFile(path)
			if d := index.DigestOf(b); err != nil || d.String() != "sha256:"+filepath.Base(path) {
				return false
			}
		}
		return true
	})
	if l := third.lower(); l.Damaged < 5 || l.Stored < 5 || l.Hung != 0 {
		t.Errorf("%+v", l)
	}
	// Now without a server, and read-only.
	s.Close()
	if err := errors.Join(unix.Mount(dir, dir, "", unix.MS_BIND, ""), unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	for _, source := range []string{s.image(), testName + "/" + testImage} {
		alone := newNode(t, w)
		args := with
		if source != s.image() {
			args = []string{"-o", "cache_lower=" + dir + ",timeout_direct=1s,server=" + s.URL}
		}
		target := alone.target("m")
		inTime(t, 30*time.Second, func() {
			if r := alone.run(append([]string{"mount", source, target}, args...)...); r.status != 0 {
				t.Fatalf("%s: %+v", source, r)
			}
		})
		if alone.read(filepath.Join(target, "big")) != string(w.big) {
			t.Errorf("%s: wrong bytes without a server", source)
		}
		if st := alone.status(); !st.Mounts[0].Offline || st.Fetch.FileObjects != 0 {
			t.Errorf("%s: %+v", source, st)
		}
		if out := alone.ok("status"); !strings.Contains(out, "lower    "+dir) {
			t.Errorf("status: %s", out)
		}
	}
	// Whoever may write there can't pass off another key's manifest, nor an older one.
	notes := filepath.Join("notes", testName)
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, notes, "manifest")); err != nil {
		t.Fatal(err)
	}
	writeTest(t, filepath.Join(dir, notes, "manifest"), string(flip(bytes.Clone(w.files["manifest"]))))
	if r := newNode(t, w).run(append([]string{"mount", s.image(), newNode(t, w).target("m")}, with...)...); r.status == 0 {
		t.Error("a forged manifest was accepted")
	}
}

// A lower cache on a filesystem that hangs costs readers a moment and never their deadline: the server is asked beside it, and then instead of
// it, until the filesystem answers again.
func TestLowerCacheThatHangsHoldsNobody(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, victim := serveWorld(t, w), newNode(t, w)
	// The filesystem that hangs is a mount of ours whose daemon stops. It shows a lower cache with all of the image.
	lower, repo := t.TempDir(), filepath.Join(t.TempDir(), "repo")
	for path, b := range w.files {
		if name, ok := strings.CutPrefix(path, "objects/"); ok {
			plain := decode(t, b)
			sum := index.DigestOf(plain).Sum()
			h := hex.EncodeToString(sum[:])
			if h[:2] != name[:2] {
				t.Fatalf("%s holds %s", path, h)
			}
			if err := errors.Join(os.MkdirAll(filepath.Join(lower, h[:2]), 0o755), os.WriteFile(filepath.Join(lower, h[:2], h), plain, 0o444)); err != nil {
				t.Fatal(err)
			}
		}
	}
	host := newNode(t, w)
	keys := filepath.Join(t.TempDir(), "keys")
	for _, args := range [][]string{
		{"repo", "create", repo, "--name", "lower.example.org", "--keys", keys},
		{"publish", "--repo", repo, "--keys", keys, "--bare", "dir:" + lower, "docker.io/library/lower:1"},
	} {
		if out, err := exec.Command(testkit.Build(t), args...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v %s", args, err, out)
		}
	}
	files, err := readTree(repo)
	if err != nil {
		t.Fatal(err)
	}
	hostServer := serveWorld(t, &world{files: files})
	hung := host.mount(hostServer.URL+"#docker.io/library/lower:1", "-o", "pubkey="+filepath.Join(keys, "lower.example.org.pub"))
	pid := host.status().PID
	target := victim.mount(s.image(), "-o", "cache_lower="+hung)
	if l := victim.lower(); l.Hits == 0 {
		t.Errorf("nothing was read from the lower cache while it was well: %+v", l)
	}
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGCONT) })
	inTime(t, slack, func() {
		if victim.read(filepath.Join(target, "big")) != string(w.big) || victim.read(filepath.Join(target, "etc/motd")) != "skim\n" {
			t.Error("wrong bytes over a hung lower cache")
		}
	})
	if l := victim.lower(); l.Hung == 0 || l.Slow == 0 {
		t.Errorf("it did not hang: %+v", l)
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	victim.await("the lower cache to be well again", func() bool { return victim.lower().Hung == 0 })
	before := victim.lower().Hits
	if victim.read(filepath.Join(target, "usr/lib/b")) != "lib b" || victim.lower().Hits != before+1 {
		t.Errorf("it is not used again: %+v", victim.lower())
	}
}

// decode returns the plain content of an object as a repository has it.
func decode(t *testing.T, b []byte) []byte {
	t.Helper()
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	plain, err := z.DecodeAll(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}
