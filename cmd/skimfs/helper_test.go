package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/mountd"
)

// M02 M03: arguments as mount(8) gives them.
func TestM02HelperArguments(t *testing.T) {
	for name, row := range map[string]struct {
		args []string
		want helperCall
	}{
		"as libmount calls it":    {[]string{"images.example.org", "/mnt", "-o", "rw,_netdev"}, helperCall{source: "images.example.org", target: "/mnt", lists: []string{"rw,_netdev"}}},
		"options first, together": {[]string{"-sfnv", "-orw", "-o", "ro", "images.example.org", "/mnt"}, helperCall{source: "images.example.org", target: "/mnt", lists: []string{"rw", "ro"}, dry: true, sloppy: true, verbose: true}},
		"between the names":       {[]string{"images.example.org", "-vo", "ro", "/mnt", "-t", "skimfs"}, helperCall{source: "images.example.org", target: "/mnt", lists: []string{"ro"}, verbose: true}},
		"a source like autofs'":   {[]string{":images.example.org", "/mnt"}, helperCall{source: "images.example.org", target: "/mnt"}},
		"a source made a path":    {[]string{"/some/where/images.example.org", "/mnt"}, helperCall{source: "images.example.org", target: "/mnt"}},
		"a URL":                   {[]string{"http://h/r#a/b", "/mnt"}, helperCall{source: "http://h/r#a/b", target: "/mnt"}},
	} {
		if got, err := parseHelper(row.args); err != nil || !reflect.DeepEqual(got, row.want) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, row.want)
		}
	}
	for name, args := range map[string][]string{
		"no target": {"images.example.org"}, "three names": {"a", "b", "c"}, "an unknown flag": {"a", "b", "-x"}, "-o at the end": {"a", "b", "-o"},
		"another type": {"a", "b", "-t", "nfs"}, "another namespace": {"a", "b", "-N", "1"},
	} {
		if got, err := parseHelper(args); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzParseHelper(f *testing.F) {
	f.Add("images.example.org\n/mnt\n-o\nrw,x-systemd.automount")
	f.Add("-sfnvo\n,,=\n-N")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseHelper(strings.Split(text, "\n"))
		if err == nil && strings.Contains(text, "pubkey") {
			return // reads files
		}
		if err == nil {
			_, _ = parseFstab(c.lists, c.sloppy)
		}
	})
}

func TestM03OptionsOfFstab(t *testing.T) {
	for _, row := range []struct {
		name, list string
		sloppy     bool
	}{
		{"as fstab has them", "rw,noauto,x-systemd.automount,_netdev,nofail,x-systemd.requires=a\\,b", false},
		{"as mount(8) makes them of user", "rw,noexec,nosuid,nodev,user=alice", false},
		{"as a remount brings them back", "ro,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other,remount", false},
		{"unknown ones, sloppily", "blubber,deadline=3,noexec,what=ever", true},
	} {
		if _, err := parseFstab([]string{row.list}, row.sloppy); err != nil {
			t.Errorf("%s: %v", row.name, err)
		}
	}
	o, err := parseFstab([]string{"rw,deadline=3", `_netdev,cache=/a\,b`}, false)
	if err != nil || !reflect.DeepEqual(o, mountOptions{Options: mountd.Options{Deadline: 3 * time.Second}, cache: "/a,b"}) {
		t.Errorf("ours among them: %+v, %v", o, err)
	}
	for name, list := range map[string]string{"an unknown one": "rw,proxxy=http://a", "noexec that somebody wrote": "noexec"} {
		if o, err := parseFstab([]string{list}, false); err == nil {
			t.Errorf("%s: %+v", name, o)
		}
	}
}

// helperScript runs $5 where mount(8) finds the helper: /usr/sbin with mount.skimfs added, in a mount namespace that ends with the test.
const helperScript = `exec unshare -m --propagation private sh -ec '
	mount -t overlay overlay -o "lowerdir=$1:/usr/sbin" /usr/sbin
	cd /; FSTAB="$2"; SOURCE="$3"; MNT="$4"; eval "$5"' sh "$@"`

