package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// outcome is what becomes of a program that a runtime starts from a mount.
type outcome string

const (
	works    outcome = "works"
	closed   outcome = "fails a: who does not own a mount without allow_other may not even look at it"
	noExec   outcome = "mounts, but the program may not be executed: the overlay reads the mount as root, who is not its owner"
	noWrites outcome = "fails e: starts, but an overlay writes only where the user owns the directory below"
	untried  outcome = ""
)

// signs are how an outcome is recognised: in what the program printed, and in what the runtime said. Reason e is told by stdout.
var signs = map[outcome]struct{ stdout, stderr *regexp.Regexp }{
	works:    {regexp.MustCompile(`^1\n(written\n)?$`), regexp.MustCompile(``)},
	closed:   {regexp.MustCompile(`^$`), regexp.MustCompile(`(?i)(stat|source|directory to|lower dirs|cannot open).*permission denied`)},
	noExec:   {regexp.MustCompile(`^$`), regexp.MustCompile(`(?i)(failed to run command|exec|lstat .*/m/proc).*permission denied`)},
	noWrites: {regexp.MustCompile(`^1\nPermission denied\n$`), regexp.MustCompile(``)},
}

const (
	reader = `import json; print(1)`
	// writer also makes a file and a directory, and lengthens a file of the image.
	writer = `import json, os; print(1)
try:
  open("/etc/new", "w").write("x"); open("/etc/passwd", "a").write("y"); os.mkdir("/usr/lib/new")
  print("written")
except OSError as e: print(e.strerror)`

	kernelOverlay = `T=$(mktemp -d); cd $T; mkdir u w m; mount -t overlay overlay -o lowerdir=$1,upperdir=u,workdir=w$3 m; exec chroot m python3 -c "$2"`
	fuseOverlay   = `T=$(mktemp -d); cd $T; mkdir u w m; fuse-overlayfs -o lowerdir=$1,upperdir=u,workdir=w m; exec chroot m python3 -c "$2"`
	runcOverlay   = `T=$(mktemp -d); cd $T; mkdir u w m; mount -t overlay overlay -o lowerdir=$1,upperdir=u,workdir=w m; cp $2/config.json .
sed -i "s,$1,$T/m," config.json; exec runc --root $T/state run over-$$`
	oci = `T=$(mktemp -d); exec $1 --root $T run --bundle $2 plain-$$`
)

// columns are the ways to mount. There is no mount by root without allow_other: skimfs always gives it to root. default_permissions
// is on in all of them.
var columns = []string{"root", "user", "user-allow-other", "root-squashed"}

// run is a row of the table: how a runtime starts a program from ROOT, and what comes of it for each way to mount.
type run struct {
	name string
	user bool // who starts it
	args []string
	want [4]outcome // in the order of columns: R_aod, U_na, U_ao; and R_aod with uid= and gid= of the user
}

