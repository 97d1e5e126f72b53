package publishd_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publish"
	"github.com/skimfs/skimfs/publishd"
)

// stranger is a user who has nothing to do with the service.
const stranger = 20002

// newPublicService is a service whose socket all users of the machine may ask.
func newPublicService(t *testing.T) *service {
	t.Helper()
	testkit.NeedRoot(t)
	s := newService(t, "--backoff", "20ms", "--attempts", "2")
	s.open()
	return s
}

// open lets all users to the socket.
func (s *service) open() {
	s.t.Helper()
	for path, mode := range map[string]os.FileMode{s.home: 0o711, filepath.Dir(s.socket()): 0o711, s.socket(): 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			s.t.Fatal(err)
		}
	}
}

// letIn lets everybody into a directory of the test.
func letIn(t *testing.T, dir string) {
	t.Helper()
	for ; strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// program is a copy of skimfs where every user reaches it.
func (s *service) program() string {
	s.t.Helper()
	program := filepath.Join(s.home, "skimfs")
	if _, err := os.Stat(program); err != nil {
		testkit.Run(s.t, "cp", testkit.Build(s.t), program)
	}
	return program
}

// as runs skimfs as another user, who is in no list of users, with further groups.
func (s *service) as(uid uint32, groups []uint32, args ...string) (out string, status int) {
	s.t.Helper()
	cmd := exec.Command(s.program(), args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "SKIMFS_PUBLISHD=" + s.socket()}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: groups}}
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		s.t.Fatalf("%v\n%s", err, b)
	}
	return strings.TrimSpace(string(b)), cmd.ProcessState.ExitCode()
}

