package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
)

// hostile are values that a careless script would not survive.
var hostile = []string{
	"it's", `say "hi"`, `'"'"'`, "$HOME", "$(touch /tmp/run)", "`touch /tmp/run`", "two\nlines", `back\slash`, `\`, "a  b", "*", "${X:-y}", "}", "; exit 7", "-n", "",
}

// teller prints its arguments, the environment and whether anything has been run on the way.
var teller = []string{"python3", "-c", `import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ), os.path.exists("/tmp/run")]))`}

// told is what the teller prints.
type told struct {
	args []string
	env  map[string]string
	ran  bool
}

func hear(t *testing.T, stdout string) told {
	t.Helper()
	var x told
	if err := json.Unmarshal([]byte(stdout), &[]any{&x.args, &x.env, &x.ran}); err != nil {
		t.Fatalf("%v: %q", err, stdout)
	}
	return x
}

// TestImageConfig: an image's environment and what it starts arrive as they are, by the scripts of its .singularity.d and by apptainer.
func TestImageConfig(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	env := map[string]string{"PATH": "/usr/local/bin:/usr/bin:/bin"}
	for i, value := range hostile {
		env[fmt.Sprintf("V%d", i)] = value
	}
	var list []string
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	layout := testkit.WithConfig(t, testkit.DemoImage(t), "latest", map[string]any{"Env": list, "Entrypoint": append(teller[:3:3], "entry point"), "Cmd": hostile})
	repo := publish(t, image{source: "oci:" + layout + ":latest", as: demoPath})
	mounted := newNode(t).mount(t, repo, testkit.StartNginx(t, repo.dir).URL, demoPath, "")
	byDefault := append([]string{"entry point"}, hostile...)
	cases := []struct {
		name     string
		args     []string
		env      string // one more variable
		wantArgs []string
	}{
		{"run", []string{"/.singularity.d/actions/run"}, "", byDefault},
		{"run by its link", []string{"/.run"}, "", byDefault},
		{"run with arguments in place of Cmd", []string{"/.run", "a b", "$c"}, "", []string{"entry point", "a b", ""}},
		{"run word for word", append([]string{"/.run"}, hostile...), "SINGULARITY_NO_EVAL=1", byDefault},
		{"exec", slices.Concat([]string{"/.singularity.d/actions/exec"}, teller, hostile), "", hostile},
	}
	inside := []string{"bwrap", "--ro-bind", mounted, "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--clearenv", "--setenv", "PATH", "/nowhere"}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			args := inside[1:]
			if name, value, ok := strings.Cut(c.env, "="); ok {
				args = append(args[:len(args):len(args)], "--setenv", name, value)
			}
			checkTold(t, hear(t, output(t, inside[0], slices.Concat(args, []string{"/bin/sh"}, c.args)...)), c.wantArgs, env)
		})
	}
	t.Run("what the user has set stays", func(t *testing.T) {
		args := slices.Concat(inside[1:], []string{"--setenv", "V0", "mine", "/bin/sh", "/.run"})
		if got := hear(t, output(t, inside[0], args...)).env["V0"]; got != "mine" {
			t.Errorf("V0 is %q", got)
		}
	})
	t.Run("apptainer", func(t *testing.T) {
		if _, err := exec.LookPath("apptainer"); err != nil {
			t.Skip("apptainer is not installed")
		}
		// Root in a container may lack the right to raise limits, and then apptainer must not ask for it.
		for name, args := range map[string][]string{
			"run":  {"run", "--cleanenv", "--userns", mounted},
			"exec": slices.Concat([]string{"exec", "--cleanenv", "--userns", mounted}, teller, byDefault),
		} {
			t.Run(name, func(t *testing.T) {
				cmd := exec.Command("setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "apptainer"}, args...)...)
				cmd.Env, cmd.Dir = append(os.Environ(), "HOME=/tmp", "USER=nobody"), "/"
				out, err := cmd.Output()
				if err != nil {
					t.Fatal(err)
				}
				checkTold(t, hear(t, string(out)), byDefault, env)
			})
		}
	})
}

func checkTold(t *testing.T, got told, args []string, env map[string]string) {
	t.Helper()
	if !slices.Equal(got.args, args) {
		t.Errorf("arguments %q\nwant      %q", got.args, args)
	}
	for name, value := range env {
		if got.env[name] != value {
			t.Errorf("%s is %q, want %q", name, got.env[name], value)
		}
	}
	if got.ran {
		t.Error("a value was run as a program")
	}
}
