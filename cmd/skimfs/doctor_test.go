package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/mountd"
)

// found looks for a finding.
func found(all []mountd.Finding, check, level string) string {
	for _, f := range all {
		if f.Check == check && f.Level == level {
			if (f.Remedy == "") != (level == "ok") {
				return "finding without a remedy, or one too many: " + f.Text
			}
			return f.Text
		}
	}
	return ""
}

func TestDoctorFindsWhatIsWrongO04(t *testing.T) {
	t.Parallel()
	w := published(t)
	s := serveWorld(t, w)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	_, otherKey, err := index.GenerateKey(testName)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := os.ReadFile(w.pub())
	if err != nil {
		t.Fatal(err)
	}
	// system makes a root that has everything, and home a home that is as it should be.
	system := func(t *testing.T) (string, mountd.Home) {
		dir := t.TempDir()
		h := mountd.Home{OnDemand: true, Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state"), Cache: filepath.Join(dir, "cache")}
		for _, d := range []string{"dev", "etc", "usr/bin", "usr/libexec/apptainer/bin", "run", "state", "cache"} {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		writeTest(t, filepath.Join(dir, "dev", "fuse"), "")
		writeTest(t, filepath.Join(dir, "etc", "fuse.conf"), "# user_allow_other\nuser_allow_other\n")
		for _, p := range []string{"usr/bin/fusermount3", "usr/libexec/apptainer/bin/starter-suid"} {
			writeTest(t, filepath.Join(dir, p), "")
			if err := os.Chmod(filepath.Join(dir, p), 0o755|os.ModeSetuid); err != nil {
				t.Fatal(err)
			}
		}
		return dir, h
	}
	mountinfo := func(root, text string) error {
		return errors.Join(os.MkdirAll(root+"/proc/self", 0o755), os.WriteFile(root+"/proc/self/mountinfo", []byte(text), 0o644))
	}
	// disk is a filesystem of some type with so many bytes free.
	disk := func(kind int64, free uint64) func(string, *unix.Statfs_t) error {
		return func(_ string, st *unix.Statfs_t) error {
			*st = unix.Statfs_t{Type: kind, Bsize: 4096, Bavail: free / 4096}
			return nil
		}
	}
	for _, row := range []struct {
		name         string
		breakIt      func(root string, c *mountd.DoctorConfig) error
		check, level string
		says         string
	}{
		{"no device", func(root string, _ *mountd.DoctorConfig) error { return os.Remove(root + "/dev/fuse") }, "device", "error", "no such file"},
		{"no helper", func(root string, _ *mountd.DoctorConfig) error { return os.Remove(root + "/usr/bin/fusermount3") }, "helper", "error", "no fusermount3"},
		{"helper without setuid", func(root string, _ *mountd.DoctorConfig) error { return os.Chmod(root+"/usr/bin/fusermount3", 0o755) }, "helper", "error", "not setuid"},
		{"setuid apptainer without user_allow_other", func(root string, _ *mountd.DoctorConfig) error { return os.Remove(root + "/etc/fuse.conf") }, "allow-other", "warning", "starter-suid is setuid"},
		{"open socket directory", func(_ string, c *mountd.DoctorConfig) error { return os.Chmod(c.Home.Run, 0o755) }, "permissions", "error", "has mode 0755"},
		{"somebody else's cache", func(_ string, c *mountd.DoctorConfig) error { return os.Chown(c.Home.Cache, 4711, 0) }, "permissions", "error", "belongs to user 4711"},
		{"keys that all may write", func(root string, c *mountd.DoctorConfig) error {
			c.Keys = []string{root + "/keys"}
			return errors.Join(os.Mkdir(root+"/keys", 0o700), os.Chmod(root+"/keys", 0o777))
		}, "permissions", "error", "others may write keys"},
		{"a cache on NFS", func(_ string, c *mountd.DoctorConfig) error { c.Statfs = disk(0x6969, 100<<30); return nil }, "cache", "error", "network filesystem (NFS)"},
		{"a cache on a small disk", func(_ string, c *mountd.DoctorConfig) error { c.Statfs = disk(0xef53, 1<<30); return nil }, "cache", "warning", "only 1.1 GB"},
		{"a cache on a filesystem that hangs", func(_ string, c *mountd.DoctorConfig) error {
			c.Statfs = func(string, *unix.Statfs_t) error { select {} }
			return nil
		}, "cache", "error", "does not answer within"},
		{"a mount made with another group", func(root string, _ *mountd.DoctorConfig) error {
			return mountinfo(root, fmt.Sprintf("90 22 0:45 / /mnt/a\\040b ro - fuse.skimfs x ro,user_id=%d,group_id=4711,default_permissions\n", os.Geteuid()))
		}, "groups", "warning", "/mnt/a b was mounted with another group"},
		{"podman and a private root", func(root string, _ *mountd.DoctorConfig) error {
			writeTest(t, root+"/usr/bin/podman", "")
			return mountinfo(root, "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n")
		}, "propagation", "warning", "/ is not shared"},
		{"no daemon where none is started on demand", func(_ string, c *mountd.DoctorConfig) error { c.Home.OnDemand = false; return nil }, "daemon", "error", "no daemon for cache"},
		{"a limit larger than the disk", func(_ string, c *mountd.DoctorConfig) error { c.Quota = 200 << 30; return nil }, "cache", "error", "the limit is 215 GB"},
		{"a lower cache that isn't mounted", func(root string, c *mountd.DoctorConfig) error {
			c.Options.Lower = root + "/lustre/skimfs"
			return nil
		}, "lower", "warning", "no such file"},
		{"a file for a lower cache", func(root string, c *mountd.DoctorConfig) error {
			c.Options.Lower = root + "/lower"
			return os.WriteFile(c.Options.Lower, nil, 0o600)
		}, "lower", "warning", "not a directory"},
		{"a lower cache that all may write", func(root string, c *mountd.DoctorConfig) error {
			c.Options.Lower = root + "/lower"
			return errors.Join(os.Mkdir(c.Options.Lower, 0o700), os.Chmod(c.Options.Lower, 0o777))
		}, "lower", "ok", "others may write to it"},
		{"dead server", func(_ string, c *mountd.DoctorConfig) error {
			c.Options.Servers = []string{"http://127.0.0.1:1"}
			return nil
		}, "servers", "error", "http://127.0.0.1:1 by DIRECT"},
		{"silent proxy", func(_ string, c *mountd.DoctorConfig) error {
			c.Options.Proxy = fmt.Sprintf("http://user:secret@%s;DIRECT", silent.Addr())
			return nil
		}, "servers", "error", "deadline exceeded"},
		{"wrong key", func(_ string, c *mountd.DoctorConfig) error { c.Options.PublicKey = otherKey; return nil }, "key", "error", "whitelist"},
		{"no key", func(_ string, c *mountd.DoctorConfig) error { c.Options.PublicKey = ""; return nil }, "key", "error", "no public key"},
		{"expired whitelist", func(_ string, c *mountd.DoctorConfig) error { c.Now = time.Now().Add(40 * 24 * time.Hour); return nil }, "whitelist", "error", "expired"},
		{"whitelist about to expire", func(_ string, c *mountd.DoctorConfig) error { c.Now = time.Now().Add(25 * 24 * time.Hour); return nil }, "whitelist", "warning", "expires"},
		{"clock that goes wrong", func(_ string, c *mountd.DoctorConfig) error { c.Now = time.Now().Add(time.Hour); return nil }, "clock", "error", "differs by 1h0m"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			root, h := system(t)
			cfg := mountd.DoctorConfig{Home: h, Source: s.image(), Options: mountd.Options{PublicKey: string(pub)}, Root: root, Wait: 2 * time.Second, Statfs: disk(0xef53, 100<<30)}
			for _, f := range mountd.Doctor(t.Context(), cfg) {
				if f.Level != "ok" {
					t.Errorf("nothing is wrong, and doctor says %+v", f)
				}
			}
			if err := row.breakIt(root, &cfg); err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			all := mountd.Doctor(t.Context(), cfg)
			if got := found(all, row.check, row.level); !strings.Contains(got, row.says) || got == "" {
				t.Errorf("%s %s: %q, want %q in %+v", row.level, row.check, got, row.says, all)
			}
			if strings.Contains(fmt.Sprint(all), "secret") {
				t.Error("a password is shown")
			}
			if took := time.Since(begun); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestDoctorCommand(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	if out := n.ok("doctor", s.image()); !strings.Contains(out, "is signed as it should be") {
		t.Errorf("doctor says %s", out)
	}
	if out := n.ok("doctor"); !strings.Contains(out, "has keys of 1 repository") {
		t.Errorf("doctor says %s", out)
	}
	s.Close()
	r := n.run("doctor", s.image(), "--json")
	var all []mountd.Finding
	if err := json.Unmarshal([]byte(r.stdout), &all); err != nil || r.status != exitFailed || found(all, "servers", "error") == "" {
		t.Errorf("status %d, %v: %s%s", r.status, err, r.stdout, r.stderr)
	}
}

// X01: a mount whose daemon doesn't answer hangs whoever looks at it, and neither probe nor fuser nor bugreport.
func TestHangingMountHangsNoToolX01(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image())
	for _, path := range []string{target + "/", filepath.Join(filepath.Dir(target), "x", "..", filepath.Base(target))} {
		if out := n.ok("probe", path); out != path+": ok\n" {
			t.Errorf("probe %s: %q", path, out)
		}
	}
	if r := n.run("probe", n.home); r.status != exitFailed || !strings.Contains(r.stdout, "nothing of skimfs is mounted there") {
		t.Errorf("probe of a directory: %+v", r)
	}
	if out := n.ok("probe"); out != target+": ok\n" {
		t.Errorf("probe says %q", out)
	}
	user := exec.Command("sleep", "60")
	user.Dir = target
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = user.Process.Kill(); _ = user.Wait() }()
	pid := n.status().PID
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Kill(pid, unix.SIGCONT) }()
	begun := time.Now()
	if r := n.run("probe", "--timeout", "1s", target); r.status != exitFailed || !strings.Contains(r.stdout, "no answer within 1s") {
		t.Errorf("probe of a mount that hangs: status %d, %s%s", r.status, r.stdout, r.stderr)
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("probe took %v to give up after 1 s", took)
	}
	var users []mountd.MountUser
	if err := json.Unmarshal([]byte(n.ok("fuser", "--json", target)), &users); err != nil {
		t.Fatal(err)
	}
	seen := false
	for _, u := range users {
		seen = seen || u.PID == user.Process.Pid && u.Command == "sleep" && fmt.Sprint(u.Uses) == "[cwd]"
	}
	if !seen {
		t.Errorf("fuser lists %+v, want sleep with its cwd, pid %d", users, user.Process.Pid)
	}
	if r := n.run("status"); r.status != exitFailed || !strings.Contains(r.stderr, "does not answer within") {
		t.Errorf("status of a daemon that hangs: status %d, %s%s", r.status, r.stdout, r.stderr)
	}
	report := filepath.Join(n.home, "report.tar.gz")
	n.ok("bugreport", "--output", report)
	if took := time.Since(begun); took > 50*time.Second {
		t.Errorf("all that took %v", took)
	}
	out, err := exec.Command("tar", "-xzOf", report).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"daemon ready", "fuse.skimfs", "/dev/fuse can be opened", "deadline exceeded"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the report has no %q", want)
		}
	}
	if r := n.run("fuser", n.home); r.status != exitFailed || !strings.Contains(r.stderr, "nothing of skimfs") {
		t.Errorf("fuser of no mount: %+v", r)
	}
}