// Whoever submits can make the service read nothing that he could not read himself: whatever he names ends without an image, and the secret
// is not in the repository.
func TestNobodyReadsThroughTheServiceWhatHeMayNot(t *testing.T) {
	t.Parallel()
	s := newPublicService(t)
	const secret = "only the owner knows"
	open, closed := t.TempDir(), t.TempDir()
	letIn(t, open)
	in := func(name string) string { return filepath.Join(open, name) }
	archive := filepath.Join(closed, "image.tar")
	testkit.Run(t, "skopeo", "--insecure-policy", "copy", "--quiet", "oci:"+layout(t)+":latest", "oci-archive:"+archive)
	write(t, filepath.Join(closed, "secret"), secret)
	for _, err := range []error{
		os.Chmod(closed, 0o700), os.MkdirAll(in("links"), 0o755), os.Symlink(filepath.Join(closed, "secret"), in("links/secret")), os.Symlink(closed, in("links/dir")),
		os.Symlink(closed, in("dir")), os.Symlink(archive, in("image.tar")), syscall.Mkfifo(in("pipe"), 0o666), os.MkdirAll(in("mixed"), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	write(t, in("mixed/closed"), secret)
	if err := os.Chmod(in("mixed/closed"), 0o600); err != nil {
		t.Fatal(err)
	}
	for claim, source := range map[string]string{
		"a directory that is closed to him":     "dir:" + closed,
		"a link to it":                          "dir:" + in("dir"),
		"a directory with a file that is":       "dir:" + in("mixed"),
		"an archive that is":                    "oci-archive:" + archive,
		"a link to one":                         "oci-archive:" + in("image.tar"),
		"a layout that is":                      "oci:" + closed,
		"a device without an end":               "docker-archive:/dev/zero",
		"a pipe without a beginning":            "oci-archive:" + in("pipe"),
		"the service's own key as a directory":  "dir:" + s.keys,
		"the repository's key through the root": "dir:/proc/1/root" + s.keys,
	} {
		t.Run(claim, func(t *testing.T) {
			begun := time.Now()
			out, status := s.as(stranger, nil, "submit", source, "attack/"+strings.ReplaceAll(strings.ToLower(claim), " ", "-")+":1", "--wait", "--timeout", "60s")
			if status == 0 || status == 124 || time.Since(begun) > 30*time.Second {
				t.Errorf("status %d after %v\n%s", status, time.Since(begun), out)
			}
			if strings.Contains(out, secret) {
				t.Errorf("he is told the secret: %s", out)
			}
		})
	}
	// What a group of his process may read, he may; a process of his without it may not.
	const group = 30003
	shared := tree(t, "for the group")
	letIn(t, filepath.Dir(shared))
	if err := errors.Join(os.Chown(shared, 0, group), os.Chmod(shared, 0o750)); err != nil {
		t.Fatal(err)
	}
	for status, groups := range map[int][]uint32{0: {group}, 1: nil} {
		if out, got := s.as(stranger, groups, "submit", "dir:"+shared, fmt.Sprintf("attack/links:group%d", status), "--wait", "--timeout", "60s"); got != status {
			t.Errorf("a directory of a group, with the groups %d: status %d, want %d\n%s", groups, got, status, out)
		}
	}
	// Links are kept as links, whatever they mean here.
	if out, status := s.as(stranger, nil, "submit", "dir:"+in("links"), "attack/links:1", "--wait", "--timeout", "60s"); status != 0 {
		t.Errorf("a directory with links: status %d\n%s", status, out)
	}
	if out, _, status := s.cat("attack/links:group0", "/file"); status != 0 || out != "for the group" {
		t.Errorf("what he may have shows %q, status %d", out, status)
	}
	// What is swapped while it is read: he wins nothing, whichever way it goes.
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.Remove(in("race"))
			_ = os.Symlink([]string{in("links"), closed}[i%2], in("race"))
		}
	}()
	for range 5 {
		s.as(stranger, nil, "submit", "dir:"+in("race"), "attack/race:1", "--wait", "--timeout", "60s")
	}
	close(stop)
	<-ended
	for _, name := range []string{"attack/links:1", "attack/race:1"} {
		for _, file := range []string{"secret", "dir/secret"} {
			if out, _, _ := s.cat(name, "/"+file); strings.Contains(out, secret) {
				t.Errorf("%s of %s shows the secret", file, name)
			}
		}
	}
	out := s.ok("repo", "ls", s.repo)
	for _, line := range strings.Split(out, "\n") {
		if strings.Contains(line, "attack/") && !strings.Contains(line, "attack/links:") && !strings.Contains(line, "attack/race:1") {
			t.Errorf("published: %s", line)
		}
	}
	// What is the stranger's own he may have converted, and may change; another's he may not.
	own := s.submit(publishd.Request{Source: "dir:" + tree(t, "x"), As: "local/x:1"})
	s.done(own.ID())
	for _, verb := range []string{"retry", "cancel", "forget", "logs"} {
		if out, status := s.as(stranger, nil, "op", verb, own.ID()); status != 77 {
			t.Errorf("op %s of another's: status %d, want 77\n%s", verb, status, out)
		}
	}
	for _, source := range []string{"http://169.254.169.254/x", "http://127.0.0.1:1/#x", "/etc", "--help"} {
		if out, status := s.as(stranger, nil, "submit", "--prefetch", "--", source); status != 77 {
			t.Errorf("prefetch of %s: status %d, want 77\n%s", source, status, out)
		}
	}
}

