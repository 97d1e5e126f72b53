package testkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// packages says which Debian package brings a program, where the names differ.
var packages = map[string]string{
	"bwrap":                   "bubblewrap",
	"ch-run":                  "charliecloud-runtime",
	"fusermount3":             "fuse3",
	"getfattr":                "attr",
	"mksquashfs":              "squashfs-tools",
	"newuidmap":               "uidmap",
	"nginx":                   "nginx-light",
	"sinfo":                   "slurm-client",
	"squashfuse_ll":           "squashfuse",
	"srun":                    "slurm-client",
	"systemd-analyze":         "systemd",
	"systemd-socket-activate": "systemd",
}

// Program returns the path of a program that the test can't do without, and ends the test if it
// is missing.
func Program(t testing.TB, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path
		}
	}
	pkg := packages[name]
	if pkg == "" {
		pkg = name
	}
	t.Fatalf("%s is not installed: apt-get install %s, or scripts/deps", name, pkg)
	return ""
}

// Run runs a program to its end, within ten minutes, and returns what it printed to stdout. The test ends if it
// fails.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, Program(t, name), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.String()
}

// freePort returns a loopback port that was free a moment ago.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// process is a server in the foreground that can be stopped and started again.
type process struct {
	t    testing.TB
	name string
	path string
	args []string
	env  []string // on top of the test's own
	addr string   // where it listens
	dir  string   // holds its output
	user *syscall.Credential

	mu   sync.Mutex // guards cmd and done
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
}

// start runs the server and returns when it accepts connections.
func (p *process) start() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return
	}
	output, err := os.OpenFile(p.outputPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer output.Close()
	cmd := exec.Command(p.path, p.args...)
	cmd.Dir, cmd.Env = p.dir, append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = output, output
	// Its own group, so that ^C at the terminal leaves the order of ending to us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: p.user}
	if err := startFromLastingThread(cmd); err != nil {
		p.t.Fatalf("starting %s: %v", p.name, err)
	}
	done := make(chan struct{})
	go func() {
		cmd.Wait()
		close(done)
	}()
	p.cmd, p.done = cmd, done
	if err := p.awaitListening(time.Minute); err != nil {
		said, _ := os.ReadFile(p.outputPath())
		p.t.Fatalf("%s does not serve: %v\n%s", p.name, err, said)
	}
}

func (p *process) outputPath() string { return filepath.Join(p.dir, "output") }

func (p *process) awaitListening(limit time.Duration) error {
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		select {
		case <-p.done:
			return errors.New("it ended: " + p.cmd.ProcessState.String())
		default:
		}
		var c net.Conn
		if c, err = net.DialTimeout("tcp", p.addr, time.Second); err == nil {
			return c.Close()
		}
	}
	return err
}

// stop ends the server at once and waits for its end. Nothing happens if it doesn't run.
func (p *process) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	// The whole group: nginx and squid have children.
	syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
	p.cmd = nil
}

// lasting runs functions on one thread that lives as long as the test binary. A child's death
// signal fires when the thread that started it ends, not the process, and Go's threads come and go.
var lasting = sync.OnceValue(func() chan<- func() {
	calls := make(chan func())
	go func() {
		runtime.LockOSThread()
		for call := range calls {
			call()
		}
	}()
	return calls
})

func startFromLastingThread(cmd *exec.Cmd) error {
	result := make(chan error)
	lasting() <- func() { result <- cmd.Start() }
	return <-result
}

// serverDir makes a directory for a server that gives up root: unlike t.TempDir, everybody may pass.
func serverDir(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "skimfs-"+name+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("removing the directory of %s: %v", name, err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func writeFile(t testing.TB, path, format string, args ...any) {
	t.Helper()
	if err := os.WriteFile(path, fmt.Appendf(nil, format, args...), 0o644); err != nil {
		t.Fatal(err)
	}
}
