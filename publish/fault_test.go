package publish_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/publish"
)

// childVariable turns the test binary into a publisher: repository, keys, source and name, separated by newlines.
const childVariable = "SKIMFS_PUBLISH_TEST_CHILD"

func TestMain(m *testing.M) {
	if args := strings.Split(os.Getenv(childVariable), "\n"); len(args) == 4 {
		if err := publishAsChild(args[0], args[1], args[2], args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func publishAsChild(dir, keys, src, as string) error {
	r, err := publish.Open(publish.Config{Dir: dir, Keys: keys})
	if err != nil {
		return err
	}
	s, err := publish.ParseSource(src)
	if err != nil {
		return err
	}
	_, err = r.Publish(context.Background(), s, as, publish.Options{})
	return err
}

func (r *repo) child(src, as string) *exec.Cmd {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVariable+"="+strings.Join([]string{r.dir, r.keys, src, as}, "\n"))
	cmd.Stderr = os.Stderr
	return cmd
}

// busyImage is a layout of two layers with many small and some large files that no other seed has.
func busyImage(t *testing.T, seed byte) string {
	t.Helper()
	random := rand.NewChaCha8([32]byte{seed})
	noise := func(n uint64) string {
		b := make([]byte, n)
		random.Read(b)
		return string(b)
	}
	var layers [][]byte
	for l := range 2 {
		var items []item
		for i := range 60 {
			items = append(items, item{name: fmt.Sprintf("layer%d/dir%d/file%d", l, i%7, i), content: noise(100 + random.Uint64()%4000)})
		}
		items = append(items, item{name: fmt.Sprintf("layer%d/large", l), content: noise(2<<20 + 7)})
		layers = append(layers, tarball(t, items...))
	}
	dir, _ := writeLayout(t, layoutSpec{layers: layers})
	return dir
}

func TestKilledPublishLeavesTheOldRevisionWhole(t *testing.T) {
	before, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "old", content: "from before"})}})
	// How long one takes that is left alone.
	usual := time.Hour
	for i := range byte(2) {
		layout, r := busyImage(t, i), newRepo(t)
		start := time.Now()
		if err := r.child("oci:"+layout, "local/busy:1").Run(); err != nil {
			t.Fatal(err)
		}
		usual = min(usual, time.Since(start))
	}
	killed := 0
	for seed := range byte(20) {
		layout, r := busyImage(t, seed+2), newRepo(t)
		r.publish("oci:"+before, "local/before:1", publish.Options{})
		old := r.Manifest()
		after := time.Duration(rand.New(rand.NewPCG(uint64(seed), 2)).Float64() * float64(usual))
		cmd := r.child("oci:"+layout, "local/busy:1")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(after, func() { cmd.Process.Signal(syscall.SIGKILL) })
		err := cmd.Wait()
		timer.Stop()
		r.verified()
		now := r.Manifest()
		t.Logf("seed %d: %v after %v; revision %d before, %d now, %d objects", seed, err, after, old.Revision, now.Revision, len(r.objects()))
		if err != nil {
			killed++
		}
		if now.Revision < old.Revision || now.Revision == old.Revision && now.Root != old.Root {
			t.Errorf("seed %d: revision %d with root %v became %d with %v", seed, old.Revision, old.Root, now.Revision, now.Root)
		}
		if got := r.read("local/before:1/old"); got != "from before" {
			t.Errorf("seed %d: old image reads %q", seed, got)
		}
		r.publish("oci:"+layout, "local/busy:1", publish.Options{})
		r.verified()
		for path := range r.objects() {
			if !strings.HasSuffix(path, ".zst") {
				t.Errorf("seed %d: %s is left over", seed, path)
			}
		}
	}
	if killed < 5 {
		t.Errorf("only %d of 20 publishes were killed before their end", killed)
	}
}