// Addresses at which machines tell their secrets are not asked, under whatever name, and not after a redirect either.
func TestLinkLocalAndMetadataAddressesAreRefused(t *testing.T) {
	t.Parallel()
	for _, address := range []string{
		"169.254.169.254:80", "169.254.0.1:443", "[fe80::1]:80", "[fe80::1%lo]:80", "[::ffff:169.254.169.254]:80", "[fd00:ec2::254]:80", "100.100.100.200:80", "192.0.0.192:80", "168.63.129.16:80",
		"0.0.0.0:80", "[::]:80", "224.0.0.1:80", "[ff02::1]:80", "nonsense", "[::ffff:a9fe:a9fe]:80", "[::a9fe:a9fe]:80", "[64:ff9b::a9fe:a9fe]:80", "[2002:a9fe:a9fe::1]:80",
	} {
		for _, here := range []bool{false, true} {
			if err := publishd.Refuse(address, here); !errors.Is(err, publish.ErrForbidden) {
				t.Errorf("%s: %v", address, err)
			}
		}
	}
	for _, address := range []string{"127.0.0.1:5000", "127.9.9.9:80", "[::1]:5000", "[::ffff:127.0.0.1]:80", "[64:ff9b::7f00:1]:80"} {
		if err := publishd.Refuse(address, true); err != nil {
			t.Errorf("%s for somebody at this machine: %v", address, err)
		}
		if err := publishd.Refuse(address, false); !errors.Is(err, publish.ErrForbidden) {
			t.Errorf("%s for somebody elsewhere: %v", address, err)
		}
	}
	for _, address := range []string{"10.0.0.1:443", "192.0.2.1:443", "[2001:db8::1]:443", "[64:ff9b::a00:1]:443"} {
		if err := publishd.Refuse(address, false); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
	testkit.NeedRoot(t)
	s := newService(t)
	s.stop()
	hosts := filepath.Join(t.TempDir(), "hosts")
	s.binds = map[string]string{"/etc/hosts": hosts}
	write(t, hosts, "127.0.0.1 localhost\n169.254.169.254 metadata.example.org\n")
	s.start()
	redirecting := func(to string) string {
		away := httptest.NewServer(http.RedirectHandler(to, http.StatusTemporaryRedirect))
		t.Cleanup(away.Close)
		return strings.TrimPrefix(away.URL, "http://")
	}
	for claim, registry := range map[string]string{
		"an address":                          "169.254.169.254",
		"a name of it":                        "metadata.example.org:80",
		"a registry that redirects to it":     redirecting("http://169.254.169.254/latest/meta-data"),
		"a registry that redirects to a name": redirecting("http://metadata.example.org/latest/meta-data"),
	} {
		o := s.done(s.submit(publishd.Request{Source: registry + "/a/b:1"}).ID())
		if o.Error == nil || o.Error.Reason != publishd.PermissionDenied || o.Metadata.Attempt != 1 {
			t.Errorf("%s: %s after %d attempts, %+v", claim, o.Metadata.State, o.Metadata.Attempt, o.Error)
		}
	}
}

// A proxy looks names up itself, and may read as an address what we don't: none of these is handed to it.
func TestAProxyIsNotAskedForThemEither(t *testing.T) {
	t.Parallel()
	for _, host := range []string{
		"169.254.169.254", "169.254.169.254.", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "0xa9.0xfe.0xa9.0xfe", "[::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
		"metadata.google.internal", "METADATA.google.internal.", "instance-data", "0", "0.0.0.0",
	} {
		if err := publishd.RefuseName(t.Context(), host, true); host != "[::1" && !errors.Is(err, publish.ErrForbidden) {
			t.Errorf("%s: %v", host, err)
		}
	}
	for _, host := range []string{"localhost", "a.localhost.", "127.0.0.1", "127.1", "2130706433", "::1"} {
		if err := publishd.RefuseName(t.Context(), host, false); !errors.Is(err, publish.ErrForbidden) {
			t.Errorf("%s for somebody elsewhere: %v", host, err)
		}
	}
	for _, host := range []string{"registry.example.org", "r2.example.org", "192.0.2.1", "2001:db8::1", "localhost"} {
		if err := publishd.RefuseName(t.Context(), host, true); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	testkit.NeedRoot(t)
	var asked atomic.Pointer[string]
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what := r.Method + " " + r.Host
		asked.Store(&what)
		w.WriteHeader(http.StatusNotFound)
	}))
	t.Cleanup(proxy.Close)
	s := newService(t, "--attempts", "1")
	s.stop()
	s.env = []string{"HTTP_PROXY=" + proxy.URL, "HTTPS_PROXY=" + proxy.URL, "NO_PROXY="}
	hosts := filepath.Join(t.TempDir(), "hosts")
	s.binds = map[string]string{"/etc/hosts": hosts}
	write(t, hosts, "127.0.0.1 localhost\n169.254.169.254 metadata.example.org\n192.0.2.1 registry.example.org\n")
	s.start()
	for _, registry := range []string{"169.254.169.254", "metadata.example.org:80", "2852039166:80"} {
		o := s.done(s.submit(publishd.Request{Source: registry + "/a/b:1"}).ID())
		if got := asked.Swap(nil); got != nil || o.Error == nil || o.Error.Reason != publishd.PermissionDenied {
			t.Errorf("%s: %+v; the proxy was asked %v", registry, o.Error, got)
		}
	}
	s.done(s.submit(publishd.Request{Source: "registry.example.org/a/b:1"}).ID())
	if asked.Load() == nil {
		t.Error("the proxy is not asked for a registry")
	}
}

