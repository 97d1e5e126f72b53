package publish_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publish"
)

// push copies an image or image index of a layout into a registry.
func push(t *testing.T, dir, tag, ref string) {
	t.Helper()
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := top.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	to, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range m.Manifests {
		if d.Annotations["org.opencontainers.image.ref.name"] != tag {
			continue
		}
		if d.MediaType.IsIndex() {
			i, err := top.ImageIndex(d.Digest)
			if err == nil {
				err = remote.WriteIndex(to, i)
			}
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		i, err := top.Image(d.Digest)
		if err == nil {
			err = remote.Write(to, i)
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("no tag %q in %s", tag, dir)
}

// host is the address of a test server.
func host(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }

func TestAllSourcesGiveTheSameImage(t *testing.T) {
	spec := layoutSpec{layers: [][]byte{tarball(t, item{name: "d/f", content: "content"}, item{name: "l", kind: '2', link: "d"}), tarball(t, item{name: "l/g", content: "through a link"})},
		config: map[string]any{"Cmd": []string{"true"}}}
	dir, _ := writeLayout(t, spec)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	push(t, dir, "v0", host(server)+"/some/image:12")
	tmp := t.TempDir()
	copyTo := func(to string) {
		t.Helper()
		testkit.Run(t, "skopeo", "--insecure-policy", "copy", "--quiet", "oci:"+dir+":v0", to)
	}
	copyTo("oci-archive:" + tmp + "/image.oci.tar:v0")
	copyTo("docker-archive:" + tmp + "/image.tar:registry.example/some/image:3")
	want := newRepo(t)
	first := want.publish("oci:"+dir+":v0", "local/image:1", publish.Options{})
	for _, row := range []struct {
		source, as   string
		sameManifest bool
	}{
		{"oci:" + dir + ":v0", "local/" + strings.ToLower(filepath.Base(dir)) + ":v0", true},
		{"oci:" + dir, "local/" + strings.ToLower(filepath.Base(dir)) + ":v0", true},
		{"docker://" + host(server) + "/some/image:12", host(server) + "/some/image:12", true},
		{"docker://" + host(server) + "/some/image@" + first.Manifest.String(), host(server) + "/some/image:" + strings.Replace(first.Manifest.String(), ":", "-", 1), true},
		{"docker://" + host(server) + "/some/image:12@" + first.Manifest.String(), host(server) + "/some/image:12", true},
		{"oci-archive:" + tmp + "/image.oci.tar:v0", "local/image:v0", true},
		{"oci-archive:" + tmp + "/image.oci.tar", "local/image:v0", true},
		{"docker-archive:" + tmp + "/image.tar", "registry.example/some/image:3", false},
		{"docker-archive:" + tmp + "/image.tar:registry.example/some/image:3", "registry.example/some/image:3", false},
	} {
		t.Run(row.source[:strings.Index(row.source, ":")]+" as "+row.as, func(t *testing.T) {
			r := newRepo(t)
			got := r.publish(row.source, "", publish.Options{})
			if got.Name != row.as {
				t.Errorf("name is %q, want %q", got.Name, row.as)
			}
			if row.sameManifest && got.Manifest != first.Manifest {
				t.Errorf("image manifest is %v, want %v", got.Manifest, first.Manifest)
			}
			for _, d := range testkit.Diff(r.walk(row.as), want.walk("local/image:1")) {
				t.Error(d)
			}
			r.verified()
		})
	}
}

func TestDebianRegistryIsRead(t *testing.T) {
	reg := testkit.StartRegistry(t)
	dir := testkit.Oddities(t, testkit.Zstd)
	ref := reg.Push(dir, "library/odd:1")
	r := newRepo(t)
	r.publish("docker://"+ref, "", publish.Options{Bare: true})
	compare(t, r, ref, dir)
}

func TestRegistryCredentialsComeFromDockerConfig(t *testing.T) {
	dir, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "f"})}})
	open := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	var locked atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if user, password, _ := req.BasicAuth(); locked.Load() && (user != "alice" || password != "secret") {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		open.ServeHTTP(w, req)
	}))
	defer server.Close()
	ref := host(server) + "/private/image:1"
	push(t, dir, "v0", ref)
	locked.Store(true)
	config := t.TempDir()
	t.Setenv("DOCKER_CONFIG", config)
	r := newRepo(t)
	_, err := r.Publish(t.Context(), source(t, "docker://"+ref), "", publish.Options{})
	if err == nil || !strings.Contains(err.Error(), "401") && !strings.Contains(strings.ToLower(err.Error()), "unauthorized") {
		t.Errorf("without credentials: %v", err)
	}
	auth, err := json.Marshal(map[string]any{"auths": map[string]any{host(server): map[string]any{"auth": base64.StdEncoding.EncodeToString([]byte("alice:secret"))}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(config, "config.json"), auth, 0o600); err != nil {
		t.Fatal(err)
	}
	r.publish("docker://"+ref, "", publish.Options{})
}

func TestBrokenDownloadsGoOnWhereTheyWere(t *testing.T) {
	content := make([]byte, 400_000)
	rand.NewChaCha8([32]byte{}).Read(content)
	dir, blobs := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "f", content: string(content)})}})
	for _, ranges := range []bool{true, false} {
		t.Run(fmt.Sprintf("ranges %t", ranges), func(t *testing.T) {
			inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
			var pushed atomic.Bool
			var asked, cut atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if !pushed.Load() || req.Method != http.MethodGet || !strings.Contains(req.URL.Path, blobs[0]) {
					inner.ServeHTTP(w, req)
					return
				}
				if asked.Add(1)%4 == 2 {
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				if !ranges {
					req.Header.Del("Range")
				}
				inner.ServeHTTP(&cutter{ResponseWriter: w, left: 40_000 * asked.Load(), cut: &cut}, req)
			}))
			defer server.Close()
			ref := host(server) + "/flaky/image:1"
			push(t, dir, "v0", ref)
			pushed.Store(true)
			r := newRepo(t)
			r.publish("docker://"+ref, "", publish.Options{Bare: true})
			if got := r.read(ref + "/f"); got != string(content) {
				t.Error("content differs")
			}
			if cut.Load() == 0 || asked.Load() < 2 {
				t.Errorf("%d requests, %d cut: nothing was tested", asked.Load(), cut.Load())
			}
		})
	}
}

