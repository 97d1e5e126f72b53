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

const repoName = "e2e.skimfs.example"

// repository is a published repository and the home of its publisher.
type repository struct {
	home, dir, keys string
	results         map[string]published
}

// published is what `skimfs publish --json` says.
type published struct {
	Name            string `json:"name"`
	Files           int64  `json:"files"`
	Bytes           int64  `json:"bytes"`
	Objects         int64  `json:"objects"`
	NewObjects      int64  `json:"new_objects"`
	CompressedBytes int64  `json:"compressed_bytes"`
	Catalogs        int    `json:"catalogs"`
}

// image is a source to publish, a name to publish it under, and further flags.
type image struct {
	source, as string
	flags      []string
}

// publish makes a repository that holds the images.
func publish(t testing.TB, images ...image) *repository {
	t.Helper()
	home := testkit.Home(t)
	r := &repository{home, filepath.Join(home, "repo"), filepath.Join(home, "keys"), map[string]published{}}
	skimfs(t, home, "repo", "create", r.dir, "--name", repoName, "--keys", r.keys)
	for _, img := range images {
		r.add(t, img)
	}
	return r
}

// add publishes one more source, of one image or of one for each platform.
func (r *repository) add(t testing.TB, img image) {
	t.Helper()
	args := append([]string{"publish", "--repo", r.dir, "--keys", r.keys, "--json", img.source, img.as}, img.flags...)
	lines := json.NewDecoder(strings.NewReader(skimfs(t, r.home, args...)))
	for lines.More() {
		var p published
		if err := lines.Decode(&p); err != nil {
			t.Fatalf("publish --json: %v", err)
		}
		r.results[p.Name] = p
	}
}

func (r *repository) pubkey() string { return filepath.Join(r.keys, repoName+".pub") }

// skimfs runs the program in a home and returns its stdout; it must succeed.
func skimfs(t testing.TB, home string, args ...string) string {
	t.Helper()
	cmd := testkit.Command(t, home, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("skimfs %q: %v\n%s", args, err, stderr.Bytes())
	}
	return string(out)
}

// node is a home with a daemon of its own: a compute node.
type node struct {
	home string
}

func newNode(t testing.TB) *node {
	t.Helper()
	return &node{testkit.Home(t)}
}

// mount mounts path from a server on this node and returns the mount point.
func (n *node) mount(t testing.TB, r *repository, server, path, options string) string {
	t.Helper()
	target, err := os.MkdirTemp(filepath.Join(n.home, "mnt"), "m")
	if err != nil {
		t.Fatal(err)
	}
	// Programs that run as another user must reach it.
	for _, dir := range []string{n.home, filepath.Join(n.home, "mnt"), target} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	o := "pubkey=" + r.pubkey()
	if options != "" {
		o += "," + options
	}
	skimfs(t, n.home, "mount", server+"#"+path, target, "-o", o)
	return target
}

func (n *node) umount(t testing.TB, target string) {
	t.Helper()
	skimfs(t, n.home, "umount", target)
}

// counters are what a daemon has fetched since it started.
type counters struct {
	FileObjects int64 `json:"file_objects"`
	Bytes       int64 `json:"bytes"`
}

func (n *node) counters(t testing.TB) counters {
	t.Helper()
	var status struct {
		Fetch counters `json:"fetch"`
	}
	if err := json.Unmarshal([]byte(skimfs(t, n.home, "status", "--json")), &status); err != nil {
		t.Fatalf("status --json: %v", err)
	}
	return status.Fetch
}

// output runs a program and returns what it printed; it must succeed.
func output(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(testkit.Program(t, name), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, stderr.Bytes())
	}
	return string(out)
}