// A name that means a harmless address when it is looked up first and another one then wins nothing: what is connected to is looked at.
func TestANameThatChangesItsMeaningWinsNothing(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t)
	names := testkit.StartNameServer(t)
	names.Set("registry.localhost", "127.0.0.1")
	registry := testkit.StartRegistry(t)
	registry.Push(layout(t), "a/image:1")
	g := newGate(t, registry.Addr)
	g.set(func(http.ResponseWriter, *http.Request) bool {
		names.Set("registry.localhost", "169.254.169.254") // for whoever asks after this request
		return false
	})
	s := newService(t, "--attempts", "1")
	s.stop()
	s.binds = map[string]string{"/etc/resolv.conf": names.ResolvConf}
	s.start()
	_, port, _ := strings.Cut(strings.TrimPrefix(g.URL, "http://"), ":")
	o := s.done(s.submit(publishd.Request{Source: "registry.localhost:" + port + "/a/image:1"}).ID())
	if o.Metadata.Digest == "" || o.Error == nil || o.Error.Reason != publishd.PermissionDenied {
		t.Errorf("it was resolved to %q, then: %+v", o.Metadata.Digest, o.Error)
	}
}

// Who asks over the network reaches no service on loopback of this machine, and is told nothing of what an address that is no registry answers.
func TestSomebodyElsewhereReachesNothingOnLoopback(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"message":"an inner secret"}`)
	}))
	t.Cleanup(inside.Close)
	secret, line, err := publishd.NewToken("far", publishd.ScopeSubmit)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := publishd.ParseTokens(strings.NewReader(line))
	if err != nil {
		t.Fatal(err)
	}
	d, err := publishd.Open(t.Context(), publishd.Config{State: t.TempDir(), Repo: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.Run(ctx)
	}()
	defer func() {
		cancel()
		<-ended
		d.Close()
	}()
	handler := d.Handler(tokens)
	ask := func(from, method, path, body string, header ...string) (o publishd.Operation, text string) {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		r.RemoteAddr = from
		r.Header.Set("Authorization", "Bearer "+secret)
		for _, h := range header {
			r.Header.Set(h, "192.0.2.1")
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		_ = json.Unmarshal(w.Body.Bytes(), &o)
		return o, w.Body.String()
	}
	host := strings.TrimPrefix(inside.URL, "http://")
	for _, row := range []struct {
		claim, from string
		header      []string
		want        publishd.Reason
	}{
		{"from elsewhere", "192.0.2.1:1000", nil, publishd.PermissionDenied},
		{"through a proxy here", "127.0.0.1:1000", []string{"X-Forwarded-For"}, publishd.PermissionDenied},
		{"from here", "127.0.0.1:1000", nil, "AUTH_REQUIRED"},
	} {
		asked.Store(0)
		o, text := ask(row.from, http.MethodPost, "/v1/images:convert", `{"source":"`+host+`/a/b:1"}`, row.header...)
		if o.Name == "" {
			t.Fatalf("%s: %s", row.claim, text)
		}
		for !o.Done {
			o, text = ask(row.from, http.MethodPost, "/v1/"+o.Name+":wait?timeout=20s", "")
		}
		if o.Error == nil || o.Error.Reason != row.want || asked.Load() > 0 != (row.want == "AUTH_REQUIRED") || strings.Contains(text, "secret") {
			t.Errorf("%s, after %d requests: %s", row.claim, asked.Load(), text)
		}
		if _, text := ask(row.from, http.MethodGet, "/v1/images:resolve?ref="+host+"/a/b:1", "", row.header...); !strings.Contains(text, string(row.want)) || strings.Contains(text, "secret") {
			t.Errorf("resolve %s: %s", row.claim, text)
		}
	}
}

// A user builds with his own rights: what he may not read is not in his context.
func TestAUserBuildsWithHisOwnRights(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t)
	testkit.Program(t, "buildah")
	s := newPublicService(t)
	dir := tree(t, "brought along")
	write(t, filepath.Join(dir, "Containerfile"), "FROM scratch\nCOPY secret /\n")
	write(t, filepath.Join(dir, "secret"), "only the owner knows")
	if err := os.Chmod(filepath.Join(dir, "secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	letIn(t, dir)
	if out, status := s.as(stranger, nil, "submit", "--build", dir, "local/b:1", "--wait", "--timeout", "60s"); status != 1 {
		t.Errorf("status %d, want 1\n%s", status, out)
	}
	if out := s.ok("repo", "ls", s.repo); strings.Contains(out, "local/b:1") {
		t.Errorf("it was published:\n%s", out)
	}
}