// cutter breaks the connection after some bytes.
type cutter struct {
	http.ResponseWriter
	left int64
	cut  *atomic.Int64
}

func (c *cutter) Write(p []byte) (int, error) {
	if int64(len(p)) <= c.left {
		c.left -= int64(len(p))
		return c.ResponseWriter.Write(p)
	}
	c.cut.Add(1)
	c.ResponseWriter.Write(p[:c.left])
	panic(http.ErrAbortHandler)
}

func TestPlatforms(t *testing.T) {
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	dir, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "other"})}, os: "linux", arch: other},
		layoutSpec{layers: [][]byte{tarball(t, item{name: "host"})}}, layoutSpec{layers: [][]byte{tarball(t, item{name: "riscv"})}, os: "linux", arch: "riscv64"})
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	push(t, dir, "all", host(server)+"/multi/image:1")
	for _, src := range []string{"oci:" + dir + ":all", "docker://" + host(server) + "/multi/image:1"} {
		t.Run(src[:strings.Index(src, ":")], func(t *testing.T) {
			r := newRepo(t)
			r.publish(src, "local/host:1", publish.Options{})
			r.publish(src, "local/other:1", publish.Options{Platform: publish.Platform{OS: "linux", Arch: other}})
			results, err := r.Publish(t.Context(), source(t, src), "local/all:1", publish.Options{All: true})
			if err != nil || len(results) != 3 {
				t.Fatalf("%d results, %v", len(results), err)
			}
			for path, name := range map[string]string{"local/host:1": "host", "local/other:1": "other", "local/all:1": "host", "local/all:1@linux-" + other: "other",
				"local/all:1@linux-" + runtime.GOARCH: "host", "local/all:1@linux-riscv64": "riscv"} {
				r.resolve(path + "/" + name)
			}
			var pe *publish.PlatformError
			if _, err := r.Publish(t.Context(), source(t, src), "", publish.Options{Platform: publish.Platform{OS: "plan9", Arch: "mips"}}); !errors.As(err, &pe) || len(pe.Have) != 3 {
				t.Errorf("a platform there is not: %v", err)
			}
		})
	}
	r := newRepo(t)
	if _, err := r.Publish(t.Context(), source(t, "oci:"+dir+":v0"), "", publish.Options{Platform: publish.HostPlatform()}); err == nil {
		t.Error("a single image of another platform was taken for the one asked for")
	}
	r.publish("oci:"+dir+":v0", "local/other:1", publish.Options{})
}

