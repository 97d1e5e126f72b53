package e2e

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// demo is scripts/demo in a directory of its own. At the end of the test it is stopped, and must leave nothing.
type demo struct {
	t   *testing.T
	dir string
}

func newDemo(t *testing.T) *demo {
	t.Helper()
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	// Not t.TempDir: its path is too long for a socket, and squid may not pass there.
	dir, err := os.MkdirTemp("", "skimfs-demo-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d := &demo{t, dir}
	t.Cleanup(d.stop)
	return d
}

func (d *demo) command(args ...string) *exec.Cmd {
	d.t.Helper()
	script, err := filepath.Abs(filepath.Join("..", "..", "scripts", "demo"))
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.Command(script, args...)
	cmd.Env = append(os.Environ(), "SKIMFS_DEMO="+d.dir, "SKIMFS_BIN="+testkit.Build(d.t), "IMAGE=")
	return cmd
}

// stop stops the demo and checks that nothing of it is left.
func (d *demo) stop() {
	cmd := d.command("stop")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		d.t.Errorf("demo stop: %v\n%s", err, out)
	}
	if left := d.processes(); len(left) > 0 {
		d.t.Errorf("after demo stop there are processes: %q", left)
	}
	if below, err := testkit.MountsBelow(d.dir); err != nil || len(below) > 0 {
		d.t.Errorf("%s stays: mounted after demo stop: %q, %v", d.dir, below, err)
		return
	}
	if err := os.RemoveAll(d.dir); err != nil {
		d.t.Error(err)
	}
}

// processes returns the command lines of all processes that were started with the demo's directory in their arguments or as their
// home: daemons, nginx, squid, docker-registry, and what the demo runs.
func (d *demo) processes() []string {
	var found []string
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if filepath.Base(dir) != strconv.Itoa(os.Getpid()) && (bytes.Contains(cmdline, []byte(d.dir)) || bytes.Contains(environ, []byte("="+d.dir))) {
			found = append(found, string(bytes.ReplaceAll(cmdline, []byte{0}, []byte(" "))))
		}
	}
	return found
}

// run runs the demo, with further variables, and returns its table and what it said besides.
func (d *demo) run(env ...string) (table, said string, err error) {
	d.t.Helper()
	cmd := d.command()
	cmd.Env = append(cmd.Env, env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	return stdout.String(), stderr.String(), err
}

// head, block and foot are what the demo prints, a pattern a line; block comes once for each program.
var (
	head = []string{
		``, `image    \S.*: \d+ layers, [1-9]\d+ files, [1-9][\d.]+ MB`, `publish  [1-9]\d+ objects, [1-9][\d.]+ MB compressed, [\d.]+ s`,
		`mount    http://127\.0\.0\.1:\d+#local/demo:latest at DIR/mnt in [\d.]+ s`,
	}
	block = []string{
		` {26}first output +files +HTTP bytes \(% of the image\)`,
		`cold +[\d.]+ s +[1-9]\d* +[\d.]+ MB \([1-9\d][\d.]* %\)`,
		`again +[\d.]+ s +0 +0`,
		`new mount, cached +[\d.]+ s +0 +0`,
		`server stopped +[\d.]+ s +0 +0`,
		`2nd node, same squid +[\d.]+ s +[1-9]\d* +[\d.]+ MB, origin asked 0 times`,
		`full pull \+ unpack +[\d.]+ s +all +[1-9][\d.]+ MB \(100 %\)`,
	}
	numpyBlock = append([]string{``, `the same with import numpy`}, block...)
	second     = []string{
		``, `in the background, by publishd`,
		`submit   (oci|docker) as local/second:latest: answered in [\d.]+ s`,
		`watch    (QUEUED )?(RUNNING )?SUCCEEDED in [\d.]+ s`,
		`mount    http://127\.0\.0\.1:\d+#local/second:latest, first output [\d.]+ s, 0 files`,
	}
	foot = []string{``, `still mounted: ls DIR/mnt · SKIMFS_HOME=DIR/node1 \S+ status · SKIMFS_DEMO=DIR scripts/demo stop`}
)

// check checks a demo that succeeded, line by line.
func (d *demo) check(table, said string, err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatalf("demo: %v\n%s%s", err, table, said)
	}
	about, err := os.ReadFile(filepath.Join(testkit.DemoImage(d.t), "about.env"))
	if err != nil {
		d.t.Fatal(err)
	}
	want := slices.Concat(head, block)
	if bytes.Contains(about, []byte("numpy=1")) {
		want = append(want, numpyBlock...)
	}
	want = slices.Concat(want, second, foot)
	lines := strings.Split(strings.TrimSuffix(table, "\n"), "\n")
	for i, line := range lines {
		if i < len(want) && !regexp.MustCompile("^"+strings.ReplaceAll(want[i], "DIR", regexp.QuoteMeta(d.dir))+"$").MatchString(line) {
			d.t.Errorf("line %d is %q, want %s", i+1, line, want[i])
		}
	}
	if len(lines) != len(want) {
		d.t.Errorf("%d lines, want %d", len(lines), len(want))
	}
	if d.t.Failed() {
		d.t.Logf("%s%s", table, said)
	}
}

