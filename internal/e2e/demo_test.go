package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// demo prepares scripts/demo in a directory of its own, which is taken down at the end of the test.
func demo(t *testing.T) (run func(env ...string) (string, error), dir string) {
	t.Helper()
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	// Not t.TempDir: its path is too long for a socket.
	dir, err := os.MkdirTemp("", "skimfs-demo-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs("../../scripts/demo")
	if err != nil {
		t.Fatal(err)
	}
	command := func(env []string, args ...string) *exec.Cmd {
		cmd := exec.Command(script, args...)
		cmd.Env = append(os.Environ(), append(env, "SKIMFS_DEMO="+dir, "SKIMFS_BIN="+testkit.Build(t))...)
		return cmd
	}
	t.Cleanup(func() {
		if out, err := command(nil, "stop").CombinedOutput(); err != nil {
			t.Errorf("demo stop: %v\n%s", err, out)
		}
		if below, err := testkit.MountsBelow(dir); err != nil || len(below) > 0 {
			t.Errorf("after demo stop: mounted: %q, %v", below, err)
			return
		}
		nodes, _ := filepath.Glob(filepath.Join(dir, "node*"))
		for _, node := range nodes {
			if left := testkit.Processes(node); len(left) > 0 {
				t.Errorf("after demo stop: processes %v of %s", left, node)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return func(env ...string) (string, error) {
		out, err := command(env).CombinedOutput()
		return string(out), err
	}, dir
}

// rows are the lines of the demo's table, each once for json and once for numpy.
var rows = []string{
	`cold +[\d.]+ s +[1-9]\d* +[\d.]+ MB \([\d.]+ %\)`,
	`again +[\d.]+ s +0 +0`,
	`new mount, cached +[\d.]+ s +0 +0`,
	`server stopped +[\d.]+ s +0 +0`,
	`2nd node, same squid +[\d.]+ s +[1-9]\d* +[\d.]+ MB, origin asked 0 times`,
	`full pull \+ unpack +[\d.]+ s +all +[\d.]+ MB \(100 %\)`,
}

func checkTable(t *testing.T, out string, blocks int) {
	t.Helper()
	for _, row := range rows {
		if got := len(regexp.MustCompile(`(?m)^`+row+`$`).FindAllString(out, -1)); got != blocks {
			t.Errorf("%d rows match %q, want %d", got, row, blocks)
		}
	}
	for _, line := range []string{`image    .*: \d+ layers, \d+ files, [\d.]+ MB`, `publish  \d+ objects, [\d.]+ MB compressed, [\d.]+ s`, `mount    http://.* at .demo/mnt in [\d.]+ s`, `still mounted: `} {
		if !regexp.MustCompile(`(?m)^` + line).MatchString(out) {
			t.Errorf("no line matches %q", line)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}

// TestDemo: the README's first command shows what it promises, twice in a row.
func TestDemo(t *testing.T) {
	run, dir := demo(t)
	for range 2 {
		out, err := run()
		if err != nil {
			t.Fatalf("demo: %v\n%s", err, out)
		}
		checkTable(t, out, 2)
		if got := output(t, "ls", filepath.Join(dir, "mnt", "usr", "bin", "python3")); got == "" {
			t.Error("nothing is mounted after the demo")
		}
	}
}

// TestDemoTakesAnImageFromARegistry: with IMAGE it pulls from a real registry.
func TestDemoTakesAnImageFromARegistry(t *testing.T) {
	run, _ := demo(t)
	out, err := run("IMAGE=" + testkit.StartRegistry(t).Push(testkit.DemoImage(t), "library/demo:1"))
	if err != nil {
		t.Fatalf("demo: %v\n%s", err, out)
	}
	checkTable(t, out, 2)
}

// TestDemoSaysWhenTheRegistryIsSilent: no answer in 10 s is exit status 1 with a hint.
func TestDemoSaysWhenTheRegistryIsSilent(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := closed.Addr().String()
	closed.Close()
	run, _ := demo(t)
	for name, addr := range map[string]string{"silent": silent.Addr().String(), "refused": gone} {
		start := time.Now()
		out, err := run("IMAGE=" + addr + "/library/demo:1")
		exit, ok := err.(*exec.ExitError)
		if !ok || exit.ExitCode() != 1 || !strings.Contains(out, "hint: ") || !strings.Contains(out, addr) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if took := time.Since(start); took > time.Minute {
			t.Errorf("%s: took %v", name, took)
		}
	}
}