// inNamespace runs script with mount(8), as root with SKIMFS_HOME; SOURCE, MNT and FSTAB are set.
func (n *node) inNamespace(source, target, script string) result {
	n.t.Helper()
	dir := n.t.TempDir()
	for _, name := range []string{helperName, remountName} {
		if err := os.Symlink(testkit.Build(n.t), filepath.Join(dir, name)); err != nil {
			n.t.Fatal(err)
		}
	}
	fstab := filepath.Join(dir, "fstab")
	writeTest(n.t, fstab, source+" "+target+" skimfs noauto,x-systemd.automount,_netdev,user,idle=300ms,server="+strings.Join(n.env, "")+" 0 0\n")
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.Command("sh", "-c", helperScript, "sh", dir, fstab, source, target, script)
	cmd.Env = append(os.Environ(), "SKIMFS_HOME="+n.home)
	return runCommand(ctx, n.t, cmd)
}

// M01 M02 M10: mount(8) and fstab, twice, four at a time, remounted and unmounted.
func TestM01MountAndFstab(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	n.env = []string{s.URL}
	target := n.target("m")
	source := testName + "/" + testImage
	r := n.inNamespace(source, target, `
		for i in 1 2 3 4; do mount -T "$FSTAB" "$MNT" & all="$all $!"; done
		for pid in $all; do wait $pid; done
		grep -c " $MNT fuse.skimfs ro,nosuid,nodev" /proc/mounts
		cat "$MNT/etc/motd"
		mount -t skimfs "$SOURCE" "$MNT" -o "idle=300ms,server=`+s.URL+`" -v
		mount -o remount,timeout=3s "$MNT"
		if mount -o remount,uid=5 "$MNT"; then exit 9; else echo status $?; fi
		umount "$MNT"
		if mount -t skimfs "$SOURCE" "$MNT" -o proxxy=x; then exit 9; else echo status $?; fi
		if mount -t skimfs `+testName+`/nowhere "$MNT" -o "idle=300ms,server=`+s.URL+`"; then exit 9; else echo status $?; fi
		mount -s -t skimfs "$SOURCE" "$MNT" -o "idle=300ms,blubber=x,server=`+s.URL+`"
		cat "$MNT/etc/motd"
		umount "$MNT"`)
	want := "1\nskim\nmount.skimfs: " + source + " is mounted on " + target + " already\nstatus 32\nstatus 1\nstatus 32\nskim\n"
	if r.status != 0 || r.stdout != want {
		t.Errorf("status %d, %q, want %q\n%s\n%s", r.status, r.stdout, want, r.stderr, n.log())
	}
	for _, part := range []string{"uid can't be changed while it is mounted", `did you mean "proxy"?`, `no "nowhere" in`} {
		if !strings.Contains(r.stderr, part) {
			t.Errorf("nothing says %q: %s", part, r.stderr)
		}
	}
	n.await("the daemon to end", func() bool { return len(testkit.Processes(n.home)) == 0 })
}

// M03: a user mounts and unmounts what fstab lets him, by mount(8), which hides his environment from the helper.
func TestM03AUserMountsWhatFstabLetsHim(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target, sbin := n.target("user"), n.target("sbin")
	if err := os.Symlink(testkit.Build(t), filepath.Join(sbin, helperName)); err != nil {
		t.Fatal(err)
	}
	r := n.sh(`exec unshare -m --propagation private sh -ec '
		sbin=$1 target=$2 key=$3; chmod 755 "$6" "$6/mnt"
		mount -t tmpfs none /var/tmp; mkdir /var/tmp/up /var/tmp/work /var/tmp/alice; chmod 1777 /var/tmp
		mount -t overlay overlay -o "lowerdir=$sbin:/usr/sbin" /usr/sbin
		mount -t overlay overlay -o lowerdir=/etc,upperdir=/var/tmp/up,workdir=/var/tmp/work /etc
		echo "$4 $target skimfs noauto,user,_netdev,x-systemd.automount,idle=300ms,server=$5 0 0" >/etc/fstab
		echo "alice:x:4711:4711::/var/tmp/alice:/bin/sh" >>/etc/passwd
		mkdir -p /var/tmp/alice/.config/skimfs/keys; cp "$key" /var/tmp/alice/.config/skimfs/keys; chown -R 4711:4711 /var/tmp/alice "$target"
		mount -t tmpfs dev /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/fuse c 10 229
		exec setpriv --reuid=4711 --regid=4711 --clear-groups env -i HOME=/var/tmp/alice PATH=/usr/bin:/bin sh -ec "
			mount $target; mount $target; grep -c \" $target fuse.skimfs ro,nosuid,nodev,relatime,user_id=4711\" /proc/mounts
			stat -c %u $target/etc/motd; cat $target/etc/motd
			umount $target; ! grep -q $target /proc/mounts"' sh "$@"`, sbin, target, w.pub(), testName+"/"+testImage, s.URL, n.home)
	if r.status != 0 || r.stdout != "1\n4711\nskim\n" {
		t.Errorf("status %d, %q\n%s", r.status, r.stdout, r.stderr)
	}
}

