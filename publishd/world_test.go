package publishd_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
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

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publishd"
)

// TestMain has more tests run at once than there are CPUs, unless -parallel says how many: most of them wait for clocks and other processes.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		if err := f.Value.Set(strconv.Itoa(2 * runtime.GOMAXPROCS(0))); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// service is a real publishd with a repository, in a home of its own.
type service struct {
	t                testing.TB
	home, repo, keys string
	args             []string
	binds            map[string]string // files that it sees in place of those of the machine
	env              []string
	node             *service // reads the repository
	server           *testkit.Server
	user             int // 0: ours; another one only with binds
	cmd              *exec.Cmd
	*publishd.Client
}

func newService(t testing.TB, args ...string) *service {
	t.Helper()
	home := testkit.Home(t)
	s := &service{t: t, home: home, repo: filepath.Join(home, "repo"), keys: filepath.Join(home, "etc", "keys"), args: args}
	s.ok("repo", "create", s.repo, "--name", "queue.example.org", "--keys", s.keys)
	s.start()
	t.Cleanup(s.stop)
	return s
}

// second is another publishd, with a home of its own, for the same repository.
func (s *service) second(args ...string) *service {
	s.t.Helper()
	o := &service{t: s.t, home: testkit.Home(s.t), repo: s.repo, keys: s.keys, args: append([]string{"--keys", s.keys}, args...)}
	o.start()
	s.t.Cleanup(o.stop)
	return o
}

func (s *service) socket() string { return filepath.Join(s.home, "run", "publishd.sock") }

// number is a metric's value.
func (s *service) number(metric string) float64 {
	s.t.Helper()
	n, err := strconv.ParseFloat(s.scrape()[metric], 64)
	if err != nil {
		s.t.Fatalf("%s: %v", metric, err)
	}
	return n
}

func (s *service) start() {
	s.t.Helper()
	s.cmd = testkit.Command(s.t, s.home, append([]string{"publishd", "--repo", s.repo}, s.args...)...)
	s.cmd.Env = append(s.cmd.Env, s.env...)
	if len(s.binds) > 0 {
		script := "set -e\n"
		for path, file := range s.binds {
			script += fmt.Sprintf("mount --bind %s %s\n", file, path)
		}
		script += `exec "$@"`
		if s.user != 0 {
			script = strings.TrimSuffix(script, `"$@"`) + fmt.Sprintf(`setpriv --reuid %d --regid %d --clear-groups "$@"`, s.user, s.user)
			s.cmd.Path = s.program()
		}
		s.cmd.Args = append([]string{"unshare", "--mount", "sh", "-c", script, "sh", s.cmd.Path}, s.cmd.Args[1:]...)
		s.cmd.Path = testkit.Program(s.t, "unshare")
	}
	log, err := os.OpenFile(filepath.Join(s.home, "publishd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	if s.Client, err = publishd.NewClient(s.socket(), ""); err != nil {
		s.t.Fatal(err)
	}
	s.await("publishd to answer", func() bool {
		_, err := s.List(s.t.Context(), url.Values{"state": {"NONE"}})
		return err == nil
	})
}

func (s *service) log() string {
	b, _ := os.ReadFile(filepath.Join(s.home, "publishd.log"))
	return string(b)
}

// kill ends publishd as kill -9 does.
func (s *service) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func (s *service) stop() {
	if s.cmd.ProcessState != nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait()
}

func (s *service) run(args ...string) (stdout, stderr string, status int) {
	s.t.Helper()
	cmd := testkit.Command(s.t, s.home, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	late := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	var exit *exec.ExitError
	if !late.Stop() || err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("skimfs %q: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// cat reads a file of an image in the repository, as a node does.
func (s *service) cat(image, file string) (out, errs string, status int) {
	s.t.Helper()
	if s.node == nil {
		s.node, s.server = &service{t: s.t, home: testkit.Home(s.t)}, testkit.StartNginx(s.t, s.repo)
	}
	return s.node.run("cat", "-o", "pubkey="+filepath.Join(s.keys, "queue.example.org.pub"), s.server.URL+"#"+image, file)
}

func (s *service) ok(args ...string) string {
	s.t.Helper()
	out, errs, status := s.run(args...)
	if status != 0 {
		s.t.Fatalf("skimfs %q: status %d\n%s%s", args, status, out, errs)
	}
	return strings.TrimSpace(out)
}

func (s *service) await(what string, cond func() bool) {
	s.t.Helper()
	s.awaitFor(time.Minute, what, cond)
}

func (s *service) awaitFor(limit time.Duration, what string, cond func() bool) {
	s.t.Helper()
	for end := time.Now().Add(limit); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("waiting for %s\n%s", what, s.log())
		}
	}
}

func (s *service) submit(r publishd.Request) publishd.Operation {
	s.t.Helper()
	if r.Kind == "" {
		r.Kind = publishd.Convert
	}
	o, err := s.Submit(s.t.Context(), r)
	if err != nil {
		s.t.Fatal(err)
	}
	return o
}

func (s *service) done(id string) publishd.Operation {
	s.t.Helper()
	var o publishd.Operation
	s.await("operation "+id, func() bool {
		var err error
		o, err = s.Wait(s.t.Context(), id, 10*time.Second)
		return err == nil && o.Done
	})
	return o
}

func (s *service) get(id string) publishd.Operation {
	s.t.Helper()
	o, err := s.Get(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return o
}

// tree makes a directory to convert.
func tree(t testing.TB, content string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "file"), []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// gate stands before a real registry: it holds requests back, and answers in its place.
type gate struct {
	*httptest.Server
	mu     sync.Mutex
	answer func(w http.ResponseWriter, r *http.Request) bool
}

func newGate(t testing.TB, backend string) *gate {
	t.Helper()
	u, err := url.Parse("http://" + backend)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(u)
	g := &gate{}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		answer := g.answer
		g.mu.Unlock()
		if answer == nil || !answer(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(g.Close)
	return g
}

func (g *gate) set(answer func(w http.ResponseWriter, r *http.Request) bool) {
	g.mu.Lock()
	g.answer = answer
	g.mu.Unlock()
}

func (g *gate) ref(name string) string { return strings.TrimPrefix(g.URL, "http://") + "/" + name }

// layout is a small real image as an OCI layout.
func layout(t testing.TB) string { return testkit.Whiteouts(t, testkit.Gzip) }

func decode(t testing.TB, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}