// runs is what container runtimes were measured to do over a FUSE mount, row by row. U_na lets in nobody but its user, root included.
// What newer versions of ch-run do with --write-fake is the kernel overlay in a user namespace.
var runs = []run{
	{"chroot", false, chroot, [4]outcome{works, closed, works, untried}},
	{"bwrap", false, bwrapRun, [4]outcome{works, closed, works, untried}},
	{"bwrap", true, bwrapRun, [4]outcome{works, works, works, works}},
	{"ch-run", false, []string{"ch-run", "ROOT", "--", "python3", "-c", reader}, [4]outcome{works, closed, works, untried}},
	{"ch-run", true, []string{"ch-run", "ROOT", "--", "python3", "-c", reader}, [4]outcome{works, works, works, works}},
	{"ch-run -u0 -g0", true, []string{"ch-run", "-u0", "-g0", "ROOT", "--", "python3", "-c", reader}, [4]outcome{works, works, works, untried}},
	{"ch-run -w", true, []string{"ch-run", "-w", "ROOT", "--", "python3", "-c", reader}, [4]outcome{works, works, works, untried}},
	{"unshare -rR", true, []string{"unshare", "-r", "-R", "ROOT", "python3", "-c", reader}, [4]outcome{works, works, works, untried}},
	{"runc", false, sh(oci, "runc", "BUNDLE/root"), [4]outcome{works, closed, works, untried}},
	{"runc", true, sh(oci, "runc", "BUNDLE/user"), [4]outcome{works, works, works, untried}},
	{"runc over kernel overlay", false, unshared(nil, runcOverlay, "ROOT", "BUNDLE/root"), [4]outcome{works, noExec, works, untried}},
	{"crun", false, sh(oci, "crun", "BUNDLE/root"), [4]outcome{works, closed, works, untried}},
	{"crun", true, sh(oci, "crun", "BUNDLE/user"), [4]outcome{works, works, works, untried}},
	{"podman --rootfs", false, podman(false, "ROOT", reader), [4]outcome{works, closed, works, untried}},
	{"podman --rootfs", true, podman(true, "ROOT", reader), [4]outcome{works, works, works, untried}},
	{"podman --rootfs :O", false, podman(false, "ROOT:O", writer), [4]outcome{works, closed, works, untried}},
	{"podman --rootfs :O", true, podman(true, "ROOT:O", writer), [4]outcome{noWrites, works, works, works}},
	{"kernel overlay", false, unshared(nil, kernelOverlay, "ROOT", writer, ""), [4]outcome{works, noExec, works, untried}},
	{"kernel overlay in a user namespace", true, unshared([]string{"-r"}, kernelOverlay, "ROOT", writer, ",userxattr"), [4]outcome{noWrites, works, works, works}},
	{"kernel overlay in a user namespace with all ids", true,
		unshared([]string{"--map-auto", "--map-root-user"}, kernelOverlay, "ROOT", writer, ",userxattr"), [4]outcome{noWrites, works, works, untried}},
	{"fuse-overlayfs", false, unshared(nil, fuseOverlay, "ROOT", writer), [4]outcome{works, closed, works, untried}},
	{"fuse-overlayfs in a user namespace", true, unshared([]string{"-r"}, fuseOverlay, "ROOT", writer), [4]outcome{noWrites, works, works, untried}},
}

var (
	chroot   = []string{"chroot", "ROOT", "python3", "-c", reader}
	bwrapRun = []string{"bwrap", "--ro-bind", "ROOT", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "python3", "-c", reader}
)

func sh(script string, args ...string) []string {
	return append([]string{"sh", "-ec", script, "sh"}, args...)
}

// unshared runs a script in a mount namespace of its own, where its mounts end with it.
func unshared(flags []string, script string, args ...string) []string {
	return append(append([]string{"unshare", "-m"}, flags...), sh(script, args...)...)
}

