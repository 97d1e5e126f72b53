package publish_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/publish"
)

// folder is an origin that reads a repository's directory, with faults put in.
type folder struct {
	dir string

	mu     sync.Mutex
	asked  map[string]int
	total  int
	last   int                 // requests after which all fail; 0 for never
	change func(string) []byte // what is given for a path instead, nil for the file
}

var errGone = errors.New("the server is gone")

func (f *folder) FileChecked(ctx context.Context, path string, _ time.Duration, limit int64, _ bool, check func([]byte) error) ([]byte, error) {
	f.mu.Lock()
	if f.asked == nil {
		f.asked = map[string]int{}
	}
	f.asked[path]++
	f.total++
	gone := f.last > 0 && f.total > f.last
	change := f.change
	f.mu.Unlock()
	if gone || ctx.Err() != nil {
		return nil, errors.Join(errGone, ctx.Err())
	}
	var b []byte
	if change != nil {
		b = change(path)
	}
	if b == nil {
		var err error
		if b, err = os.ReadFile(filepath.Join(f.dir, path)); err != nil {
			return nil, err
		}
	}
	if int64(len(b)) > limit {
		return nil, errors.New("too long")
	}
	return b, check(b)
}

// objects is how many were asked for.
func (f *folder) objects() (n int) {
	for path, times := range f.asked {
		if strings.HasPrefix(path, "objects/") {
			n += times
		}
	}
	return n
}

// mirrored is a mirror of r.
type mirrored struct {
	t      *testing.T
	origin *folder
	of     *repo
	config publish.MirrorConfig
}

func newMirror(t *testing.T, of *repo) *mirrored {
	m := &mirrored{t: t, of: of, origin: &folder{dir: of.config().Dir}}
	m.config = publish.MirrorConfig{Dir: filepath.Join(t.TempDir(), "mirror"), Key: func(name string) (note.Verifier, error) {
		b, err := os.ReadFile(filepath.Join(of.config().Keys, name+".pub"))
		if err != nil {
			return nil, err
		}
		return index.ParseVerifier(string(b))
	}}
	return m
}

func (m *mirrored) run() (publish.MirrorReport, error) {
	m.origin.mu.Lock()
	m.origin.asked, m.origin.total = nil, 0
	m.origin.mu.Unlock()
	return publish.Mirror(m.t.Context(), m.origin, m.config, publish.Config{})
}

func (m *mirrored) ok() publish.MirrorReport {
	m.t.Helper()
	report, err := m.run()
	if err != nil {
		m.t.Fatal(err)
	}
	return report
}

// whole checks that the mirror's manifest, if it has one, needs nothing that is missing or wrong.
func (m *mirrored) whole() (revision uint64) {
	m.t.Helper()
	if _, err := os.Stat(filepath.Join(m.config.Dir, "manifest")); errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	r, err := publish.Open(publish.Config{Dir: m.config.Dir, Keys: m.of.config().Keys})
	if err != nil {
		m.t.Fatal(err)
	}
	report, err := r.Verify(m.t.Context())
	if err != nil || len(report.Damage) > 0 {
		m.t.Fatalf("the mirror at revision %d: %v, damage %+v", r.Manifest().Revision, err, report.Damage)
	}
	return r.Manifest().Revision
}

// twoImages publishes two images with files of their own and one that both have.
func twoImages(t *testing.T) *repo {
	r := newRepo(t)
	for i := range 2 {
		items := []item{{name: "shared", content: "in both images"}, {name: "big", content: strings.Repeat(fmt.Sprintf("%d and more ", i), 300_000)}}
		for f := range 12 {
			items = append(items, item{name: fmt.Sprintf("f%d", f), content: fmt.Sprintf("file %d of image %d", f, i)})
		}
		layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, items...)}})
		r.publish("oci:"+layout+":v0", fmt.Sprintf("local/image%d:1", i), publish.Options{})
	}
	return r
}

func TestMirrorP06CopiesOnceAndThenOnlyWhatIsNew(t *testing.T) {
	t.Parallel()
	r := twoImages(t)
	m := newMirror(t, r)
	first := m.ok()
	if m.whole() != 3 || !first.Changed || first.Images != 2 || first.New != int64(m.origin.objects()) || first.New != first.Objects {
		t.Errorf("first run: %+v, %d requests for objects", first, m.origin.objects())
	}
	for path, times := range m.origin.asked {
		if times > 1 {
			t.Errorf("%s was asked for %d times", path, times)
		}
	}
	if again := m.ok(); again.Changed || again.New != 0 || m.origin.objects() != 0 {
		t.Errorf("second run: %+v, %d requests for objects", again, m.origin.objects())
	}
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "shared", content: "in both images"}, item{name: "third", content: "3"})}})
	r.publish("oci:"+layout+":v0", "local/image2:1", publish.Options{Bare: true})
	if more := m.ok(); m.whole() != 4 || !more.Changed || more.Images != 3 || m.origin.asked[index.DigestOf([]byte("in both images")).ObjectPath()] != 0 {
		t.Errorf("after a publish: %+v", more)
	}
}

