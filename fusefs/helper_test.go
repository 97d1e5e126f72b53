package fusefs_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/skimfs/skimfs/fusefs"
	"github.com/skimfs/skimfs/index"
)

// elsewhere copies the test binary to a new directory that belongs to uid, where it can serve the mountpoint "mnt".
func elsewhere(t *testing.T, uid int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fusefs-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.WriteFile(dir+"/fusefs.test", self, 0o755), os.Mkdir(dir+"/mnt", 0o755), os.Chown(dir+"/mnt", uid, uid),
		os.Chown(dir, uid, uid), os.Chmod(dir, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// use is what a shell does with a served mount: $1/mnt is served by the program on the shell's descriptor 9.
const use = `
mkfifo $1/in $1/out
FUSEFS_TEST_SERVE=$1/mnt $1/fusefs.test <$1/in >$1/out 2>$1/err &
exec 8>$1/in 9<$1/out
read line <&9; echo "$line"
cat $1/mnt/secret
stat -c %u:%g:%a $1/mnt/secret
awk -v d=$1/mnt '$5 == d {print $6, $8, $9}' /proc/self/mountinfo
touch $1/mnt/new 2>&1 | grep -o 'Read-only.*'
exec 8>&-
read line <&9; echo "$line"
wait
cat $1/err >&2
`

func TestMountsByOthers(t *testing.T) {
	// A private /dev, since a user can't open a FUSE device of mode 0600.
	const dev = `mount -t tmpfs none /dev && mknod -m 666 /dev/fuse c 10 229 && mknod -m 666 /dev/null c 1 3 && `
	for _, test := range []struct {
		claim, wrap string
		uid         int
		owner       string
	}{
		{"root, by mount(2)", `sh -c "$2" sh $1`, 0, "0:0"},
		{"a user, by the system's helper", dev + `setpriv --reuid 65534 --regid 65534 --clear-groups sh -c "$2" sh $1`, 65534, "65534:65534"},
		{"root of a user's namespace, by mount(2)", dev + `setpriv --reuid 65534 --regid 65534 --clear-groups unshare -Urm sh -c "$2" sh $1`, 65534, "0:0"},
	} {
		t.Run(test.claim, func(t *testing.T) {
			dir := elsewhere(t, test.uid)
			cmd := exec.Command("/usr/bin/unshare", "-m", "sh", "-c", test.wrap, "sh", dir, use)
			cmd.Dir = "/"
			cmd.Env = []string{"PATH=" + toolPath, "LC_ALL=C"}
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			out, err := cmd.CombinedOutput()
			want := "mounted\nsecret\n" + test.owner + ":600\nro,nosuid,nodev,relatime fuse.skimfs a,b\nRead-only file system\nunmounted\n"
			if err != nil || string(out) != want {
				t.Errorf("%v\ngot  %q\nwant %q", err, out, want)
			}
		})
	}
}

func TestMountErrorsSayWhy(t *testing.T) {
	z := newZoo(t)
	c, _ := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog)})
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		claim, target string
		want          error
	}{
		{"no mountpoint", t.TempDir() + "/nope", fs.ErrNotExist},
		{"a file as mountpoint", file, syscall.ENOTDIR},
	} {
		t.Run(test.claim, func(t *testing.T) {
			_, err := fusefs.Mount(c, test.target, fusefs.Options{})
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.target) {
				t.Errorf("got %v, want %v and the path", err, test.want)
			}
		})
	}
	if err := fusefs.Unmount(t.TempDir(), true); err == nil {
		t.Error("what isn't mounted can be unmounted")
	}
}

func TestHelperWantsADirectoryOfItsOwn(t *testing.T) {
	path, report := os.Getenv("PATH"), os.Getenv("SKIMFS_MOUNT_REPORT")
	defer func() {
		os.Setenv("PATH", path)
		os.Setenv("SKIMFS_MOUNT_REPORT", report)
	}()
	dir := t.TempDir()
	for _, test := range []struct {
		claim   string
		prepare func(dir string) error
		ok      bool
	}{
		{"a new directory", func(dir string) error { return nil }, true},
		{"one that others may write", func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)) }, false},
		{"one of another user", func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 65534, 65534)) }, false},
		{"a symlink", func(dir string) error { return os.Symlink(path, dir) }, false},
	} {
		t.Run(test.claim, func(t *testing.T) {
			at := filepath.Join(dir, strings.ReplaceAll(test.claim, " ", "-"))
			if err := test.prepare(at); err != nil {
				t.Fatal(err)
			}
			err := fusefs.PrepareHelper(at)
			if (err == nil) != test.ok {
				t.Fatalf("got %v", err)
			}
			if !test.ok {
				return
			}
			if got, err := exec.LookPath(fusefs.HelperName); err != nil || got != at+"/"+fusefs.HelperName || os.Getenv("PATH") != at {
				t.Errorf("PATH leads to %q (%v)", got, err)
			}
			if err := fusefs.PrepareHelper(at); err != nil {
				t.Errorf("a second time: %v", err)
			}
		})
	}
}

func TestBusyMountStaysUnlessLazy(t *testing.T) {
	s := newStore()
	root := newDir(0o755)
	add(root, "file", s.file(t, 0o644, []byte("content\n")))
	ref := s.image(t, root, index.ImageInfo{})
	c, _ := s.newCore(t, fusefs.Config{Tree: s.tree(t, ref.Catalog)})
	dir := t.TempDir()
	m, err := fusefs.Mount(c, dir, fusefs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer fusefs.Unmount(dir, true)
	goOn := t.TempDir() + "/go"
	_, out, ended := background(t, `cd $1 && echo ready && while [ ! -e $2 ]; do sleep 0.01; done; cat file`, dir, goOn)
	poll(t, "the process is in", func() bool { return out.String() != "" })
	if err := fusefs.Unmount(dir, false); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("a mount in use: %v, want EBUSY", err)
	}
	if err := fusefs.Unmount(dir, true); err != nil {
		t.Error(err)
	}
	select {
	case <-m.Done():
		t.Error("the connection ended under its user")
	default:
	}
	sh(t, `touch $1`, goOn)
	<-ended
	if out.String() != "ready\ncontent\n" {
		t.Errorf("the last user saw %q", out)
	}
	m.Wait()
}
