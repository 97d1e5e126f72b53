package main

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

func TestMountShowsTheImageAndEndsWhenIdle(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image(), "-o", "idle=300ms")
	if got := n.read(filepath.Join(target, "etc/motd")); got != "skim\n" {
		t.Errorf("motd is %q", got)
	}
	if got := n.read(filepath.Join(target, "big")); got != string(w.big) {
		t.Errorf("big: %d bytes, want the %d published", len(got), len(w.big))
	}
	st := n.status()
	if len(st.Mounts) != 1 || st.Mounts[0].Target != target || st.Mounts[0].State != "mounted" || st.Mounts[0].Kind != "image" {
		t.Fatalf("mounts are %+v", st.Mounts)
	}
	if m := st.Mounts[0]; m.FilesFetched != 2 || m.ObjectsFetched != 5 || m.BytesFetched != bigSize+5 || st.Fetch.FileObjects != 5 {
		t.Errorf("fetched %d files, %d objects, %d bytes; all mounts %d: want 2, 5, %d, 5", m.FilesFetched, m.ObjectsFetched, m.BytesFetched,
			st.Fetch.FileObjects, bigSize+5)
	}
	n.ok("umount", target)
	if mounted(t, target) {
		t.Error("it is mounted after umount")
	}
	n.await("the idle daemon to end", func() bool { return !alive(st.PID) })
	if left, _ := filepath.Glob(filepath.Join(n.home, "run", "mountd-*.[sj]*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestTheSameMountAgainIsNoError(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.target("m")
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() { n.ok("mount", s.image(), target) })
	}
	all.Wait()
	if r := n.run("mount", s.image(), target); r.status != 0 || !strings.Contains(r.stderr, "already") {
		t.Errorf("the same again: status %d, %q", r.status, r.stderr)
	}
	below, err := testkit.MountsBelow(n.home)
	if err != nil || len(below) != 1 {
		t.Errorf("mounted: %q, %v, want one mount", below, err)
	}
	for _, args := range [][]string{{"mount", s.URL, target}, {"mount", s.image(), target, "-o", "uid=5"}} {
		if r := n.run(args...); r.status != exitMountFailed || !strings.Contains(r.stderr, "busy") || !strings.Contains(r.stderr, "hint: `skimfs umount ") {
			t.Errorf("skimfs %q: status %d, %q, want %d and a busy target", args, r.status, r.stderr, exitMountFailed)
		}
	}
	n.ok("umount", target)
	if r := n.run("umount", target); r.status != exitMountFailed {
		t.Errorf("umount of what isn't mounted: status %d, want %d", r.status, exitMountFailed)
	}
}

func TestARepositoryIsMountedWhole(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.target("m")
	n.ok("mount", testName, target, "-o", "server="+s.URL)
	if got := n.read(filepath.Join(target, testImage, "etc/motd")); got != "skim\n" {
		t.Errorf("motd is %q", got)
	}
	sub := n.target("sub")
	n.ok("mount", testName+"/docker.io/library", sub, "-o", "server="+s.URL)
	if got := n.sh(`ls "$1"`, sub).stdout; got != "nested:1\ntest:1\n" {
		t.Errorf("ls shows %q", got)
	}
	usr := n.target("usr")
	n.ok("mount", s.image()+"/usr", usr)
	if got := n.sh(`ls "$1"/lib; stat -c %i "$1"`, usr).stdout; got != "a\nb\n1\n" {
		t.Errorf("a directory of an image shows %q", got)
	}
}

func TestABusyMountStaysUntilLazy(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image())
	f, err := os.Open(filepath.Join(target, "etc"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := n.run("umount", target)
	if r.status != exitMountFailed || !strings.Contains(r.stderr, "busy") || !strings.Contains(r.stderr, "hint: ") || !strings.Contains(r.stderr, "umount --lazy") {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
	if !mounted(t, target) {
		t.Fatal("a busy mount is gone")
	}
	n.ok("umount", "--lazy", target)
	if mounted(t, target) {
		t.Error("it is mounted after umount --lazy")
	}
	n.ok("mount", s.image(), target) // the place is free
	if got := n.read(filepath.Join(target, "etc/motd")); got != "skim\n" {
		t.Errorf("motd is %q", got)
	}
}

func TestAForegroundMountEndsWithASignalOrAnUmount(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	for _, row := range []struct {
		name string
		end  func(pid int, target string)
	}{
		{"SIGTERM unmounts", func(pid int, _ string) { syscall.Kill(pid, syscall.SIGTERM) }},
		{"umount ends it", func(_ int, target string) { n.ok("umount", target) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			target := n.target("m")
			cmd := testkit.Command(t, n.home, "mount", s.image(), target, "-f")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			n.await("the mount", func() bool { return mounted(t, target) && len(n.status().Mounts) == 1 })
			row.end(cmd.Process.Pid, target)
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("it ended with %v", err)
				}
			case <-time.After(30 * time.Second):
				cmd.Process.Kill()
				t.Error("it goes on")
			}
			if mounted(t, target) {
				t.Error("it is still mounted")
			}
		})
	}
}

