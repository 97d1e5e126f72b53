package fusefs_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skimfs/skimfs/fusefs"
)

const patience = 20 * time.Second

// poll waits for a condition.
func poll(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after %v: %s", patience, what)
		}
	}
}

// mount mounts a Core for the time of the test and returns the mountpoint.
func mount(t testing.TB, c *fusefs.Core) string {
	t.Helper()
	return mountWith(t, c, fusefs.Options{})
}

// mountWith is mount with options.
func mountWith(t testing.TB, c *fusefs.Core, o fusefs.Options) string {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Fatal("these tests need FUSE: ", err)
	}
	dir, err := os.MkdirTemp("", "fusefs-mount-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // other users come too
		t.Fatal(err)
	}
	o.AllowOther, o.Source = true, "test"
	m, err := fusefs.Mount(c, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fusefs.Unmount(dir, false); err != nil {
			t.Errorf("%v; trying lazily", err)
			if err := fusefs.Unmount(dir, true); err != nil {
				t.Error(err)
			}
		}
		select {
		case <-m.Done():
		case <-time.After(patience):
			t.Error("the mount did not end")
		}
	})
	return dir
}

// command is a shell script with the mountpoint as $1 that runs as a process of its own.
func command(script, dir string, args ...string) *exec.Cmd {
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, "sh", dir}, args...)...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "PATH="+toolPath, "LC_ALL=C", "TZ=UTC")
	return cmd
}

// sh runs a script and returns what it prints; it must succeed.
func sh(t testing.TB, script, dir string, args ...string) string {
	t.Helper()
	out, status := try(t, script, dir, args...)
	if status != 0 {
		t.Fatalf("%s: status %d: %s", script, status, out)
	}
	return out
}

// try runs a script and returns all it prints, and its exit status.
func try(t testing.TB, script, dir string, args ...string) (string, int) {
	t.Helper()
	cmd := command(script, dir, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	if !kill.Stop() {
		t.Fatalf("%s: killed after %v: %s", script, patience, out.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return strings.TrimRight(out.String(), "\n"), cmd.ProcessState.ExitCode()
}

// background starts a script that ends with the test.
func background(t testing.TB, script, dir string, args ...string) (cmd *exec.Cmd, out *logs, ended chan struct{}) {
	t.Helper()
	cmd, out, ended = command(script, dir, args...), &logs{}, make(chan struct{})
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
	})
	return cmd, out, ended
}
