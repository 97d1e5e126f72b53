package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/mountd"
)

const (
	testName  = "images.example.org"
	testImage = "docker.io/library/test:1"
	bigImage  = "docker.io/library/nested:1"
	bigSize   = 3_300_000

	middleSize = 300_000 // of /usr/share/middle in testImage, which begins as /big does
)

// world is a repository with two images and the keys of it, published once by the real program and then only read.
type world struct {
	files map[string][]byte // of the repository, by path
	older map[string][]byte // manifest and whitelist of the revision before
	keys  string            // directory
	big   []byte            // content of /big in testImage
}

var theWorld = struct {
	sync.Once
	w   *world
	err error
}{}

// published returns the world.
func published(t *testing.T) *world {
	t.Helper()
	theWorld.Do(func() { theWorld.w, theWorld.err = publishWorld(testkit.Build(t)) })
	if theWorld.err != nil {
		t.Fatal(theWorld.err)
	}
	return theWorld.w
}

func publishWorld(program string) (*world, error) {
	// It stays as long as the test binary runs and a little longer: the kernel's /tmp is where it is looked for.
	dir, err := os.MkdirTemp("", "skimfs-world-")
	if err != nil {
		return nil, err
	}
	cleanup = append(cleanup, func() { os.RemoveAll(dir) })
	w := &world{keys: filepath.Join(dir, "keys"), big: make([]byte, bigSize)}
	_, _ = rand.NewChaCha8([32]byte{1}).Read(w.big) // it never fails
	for path, content := range map[string][]byte{
		"test/etc/motd": []byte("skim\n"), "test/big": w.big, "test/usr/lib/a": []byte("lib a"), "test/usr/lib/b": []byte("lib b"),
		"test/usr/share/middle": w.big[:middleSize],
	} {
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644)); err != nil {
			return nil, err
		}
	}
	// More nodes than fit one catalog.
	for d := range 17 {
		sub := filepath.Join(dir, "nested", "many", fmt.Sprint("d", d))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return nil, err
		}
		for f := range 1100 {
			if err := os.Symlink("x", filepath.Join(sub, fmt.Sprint("f", f))); err != nil {
				return nil, err
			}
		}
	}
	repo := filepath.Join(dir, "repo")
	for i, args := range [][]string{
		{"repo", "create", repo, "--name", testName, "--keys", w.keys},
		{"publish", "--repo", repo, "--keys", w.keys, "dir:" + filepath.Join(dir, "test"), testImage},
		{"publish", "--repo", repo, "--keys", w.keys, "dir:" + filepath.Join(dir, "nested"), bigImage},
	} {
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("skimfs %q: %w\n%s", args, err, out)
		}
		if i == 1 {
			if w.older, err = readTree(repo); err != nil {
				return nil, err
			}
		}
	}
	w.files, err = readTree(repo)
	return w, err
}

func readTree(dir string) (map[string][]byte, error) {
	files := map[string][]byte{}
	return files, fs.WalkDir(os.DirFS(dir), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || strings.HasPrefix(path, ".publish") {
			return err
		}
		files[path], err = os.ReadFile(filepath.Join(dir, path))
		return err
	})
}

var cleanup []func()

func TestMain(m *testing.M) {
	status := m.Run()
	for _, f := range cleanup {
		f()
	}
	os.Exit(status)
}

func (w *world) pub() string { return filepath.Join(w.keys, testName+".pub") }

// signer reads the secret key of the given kind: "key", "masterkey".
func (w *world) signer(t *testing.T, kind string) (text string) {
	t.Helper()
	for _, dir := range []string{w.keys, filepath.Join(w.keys, "master")} {
		if b, err := os.ReadFile(filepath.Join(dir, testName+"."+kind)); err == nil {
			return string(b)
		}
	}
	t.Fatalf("no %s in %s", kind, w.keys)
	return ""
}

