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
	if got := n.ok("fuser", targets[0]); !strings.Contains(got, strconv.Itoa(inside.Process.Pid)+" sleep            cwd (of a mount that was detached)\n") {
		t.Errorf("who still sits in the dead mount: %q, want pid %d", got, inside.Process.Pid)
	}
	if below, err := testkit.MountsBelow(n.home); err != nil || len(below) != len(targets) {
		t.Errorf("%d are mounted, %v, want %d: the dead ones are gone", len(below), err, len(targets))
	}
	_ = second.Process.Signal(syscall.SIGTERM)
	_ = second.Wait()
}

// What umount(8) takes away while somebody is inside, or another mount namespace has it, is mounted anew when it is asked for, and not said to be there already.
func TestM11WhatAnotherProgramUnmountsIsNoticed(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image())
	inside := exec.Command("sleep", "60")
	inside.Dir = filepath.Join(target, "etc")
	// With a copy of all mounts, and this one at another place, as in a container.
	elsewhere := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-ec", `mount --bind "$1" /srv; cd /srv/etc; exec sleep 60`, "sh", target)
	for _, cmd := range []*exec.Cmd{inside, elsewhere} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	}
	n.await("the other namespace", func() bool {
		dir, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", elsewhere.Process.Pid))
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", elsewhere.Process.Pid))
		return dir == "/srv/etc" && string(name) == "sleep\n"
	})
	uses := func(cmd *exec.Cmd, how string) {
		t.Helper()
		if got, want := n.ok("fuser", target), fmt.Sprintf("%7d sleep            %s\n", cmd.Process.Pid, how); !strings.Contains(got, want) {
			t.Errorf("fuser lists %q, want %q", got, want)
		}
	}
	uses(inside, "cwd")
	uses(elsewhere, "cwd")
	if got := n.ok("status", target); !strings.Contains(got, " on "+target+": image, revision 3") || !strings.Contains(got, "follows  nothing") {
		t.Errorf("status of one mount: %q", got)
	}
	if r := n.sh(`umount -l "$1"`, target); r.status != 0 {
		t.Fatal(r.stderr)
	}
	if r := n.run("mount", s.image(), target); r.status != 0 || strings.Contains(r.stderr, "already") || !mounted(t, target) {
		t.Errorf("mounted anew: status %d, %q, mounted %v", r.status, r.stderr, mounted(t, target))
	}
	uses(inside, "cwd (of a mount that was detached)")
	uses(elsewhere, "cwd (of a mount that was detached)")
	if r := n.sh(`umount -l "$1"`, target); r.status != 0 {
		t.Fatal(r.stderr)
	}
	n.await("the daemon to notice", func() bool { return len(n.status().Mounts) == 0 })
	if r := n.run("status", target); r.status != exitFailed || !strings.Contains(r.stderr, "hint: `skimfs status` lists all mounts") {
		t.Errorf("status of no mount: status %d, %q", r.status, r.stderr)
	}
	if r := n.sh(`cat "/proc/$1/cwd/motd"`, strconv.Itoa(inside.Process.Pid)); r.stdout != "skim\n" {
		t.Errorf("who was inside reads %q, %s", r.stdout, r.stderr)
	}
	for _, cmd := range []*exec.Cmd{inside, elsewhere} {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	n.await("nothing to be remembered of what nobody uses", func() bool {
		left, _ := filepath.Glob(filepath.Join(n.home, "run", "*.left"))
		return len(left) == 0
	})
}

// Leftovers of a reboot: mounts of users' sessions and of batch jobs are not made again, and no lease of then counts.
func TestAfterARebootOnlyTheSystemsMountsComeBack(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	stays, job, both := n.target("stays"), n.target("job"), n.target("both")
	first := n.daemon()
	n.ok("mount", s.image(), stays)
	n.ok("mount", s.image(), job, "--lease", "7")
	n.ok("mount", s.image(), both, "--lease", "7")
	n.ok("mount", s.image(), both)
	_ = first.Process.Signal(syscall.SIGTERM)
	_ = first.Wait()
	// rebooted starts a daemon that sees another boot of the kernel, and tells what it has mounted.
	rebooted := func(flags string) (targets string) {
		before := strings.Count(n.log(), "daemon ready")
		boot := filepath.Join(n.home, "boot")
		writeTest(t, boot, "00000000-0000-0000-0000-000000000000\n")
		cmd := exec.Command("unshare", "-m", "sh", "-c", `mount --bind "$1" /proc/sys/kernel/random/boot_id; exec "$2" mountd $3 2>>"$4"`, "sh",
			boot, testkit.Build(t), flags, filepath.Join(n.home, "state", "mountd.log"))
		cmd.Env = append(os.Environ(), "SKIMFS_HOME="+n.home)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n.await("the daemon after the reboot", func() bool { return strings.Count(n.log(), "daemon ready") > before })
		for _, m := range n.status().Mounts {
			targets += fmt.Sprintf("%s %s %d leases\n", filepath.Base(m.Target), m.State, len(m.Leases))
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		return targets
	}
	if got, want := rebooted(""), "both mounted 0 leases\nstays mounted 0 leases\n"; got != want {
		t.Errorf("the system's daemon has %q, want %q", got, want)
	}
	if got := rebooted("--idle 1m"); got != "both mounted 0 leases\nstays mounted 0 leases\n" {
		t.Errorf("of the same boot a daemon on demand has %q", got)
	}
	n.ok("mount", s.image(), stays) // by a daemon on demand, of this boot
	n.kill(n.status().PID)
	if r := n.sh(`umount -l "$1"`, stays); r.status != 0 {
		t.Fatal(r.stderr)
	}
	if got := rebooted("--idle 1m"); got != "" {
		t.Errorf("a daemon on demand has mounted %q again", got)
	}
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