func TestHelperRefusesAndChecksWithoutMounting(t *testing.T) {
	t.Parallel()
	w := published(t)
	n := newNode(t, w)
	target := n.target("m")
	helper := filepath.Join(t.TempDir(), "mount.skimfs")
	if err := os.Symlink(testkit.Build(t), helper); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		args   []string
		status int
		want   string
	}{
		"a dry run":                {[]string{testName, target, "-fv"}, exitDone, "would mount " + testName + " on " + target},
		"one that hides the cache": {[]string{"-f", testName, n.home}, exitMountFailed, "would hide the "},
		"no such target":           {[]string{testName, target + "/none", "-f"}, exitMountFailed, "hint: give an existing directory"},
		"no source":                {[]string{"Not A Name", target, "-f"}, exitMountUsage, "hint: a source is NAME"},
		"help":                     {[]string{"--help"}, exitDone, "Exit status (as of mount(8))"},
		"nothing":                  {nil, exitMountUsage, "hint: the call is: mount.skimfs SOURCE TARGET"},
	} {
		cmd := exec.Command(helper, row.args...)
		cmd.Env = append(os.Environ(), "SKIMFS_HOME="+n.home)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		_ = cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != row.status || !strings.Contains(out.String(), row.want) {
			t.Errorf("%s: status %d, %q, want %d and %q", name, got, out.String(), row.status, row.want)
		}
	}
	if len(testkit.Processes(n.home)) != 0 {
		t.Error("a dry run started a daemon")
	}
	if r := n.run("mount", testName, n.home); r.status != exitMountFailed || !strings.Contains(r.stderr, "would hide") {
		t.Errorf("skimfs mount over the home: status %d, %q", r.status, r.stderr)
	}
}

// namespaceScript mounts as root of a new user namespace, without fusermount3.
func TestM12AUserNamespaceNeedsNoFusermount(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	tmp := n.target("userns")
	if r := n.sh(`cp "$2" "$1/key.pub" && chown -R 65534:65534 "$1"`, tmp, w.pub()); r.status != 0 {
		t.Fatal(r.stderr)
	}
	r := n.sh(`exec unshare -m --propagation private sh -c '
		mount -t tmpfs dev /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/fuse c 10 229 || exit 9
		chmod 755 "$5" "$5/mnt"
		exec setpriv --reuid=65534 --regid=65534 --clear-groups env -u SKIMFS_HOME HOME="$1" TMPDIR="$1" unshare -Urm sh -ec "
			mkdir \"\$1/t\" \"\$1/t/mnt\"; export SKIMFS_HOME=\"\$1/t\"
			test -e /usr/bin/fusermount3 && mount --bind /dev/null /usr/bin/fusermount3
			\"\$2\" mount \"\$3\" \"\$1/t/mnt\" -o idle=300ms,pubkey=\"\$4\"
			stat -c %u \"\$1/t/mnt/etc/motd\"; cat \"\$1/t/mnt/etc/motd\"
			\"\$2\" umount \"\$1/t/mnt\"" sh "$@"' sh "$1" "$2" "$3" "$4" "$5"`, tmp, testkit.Build(t), s.image(), filepath.Join(tmp, "key.pub"), n.home)
	if r.status != 0 || r.stdout != "0\nskim\n" {
		t.Errorf("status %d, %q\n%s", r.status, r.stdout, r.stderr)
	}
}
