package publish_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publish"
)

// hostile are values that a careless script would not survive.
var hostile = []string{"plain", "two words", "it's", `say "hi"`, "$HOME", "`id`", "$(id)", `back\slash`, `ends with \`, "new\nline", "}", "a}b{c", "*", "~", "!x", "${X:-y}", "grüße", "'\"'\"'", "-n", ""}

func TestFurnitureIsThereAndOnlyIfMissing(t *testing.T) {
	r := newRepo(t)
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "etc/hosts", content: "mine"}, item{name: "tmp", kind: '2', link: "var/tmp"},
		item{name: "var/", kind: '5', mode: 0o700}, item{name: "run", content: "a file"}, item{name: ".singularity.d/runscript", content: "mine", mode: 0o755}, item{name: "etc/mtab", kind: '2', link: "nowhere"})}})
	r.publish("oci:"+layout, "local/a:1", publish.Options{})
	const created = "1706933106.789000000"
	want := map[string]string{ // type, mode, mtime
		"proc": "dir 0755 " + created, "sys": "dir 0755 " + created, "dev": "dir 0755 " + created, "home": "dir 0755 " + created, "root": "dir 0700 " + created,
		"mnt": "dir 0755 " + created, "srv": "dir 0755 " + created, "opt": "dir 0755 " + created, "var/tmp": "dir 1777 " + created,
		"etc/resolv.conf": "file 0644 " + created, "etc/hostname": "file 0644 " + created, "etc/passwd": "file 0644 " + created, "etc/group": "file 0644 " + created,
		".singularity.d/libs": "dir 0755 " + created, ".singularity.d/env/99-base.sh": "file 0755 " + created, ".singularity.d/env/10-docker2singularity.sh": "file 0755 " + created,
		".singularity.d/actions/start": "file 0755 " + created, ".singularity.d/startscript": "file 0755 " + created, ".singularity.d/labels.json": "file 0644 " + created,
		"singularity": "symlink 0777 " + created, ".run": "symlink 0777 " + created,
		// What was there.
		"etc/hosts": "file 0644 1700000000.000000000", "tmp": "symlink 0777 1700000000.000000000", "var": "dir 0700 1700000000.000000000", "run": "file 0644 1700000000.000000000",
		".singularity.d/runscript": "file 0755 1700000000.000000000", "etc/mtab": "symlink 0777 1700000000.000000000", "etc": "dir 0755 " + created,
	}
	for _, e := range r.walk("local/a:1") {
		if w, ok := want[e.Path]; ok {
			if got := fmt.Sprintf("%s %s %s", e.Type, e.Mode, e.Mtime); got != w {
				t.Errorf("%s is %s, want %s", e.Path, got, w)
			}
			delete(want, e.Path)
		}
		if strings.HasPrefix(e.Path, ".singularity.d/libs/") {
			t.Errorf("%s: libs must be empty", e.Path)
		}
	}
	for path := range want {
		t.Errorf("%s is missing", path)
	}
	if got := r.read("local/a:1/etc/hosts") + r.read("local/a:1/.singularity.d/runscript"); got != "minemine" {
		t.Errorf("what was there is changed: %q", got)
	}
}

// shells are those at hand that images use.
func shells(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, s := range []string{"sh", "dash", "bash"} {
		if p, err := exec.LookPath(s); err == nil {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		t.Fatal("no shell")
	}
	return out
}

// script publishes an image with a config and returns one of its scripts as a file.
func script(t *testing.T, config map[string]any, name string) string {
	t.Helper()
	r := newRepo(t)
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t)}, config: config})
	r.publish("oci:"+layout, "local/a:1", publish.Options{})
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte(r.read("local/a:1/.singularity.d/"+name)), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEnvironmentSurvivesTheShell(t *testing.T) {
	env := []string{"PATH=/usr/bin:/bin:$weird`x`", "not a name=x", "1X=x", "=x", "INHERITED"}
	for i, v := range hostile {
		env = append(env, fmt.Sprintf("V%d=%s", i, v))
	}
	path := script(t, map[string]any{"Env": env}, "env/10-docker2singularity.sh")
	for _, sh := range shells(t) {
		cmd := exec.Command(sh, "-c", `. "$0" && exec /usr/bin/env -0`, path)
		cmd.Env = []string{"PATH=/nowhere", "V0=the user's", "INHERITED=from the user"}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", sh, err)
		}
		got := strings.Split(string(out), "\x00")
		for i, v := range hostile {
			if i == 0 {
				v = "the user's"
			}
			if want := fmt.Sprintf("V%d=%s", i, v); !slices.Contains(got, want) {
				t.Errorf("%s: no %q in %q", sh, want, got)
			}
		}
		for _, want := range []string{"PATH=/usr/bin:/bin:$weird`x`", "INHERITED=from the user"} {
			if !slices.Contains(got, want) {
				t.Errorf("%s: no %q in %q", sh, want, got)
			}
		}
	}
}

func TestRunscriptStartsWhatTheConfigSays(t *testing.T) {
	// A program that prints its arguments as JSON would need one in the image; printf with a NUL behind each does.
	show := []string{"/usr/bin/printf", `%s\0`}
	words := hostile[:len(hostile)-1]
	for _, row := range []struct {
		claim           string
		entrypoint, cmd []string
		args            []string
		want            []string
		noEval          bool
	}{
		{claim: "entry point alone", entrypoint: append(show[:2:2], words...), want: words},
		{claim: "entry point and arguments", entrypoint: append(show[:2:2], "fixed"), args: []string{"a b", "c"}, want: []string{"fixed", "a b", "c"}},
		{claim: "command alone", cmd: append(show[:2:2], words...), want: words},
		{claim: "arguments in place of the command", cmd: []string{"/bin/false"}, args: append(show[:2:2], "x y"), want: []string{"x y"}},
		{claim: "entry point and command", entrypoint: append(show[:2:2], "e"), cmd: words, want: append([]string{"e"}, words...)},
		{claim: "entry point, and arguments in place of the command", entrypoint: append(show[:2:2], "e"), cmd: []string{"unused"}, args: []string{"a"}, want: []string{"e", "a"}},
		{claim: "word for word", entrypoint: show, cmd: hostile, noEval: true, want: hostile},
		{claim: "word for word with arguments", entrypoint: show, cmd: []string{"unused"}, args: hostile, noEval: true, want: hostile},
	} {
		t.Run(row.claim, func(t *testing.T) {
			path := script(t, map[string]any{"Entrypoint": row.entrypoint, "Cmd": row.cmd}, "runscript")
			text, err := os.ReadFile(path)
			if err != nil || !strings.Contains(string(text), "\neval \"set ${SINGULARITY_OCI_RUN}\"\n") {
				t.Errorf("apptainer's line is missing: %v", err)
			}
			for _, sh := range shells(t) {
				cmd := exec.Command(sh, append([]string{path}, row.args...)...)
				cmd.Env = []string{"PATH=/usr/bin:/bin"}
				if row.noEval {
					cmd.Env = append(cmd.Env, "SINGULARITY_NO_EVAL=1")
				}
				out, err := cmd.CombinedOutput()
				if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); err != nil || !slices.Equal(got, row.want) {
					t.Errorf("%s: %v, got %q, want %q", sh, err, got, row.want)
				}
			}
		})
	}
}

func TestBaseEnvironment(t *testing.T) {
	path := script(t, nil, "env/99-base.sh")
	for _, sh := range shells(t) {
		for before, want := range map[string]string{"": "/.singularity.d/libs", "/a": "/a:/.singularity.d/libs"} {
			cmd := exec.Command(sh, "-c", `. "$0" && /usr/bin/printf %s "$LD_LIBRARY_PATH"`, path)
			cmd.Env = []string{"LD_LIBRARY_PATH=" + before}
			if out, err := cmd.Output(); err != nil || string(out) != want {
				t.Errorf("%s: %q, %v; want %q", sh, out, err, want)
			}
		}
	}
}

func TestScriptsParse(t *testing.T) {
	r := newRepo(t)
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t)}, config: map[string]any{"Labels": map[string]string{"a": "b\"c"}}})
	r.publish("oci:"+layout, "local/a:1", publish.Options{})
	for _, e := range r.walk("local/a:1") {
		if e.Type != "file" || !strings.HasPrefix(e.Path, ".singularity.d/") {
			continue
		}
		text := r.read("local/a:1/" + e.Path)
		if strings.HasSuffix(e.Path, ".json") {
			var labels map[string]string
			if err := json.Unmarshal([]byte(text), &labels); err != nil || labels["a"] != `b"c` {
				t.Errorf("%s: %v, %v", e.Path, labels, err)
			}
			continue
		}
		if !strings.HasPrefix(text, "#!/bin/sh\n") {
			t.Errorf("%s begins with %.20q", e.Path, text)
		}
		for _, sh := range shells(t) {
			cmd := exec.Command(sh, "-n")
			cmd.Stdin = strings.NewReader(text)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %s: %v: %s", e.Path, sh, err, out)
			}
		}
	}
}

func TestPublishedRootRuns(t *testing.T) {
	testkit.NeedRoot(t)
	// An empty image gets every mount point that bwrap needs.
	r := newRepo(t)
	r.publish("oci:"+testkit.NoLayers(t), "local/none:1", publish.Options{})
	have := map[string]string{}
	for _, e := range r.walk("local/none:1") {
		have[e.Path] = e.Type
	}
	for _, dir := range []string{"proc", "sys", "dev", "tmp", "var/tmp", "run", "home", "root", "mnt", "srv", "opt"} {
		if have[dir] != "dir" {
			t.Errorf("%s is a %q, want a dir", dir, have[dir])
		}
	}
	for _, file := range []string{"etc/hosts", "etc/resolv.conf", "etc/hostname", "etc/passwd", "etc/group", "run/.containerenv"} {
		if have[file] != "file" {
			t.Errorf("%s is a %q, want a file", file, have[file])
		}
	}
}