// podman gives limits of its own: the ones it would set may need more than root has in a container.
func podman(user bool, rootfs, program string) []string {
	args := []string{"podman", "--cgroup-manager", "cgroupfs", "--runtime", "runc"}
	limits := []string{"--ulimit", "host"}
	if !user {
		args = append(args, "--root", "HOME/podman", "--runroot", "HOME/podman-run", "--tmpdir", "HOME/podman-tmp")
		limits = []string{"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}
	}
	args = append(append(args, "run", "--rm", "--network", "host"), limits...)
	return append(args, "--rootfs", rootfs, "python3", "-c", program)
}

// TestRuntimes: each runtime that runs a program from a directory runs it from a mount, as root and as a user, whoever mounted, but
// where the kernel keeps the one from the other's mount.
func TestRuntimes(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	for _, program := range []string{"bwrap", "ch-run", "crun", "fuse-overlayfs", "newuidmap", "podman", "runc"} {
		testkit.Program(t, program)
	}
	repo := demoRepository(t)
	w := newWorld(t, repo, testkit.StartNginx(t, repo.dir).URL)
	t.Run("runs", func(t *testing.T) {
		for _, r := range runs {
			for i, column := range columns {
				if r.want[i] == untried {
					continue
				}
				t.Run(fmt.Sprintf("%s as %s, mounted by %s", r.name, who(r.user), column), func(t *testing.T) {
					t.Parallel()
					w.check(t, r, column, r.want[i])
				})
			}
		}
	})
	t.Run("the user who mounted reads what only root may, and nobody else does", func(t *testing.T) {
		for _, c := range []struct {
			column string
			user   bool
			want   string
		}{
			{"user", true, "20001:20001:640 20001:20001:700\nroot\n"},
			{"root-squashed", true, "20001:20001:640 20001:20001:700\nroot\n"},
			{"root", true, "0:42:640 0:0:700\n"},
			{"root", false, "0:42:640 0:0:700\nroot\n"},
		} {
			stdout, _, _ := w.run(t, c.user, sh(`stat -c %u:%g:%a $1/etc/shadow $1/root | paste -sd' '; ls $1/root; head -n1 $1/etc/shadow | cut -d: -f1`,
				w.mounts[c.column])...)
			if stdout != c.want {
				t.Errorf("mounted by %s, seen by %s: %q, want %q", c.column, who(c.user), stdout, c.want)
			}
		}
	})
}

func who(user bool) string {
	if user {
		return "user"
	}
	return "root"
}

const worldUser = 20001

// world is a mount namespace with a user who may open /dev/fuse and has subordinate ids, and the demo's image mounted in each way.
type world struct {
	home    string // of the user
	private string // a tmpfs that ends with the namespace, for what overlays write
	pid     int    // of a process in it
	mounts  map[string]string
}

// setup makes the namespace, says so and lives until its stdin ends.
const setup = `set -e
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs $1/private
cd $1/private
mkdir etc etc-work root user
mount -t overlay overlay -o lowerdir=/etc,upperdir=etc,workdir=etc-work /etc
echo "skim:x:$2:$2::$1:/bin/sh" >>/etc/passwd
echo "skim:x:$2:" >>/etc/group
echo skim:200000:65536 >/etc/subuid
echo skim:200000:65536 >/etc/subgid
echo user_allow_other >/etc/fuse.conf
chown $2:$2 user
mknod -m 0666 fuse c 10 229
mount --bind fuse /dev/fuse
# crun refuses to run where both versions of cgroups are mounted.
umount /sys/fs/cgroup/unified 2>/dev/null || true
echo ready
read -r _`

func newWorld(t *testing.T, repo *repository, server string) *world {
	t.Helper()
	n := newNode(t)
	w := &world{home: testkit.Home(t), mounts: map[string]string{
		"root":          n.mount(t, repo, server, demoPath, ""),
		"root-squashed": n.mount(t, repo, server, demoPath, fmt.Sprintf("uid=%d,gid=%[1]d", worldUser)),
	}}
	w.private = filepath.Join(w.home, "private")
	key, binary := filepath.Join(w.home, "key.pub"), filepath.Join(w.home, "skimfs")
	output(t, "cp", repo.pubkey(), key)
	output(t, "cp", testkit.Build(t), binary)
	output(t, "chmod", "a+r", key)
	for _, dir := range []string{"private", "mnt/user", "mnt/user-allow-other"} {
		if err := os.MkdirAll(filepath.Join(w.home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(w.home, "xdg"), 0o700); err != nil {
		t.Fatal(err)
	}
	output(t, "chown", "-R", fmt.Sprintf("%d:%[1]d", worldUser), w.home)
	output(t, "chmod", "0755", w.home)
	w.start(t)
	for column, options := range map[string]string{"user": "", "user-allow-other": ",allow_other"} {
		w.mounts[column] = filepath.Join(w.home, "mnt", column)
		if _, stderr, err := w.run(t, true, binary, "mount", server+"#"+demoPath, w.mounts[column], "-o", "pubkey="+key+options); err != nil {
			t.Fatalf("mounting as user: %v\n%s", err, stderr)
		}
	}
	for column, root := range w.mounts {
		for _, user := range []bool{false, true} {
			bundle(t, filepath.Join(w.home, "bundle", column, who(user)), root, user)
		}
	}
	return w
}

// start starts the process that holds the namespace.
func (w *world) start(t *testing.T) {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "sh", "-c", setup, "sh", w.home, fmt.Sprint(worldUser))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		stdin.Close()
		cmd.Wait()
		t.Fatalf("no namespace: %s", stderr.Bytes())
	}
	w.pid = cmd.Process.Pid
}

// bundle makes what an OCI runtime takes, with the reader as its program. Resources are left alone: who starts it may not own any cgroup.
func bundle(t *testing.T, dir, root string, user bool) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	args := []string{"spec", "--bundle", dir}
	if user {
		args = append(args, "--rootless")
	}
	output(t, "runc", args...)
	path := filepath.Join(dir, "config.json")
	text, err := os.ReadFile(path)
	var spec map[string]any
	if err := errors.Join(err, json.Unmarshal(text, &spec)); err != nil {
		t.Fatal(err)
	}
	spec["root"] = map[string]any{"path": root, "readonly": true}
	process := spec["process"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"python3", "-c", reader}
	delete(process, "rlimits")
	linux := spec["linux"].(map[string]any)
	delete(linux, "resources")
	if user {
		// runc spec writes down who called it.
		for _, ids := range []string{"uidMappings", "gidMappings"} {
			linux[ids] = []any{map[string]any{"containerID": 0, "hostID": worldUser, "size": 1}}
		}
	}
	spec["mounts"] = slices.DeleteFunc(spec["mounts"].([]any), func(m any) bool {
		return m.(map[string]any)["type"] == "cgroup" || m.(map[string]any)["destination"] == "/sys/fs/cgroup"
	})
	text, err = json.Marshal(spec)
	if err := errors.Join(err, os.WriteFile(path, text, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// run runs a program in the namespace, as root or as the user.
func (w *world) run(t *testing.T, user bool, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	env := []string{"env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "SKIMFS_HOME=" + w.home}
	enter := []string{fmt.Sprintf("--mount=/proc/%d/ns/mnt", w.pid), "--"}
	if user {
		enter = append(enter, "setpriv", fmt.Sprintf("--reuid=%d", worldUser), fmt.Sprintf("--regid=%d", worldUser), "--clear-groups")
		env = append(env, "USER=skim", "HOME="+w.home, "XDG_RUNTIME_DIR="+w.home+"/xdg", "TMPDIR="+w.private+"/user")
	} else {
		env = append(env, "USER=root", "HOME=/root", "TMPDIR="+w.private+"/root")
	}
	cmd := exec.CommandContext(ctx, "nsenter", slices.Concat(enter, env, args)...)
	cmd.Dir, cmd.WaitDelay = "/", 10*time.Second
	var out, errout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errout
	err = cmd.Run()
	return out.String(), errout.String(), err
}

// check runs a row's program and compares what comes out.
func (w *world) check(t *testing.T, r run, column string, want outcome) {
	t.Helper()
	args := slices.Clone(r.args)
	replace := strings.NewReplacer("ROOT", w.mounts[column], "BUNDLE", filepath.Join(w.home, "bundle", column), "HOME", w.home)
	for i, a := range args {
		args[i] = replace.Replace(a)
	}
	stdout, stderr, err := w.run(t, r.user, args...)
	sign := signs[want]
	if failed := want == closed || want == noExec; (err != nil) != failed || !sign.stdout.MatchString(stdout) || !sign.stderr.MatchString(stderr) ||
		want == works && strings.Contains(strings.Join(r.args, " "), "written") != strings.Contains(stdout, "written") {
		t.Errorf("want: %s\n%q\n%v\nstdout: %s\nstderr: %s", want, args, err, stdout, stderr)
	}
}