func TestKill9TheNextCommandMountsTheSameAgain(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image())
	repo := n.target("repo")
	n.ok("mount", s.URL, repo)
	n.ok("cache", "limit", "set", "3GB")
	inodes := `find "$1" -xdev -printf '%i %P\n' | sort; cat "$1/etc/motd" 2>/dev/null`
	before, beforeRepo := n.sh(inodes, target), n.sh(`ls -iR "$1/docker.io"`, repo)
	first := n.status()
	n.kill(first.PID)
	// A new revision must not show, and no server is needed.
	s.Close()
	second := n.status()
	if second.PID == first.PID || len(second.Mounts) != 2 {
		t.Fatalf("pid %d, mounts %+v\n%s", second.PID, second.Mounts, n.log())
	}
	for i, m := range second.Mounts {
		if was := first.Mounts[i]; m.State != "mounted" || m.Image != was.Image || m.Root != was.Root || m.Revision != was.Revision || m.Target != was.Target {
			t.Errorf("mounted again is %+v, was %+v", m, was)
		}
	}
	if second.Cache.Limit != 3_000_000_000 {
		t.Errorf("the cache limit is %d, was set to 3 GB", second.Cache.Limit)
	}
	if after := n.sh(inodes, target); after.stdout != before.stdout || len(after.stdout) < 50 {
		t.Errorf("after: %q\nbefore: %q", after.stdout, before.stdout)
	}
	if after := n.sh(`ls -iR "$1/docker.io"`, repo); after.stdout != beforeRepo.stdout {
		t.Errorf("after: %q\nbefore: %q", after.stdout, beforeRepo.stdout)
	}
	if below, err := testkit.MountsBelow(n.home); err != nil || len(below) != 2 {
		t.Errorf("mounted: %q, %v, want two mounts", below, err)
	}
}

func TestADeadMountThatCannotBeHadAgainIsKeptAsLost(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image())
	pid := n.status().PID
	n.kill(pid)
	// Without its directory it can't be mounted again; with it, it can.
	if r := n.sh(`umount -l "$1" && rmdir "$1"`, target); r.status != 0 {
		t.Fatal(r.stderr)
	}
	st := n.status()
	if len(st.Mounts) != 1 || st.Mounts[0].State != "lost" || st.Mounts[0].Error == "" {
		t.Fatalf("mounts are %+v", st.Mounts)
	}
	n.target("m")
	n.await("the mount", func() bool { m := n.status().Mounts; return len(m) == 1 && m[0].State == "mounted" })
	if got := n.read(filepath.Join(target, "etc/motd")); got != "skim\n" {
		t.Errorf("motd is %q", got)
	}
}

func TestASystemDaemonMountsAgainWhatItHadAndTellsSystemd(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	socket := filepath.Join(n.home, "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	hear := func(want string) {
		t.Helper()
		b := make([]byte, 1<<10)
		for systemd.SetReadDeadline(time.Now().Add(30 * time.Second)); ; {
			size, err := systemd.Read(b)
			if err != nil {
				t.Fatalf("waiting to hear %q: %v", want, err)
			}
			if strings.Contains(string(b[:size]), want) {
				return
			}
		}
	}
	start := func() (stop func()) {
		cmd := testkit.Command(t, n.home, "mountd")
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=100000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		hear("READY=1")
		return func() {
			hear("WATCHDOG=1")
			cmd.Process.Signal(syscall.SIGTERM)
			hear("STOPPING=1")
			if err := cmd.Wait(); err != nil {
				t.Errorf("mountd after SIGTERM: %v", err)
			}
		}
	}
	stop := start()
	target := n.mount(s.image())
	stop()
	if mounted(t, target) {
		t.Error("a mount outlived its daemon")
	}
	stop = start()
	defer stop()
	if !mounted(t, target) {
		t.Fatal("the daemon is ready without the mount it had")
	}
	if got := n.read(filepath.Join(target, "etc/motd")); got != "skim\n" {
		t.Errorf("motd is %q", got)
	}
}

