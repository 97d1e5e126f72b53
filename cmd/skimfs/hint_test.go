package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/internal/testkit"
)

// oneHint checks that r is a line that says what is wrong, and a hint.
func oneHint(t *testing.T, r result, status int, says, hints string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
	if r.status != status || len(lines) != 2 || !strings.HasPrefix(lines[0], "skimfs: ") || !strings.HasPrefix(lines[1], "hint: ") {
		t.Errorf("skimfs %q: status %d, want %d\n%s", r.args, r.status, status, r.stderr)
		return
	}
	if !regexp.MustCompile(says).MatchString(lines[0]) || !regexp.MustCompile(hints).MatchString(lines[1]) {
		t.Errorf("skimfs %q says %q, want %q with a hint of %q", r.args, r.stderr, says, hints)
	}
	if r.stdout != "" {
		t.Errorf("skimfs %q: stdout has %q", r.args, r.stdout)
	}
}

func TestMistakesGetALineAHintAndAStatus(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	dead := serveWorld(t, w)
	dead.Close()
	garbage := serveWorld(t, w)
	garbage.put("manifest", []byte("<html>login</html>"))
	empty := serveWorld(t, w)
	empty.change(t, "manifest", remove)
	_, otherKey, err := index.GenerateKey(testName)
	if err != nil {
		t.Fatal(err)
	}
	_, foreignKey, err := index.GenerateKey("other.example.org")
	if err != nil {
		t.Fatal(err)
	}
	key := func(name, text string) string {
		path := filepath.Join(n.home, name)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	target := n.target("m")
	taken := n.target("taken")
	n.ok("mount", s.URL, taken)
	file := filepath.Join(target, "..", "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	fast := "timeout_direct=1s"
	for _, row := range []struct {
		name        string
		args        []string
		status      int
		says, hints string
	}{
		{"unknown option", []string{"mount", s.image(), target, "-o", "prxy=DIRECT"}, 1, `"prxy": did you mean "proxy"`, "skimfs mount --help"},
		{"option without its value", []string{"mount", s.image(), target, "-o", "uid"}, 1, `"uid" needs a value`, "--help"},
		{"a bad proxy list", []string{"mount", s.image(), target, "-o", "proxy=http:///x"}, 1, `proxy`, ""},
		{"no target given", []string{"mount", s.image()}, 1, `accepts 2 arg`, "--help"},
		{"neither URL nor name", []string{"mount", "debian", target}, 1, `"debian" is neither`, "--help"},
		{"wrong key", []string{"mount", s.image(), target, "-o", "pubkey=" + key("other.pub", otherKey)}, 32, `whitelist.* signed by`, "compare"},
		{"key of another repository", []string{"mount", s.image(), target, "-o", "pubkey=" + key("foreign.pub", foreignKey)}, 32, `key given is of repository "other.example.org"`, "pubkey=FILE"},
		{"missing key file", []string{"mount", s.image(), target, "-o", "pubkey=/none.pub"}, 1, `/none.pub: no such file`, ""},
		{"wrong name", []string{"mount", "other.example.org", target, "-o", "server=" + s.URL}, 32, `manifest is of repository "images.example.org", want "other.example.org"`, "compare"},
		{"dead server", []string{"mount", dead.image(), target, "-o", fast}, 32, `connection refused`, "proxy"},
		{"not a repository", []string{"mount", garbage.image(), target}, 32, `not a signed note`, "mirror"},
		{"no repository there", []string{"mount", empty.image(), target}, 32, `no repository at http`, "with the repository's manifest"},
		{"a slash for the #", []string{"mount", s.URL + "/docker.io/library/debian:12", target}, 32, `no repository at http`, s.URL + "#docker.io/library/debian:12"},
		{"missing image", []string{"mount", s.URL + "#docker.io/library/none:1", target}, 32, `no "docker.io/library/none:1" in images.example.org`, "skimfs ls"},
		{"a file", []string{"mount", s.image() + "/etc/motd", target}, 32, `not a directory`, "skimfs ls"},
		{"busy target", []string{"mount", s.image(), taken}, 32, `busy: http.* is mounted there`, "skimfs umount"},
		{"missing target", []string{"mount", s.image(), target + "/none"}, 32, `does not exist`, "mkdir -p"},
		{"target not a directory", []string{"mount", s.image(), file}, 32, `is not a directory`, "another directory"},
		{"target over the cache", []string{"mount", s.image(), n.home}, 32, `would hide the`, "directory"},
		{"target in a mount", []string{"mount", s.image(), filepath.Join(taken, "docker.io")}, 32, `lies inside the mount`, "directory"},
		{"not mounted", []string{"umount", target}, 32, `nothing of skimfs is mounted`, "skimfs status"},
		{"no such file to cat", []string{"cat", s.image(), "etc/none"}, 1, `no ".*etc/none"`, "skimfs ls"},
		{"cat of a directory", []string{"cat", s.image(), "etc"}, 1, `not a regular file`, "skimfs ls"},
		{"a cache limit that is none", []string{"cache", "limit", "set", "much"}, 2, `"much" is no size`, "--help"},
	} {
		t.Run(row.name, func(t *testing.T) { oneHint(t, n.run(row.args...), row.status, row.says, row.hints) })
	}
	if err := os.Remove(filepath.Join(n.home, "etc", "keys", testName+".pub")); err != nil {
		t.Fatal(err)
	}
	t.Run("missing key", func(t *testing.T) {
		oneHint(t, n.run("mount", s.image(), target), 32, `no public key for repository "images.example.org" in .*/etc/keys`, "pubkey=FILE")
	})
	if got := len(n.status().Mounts); got != 1 {
		t.Errorf("%d mounts after all that, want 1", got)
	}
}

func TestRootIsToldHowToStartTheDaemon(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// A /run of its own hides a system daemon that may run here.
	cmd := exec.Command(testkit.Program(t, "unshare"), "-m", "sh", "-c", `mount -t tmpfs none /run && exec "$@"`, "sh", testkit.Build(t), "mount", "http://127.0.0.1:1", t.TempDir())
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "SKIMFS_HOME=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	oneHint(t, runCommand(ctx, t, cmd), exitMountSystem, `no skimfs daemon answers`, "systemctl start skimfs-mountd.service.*skimfs mountd")
}

func TestWithoutTheFuseDeviceNothingIsMounted(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	r := n.sh(`exec unshare -m --propagation private sh -c 'mount -t tmpfs dev /dev && mknod -m 666 /dev/null c 1 3 || exit 9
		SKIMFS_HOME="$1" exec "$2" mount "$3" "$4"' sh "$@"`, n.home, testkit.Build(t), s.image(), n.target("m"))
	oneHint(t, r, exitMountSystem, `/dev/fuse: no such file`, "modprobe fuse")
}

func TestEveryCommandTellsItsExitStatusAndShowsExamples(t *testing.T) {
	for _, c := range commands() {
		if c.GroupID == "repo" || c.Hidden {
			continue
		}
		var out strings.Builder
		if status := run(t.Context(), "skimfs", []string{c.Name(), "--help"}, &out, &out); status != 0 {
			t.Errorf("%s --help: status %d", c.Name(), status)
		}
		for _, want := range []string{"Usage:", "Examples:", "Exit status", "  skimfs " + c.Name()} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s --help has no %q:\n%s", c.Name(), want, out.String())
			}
		}
	}
}