// TestDemo: `make demo` shows what it promises, also where a demo ran before, with an image from a registry too, and leaves it mounted.
func TestDemo(t *testing.T) {
	t.Parallel()
	d := newDemo(t)
	for _, env := range [][]string{nil, {"IMAGE=" + testkit.StartRegistry(t).Push(testkit.DemoImage(t), "library/demo:1")}} {
		d.check(d.run(env...))
		output(t, "ls", filepath.Join(d.dir, "mnt", "usr", "bin", "python3"))
	}
	if left := d.processes(); len(left) < 3 {
		t.Errorf("after the demo these run: %q, want a daemon, nginx and squid", left)
	}
}

func TestDemoWithoutAnAnswerFromTheRegistryEndsWithAHint(t *testing.T) {
	d := newDemo(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, row := range []struct{ name, image string }{
		{"the port is closed", closed.Addr().String() + "/x:1"},
		{"the registry accepts and stays silent", silent.Addr().String() + "/x:1"},
	} {
		t.Run(row.name, func(t *testing.T) {
			begun := time.Now()
			table, said, err := d.run("IMAGE=" + row.image)
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("it ended with %v, want exit status 1", err)
			}
			if took := time.Since(begun); took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
			if want := regexp.MustCompile(`^demo: IMAGE=` + regexp.QuoteMeta(row.image) + `: .+\nhint: .+\n$`); !want.MatchString(said) || table != "" {
				t.Errorf("it said %q and printed %q, want a line and a hint", said, table)
			}
		})
	}
}

// TestDemoInterrupted: after ^C while an image is mounted, stop (at the end of the test) finds all that runs.
func TestDemoInterrupted(t *testing.T) {
	d := newDemo(t)
	cmd := d.command()
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ^C reaches a group
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	kill := func(s syscall.Signal) { syscall.Kill(-cmd.Process.Pid, s) }
	defer kill(syscall.SIGKILL)
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if below, err := testkit.MountsBelow(d.dir); err != nil || time.Now().After(end) {
			t.Fatalf("waiting for the mount: %v", err)
		} else if len(below) > 0 {
			break
		}
	}
	kill(syscall.SIGINT)
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("it goes on")
	}
	if status := cmd.ProcessState.ExitCode(); status != 130 || !strings.Contains(said.String(), "scripts/demo stop") {
		t.Errorf("exit status %d, want 130; it said %q", status, said.String())
	}
	if left := d.processes(); len(left) < 3 {
		t.Errorf("there run: %q, want a daemon, nginx and squid for stop to end", left)
	}
}
