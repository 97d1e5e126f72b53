package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publish"
)

// P06: a mirror made by the command, served by nginx, is what a node mounts from when the origin is gone.
func TestMirrorP06IsMountedWhenTheOriginIsGone(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	dir := filepath.Join(t.TempDir(), "mirror")
	args := []string{"repo", "mirror", s.URL, dir, "--pubkey", w.pub(), "--json"}
	var report publish.MirrorReport
	if err := json.Unmarshal([]byte(n.ok(args...)), &report); err != nil || report.Revision != 3 || report.New == 0 || report.Images != 2 {
		t.Fatalf("%v, %+v", err, report)
	}
	if out := n.ok("repo", "mirror", s.URL, dir, "--pubkey", w.pub()); !strings.Contains(out, "revision 3 (as before), 2 images") || !strings.Contains(out, " 0 copied") {
		t.Errorf("second run: %s", out)
	}
	if out := n.ok("repo", "verify", dir, "--keys", w.keys); !strings.Contains(out, "2 images") {
		t.Errorf("verify: %s", out)
	}
	// nginx may run as another user.
	for d := dir; len(d) > len(os.TempDir()); d = filepath.Dir(d) {
		_ = os.Chmod(d, 0o755)
	}
	s.Close()
	oneHint(t, n.run(args...), exitFailed, "connection refused", "goes on where it ended")
	target := n.target("m")
	n.ok("mount", testName+"/"+testImage, target, "-o", "server="+testkit.StartNginx(t, dir).URL)
	if got := n.read(filepath.Join(target, "big")); got != string(w.big) {
		t.Error("big has other bytes")
	}
}

// P06: a run that is killed leaves the mirror as it was, and the next one asks for what is missing only.
func TestMirrorP06KilledGoesOn(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	total := 0
	for path := range w.files {
		if strings.HasPrefix(path, "objects/") {
			total++
		}
	}
	var asked atomic.Int64
	slow := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/objects/") {
			asked.Add(1)
			time.Sleep(10 * time.Millisecond) // so that the kill comes in the middle
		}
		s.ServeHTTP(rw, r)
	}))
	t.Cleanup(slow.Close)
	const jobs, kills = 4, 3
	dir := filepath.Join(t.TempDir(), "mirror")
	args := []string{"repo", "mirror", slow.URL, dir, "--pubkey", w.pub(), "--jobs", strconv.Itoa(jobs)}
	for kill := range kills {
		cmd := testkit.Command(t, n.home, args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n.await("a part of the objects", func() bool { return asked.Load() >= int64((kill+1)*total/(kills+2)) })
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if cmd.Wait(); cmd.ProcessState.Success() {
			t.Fatal("it was done before it was killed: nothing is measured")
		}
		if _, err := os.Stat(filepath.Join(dir, "manifest")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after kill %d there is a manifest: %v", kill, err)
		}
	}
	n.ok(args...)
	if out := n.ok("repo", "verify", dir, "--keys", w.keys); !strings.Contains(out, "2 images") {
		t.Errorf("verify: %s", out)
	}
	if got := int(asked.Load()); got > total+kills*jobs {
		t.Errorf("%d requests for %d objects", got, total)
	}
}

func TestMirrorMistakesAreExplained(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	own := t.TempDir()
	writeTest(t, filepath.Join(own, "manifest"), string(w.files["manifest"]))
	for _, row := range []struct {
		args       []string
		status     int
		text, hint string
	}{
		{[]string{"not-a-url", own}, exitUsage, "no http or https URL", "--help"},
		{[]string{s.URL, own}, exitFailed, "no mirror", "another directory"},
		{[]string{s.URL, filepath.Join(own, "m"), "none"}, exitFailed, `no image is called "none"`, "repo ls"},
		{[]string{s.URL, filepath.Join(own, "m"), "--pubkey", "/nonexistent"}, exitFailed, "no such file", "--pubkey"},
	} {
		oneHint(t, n.run(append([]string{"repo", "mirror"}, row.args...)...), row.status, row.text, row.hint)
	}
	s.put("manifest", []byte("<html>welcome</html>"))
	oneHint(t, n.run("repo", "mirror", s.URL, filepath.Join(own, "m")), exitFailed, "not a signed note", "repo verify")
}
