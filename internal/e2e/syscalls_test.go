package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
)

// differences are all the calls that a mount answers otherwise than a read-only mount of a disk's directory. Got is the mount's answer.
//
// Data and holes are no difference here: umoci writes zeros where the layer had holes, so the disk's files are all data too, as a
// mount says of every file.
var differences = map[string]struct{ got, reason string }{
	"ioctl FS_IOC_GETFLAGS":                {"ENOTTY", "there are no inode flags"},
	"ioctl FS_IOC_GETFLAGS of a directory": {"ENOTTY", "there are no inode flags"},
	"epoll_ctl":                            {"done", "the kernel's FUSE lets all files be polled; poll says the same for both"},
	"statx knows the time of birth":        {"false", "images have none"},
	"lgetxattr of an unknown kind":         {"ENODATA", "the kernel's FUSE knows no kinds of attributes: none of that name is there"},
	"lgetxattr of a kind alone":            {"ENODATA", "the kernel's FUSE knows no kinds of attributes: none of that name is there"},
}

// TestSystemCalls: a mount answers each system call as a read-only bind mount of the same files on a disk does.
func TestSystemCalls(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	layout := testkit.Oddities(t, testkit.Gzip)
	repo := publish(t, image{source: "oci:" + layout + ":latest", as: "local/odd:1", flags: []string{"--bare"}})
	n := newNode(t)
	server := testkit.StartNginx(t, repo.dir).URL
	native := filepath.Join(n.home, "mnt", "native")
	if err := os.Mkdir(native, 0o755); err != nil {
		t.Fatal(err)
	}
	output(t, "mount", "--bind", testkit.Unpack(t, layout, "latest"), native) // taken down with the home
	output(t, "mount", "-o", "remount,bind,ro,nosuid,nodev", native)
	mounted := n.mount(t, repo, server, "local/odd:1", "")

	want := map[string]string{}
	for _, a := range answers(t, native) {
		if _, twice := want[a.Call]; twice {
			t.Errorf("%q is asked twice", a.Call)
		}
		want[a.Call] = a.Got
	}
	if len(want) < 300 {
		t.Errorf("only %d calls were made", len(want))
	}
	// A second time from the kernel's caches.
	for _, when := range []string{"first", "again"} {
		for _, a := range answers(t, mounted) {
			known, differs := differences[a.Call]
			switch {
			case differs && a.Got == want[a.Call]:
				t.Errorf("%s, %s: %s as on a disk: it is no difference any more", a.Call, when, a.Got)
			case differs && a.Got != known.got:
				t.Errorf("%s, %s: %s, want %s: %s", a.Call, when, a.Got, known.got, known.reason)
			case !differs && a.Got != want[a.Call]:
				t.Errorf("%s, %s:\ngot  %s\nwant %s", a.Call, when, a.Got, want[a.Call])
			}
		}
	}
}

// answers has another process make the calls.
func answers(t *testing.T, root string) []answer {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), probeVariable+"="+root)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the probe: %v\n%s", err, stderr.Bytes())
	}
	var all []answer
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestSquashedOwner: with uid= and gid= all belongs to one user and group, the modes are the image's, and the kernel heeds them.
func TestSquashedOwner(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	repo := publish(t, image{source: "oci:" + testkit.Oddities(t, testkit.Gzip) + ":latest", as: "local/odd:1"})
	mounted := newNode(t).mount(t, repo, testkit.StartNginx(t, repo.dir).URL, "local/odd:1", "uid=20001,gid=20002")
	const denied = ": Permission denied\n"
	for _, c := range []struct{ claim, who, script, want string }{
		{"everything has one owner, also what was added", "0:0", `find . -printf '%U:%G\n' | sort -u`, "20001:20002\n"},
		{"inodes have 32 bits", "0:0", `find . -printf '%i\n' | awk '$1 < 1 || $1 >= 2^32'`, ""},
		{"modes are the image's", "0:0", `stat -c %a links/one modes/all modes/sticky modes/dir-0000`, "640\n7777\n1777\n0\n"},
		{"the owner reads 0600", "20001:20001", `cat links/split-a`, "replaced"},
		{"the owner reads 0400", "20001:20001", `cat modes/dir-0700/inside`, "read me"},
		{"the owner enters 0700", "20001:20001", `ls -A root`, ""},
		{"the owner does not read 0000", "20001:20001", `cat modes/0000`, "cat: modes/0000" + denied},
		{"the owner does not write", "20001:20001", `: >links/one`, "sh: 1: cannot create links/one: Read-only file system\n"},
		{"the group reads 0640", "20003:20002", `cat links/one`, "three names"},
		{"the group does not read 0600", "20003:20002", `cat links/split-a`, "cat: links/split-a" + denied},
		{"others do not read 0640", "20003:20003", `cat links/one`, "cat: links/one" + denied},
		{"others do not read 0600", "20003:20003", `cat links/split-a`, "cat: links/split-a" + denied},
		{"others do not read 0400", "20003:20003", `cat modes/dir-0700/inside`, "cat: modes/dir-0700/inside" + denied},
		{"others do not enter 0700", "20003:20003", `ls root`, "ls: cannot open directory 'root'" + denied},
		{"others read 0644", "20003:20003", `cat sizes/1`, "1"},
		{"root reads all", "0:0", `cat modes/0000`, "nobody"},
		{"the image's owner is nobody here", "7:8", `cat links/one`, "cat: links/one" + denied},
	} {
		t.Run(c.claim, func(t *testing.T) {
			uid, gid, _ := strings.Cut(c.who, ":")
			cmd := exec.Command("setpriv", "--reuid="+uid, "--regid="+gid, "--clear-groups", "sh", "-c", c.script)
			cmd.Dir = mounted
			cmd.Env = append(os.Environ(), "LC_ALL=C")
			if out, _ := cmd.CombinedOutput(); string(out) != c.want {
				t.Errorf("as %s: %q, want %q", c.who, out, c.want)
			}
		})
	}
}