// Another user reaches root's socket, as if its directory had been left open: each request is refused by the peer's credentials, and nothing changes.
func TestAnotherUserIsRefusedEachRequest(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image())
	st := n.status()
	for path, mode := range map[string]os.FileMode{n.home: 0o755, filepath.Dir(st.Socket): 0o711, st.Socket: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct{ attack, method, path, body string }{
		{"to mount", "POST", "/v1/mounts", fmt.Sprintf(`{"source":%q,"target":"/mnt"}`, s.image())},
		{"to mount with his key", "POST", "/v1/mounts", fmt.Sprintf(`{"source":%q,"target":"/mnt","options":{"pubkey":"x"}}`, s.image())},
		{"to mount from his server", "POST", "/v1/mounts", `{"source":"images.example.org","target":"/mnt","options":{"servers":["http://127.0.0.1:1"]}}`},
		{"to set a cache path", "POST", "/v1/mounts", `{"source":"images.example.org","target":"/mnt","cache":"/home/user"}`},
		{"to evict", "POST", "/v1/cache/trim", `{}`},
		{"to set the limit", "PUT", "/v1/cache", `{"limit":1}`},
		{"to verify", "POST", "/v1/cache/verify", `{}`},
		{"to pin", "POST", "/v1/cache/work", `{}`},
		{"to unmount", "DELETE", "/v1/mounts?lazy=true&target=" + target, ""},
		{"to end a lease", "DELETE", "/v1/leases?lease=1", ""},
		{"to reload", "POST", "/v1/reload", ""},
		{"to refresh", "POST", "/v1/mounts/refresh?target=" + target, ""},
		{"to read what only root may", "GET", "/v1/cat?source=" + strings.ReplaceAll(s.image(), "#", "%23") + "&path=/etc/motd", ""},
		{"to list", "GET", "/v1/ls?source=" + strings.ReplaceAll(s.image(), "#", "%23"), ""},
		{"to see the status", "GET", "/v1/status", ""},
		{"to see the metrics", "GET", "/metrics", ""},
	} {
		r := n.sh(`exec setpriv --reuid 65534 --regid 65534 --clear-groups curl -sS -m 20 -o - -w '\n%{http_code}' -X "$2" --data "$4" --unix-socket "$1" "http://skimfs$3"`,
			st.Socket, row.method, row.path, row.body)
		if !strings.HasSuffix(r.stdout, "\n403") || !strings.Contains(r.stdout, `"kind": "permission"`) {
			t.Errorf("a user asks root's daemon %s: %s%s", row.attack, r.stdout, r.stderr)
		}
	}
	for path, mode := range map[string]os.FileMode{filepath.Dir(st.Socket): 0o700, st.Socket: 0o600} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	after := n.status()
	if len(after.Mounts) != 1 || after.Cache.Limit != st.Cache.Limit || after.PID != st.PID {
		t.Errorf("something changed: %+v", after)
	}
}