func TestAnotherQuotaNamesTheCommandThatChangesIt(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	n.mount(s.image(), "-o", "quota=2GB")
	other := n.target("other")
	r := n.run("mount", s.URL, other, "-o", "quota=1GB")
	if r.status != exitMountUsage || !strings.Contains(r.stderr, "hint: `skimfs cache limit set SIZE`") {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
	if got := n.ok("cache", "limit", "set", "1GB"); !strings.Contains(got, "limit 1.0 GB") {
		t.Errorf("cache limit set prints %q", got)
	}
	n.ok("mount", s.URL, other, "-o", "quota=1GB")
	// Another directory has a daemon of its own.
	third := n.target("third")
	n.ok("mount", s.image(), third, "-o", "quota=3GB,cache="+filepath.Join(n.home, "scratch"))
	if got := len(testkit.Processes(n.home)); got != 2 {
		t.Errorf("%d daemons, want 2", got)
	}
	n.ok("umount", third) // found without saying which daemon has it
}

func TestOwnersCanBeChosen(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image(), "-o", "uid=1234,gid=77")
	if got := n.sh(`stat -c '%u %g' "$1/etc/motd"`, target).stdout; got != "1234 77\n" {
		t.Errorf("owners with uid= and gid=: %q", got)
	}
}

// userScript gives a user a /dev of his own with what he needs, in a mount namespace that ends with the last process in it.
const userScript = `exec unshare -m --propagation private sh -c '
	mount -t tmpfs dev /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/fuse c 10 229 || exit 9
	exec setpriv --reuid=65534 --regid=65534 --clear-groups env -u SKIMFS_HOME HOME="$1" TMPDIR="$1" SLURM_JOB_ID=7 PATH="$PATH" SKIMFS="$2" SOURCE="$3" sh -ec "$4"
' sh "$@"`

func TestAUserMountsWithADaemonOfHisOwn(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	tmp, err := os.MkdirTemp("", "skimfs-user-")
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(tmp, "skimfs-65534-job-7")
	daemons := func() []string {
		left, _ := filepath.Glob(filepath.Join(base, "run", "*.json"))
		return left
	}
	t.Cleanup(func() {
		for _, path := range daemons() {
			var r struct{ PID int }
			if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &r) == nil && r.PID > 1 {
				syscall.Kill(r.PID, syscall.SIGKILL)
			}
		}
		os.RemoveAll(tmp)
	})
	key, err := os.ReadFile(w.pub())
	keys := filepath.Join(tmp, ".config/skimfs/keys")
	if err := errors.Join(err, os.MkdirAll(keys, 0o755), os.WriteFile(filepath.Join(keys, testName+".pub"), key, 0o644), os.Mkdir(filepath.Join(tmp, "mnt"), 0o755)); err != nil {
		t.Fatal(err)
	}
	if r := n.sh(`chown -R 65534:65534 "$1"; chmod 755 "$1"`, tmp); r.status != 0 {
		t.Fatal(r.stderr)
	}
	r := n.sh(userScript, tmp, testkit.Build(t), s.image(), `
		"$SKIMFS" mount "$SOURCE" "$TMPDIR/mnt" -o idle=300ms
		stat -c "%u %g" "$TMPDIR/mnt/etc/motd"
		cat "$TMPDIR/mnt/etc/motd"
		"$SKIMFS" umount "$TMPDIR/mnt"
		! "$SKIMFS" umount "$TMPDIR/mnt" 2>/dev/null`)
	if r.status != 0 || r.stdout != "65534 65534\nskim\n" {
		log, _ := filepath.Glob(filepath.Join(base, "state", "*.log"))
		t.Errorf("as a user: status %d, %q\n%s\n%q", r.status, r.stdout, r.stderr, log)
	}
	if st, err := os.Stat(filepath.Join(base, "run")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the socket directory: %v, %v", st, err)
	}
	n.await("the user's daemon to end", func() bool { return len(daemons()) == 0 })
}