// together runs tests side by side, so many at once, that wait most of the time. t.Parallel would have each wait for a core.
func together(t *testing.T, atOnce int, tests map[string]func(*testing.T)) {
	slots := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for _, name := range slices.Sorted(maps.Keys(tests)) {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			t.Run(name, tests[name])
		})
	}
	all.Wait()
}

// server serves a repository's files, with faults put in.
type server struct {
	*httptest.Server
	mu    sync.Mutex
	files map[string][]byte
	fresh map[string][]byte // what is given to who asks past the caches
	asked map[string]int
}

func serveWorld(t *testing.T, w *world) *server {
	t.Helper()
	s := &server{files: maps.Clone(w.files), fresh: map[string][]byte{}, asked: map[string]int{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/")
	s.mu.Lock()
	b, ok := s.files[path]
	if f, has := s.fresh[path]; has && strings.Contains(r.Header.Get("Cache-Control"), "no-cache") {
		b, ok = f, true
	}
	s.asked[path]++
	s.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b)
}

// change replaces a file by what f makes of it; nil removes it.
func (s *server) change(t *testing.T, path string, f func([]byte) []byte) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.files[path]
	if !ok && f != nil && path != "manifest" {
		t.Fatalf("the server has no %s", path)
	}
	if b = f(bytes.Clone(b)); b == nil {
		delete(s.files, path)
		return
	}
	s.files[path] = b
}

func (s *server) put(path string, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[path] = b
}

// onNoCache makes the server answer as if a cache stood before it: with b only when asked past that.
func (s *server) onNoCache(path string, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fresh[path] = b
}

func (s *server) requests(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[path]
}

func remove([]byte) []byte     { return nil }
func truncate(b []byte) []byte { return b[:len(b)/2] }
func flip(b []byte) []byte {
	b[len(b)/2] ^= 4
	return b
}

// image is where a test finds the image.
func (s *server) image() string { return s.URL + "#" + testImage }

