package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/skimfs/skimfs/internal/testkit"
)

// alone runs a skimfs command without any network, the loopback's included; a daemon that it starts has none either.
func (n *node) alone(args ...string) result {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	cmd := testkit.Command(n.t, n.home, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	return runCommand(ctx, n.t, cmd)
}

// O14: what one node exports another imports, mounts and runs, without any network between or after.
func TestExportO14RunsOnANodeWithoutNetwork(t *testing.T) {
	t.Parallel()
	w := published(t)
	// An image with a program in it: this one.
	dir := t.TempDir()
	root, repo, keys := filepath.Join(dir, "root"), filepath.Join(dir, "repo"), filepath.Join(dir, "keys")
	program, err := os.ReadFile(testkit.Build(t))
	if err := errors.Join(err, os.MkdirAll(filepath.Join(root, "bin"), 0o755), os.WriteFile(filepath.Join(root, "bin/skimfs"), program, 0o755)); err != nil {
		t.Fatal(err)
	}
	const image = "docker.io/library/program:1"
	for _, args := range [][]string{
		{"repo", "create", repo, "--name", "programs.example.org", "--keys", keys},
		{"publish", "--repo", repo, "--keys", keys, "dir:" + root, image},
	} {
		if out, err := exec.Command(testkit.Build(t), args...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v %s", args, err, out)
		}
	}
	files, err := readTree(repo)
	if err != nil {
		t.Fatal(err)
	}
	s, near, far := serveWorld(t, &world{files: files}), newNode(t, w), newNode(t, w)
	source, key := s.URL+"#"+image, "pubkey="+filepath.Join(keys, "programs.example.org.pub")
	file := filepath.Join(dir, "export.tar")
	near.ok("cache", "export", "--output", file, "-o", key, source)
	if again := near.ok("cache", "export", "-o", key, source); again != string(read(t, file)) {
		t.Error("the same content makes another export")
	}
	s.Close()
	target := far.target("m")
	if r := far.alone("mount", source, target, "-o", key+",timeout_direct=1s"); r.status == 0 {
		t.Fatalf("there is a network: %+v", r)
	}
	if r := far.alone("cache", "import", "-o", key, file); r.status != 0 || !strings.Contains(r.stdout, "programs.example.org, revision 2: ") {
		t.Fatalf("import: %+v", r)
	}
	if r := far.alone("mount", source, target, "-o", key+",timeout_direct=1s"); r.status != 0 {
		t.Fatalf("mount: %+v\n%s", r, far.log())
	}
	if r := far.sh(`exec chroot "$1" /bin/skimfs version`, target); r.status != 0 || !strings.HasPrefix(r.stdout, "skimfs ") {
		t.Errorf("running the image: %+v", r)
	}
	if r := far.alone("cache", "import", "-o", key, file); r.status != 0 || !strings.Contains(r.stdout, ", 0 of them new here") {
		t.Errorf("import again: %+v", r)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What is no export, not all of one, or signed by somebody else is refused in one line, and nothing of it is accepted.
func TestImportRefusesWhatIsNotWhole(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	dir := t.TempDir()
	good := []byte(n.ok("cache", "export", s.image(), "big"))
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Clone(good)
	forged[bytes.Index(good, []byte("\nrevision "))+len("\nrevision ")] ^= 1
	for _, row := range []struct {
		name   string
		b      []byte
		status int
		says   string
	}{
		{"cut short", good[:len(good)/2], exitDamage, "it ends early"},
		{"one bit flipped", flip(bytes.Clone(good)), exitDamage, "does not match its digest"},
		{"empty", nil, exitDamage, "it ends early"},
		{"a page of a web server", []byte(strings.Repeat("<html>404 not found</html>", 100)), exitDamage, "not a tar file"},
		{"compressed", z.EncodeAll(good, nil), exitDamage, "zstd -dc"},
		{"another manifest", forged, exitFailed, "sign"},
	} {
		other := newNode(t, w)
		path := filepath.Join(dir, "export")
		writeTest(t, path, string(row.b))
		r := other.alone("cache", "import", path)
		if r.status != row.status || !strings.Contains(r.stderr, row.says) || !strings.Contains(r.stderr, "hint: ") || strings.Count(r.stderr, "\n") != 2 {
			t.Errorf("%s: %+v", row.name, r)
		}
		if r := other.alone("ls", s.image()); r.status == 0 {
			t.Errorf("%s: it was accepted", row.name)
		}
	}
	// A part is a part: what it lacks is an error without a server, and comes from one if there is one.
	other := newNode(t, w)
	path := filepath.Join(dir, "part")
	writeTest(t, path, string(good))
	other.ok("cache", "import", path)
	before := s.requests("manifest")
	if other.ok("cat", s.image(), "big") != string(w.big) || other.ok("cat", s.image(), "etc/motd") != "skim\n" {
		t.Error("wrong bytes")
	}
	if s.requests("manifest") == before {
		t.Error("the server was not asked")
	}
	// A node without the key trusts nobody.
	stranger := newNode(t, w)
	if err := os.RemoveAll(filepath.Join(stranger.home, "etc", "keys")); err != nil {
		t.Fatal(err)
	}
	if r := stranger.run("cache", "import", path); r.status != exitFailed || !strings.Contains(r.stderr, "no public key") {
		t.Errorf("without a key: %+v", r)
	}
	if r := n.run("cache", "export", "--output", filepath.Join(dir, "none"), s.image(), "absent"); r.status != exitFailed {
		t.Errorf("export of what isn't there: %+v", r)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "none*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
