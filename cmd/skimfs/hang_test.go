package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestHangW09WaitsBeyondTheDeadlineAndStaysKillable: with hang=yes a reader outlives several deadlines, can be killed meanwhile, and gets its
// bytes when the network heals.
func TestHangW09WaitsBeyondTheDeadlineAndStaysKillable(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	object := w.objects(t, testImage+"/etc/motd")[0]
	s.change(t, object, remove)
	target := n.mount(s.image(), "-o", "hang=yes,deadline=500ms,timeout_direct=1s")
	path := filepath.Join(target, "etc/motd")

	killed, waits := exec.Command("cat", path), exec.Command("cat", path)
	var out strings.Builder
	waits.Stdout = &out
	for _, cmd := range []*exec.Cmd{killed, waits} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	n.await("goes after the first", func() bool { return s.requests(object) >= 6 })
	inTime(t, 5*time.Second, func() {
		if err := killed.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = killed.Wait()
	})
	s.put(object, w.files[object])
	if err := waits.Wait(); err != nil || out.String() != "skim\n" {
		t.Errorf("the other reader: %q, %v\n%s", out.String(), err, n.log())
	}
}