func writeTest(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// node is a home with the world's public key, and a daemon of its own once one is needed.
type node struct {
	t    *testing.T
	home string
	env  []string
}

func newNode(t *testing.T, w *world) *node {
	t.Helper()
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	n := &node{t: t, home: testkit.Home(t)}
	keys := filepath.Join(n.home, "etc", "keys")
	b, err := os.ReadFile(w.pub())
	if err := errors.Join(err, os.MkdirAll(keys, 0o755), os.WriteFile(filepath.Join(keys, testName+".pub"), b, 0o644)); err != nil {
		t.Fatal(err)
	}
	return n
}

// result is how a command ended.
type result struct {
	args           []string
	status         int
	stdout, stderr string
}

// run runs a skimfs command, at most a minute.
func (n *node) run(args ...string) result {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	cmd := testkit.Command(n.t, n.home, args...)
	cmd.Env = append(cmd.Env, n.env...)
	return runCommand(ctx, n.t, cmd)
}

// runCommand runs cmd until it ends or ctx does.
func runCommand(ctx context.Context, t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%q: %v, %v\n%s%s", cmd.Args, err, ctx.Err(), stdout.Bytes(), stderr.Bytes())
	}
	return result{cmd.Args[1:], cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// ok runs a command that must succeed and returns its stdout.
func (n *node) ok(args ...string) string {
	n.t.Helper()
	r := n.run(args...)
	if r.status != 0 {
		n.t.Fatalf("skimfs %q: status %d\n%s\n%s", args, r.status, r.stderr, n.log())
	}
	return r.stdout
}

// log returns what the daemons of the home logged.
func (n *node) log() string {
	var all strings.Builder
	logs, _ := filepath.Glob(filepath.Join(n.home, "state", "*.log"))
	for _, path := range logs {
		b, _ := os.ReadFile(path)
		all.Write(b)
	}
	return all.String()
}

// target makes a directory to mount on.
func (n *node) target(name string) string {
	n.t.Helper()
	dir := filepath.Join(n.home, "mnt", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	return dir
}

// mount mounts source and returns where.
func (n *node) mount(source string, flags ...string) string {
	n.t.Helper()
	target := n.target("m")
	n.ok(append([]string{"mount", source, target}, flags...)...)
	return target
}

// client returns a client of the node's daemon, which runs.
func (n *node) client() *mountd.Client {
	n.t.Helper()
	h, err := mountd.FindHome(0, func(name string) string {
		if name == "SKIMFS_HOME" {
			return n.home
		}
		return ""
	})
	if err != nil {
		n.t.Fatal(err)
	}
	c, err := mountd.Connect(n.t.Context(), h, "", mountd.StartDead, mountd.StartConfig{})
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

func (n *node) status() mountd.Status {
	n.t.Helper()
	var s mountd.Status
	if err := json.Unmarshal([]byte(n.ok("status", "--json")), &s); err != nil {
		n.t.Fatal(err)
	}
	return s
}

// kill ends the daemon as kill -9 does, and waits for its end.
func (n *node) kill(pid int) {
	n.t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
	n.await("the killed daemon to end", func() bool { return !alive(pid) })
}

// alive reports whether a process runs; a zombie doesn't.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

// await polls until cond holds.
func (n *node) await(what string, cond func() bool) {
	n.t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("waiting for %s\n%s", what, n.log())
		}
	}
}

// sh runs a shell command, which may touch mounts, and returns its output and exit status.
func (n *node) sh(script string, args ...string) result {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	return runCommand(ctx, n.t, exec.Command("sh", append([]string{"-c", script, "sh"}, args...)...))
}

// read returns a file's content as another process reads it.
func (n *node) read(path string) string {
	n.t.Helper()
	r := n.sh(`exec cat "$1"`, path)
	if r.status != 0 {
		n.t.Fatalf("cat %s: %s\n%s", path, r.stderr, n.log())
	}
	return r.stdout
}

// fails checks that reading path is an input/output error.
func (n *node) fails(path string) {
	n.t.Helper()
	r := n.sh(`exec cat "$1"`, path)
	if r.status == 0 || !strings.Contains(r.stderr, "Input/output error") {
		n.t.Errorf("cat %s: status %d, %d bytes, %q, want an input/output error", path, r.status, len(r.stdout), r.stderr)
	}
}

// mounted reports whether something is mounted on target.
func mounted(t *testing.T, target string) bool {
	t.Helper()
	below, err := testkit.MountsBelow(filepath.Dir(target))
	if err != nil {
		t.Fatal(err)
	}
	for _, point := range below {
		if point == target {
			return true
		}
	}
	return false
}

// objects returns the paths of the objects of a file, and of the root catalog of its image, through a node that isn't the test's.
func (w *world) objects(t *testing.T, path string) []string {
	t.Helper()
	f := w.find(t, path)
	chunks, err := f.Chunks()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, c := range chunks {
		if !c.IsHole() {
			out = append(out, c.Digest.ObjectPath())
		}
	}
	return out
}

// find resolves a path of the repository.
func (w *world) find(t *testing.T, path string) index.File {
	t.Helper()
	dec, err := index.NewObjectDecoder()
	if err != nil {
		t.Fatal(err)
	}
	load := func(ctx context.Context, ref index.CatalogRef) (*index.Catalog, error) {
		return ref.Load(ctx, func(_ context.Context, d index.Digest, size int64) ([]byte, error) {
			return dec.Decode(w.files[d.ObjectPath()], d, size)
		})
	}
	pub, err := os.ReadFile(w.pub())
	if err != nil {
		t.Fatal(err)
	}
	master, err := index.ParseVerifier(string(pub))
	if err != nil {
		t.Fatal(err)
	}
	list, err := index.OpenWhitelist(w.files["whitelist"], testName, master)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.OpenManifest(w.files["manifest"], testName, list)
	if err != nil {
		t.Fatal(err)
	}
	root, err := load(t.Context(), m.Root)
	if err != nil {
		t.Fatal(err)
	}
	view, err := index.NewView(root, load)
	if err != nil {
		t.Fatal(err)
	}
	f, err := view.Resolve(t.Context(), path, true)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