func TestNames(t *testing.T) {
	for _, row := range []struct {
		name string
		good bool
	}{
		{"docker.io/library/debian:12", true}, {"localhost:5000/a:1", true}, {"local/x:latest", true}, {"r.example/a/b/c/d:v1.2-rc_3", true}, {"r/a:1@linux-arm64", true},
		{"debian", false}, {"debian:12", false}, {"r/a", false}, {"r/A:1", false}, {"/r/a:1", false}, {"r//a:1", false}, {"r/a:", false}, {"r/../a:1", false},
		{".flat/a:1", false}, {"r/.a:1", false}, {"r/a:1/b", false}, {"r/a:1:2", false}, {"r/a:" + strings.Repeat("t", 129), false}, {"r/a\n:1", false}, {"r/a:1@", false},
		{"r/" + strings.Repeat("a", 256) + ":1", false},
	} {
		if err := publish.CheckName(row.name); (err == nil) != row.good || err != nil && !errors.Is(err, publish.ErrName) {
			t.Errorf("%q: %v, want good %t", row.name, err, row.good)
		}
	}
}

func TestDirectoryIsPublishedAsItIs(t *testing.T) {
	testkit.NeedRoot(t)
	layout := testkit.Oddities(t, testkit.Gzip)
	root := testkit.Unpack(t, layout, "latest")
	if err := unix.Mknod(filepath.Join(root, "socket"), unix.S_IFSOCK|0o640, 0); err != nil {
		t.Fatal(err)
	}
	r := newRepo(t)
	r.publish("dir:"+root, "local/dir:1", publish.Options{Bare: true})
	for _, d := range testkit.Diff(r.walk("local/dir:1"), testkit.Walk(t, root)) {
		t.Error(d)
	}
	again := r.publish("dir:"+root, "local/dir:1", publish.Options{Bare: true})
	if again.Changed || again.NewObjects != 0 {
		t.Errorf("again: %+v, want no change", again)
	}
	r.verified()
}

// A registry that takes a connection and says nothing ends the publish in time.
func TestASilentRegistryIsGivenUp(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	r := newRepo(t)
	start := time.Now()
	_, err = r.Publish(t.Context(), source(t, "docker://"+silent.Addr().String()+"/library/a:1"), "", publish.Options{RegistryTimeout: 300 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), silent.Addr().String()) {
		t.Errorf("%v, want an error that names the registry", err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("given up after %v", took)
	}
}

// One platform asked for that isn't this machine's does not take the plain name from the one that is.
func TestAFurtherPlatformHasANameOfItsOwn(t *testing.T) {
	host := publish.HostPlatform()
	other := publish.Platform{OS: "linux", Arch: "arm64"}
	if host.Arch == other.Arch {
		other.Arch = "amd64"
	}
	dir := testkit.Platforms(t)
	r := newRepo(t)
	for _, row := range []struct {
		platform publish.Platform
		as, want string
	}{
		{publish.Platform{}, "", "local/" + filepath.Base(dir) + ":latest"},
		{other, "", "local/" + filepath.Base(dir) + ":latest@linux-" + other.Arch},
		{other, "local/mine:1", "local/mine:1"},
	} {
		if got := r.publish("oci:"+dir+":latest", row.as, publish.Options{Platform: row.platform}); got.Name != row.want {
			t.Errorf("platform %v as %q: name is %q, want %q", row.platform, row.as, got.Name, row.want)
		}
	}
}