// The server goes away after each number of requests: the mirror stays whole, and the next run goes on.
func TestMirrorP06InterruptedStaysWholeAndGoesOn(t *testing.T) {
	t.Parallel()
	r := twoImages(t)
	m := newMirror(t, r)
	m.config.Jobs = 4
	copied := int64(0)
	for last := 1; ; last += 3 {
		m.origin.last = last
		report, err := m.run()
		copied += report.New
		if err == nil {
			break
		}
		if !errors.Is(err, errGone) {
			t.Fatal(err)
		}
		if n := m.whole(); n != 0 {
			t.Fatalf("a run that ended in %v left a manifest of revision %d", err, n)
		}
	}
	if m.whole() != 3 {
		t.Error("the mirror isn't complete")
	}
	fresh := newMirror(t, r)
	if want := fresh.ok(); copied != want.New {
		t.Errorf("%d objects copied in all runs, want %d", copied, want.New)
	}
}

func TestMirrorP06SomeImagesOnly(t *testing.T) {
	t.Parallel()
	r := twoImages(t)
	m := newMirror(t, r)
	m.config.Images = []string{"local/*1:1"}
	if report := m.ok(); report.Images != 1 || report.Skipped != 1 {
		t.Errorf("%+v, want 1 image and 1 skipped", report)
	}
	have := func(text string) bool {
		_, err := os.Stat(filepath.Join(m.config.Dir, index.DigestOf([]byte(text)).ObjectPath()))
		return err == nil
	}
	if !have("file 3 of image 1") || have("file 3 of image 0") {
		t.Error("the wrong image was copied")
	}
	m.config.Images = []string{"local/none:*"}
	var name *publish.NameError
	if _, err := m.run(); !errors.As(err, &name) {
		t.Errorf("a name that isn't there: %v", err)
	}
	m.config.Images = nil
	if m.ok(); m.whole() != 3 {
		t.Error("not complete after a run for all images")
	}
	// Back to one image, and tidy: what only the other one has goes.
	// A clock of whole seconds: what was written in this one counts as older, too.
	m.config.Images, m.config.GC, m.config.Grace = []string{"local/image1:1"}, true, -time.Minute
	report := m.ok()
	if report.Deleted.Objects == 0 || !have("file 3 of image 1") || have("file 3 of image 0") || !have("in both images") {
		t.Errorf("gc: %+v", report.Deleted)
	}
	m.config.Images = nil
	if m.ok(); m.whole() != 3 {
		t.Error("not complete after gc and a run for all images")
	}
}

func TestMirrorP06HealsWhatIsDamagedHere(t *testing.T) {
	t.Parallel()
	r := twoImages(t)
	m := newMirror(t, r)
	m.ok()
	path := filepath.Join(m.config.Dir, index.DigestOf([]byte("file 3 of image 1")).ObjectPath())
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-6] ^= 1
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	m.config.Check = true
	if report := m.ok(); report.New != 1 {
		t.Errorf("%d objects copied, want 1", report.New)
	}
	m.whole()
}

// S02, S04: a mirror accepts what a node would accept.
func TestMirrorP06RefusesWhatANodeWouldRefuse(t *testing.T) {
	t.Parallel()
	r := twoImages(t)
	read := func(path string) []byte {
		b, err := os.ReadFile(filepath.Join(r.config().Dir, path))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	other := newRepo(t)
	for _, row := range []struct {
		name   string
		change map[string][]byte
		want   error
	}{
		{"a manifest signed by another key", map[string][]byte{"manifest": mustRead(t, other.config().Dir, "manifest")}, index.ErrSignature},
		{"a whitelist of another master key", map[string][]byte{"whitelist": mustRead(t, other.config().Dir, "whitelist")}, index.ErrSignature},
		{"an older revision", map[string][]byte{"manifest": read("revisions/2")}, publish.ErrOlder},
		{"a truncated manifest", map[string][]byte{"manifest": read("manifest")[:80]}, index.ErrFormat},
		{"a huge manifest", map[string][]byte{"manifest": bytes.Repeat([]byte("x"), index.MaxNote+1)}, nil},
		{"a page of a captive portal", map[string][]byte{"manifest": []byte("<html>welcome</html>")}, index.ErrFormat},
		{"an object of something else", map[string][]byte{index.DigestOf([]byte("file 3 of image 1")).ObjectPath(): read(index.DigestOf([]byte("file 4 of image 1")).ObjectPath())}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := newMirror(t, r)
			if row.want == publish.ErrOlder {
				m.ok()
			}
			m.origin.change = func(path string) []byte { return row.change[path] }
			_, err := m.run()
			if err == nil || row.want != nil && !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
			if n := m.whole(); n != 0 && row.want != publish.ErrOlder {
				t.Errorf("the mirror has revision %d", n)
			}
		})
	}
}

func mustRead(t *testing.T, dir, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, path))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMirrorAndPublisherKeepApart(t *testing.T) {
	t.Parallel()
	r := twoImages(t)
	m := newMirror(t, r)
	m.ok()
	a, err := publish.Open(publish.Config{Dir: m.config.Dir, Keys: r.config().Keys})
	if err != nil {
		t.Fatal(err)
	}
	var mirror *publish.MirrorError
	if err := a.Remove(t.Context(), "local/image1:1"); !errors.As(err, &mirror) {
		t.Errorf("changing a mirror: %v", err)
	}
	m.config.Dir = r.config().Dir
	if _, err := m.run(); !errors.Is(err, publish.ErrNotMirror) {
		t.Errorf("mirroring into a publisher's directory: %v", err)
	}
}
