package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publish"
)

// call runs a command line and returns what it said.
func call(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	status = run(t.Context(), "skimfs", args, &out, &err)
	return status, out.String(), err.String()
}

// publishedHome makes a repository with one image in a home of its own and returns the repository and the image's layout.
func publishedHome(t *testing.T) (repo, layout string) {
	t.Helper()
	home := t.TempDir()
	t.Setenv("SKIMFS_HOME", home)
	repo, layout = filepath.Join(home, "repo"), testkit.Whiteouts(t, testkit.Gzip)
	for _, args := range [][]string{{"repo", "create", repo, "--name", "test.example.org"}, {"publish", "--repo", repo, "oci:" + layout, "local/image:1"}} {
		if status, _, stderr := call(t, args...); status != 0 {
			t.Fatalf("%v: status %d: %s", args, status, stderr)
		}
	}
	return repo, layout
}

func TestRepoCreateTellsWhereTheKeysAre(t *testing.T) {
	home := t.TempDir()
	t.Setenv("SKIMFS_HOME", home)
	status, stdout, _ := call(t, "repo", "create", filepath.Join(home, "a"), "--name", "test.example.org")
	for _, want := range []string{home + "/etc/keys/test.example.org.pub", home + "/etc/keys/master/test.example.org.masterkey", "offline"} {
		if status != 0 || !strings.Contains(stdout, want) {
			t.Errorf("status %d, no %q in %q", status, want, stdout)
		}
	}
	if status, stdout, _ = call(t, "repo", "create", filepath.Join(home, "b"), "--name", "test.example.org"); status != 0 || !strings.Contains(stdout, "reused") {
		t.Errorf("a second repository of the name: %d, %q", status, stdout)
	}
}

func TestPublishPrintsJSON(t *testing.T) {
	repo, layout := publishedHome(t)
	status, stdout, stderr := call(t, "publish", "--repo", repo, "--json", "oci:"+layout, "local/image:2")
	var got publish.Result
	if err := json.Unmarshal([]byte(stdout), &got); status != 0 || err != nil {
		t.Fatalf("status %d, %v: %q %q", status, err, stdout, stderr)
	}
	if got.Name != "local/image:2" || got.Revision != 3 || got.LayersRead != 0 || got.Layers != 3 || got.Files == 0 || got.Slot == 0 || !strings.HasPrefix(got.Flat, ".flat/") {
		t.Errorf("%+v", got)
	}
}

func TestRepoCommandsAnswer(t *testing.T) {
	repo, _ := publishedHome(t)
	for _, row := range []struct {
		args []string
		want string
	}{
		{[]string{"repo", "ls", repo}, "local/image:1"}, {[]string{"repo", "ls", repo, "--json"}, `"unshared_bytes"`},
		{[]string{"repo", "info", repo}, "test.example.org"}, {[]string{"repo", "info", repo, "--json"}, `"whitelist_expires"`},
		{[]string{"repo", "info", repo, "local/image:1"}, "platform"}, {[]string{"repo", "info", repo, "local/image:1", "--json"}, `"configDigest"`},
		{[]string{"repo", "verify", repo}, "1 images"}, {[]string{"repo", "verify", repo, "--json"}, `"damage": []`},
		{[]string{"repo", "whitelist", "show", repo}, "expires"}, {[]string{"repo", "whitelist", "sign", repo}, "signed, until"},
		{[]string{"repo", "gc", repo, "--dry-run"}, "would delete 0 objects"}, {[]string{"repo", "gc", repo, "--json"}, `"kept"`},
		{[]string{"repo", "rm", repo, "local/image:1"}, "removed local/image:1, revision 3"},
	} {
		if status, stdout, stderr := call(t, row.args...); status != 0 || !strings.Contains(stdout, row.want) || stderr != "" {
			t.Errorf("%v: status %d, %q, %q; want %q", row.args, status, stdout, stderr, row.want)
		}
	}
}

func TestPublisherMistakesAreExplained(t *testing.T) {
	repo, layout := publishedHome(t)
	empty := t.TempDir()
	for _, row := range []struct {
		args   []string
		status int
		words  string // in the one line
		hint   string
	}{
		{[]string{"repo", "create", repo}, exitUsage, "--name is missing", "--help"},
		{[]string{"repo", "create", empty, "--name", "short"}, exitUsage, `"short"`, "--help"},
		{[]string{"repo", "create", repo, "--name", "test.example.org"}, exitFailed, "holds a repository already", "repo info"},
		{[]string{"repo", "ls", empty}, exitFailed, "holds none", "repo create"},
		{[]string{"repo", "ls", repo, "--keys", empty}, exitFailed, "test.example.org.pub", "--keys"},
		{[]string{"repo", "rm", repo, "local/image:2"}, exitFailed, `"local/image:2"`, "repo ls"},
		{[]string{"repo", "rm", repo, "image:1"}, exitFailed, `"image:1"`, "did you mean local/image:1?"},
		{[]string{"repo", "rm", repo}, exitUsage, "", "--help"},
		{[]string{"publish", "oci:" + layout}, exitUsage, "--repo is missing", "--help"},
		{[]string{"publish", "--repo", repo, "tar:x"}, exitUsage, `unknown kind "tar"`, "--help"},
		{[]string{"publish", "--repo", repo, "oci:" + layout, "image"}, exitUsage, `"image"`, "docker.io/library/debian:12"},
		{[]string{"publish", "--repo", repo, "--platform", "arm64", "oci:" + layout}, exitUsage, `platform "arm64"`, "--help"},
		{[]string{"publish", "--repo", repo, "oci:" + empty}, exitFailed, empty, ""},
		{[]string{"publish", "--repo", repo, "--max-entries", "3", "--bare", "dir:" + layout, "local/x:1"}, exitFailed, "more than 3 entries", "--max-entries"},
		{[]string{"publish", "--repo", repo, "docker://127.0.0.1:1/none:1"}, exitFailed, "127.0.0.1:1", ""},
		{[]string{"serve", empty}, exitFailed, "manifest", "repo create"},
	} {
		status, _, stderr := call(t, row.args...)
		line, hint, _ := strings.Cut(strings.TrimSpace(stderr), "\n")
		if status != row.status || !strings.Contains(line, row.words) || !strings.Contains(hint, row.hint) || strings.Count(stderr, "\n") > 2 {
			t.Errorf("%v: status %d: %q; want %d, %q, hint %q", row.args, status, stderr, row.status, row.words, row.hint)
		}
	}
}

func TestRepoVerifyEndsWithThree(t *testing.T) {
	repo, _ := publishedHome(t)
	objects, err := filepath.Glob(filepath.Join(repo, "objects/*/*.zst"))
	if err != nil || len(objects) == 0 {
		t.Fatal(err)
	}
	for _, o := range objects {
		if err := os.WriteFile(o, []byte("nonsense"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The root catalog itself is bad: still a report, not a failure.
	status, stdout, stderr := call(t, "repo", "verify", repo)
	if status != exitDamage || !strings.Contains(stdout, "bad objects/") || !strings.Contains(stderr, "hint: ") {
		t.Errorf("status %d, %q, %q", status, stdout, stderr)
	}
}
