package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// daemon starts the home's daemon as a unit does, and returns when it answers.
func (n *node) daemon() *exec.Cmd {
	n.t.Helper()
	cmd := testkit.Command(n.t, n.home, "mountd")
	log, err := os.OpenFile(filepath.Join(n.home, "state", "mountd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if os.IsNotExist(err) {
		if err = os.Mkdir(filepath.Join(n.home, "state"), 0o700); err == nil {
			log, err = os.Create(filepath.Join(n.home, "state", "mountd.log"))
		}
	}
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	before := strings.Count(n.log(), "daemon ready")
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.await("the daemon", func() bool { return strings.Count(n.log(), "daemon ready") > before })
	return cmd
}

// M17 X02: after kill -9 a restarted daemon has every mount back at its place within two seconds. On a busy machine the test allows ten.
func TestM17ARestartBringsEveryMountBackInTime(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	first := n.daemon()
	var targets []string
	for i := range 16 {
		target := n.target(fmt.Sprint("m", i))
		source := []string{s.URL + "#" + testImage, s.URL + "#" + bigImage, s.URL}[i%3]
		n.ok("mount", source, target)
		targets = append(targets, target)
	}
	inside := exec.Command("sleep", "60")
	inside.Dir = filepath.Join(targets[0], "etc")
	if err := inside.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = inside.Process.Kill(); _ = inside.Wait() }()
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	if r := n.sh(`cat "$1/etc/motd"`, targets[0]); !strings.Contains(r.stderr, "not connected") {
		t.Errorf("in a dead mount: %q", r.stderr)
	}
	if got := n.ok("fuser", targets[0]); !strings.Contains(got, strconv.Itoa(inside.Process.Pid)+" sleep") {
		t.Errorf("who sits in the dead mount: %q, want pid %d", got, inside.Process.Pid)
	}
	s.Close() // no server is needed
	begun := time.Now()
	second := n.daemon()
	for i, target := range targets {
		path := []string{"/etc/motd", "/many/d16/f1099", "/docker.io"}[i%3]
		if r := n.sh(`stat -c %i "$1"`, target+path); r.status != 0 {
			t.Errorf("%s: %s", target, r.stderr)
		}
	}
	took := time.Since(begun)
	t.Logf("%d mounts were back after %v, the start of the process and of %d more included", len(targets), took.Round(time.Millisecond), len(targets))
	if took > 10*time.Second {
		t.Errorf("the mounts were back after %v", took)
	}
	if below, err := testkit.MountsBelow(n.home); err != nil || len(below) != len(targets) {
		t.Errorf("%d are mounted, %v, want %d: the dead ones are gone", len(below), err, len(targets))
	}
	_ = second.Process.Signal(syscall.SIGTERM)
	_ = second.Wait()
}

// A daemon that is to end answers what is being read, and only then takes its mounts down.
func TestAShutdownLetsRunningReadsFinish(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	object := w.objects(t, testImage+"/etc/motd")[0]
	let := make(chan struct{})
	var asked atomic.Int32
	slow := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, object) {
			asked.Add(1)
			<-let
		}
		s.ServeHTTP(rw, r)
	}))
	t.Cleanup(slow.Close)
	daemon := n.daemon()
	target := n.mount(slow.URL + "#" + testImage)
	reader := exec.Command("cat", filepath.Join(target, "etc/motd"))
	var out strings.Builder
	reader.Stdout = &out
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	n.await("the read", func() bool { return asked.Load() > 0 })
	if err := daemon.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	sockets := filepath.Join(n.home, "run", "*.sock")
	n.await("the end of the control socket", func() bool { left, _ := filepath.Glob(sockets); return len(left) == 0 })
	if !mounted(t, target) || !alive(daemon.Process.Pid) {
		t.Error("the daemon did not wait for the read")
	}
	close(let)
	if err := reader.Wait(); err != nil || out.String() != "skim\n" {
		t.Errorf("who read while the daemon ended got %q, %v\n%s", out.String(), err, n.log())
	}
	inTime(t, slack, func() {
		if err := daemon.Wait(); err != nil {
			t.Errorf("the daemon ended with %v", err)
		}
	})
	if mounted(t, target) {
		t.Error("a mount outlived its daemon")
	}
}
