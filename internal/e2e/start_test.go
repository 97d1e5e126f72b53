package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
)

const demoPath = "local/demo:latest"

func demoRepository(t testing.TB) *repository {
	t.Helper()
	return publish(t, image{source: "oci:" + testkit.DemoImage(t) + ":latest", as: demoPath})
}

const python = `import json; print(json.dumps([1, 2]))`

// bwrap runs the demo's program in a root directory.
func bwrap(t testing.TB, root string) {
	t.Helper()
	got := output(t, "bwrap", "--ro-bind", root, "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "python3", "-c", python)
	if got != "[1, 2]\n" {
		t.Fatalf("python3 printed %q", got)
	}
}

// TestSquidServesTheSecondNode: what one node has fetched, the next one gets from squid alone; what this node has it fetches never again.
func TestSquidServesTheSecondNode(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	repo := demoRepository(t)
	origin, squid := testkit.StartNginx(t, repo.dir), testkit.StartSquid(t)
	first, second := newNode(t), newNode(t)
	proxy := "proxy=" + squid.URL

	mounted := first.mount(t, repo, origin.URL, demoPath, proxy)
	bwrap(t, mounted)
	cold := first.counters(t)
	asked := origin.Log().Class("objects").Count()
	if cold.FileObjects == 0 || asked == 0 {
		t.Fatalf("cold start: %d file objects fetched, origin asked %d times: nothing was measured", cold.FileObjects, asked)
	}
	if direct := origin.Log().Class("objects").Where(func(r testkit.Request) bool { return r.Via == "" }).Count(); direct != 0 {
		t.Errorf("%d requests went past squid", direct)
	}

	t.Run("lazy: the start fetches less than a tenth of the image", func(t *testing.T) {
		image := repo.results[demoPath].CompressedBytes
		t.Logf("cold start: %d objects, %d of %d bytes (%.1f %%)", cold.FileObjects, cold.Bytes, image, 100*float64(cold.Bytes)/float64(image))
		if cold.Bytes*10 >= image {
			t.Errorf("cold start fetched %d bytes of %d", cold.Bytes, image)
		}
	})
	t.Run("silent when warm: the same start fetches nothing", func(t *testing.T) {
		bwrap(t, mounted)
		if again := first.counters(t); again != cold {
			t.Errorf("counters went from %+v to %+v", cold, again)
		}
	})
	t.Run("a new mount reads from the node's cache", func(t *testing.T) {
		first.umount(t, mounted)
		mounted := first.mount(t, repo, origin.URL, demoPath, proxy)
		bwrap(t, mounted)
		if again := first.counters(t); again.FileObjects != cold.FileObjects {
			t.Errorf("counters went from %+v to %+v", cold, again)
		}
		first.umount(t, mounted)
	})
	t.Run("the second node is served by squid alone", func(t *testing.T) {
		before := origin.Log().Class("objects").Count()
		bwrap(t, second.mount(t, repo, origin.URL, demoPath, proxy))
		if got := second.counters(t); got.FileObjects == 0 {
			t.Errorf("the second node fetched nothing: %+v", got)
		}
		if asked := origin.Log().Class("objects").Count() - before; asked != 0 {
			t.Errorf("origin was asked for %d objects", asked)
		}
	})
	t.Run("without servers the cached start works", func(t *testing.T) {
		origin.Stop()
		squid.Stop()
		bwrap(t, first.mount(t, repo, origin.URL, demoPath, proxy))
	})
}

// TestListingFetchesNoFile: ls -lR of a whole image reads catalogs only.
func TestListingFetchesNoFile(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	repo := demoRepository(t)
	origin := testkit.StartNginx(t, repo.dir)
	n := newNode(t)
	mounted := n.mount(t, repo, origin.URL, demoPath, "")
	if lines := strings.Count(output(t, "ls", "-lR", mounted), "\n"); lines < 5000 {
		t.Fatalf("ls -lR printed %d lines", lines)
	}
	if got := n.counters(t); got.FileObjects != 0 {
		t.Errorf("ls -lR fetched %d file objects", got.FileObjects)
	}
}

// TestRuntimes: the runtimes that need no image of their own run a program from the mount, as root and, where they allow it, as a user.
func TestRuntimes(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	repo := demoRepository(t)
	origin := testkit.StartNginx(t, repo.dir)
	n := newNode(t)
	byRoot := n.mount(t, repo, origin.URL, demoPath, "")
	const program = `import json; print(1)`
	bwrapArgs := []string{"bwrap", "--ro-bind", "ROOT", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "python3", "-c", program}
	chRun := []string{"ch-run", "ROOT", "--", "python3", "-c", program}
	cases := []struct {
		name string
		args []string
		user bool
	}{
		{"chroot as root", []string{"chroot", "ROOT", "python3", "-c", program}, false},
		{"bwrap as root", bwrapArgs, false},
		{"ch-run as root", chRun, false},
		{"bwrap as user", bwrapArgs, true},
		{"ch-run as user", chRun, true},
		{"unshare -rR as user", []string{"unshare", "-r", "-R", "ROOT", "python3", "-c", program}, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			args := make([]string, len(c.args))
			for i, a := range c.args {
				args[i] = strings.ReplaceAll(a, "ROOT", byRoot)
			}
			testkit.Program(t, args[0])
			if c.user {
				args = append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}, args...)
			}
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Env = append(os.Environ(), "USER="+map[bool]string{false: "root", true: "nobody"}[c.user], "HOME=/", "PATH="+os.Getenv("PATH"))
			cmd.Dir = "/"
			out, err := cmd.CombinedOutput()
			if err != nil || string(out) != "1\n" {
				t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
			}
		})
	}
	t.Run("mounted by an unprivileged user", func(t *testing.T) { asUser(t, repo, origin.URL, program) })
}

// asUser has a user without privileges mount the image in a mount namespace with a /dev/fuse he may open, and run the program in it.
func asUser(t *testing.T, repo *repository, server, program string) {
	home := testkit.Home(t)
	for _, dir := range []string{home, filepath.Join(home, "mnt")} {
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	pub, err := os.ReadFile(repo.pubkey())
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(home, "key.pub")
	if err := os.WriteFile(key, pub, 0o644); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(home, "skimfs")
	if out, err := exec.Command("cp", testkit.Build(t), binary).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v %s", err, out)
	}
	script := fmt.Sprintf(`set -e
mount --make-rprivate /
mknod -m 0666 %[1]s/fuse c 10 229
mount --bind %[1]s/fuse /dev/fuse
exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -ec '
	export SKIMFS_HOME=%[1]s HOME=%[1]s USER=nobody
	%[2]s mount %[3]s#%[4]s %[1]s/mnt -o pubkey=%[5]s
	stat -c %%u:%%g:%%a %[1]s/mnt/etc/shadow
	bwrap --ro-bind %[1]s/mnt / --dev /dev --proc /proc --tmpfs /tmp python3 -c "%[6]s"
	ch-run %[1]s/mnt -- python3 -c "%[6]s"
	unshare -r -R %[1]s/mnt python3 -c "%[6]s"
	%[2]s umount %[1]s/mnt
'`, home, binary, server, demoPath, key, program)
	out, err := exec.Command("unshare", "--mount", "sh", "-c", script).CombinedOutput()
	if want := "65534:65534:640\n1\n1\n1\n"; err != nil || string(out) != want {
		t.Errorf("%v\n%s\nwant %s", err, out, want)
	}
}
