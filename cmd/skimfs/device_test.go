package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/internal/testkit"
)

// mountedDevice mounts as apptainer's --fusemount does, not read-only and without permission checks, and leaves the kernel waiting for a server.
func mountedDevice(t *testing.T, target string) *os.File {
	t.Helper()
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", dev.Fd())
	if err := unix.Mount("fuse", target, "fuse", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		t.Fatal(err)
	}
	return dev
}

// M12: a parent plays apptainer. It mounts, walks in before anybody serves, and gives the descriptor to the program.
func TestM12ADescriptorThatAnotherProgramMounted(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	for _, foreground := range []bool{true, false} {
		target := n.target(fmt.Sprint("foreground-", foreground))
		dev := mountedDevice(t, target)
		early := exec.Command("cat", filepath.Join(target, "etc/motd"))
		var motd strings.Builder
		early.Stdout = &motd
		if err := early.Start(); err != nil {
			t.Fatal(err)
		}
		args := []string{"mount", s.image(), "/dev/fd/3"}
		if foreground {
			args = append(args, "-f")
		}
		cmd := testkit.Command(t, n.home, args...)
		cmd.ExtraFiles = []*os.File{dev}
		var said strings.Builder
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		dev.Close()
		if !foreground {
			if err := cmd.Wait(); err != nil {
				t.Fatalf("without -f: %v\n%s", err, said.String())
			}
		}
		if err := early.Wait(); err != nil || motd.String() != "skim\n" {
			t.Errorf("who came before the server read %q, %v\n%s%s", motd.String(), err, said.String(), n.log())
		}
		if got := n.sh(`cmp "$1/big" "$1/big" && ls "$1/usr/lib"; for f in "$1/etc/motd" "$1/new"; do echo x 2>&1 >>"$f"; done; mkdir "$1/d" 2>&1`, target).stdout; !strings.HasPrefix(got, "a\nb\n") || strings.Count(got, "Read-only file system") != 3 {
			t.Errorf("reading and writing: %q", got)
		}
		m := n.status().Mounts
		if len(m) != 1 || !strings.HasPrefix(m[0].Target, "fd:") || m[0].State != "mounted" {
			t.Fatalf("mounts are %+v", m)
		}
		if r := n.run("umount", m[0].Target); r.status == 0 {
			t.Error("the daemon unmounted what another program mounted")
		}
		if foreground {
			// apptainer ends what it started, waits, and then unmounts.
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			inTime(t, 10*time.Second, func() { _ = cmd.Wait() })
			if got := cmd.ProcessState.ExitCode(); got != 0 {
				t.Errorf("after SIGTERM status %d, %s", got, said.String())
			}
		}
		if r := n.sh(`umount "$1"`, target); r.status != 0 {
			t.Error(r.stderr)
		}
		n.await("the mount to end", func() bool { return len(n.status().Mounts) == 0 })
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, row := range map[string]struct {
		file *os.File
		args []string
		want string
	}{
		"no such descriptor": {nil, []string{"/dev/fd/99"}, "no open descriptor"},
		"another file":       {null, []string{"/dev/fd/3"}, "not of /dev/fuse"},
	} {
		cmd := testkit.Command(t, n.home, append([]string{"mount", s.image()}, row.args...)...)
		if row.file != nil {
			cmd.ExtraFiles = []*os.File{row.file}
		}
		if r := runCommand(t.Context(), t, cmd); r.status != exitMountUsage || !strings.Contains(r.stderr, row.want) {
			t.Errorf("%s: status %d, %q, want %d and %q", name, r.status, r.stderr, exitMountUsage, row.want)
		}
	}
}

// M12: libfuse's helper mounts and starts the program without privileges; as root, and in a user namespace.
func TestM12ADescriptorFromLibfusesHelper(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	helper := testkit.Program(t, "mount.fuse3")
	for _, namespace := range []string{"", "unshare -Urm "} {
		target := n.target("m" + strings.Fields(namespace + "root")[0])
		r := n.sh(`mkdir -p "$5/bin"; ln -sf "$1" "$5/bin/mount.skimfs"; export SKIMFS_HOME="$5" PATH="$5/bin:$PATH"
			exec `+namespace+`sh -ec '"$1" "mount.skimfs#$2" "$3" -o drop_privileges,ro,idle=300ms,server=`+s.URL+`
				cat "$3/etc/motd"; umount "$3"' sh "$2" "$3" "$4"`, testkit.Build(t), helper, testName+"/"+testImage, target, n.home)
		if r.status != 0 || r.stdout != "skim\n" {
			t.Errorf("%smount.fuse3: status %d, %q\n%s\n%s", namespace, r.status, r.stdout, r.stderr, n.log())
		}
		n.await("the daemon to end", func() bool { return len(testkit.Processes(n.home)) == 0 })
	}
}