// What readers find while images are published is whole at any moment.
func TestReadersNeverSeeHalfARevision(t *testing.T) {
	r := newRepo(t)
	stop, seen := make(chan struct{}), make(chan error, 1)
	revisions := map[uint64]bool{}
	go func() {
		var last []byte
		for {
			text, err := os.ReadFile(filepath.Join(r.dir, "manifest"))
			if err == nil && !bytes.Equal(text, last) {
				err = checkRevision(r, text, revisions)
				last = text
			}
			if err != nil {
				seen <- err
				return
			}
			select {
			case <-stop:
				seen <- nil
				return
			default:
			}
		}
	}()
	for seed := range byte(3) {
		if err := r.child("oci:"+busyImage(t, seed), fmt.Sprintf("local/busy:%d", seed)).Run(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-seen; err != nil {
		t.Error(err)
	}
	if len(revisions) < 2 {
		t.Errorf("the reader saw %d revisions", len(revisions))
	}
}

// checkRevision reads a repository as a client that has just found the manifest text.
func checkRevision(r *repo, text []byte, revisions map[uint64]bool) error {
	w := r.Whitelist()
	m, err := index.OpenManifest(text, repoName, &w)
	if err != nil {
		return err
	}
	revisions[m.Revision] = true
	if kept, err := os.ReadFile(filepath.Join(r.dir, "revisions", fmt.Sprint(m.Revision))); err != nil || !bytes.Equal(kept, text) {
		return fmt.Errorf("revision %d is not kept: %w", m.Revision, err)
	}
	now, err := publish.Open(r.config())
	if err != nil {
		return err
	}
	report, err := now.Verify(context.Background())
	if err == nil && len(report.Damage) > 0 {
		err = fmt.Errorf("revision %d: %+v", m.Revision, report.Damage)
	}
	return err
}

// A machine that loses power may leave objects of the right length with wrong bytes.
func TestObjectsOfAnUnsyncedPublishAreChecked(t *testing.T) {
	noise := make([]byte, 5000)
	rand.NewChaCha8([32]byte{}).Read(noise)
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "f", content: string(noise)})}})
	for claim, harm := range map[string]func(object []byte){
		"zeros":         func(object []byte) { clear(object) },
		"a flipped bit": func(object []byte) { object[len(object)/2] ^= 1 }, // the frame is as it should be
	} {
		t.Run(claim, func(t *testing.T) {
			r := newRepo(t)
			r.publish("oci:"+layout, "local/a:1", publish.Options{})
			path := filepath.Join(r.dir, index.DigestOf(noise).ObjectPath())
			object, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			harm(object)
			for name, b := range map[string][]byte{path: object, filepath.Join(r.dir, ".publish", "writing"): nil} {
				if err := os.WriteFile(name, b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := r.publish("oci:"+layout, "local/a:1", publish.Options{}); got.LayersRead != 1 {
				t.Errorf("read %d layers, want 1", got.LayersRead)
			}
			r.verified()
		})
	}
}

func TestDamagedSourcesAreRefused(t *testing.T) {
	layer := tarball(t, item{name: "f", content: strings.Repeat("some content ", 5000)}, item{name: "g", content: "more"})
	for _, row := range []struct {
		claim  string
		spec   layoutSpec
		harm   func(b []byte) []byte // of the layer's blob
		digest bool                  // the error is a DigestError
		text   string
	}{
		{claim: "a flipped bit in a blob", spec: layoutSpec{layers: [][]byte{layer}}, harm: func(b []byte) []byte { b[len(b)/2] ^= 4; return b }, digest: true},
		{claim: "a flipped bit in the blob's header", spec: layoutSpec{layers: [][]byte{layer}}, harm: func(b []byte) []byte { b[0] ^= 1; return b }, digest: true},
		{claim: "bytes behind a blob", spec: layoutSpec{layers: [][]byte{layer}}, harm: func(b []byte) []byte { return append(b, 0, 0, 0) }, digest: true},
		{claim: "a truncated blob", spec: layoutSpec{layers: [][]byte{layer}}, harm: func(b []byte) []byte { return b[:len(b)/2] }, digest: true},
		{claim: "another diff_id", spec: layoutSpec{layers: [][]byte{layer}, diffIDs: []string{sum([]byte("another"))}}, digest: true},
		{claim: "too few diff_ids", spec: layoutSpec{layers: [][]byte{layer, layer}, diffIDs: []string{sum(layer)}}, text: "1 diff_ids for 2 layers"},
		{claim: "a truncated archive", spec: layoutSpec{layers: [][]byte{layer[:1024]}}, text: "unexpected EOF"},
		{claim: "a hard link to nothing", spec: layoutSpec{layers: [][]byte{tarball(t, item{name: "l", kind: '1', link: "nothing"})}}, text: "doesn't exist"},
		{claim: "a hard link to a directory", spec: layoutSpec{layers: [][]byte{tarball(t, item{name: "d", kind: '5'}, item{name: "l", kind: '1', link: "d"})}}, text: "a directory"},
		{claim: "a file as a parent", spec: layoutSpec{layers: [][]byte{tarball(t, item{name: "f"}, item{name: "f/g"})}}, text: "not a directory"},
		{claim: "a symlink for a root", spec: layoutSpec{layers: [][]byte{tarball(t, item{name: "./", kind: '2', link: "/etc"})}}, text: "root must be a directory"},
		{claim: "a loop of symlinks as a parent", spec: layoutSpec{layers: [][]byte{tarball(t, item{name: "a", kind: '2', link: "b"}, item{name: "b", kind: '2', link: "a"}, item{name: "a/f"})}}, text: "too many symlinks"},
		{claim: "a whiteout of the parent", spec: layoutSpec{layers: [][]byte{tarball(t, item{name: "d/.wh..."})}}, text: "whiteout without a name"},
		{claim: "a name of 256 bytes", spec: layoutSpec{layers: [][]byte{tarball(t, item{name: strings.Repeat("n", 256)})}}, text: "longer than 255"},
	} {
		t.Run(row.claim, func(t *testing.T) {
			r := newRepo(t)
			layout, blobs := writeLayout(t, row.spec)
			if row.harm != nil {
				path := blobName(layout, blobs[0])
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, row.harm(b), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			_, err := r.Publish(t.Context(), source(t, "oci:"+layout), "local/a:1", publish.Options{})
			var de *index.DigestError
			if err == nil || errors.As(err, &de) != row.digest || !strings.Contains(err.Error(), row.text) {
				t.Errorf("publish: %v; want a digest error %t, text %q", err, row.digest, row.text)
			}
			r.open()
			if got := r.Manifest().Revision; got != 1 {
				t.Errorf("revision is %d, want 1", got)
			}
		})
	}
}

func TestCeilingsHold(t *testing.T) {
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "a", content: strings.Repeat("x", 1000)}, item{name: "b", content: strings.Repeat("y", 1000)})}})
	for _, limits := range []publish.Limits{{Bytes: 1999}, {Entries: 1}} {
		r := newRepo(t)
		_, err := r.Publish(t.Context(), source(t, "oci:"+layout), "", publish.Options{Bare: true, Limits: limits})
		var le *publish.LimitError
		if !errors.As(err, &le) {
			t.Errorf("%+v: %v, want a LimitError", limits, err)
		}
	}
	r := newRepo(t)
	r.publish("oci:"+layout, "", publish.Options{Bare: true, Limits: publish.Limits{Bytes: 2000, Entries: 2}})
}

func TestNothingLeadsOutOfTheRoot(t *testing.T) {
	r := newRepo(t)
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "../../up", content: "1"}, item{name: "/abs", content: "2"},
		item{name: "out", kind: '2', link: "../../.."}, item{name: "out/through", content: "3"}, item{name: "./a/../../b", content: "4"})}})
	r.publish("oci:"+layout, "local/a:1", publish.Options{Bare: true})
	for path, want := range map[string]string{"up": "1", "abs": "2", "through": "3", "b": "4"} {
		if got := r.read("local/a:1/" + path); got != want {
			t.Errorf("%s holds %q, want %q", path, got, want)
		}
	}
}
