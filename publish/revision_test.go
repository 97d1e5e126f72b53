package publish_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/publish"
)

func TestSecondPublishReadsNoLayer(t *testing.T) {
	r := newRepo(t)
	shared := tarball(t, item{name: "shared", content: "in both images"})
	layout, blobs := writeLayout(t, layoutSpec{layers: [][]byte{shared, tarball(t, item{name: "one", content: "1"})}},
		layoutSpec{layers: [][]byte{shared, tarball(t, item{name: "two", content: "2"})}})
	first := r.publish("oci:"+layout+":v0", "local/one:1", publish.Options{})
	if first.LayersRead != 2 || !first.Changed {
		t.Errorf("first publish read %d layers, changed %t; want 2, true", first.LayersRead, first.Changed)
	}
	// Whoever opens a blob of the first image now fails.
	for _, b := range blobs {
		if err := os.Remove(blobName(layout, b)); err != nil {
			t.Fatal(err)
		}
	}
	again := r.publish("oci:"+layout+":v0", "local/one:1", publish.Options{})
	if again.LayersRead != 0 || again.NewObjects != 0 || again.Changed || again.Revision != first.Revision {
		t.Errorf("second publish: %+v; want no layer read, no object, no revision", again)
	}
	other := r.publish("oci:"+layout+":v1", "local/two:1", publish.Options{})
	if other.LayersRead != 1 {
		t.Errorf("image that shares a layer: read %d layers, want 1", other.LayersRead)
	}
	r.verified()
}

func TestLayerIsReadAgainIfAnObjectIsLost(t *testing.T) {
	for name, harm := range map[string]func(path string) error{
		"removed":   os.Remove,
		"truncated": func(path string) error { return os.Truncate(path, 7) },
		"emptied":   func(path string) error { return os.Truncate(path, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "f", content: "content of a file that gets lost"})}})
			r.publish("oci:"+layout, "local/a:1", publish.Options{})
			lost := filepath.Join(r.dir, index.DigestOf([]byte("content of a file that gets lost")).ObjectPath())
			if err := harm(lost); err != nil {
				t.Fatal(err)
			}
			if got := r.publish("oci:"+layout, "local/a:1", publish.Options{}); got.LayersRead != 1 {
				t.Errorf("read %d layers, want 1", got.LayersRead)
			}
			r.verified()
		})
	}
}

func TestEqualImagesGiveEqualCatalogs(t *testing.T) {
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "a/b", content: "x"}, item{name: "c", kind: '1', link: "a/b"})}})
	var roots []index.Digest
	for range 2 {
		r := newRepo(t)
		roots = append(roots, r.publish("oci:"+layout, "local/a:1", publish.Options{}).Root)
	}
	if roots[0] != roots[1] {
		t.Errorf("roots %v and %v differ", roots[0], roots[1])
	}
}

func TestEqualContentIsOneObject(t *testing.T) {
	r := newRepo(t)
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{
		tarball(t, item{name: "a", content: "the same"}, item{name: "b", content: "the same"}, item{name: "empty"}, item{name: "zeros", content: strings.Repeat("\x00", 3<<20)}),
		tarball(t, item{name: "c", content: "the same"})}})
	if got := r.publish("oci:"+layout, "local/a:1", publish.Options{Bare: true}); got.Objects != 1 || got.Files != 5 {
		t.Errorf("%d objects for %d files, want 1 for 5", got.Objects, got.Files)
	}
}

// number returns the number of a directory or link in the name tree, or an image's slot.
func (r *repo) number(path string) uint32 {
	r.t.Helper()
	f, err := r.view().Resolve(r.t.Context(), path, false)
	if err != nil {
		r.t.Fatal(err)
	}
	if f.Slot != 0 {
		return f.Slot
	}
	return f.Num
}

func TestNumbersAreNeverUsedAgain(t *testing.T) {
	r := newRepo(t)
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "v0"})}}, layoutSpec{layers: [][]byte{tarball(t, item{name: "v1"})}})
	used := map[uint32]string{}
	fresh := func(path string) uint32 {
		t.Helper()
		n := r.number(path)
		if before, ok := used[n]; ok {
			t.Errorf("number %d of %q was %s", n, path, before)
		}
		if next := r.Manifest().Next; n >= next {
			t.Errorf("number %d of %q is not below next, %d", n, path, next)
		}
		used[n] = fmt.Sprintf("%q in revision %d", path, r.Manifest().Revision)
		return n
	}
	v0 := r.publish("oci:"+layout+":v0", "reg.example/a/b:1", publish.Options{})
	dir := fresh("reg.example/a")
	for _, path := range []string{"", "reg.example", "reg.example/a/b:1", ".flat", v0.Flat[:len(".flat/xx")], v0.Flat} {
		fresh(path)
	}
	// Another target: the link is new, the directory is not.
	v1 := r.publish("oci:"+layout+":v1", "reg.example/a/b:1", publish.Options{})
	fresh("reg.example/a/b:1")
	fresh(v1.Flat)
	if n := r.number("reg.example/a"); n != dir {
		t.Errorf("directory changed its number from %d to %d", dir, n)
	}
	if r.number(v0.Flat) != v0.Slot {
		t.Errorf("the former image left its slot %d", v0.Slot)
	}
	// Gone and back.
	if err := r.Remove(t.Context(), "reg.example/a/b:1"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.view().Resolve(t.Context(), "reg.example", false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the registry after its last name is gone: %v", err)
	}
	if n := r.number(v1.Flat); n != v1.Slot {
		t.Errorf("what runs from an image lost its place with the name: slot %d, was %d", n, v1.Slot)
	}
	later := time.Now().Add(60 * 24 * time.Hour)
	publish.SetClock(r.Repo, func() time.Time { return later })
	if _, err := r.GC(t.Context(), 100*24*time.Hour, false); err != nil {
		t.Fatal(err)
	}
	if _, err := r.view().Resolve(t.Context(), v1.Flat, false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the image after GC: %v", err)
	}
	back := r.publish("oci:"+layout+":v1", "reg.example/a/b:1", publish.Options{})
	for _, path := range []string{"reg.example", "reg.example/a", "reg.example/a/b:1", back.Flat} {
		fresh(path)
	}
	if back.Root != v1.Root || back.Slot == v1.Slot {
		t.Errorf("back with root %v in slot %d, was %v in %d", back.Root, back.Slot, v1.Root, v1.Slot)
	}
	r.verified()
}

func TestBareAndFurnishedImagesLieSideBySide(t *testing.T) {
	r := newRepo(t)
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "f"})}})
	full := r.publish("oci:"+layout, "local/full:1", publish.Options{})
	bare := r.publish("oci:"+layout, "local/bare:1", publish.Options{Bare: true})
	if bare.Flat != full.Flat+"-bare" || bare.Slot == full.Slot || bare.Entries != 1 || full.Entries < 30 {
		t.Errorf("bare %+v\nfull %+v", bare, full)
	}
	target := r.read("local/bare:1/f")
	if target != "" {
		t.Errorf("f holds %q", target)
	}
}

func TestRemoveRefusesWhatIsNotThere(t *testing.T) {
	r := newRepo(t)
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "f"})}})
	r.publish("oci:"+layout, "local/a:1", publish.Options{})
	revision := r.Manifest().Revision
	var missing *publish.NameError
	if err := r.Remove(t.Context(), "local/a:1", "local/b:1"); !errors.As(err, &missing) || missing.Name != "local/b:1" {
		t.Errorf("removing a missing name: %v", err)
	}
	r.open()
	if r.Manifest().Revision != revision {
		t.Errorf("revision is %d, want %d", r.Manifest().Revision, revision)
	}
}

func TestCreateReusesKeysAndOverwritesNothing(t *testing.T) {
	r := newRepo(t)
	if _, _, err := publish.Create(t.Context(), r.config(), repoName); !errors.Is(err, publish.ErrExists) {
		t.Errorf("creating twice: %v", err)
	}
	before, err := os.ReadFile(filepath.Join(r.keys, repoName+".key"))
	if err != nil {
		t.Fatal(err)
	}
	c := r.config()
	c.Dir = filepath.Join(t.TempDir(), "second")
	if _, reused, err := publish.Create(t.Context(), c, repoName); err != nil || !reused {
		t.Errorf("second repository of the name: reused %t, %v", reused, err)
	}
	after, err := os.ReadFile(filepath.Join(r.keys, repoName+".key"))
	if err != nil || string(before) != string(after) {
		t.Errorf("the key changed, %v", err)
	}
	for path, mode := range map[string]os.FileMode{"master": 0o700 | os.ModeDir, "master/" + repoName + ".masterkey": 0o600, repoName + ".key": 0o600, repoName + ".pub": 0o644} {
		if st, err := os.Stat(filepath.Join(r.keys, path)); err != nil || st.Mode() != mode {
			t.Errorf("%s: %v, %v; want %v", path, st, err, mode)
		}
	}
}

func TestWhitelistIsRenewedWithTheMasterKeyAndMissedWithout(t *testing.T) {
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "f"})}})
	day := 24 * time.Hour
	for _, row := range []struct {
		claim   string
		later   time.Duration
		master  bool
		renewed bool
		warning bool
		refused bool
	}{
		{claim: "an hour later nothing happens", later: time.Hour, master: true},
		{claim: "two days later it is renewed", later: 2 * day, master: true, renewed: true},
		{claim: "an expired one is renewed", later: 40 * day, master: true, renewed: true},
		{claim: "without the master key it stays", later: 2 * day},
		{claim: "without the master key there is a warning in the last week", later: 24 * day, warning: true},
		{claim: "without the master key an expired one ends it", later: 31 * day, refused: true},
	} {
		t.Run(row.claim, func(t *testing.T) {
			r := newRepo(t)
			if !row.master {
				if err := os.RemoveAll(filepath.Join(r.keys, "master")); err != nil {
					t.Fatal(err)
				}
			}
			signed := r.Whitelist().Time
			publish.SetClock(r.Repo, func() time.Time { return signed.Add(row.later) })
			_, err := r.Publish(t.Context(), source(t, "oci:"+layout), "", publish.Options{})
			var we *publish.WhitelistError
			if refused := errors.As(err, &we) && errors.Is(err, index.ErrExpired); refused != row.refused || !refused && err != nil {
				t.Errorf("publish: %v, want refused %t", err, row.refused)
			}
			if renewed := r.Whitelist().Time.After(signed); renewed != row.renewed {
				t.Errorf("renewed %t, want %t", renewed, row.renewed)
			}
			if warned := strings.Contains(r.log.String(), "whitelist ends soon"); warned != row.warning {
				t.Errorf("warned %t, want %t: %s", warned, row.warning, r.log.String())
			}
		})
	}
}

func TestKeyThatTheWhitelistDoesNotListCannotPublish(t *testing.T) {
	r := newRepo(t)
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "f"})}})
	secret, _, err := index.GenerateKey(repoName)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.keys, repoName+".key"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	var we *publish.WhitelistError
	if _, err := r.Publish(t.Context(), source(t, "oci:"+layout), "", publish.Options{}); !errors.As(err, &we) || !errors.Is(err, index.ErrSignature) {
		t.Errorf("publishing with another key: %v", err)
	}
	if err := r.SignWhitelist(t.Context(), publish.WhitelistChange{}); err != nil {
		t.Fatal(err)
	}
	r.publish("oci:"+layout, "", publish.Options{})
	r.verified()
}

func TestVerifyNamesEachBadObject(t *testing.T) {
	r := newRepo(t)
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "missing", content: "missing content"}, item{name: "flipped", content: "flipped content"},
		item{name: "short", content: "short content"}, item{name: "swapped", content: "swapped content"}, item{name: "good", content: "good content"})}})
	r.publish("oci:"+layout, "local/a:1", publish.Options{})
	path := func(word string) string { return index.DigestOf([]byte(word + " content")).ObjectPath() }
	object := func(word string) string { return filepath.Join(r.dir, path(word)) }
	flipped, err := os.ReadFile(object("flipped"))
	if err != nil {
		t.Fatal(err)
	}
	flipped[len(flipped)-1] ^= 1
	good, err := os.ReadFile(object("good"))
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.Remove(object("missing")), os.WriteFile(object("flipped"), flipped, 0o644), os.Truncate(object("short"), 10),
		os.WriteFile(object("swapped"), good, 0o644)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r.open()
	report, err := r.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string]bool{}
	for _, d := range report.Damage {
		bad[d.Object] = true
		if d.Reason == "" || !strings.Contains(d.Needed, ".flat/") {
			t.Errorf("%+v names no reason or nothing that needs it", d)
		}
	}
	for _, word := range []string{"missing", "flipped", "short", "swapped"} {
		if !bad[path(word)] {
			t.Errorf("%s object is not reported", word)
		}
	}
	if len(bad) != 4 {
		t.Errorf("%d objects reported, want 4: %v", len(bad), report.Damage)
	}
}

func TestVerifyNamesABadCatalog(t *testing.T) {
	r := newRepo(t)
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "f", content: "x"})}})
	got := r.publish("oci:"+layout, "local/a:1", publish.Options{})
	if err := os.Remove(filepath.Join(r.dir, got.Root.ObjectPath())); err != nil {
		t.Fatal(err)
	}
	report, err := r.Verify(t.Context())
	if err != nil || len(report.Damage) != 1 || report.Damage[0].Object != got.Root.ObjectPath() || report.Damage[0].Reason != "missing" {
		t.Errorf("%+v, %v", report.Damage, err)
	}
}

func TestGCKeepsWhatIsNeeded(t *testing.T) {
	r := newRepo(t)
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "old", content: "only in the old image"}, item{name: "both", content: "in both"})}},
		layoutSpec{layers: [][]byte{tarball(t, item{name: "new", content: "only in the new image"}, item{name: "both", content: "in both"})}})
	old := r.publish("oci:"+layout+":v0", "local/a:1", publish.Options{})
	r.publish("oci:"+layout+":v1", "local/a:1", publish.Options{})
	exists := func(content string) bool {
		_, err := os.Stat(filepath.Join(r.dir, index.DigestOf([]byte(content)).ObjectPath()))
		return err == nil
	}
	start := r.Manifest().Time
	gc := func(after time.Duration, dry bool) publish.GCReport {
		t.Helper()
		publish.SetClock(r.Repo, func() time.Time { return start.Add(after) })
		report, err := r.GC(t.Context(), time.Hour, dry)
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	if got := gc(24*time.Hour, false); got.Objects != 0 || got.Images != 0 || got.Revisions != 0 {
		t.Errorf("within the retention time: %+v, want nothing deleted", got)
	}
	dry := gc(60*24*time.Hour, true)
	if got := dry; got.Images != 1 || got.Objects == 0 || !exists("only in the old image") {
		t.Errorf("dry run: %+v, old content still there %t", got, exists("only in the old image"))
	}
	got := gc(60*24*time.Hour, false)
	if got.Objects < dry.Objects || got.Objects > dry.Objects+2 { // the catalogs above the image change as well
		t.Errorf("%d objects deleted, a dry run said %d", got.Objects, dry.Objects)
	}
	if got.Images != 1 || got.Revisions == 0 || exists("only in the old image") || !exists("in both") || !exists("only in the new image") {
		t.Errorf("after the retention time: %+v", got)
	}
	if _, err := r.view().Resolve(t.Context(), old.Flat, false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old image is still shown: %v", err)
	}
	r.verified()
	// What went away comes back when it is published again.
	publish.SetClock(r.Repo, func() time.Time { return start.Add(60 * 24 * time.Hour) })
	back := r.publish("oci:"+layout+":v0", "local/b:1", publish.Options{})
	if back.LayersRead != 1 || !exists("only in the old image") {
		t.Errorf("publishing the old image again: %+v", back)
	}
	r.verified()
}

// What was current until yesterday is what nodes have mounted, however long ago it was published.
func TestRetentionBeginsWhenARevisionIsReplaced(t *testing.T) {
	r := newRepo(t)
	layout, _ := writeLayout(t, layoutSpec{layers: [][]byte{tarball(t, item{name: "old", content: "only in the old image"})}},
		layoutSpec{layers: [][]byte{tarball(t, item{name: "new", content: "only in the new image"})}})
	start, day := time.Now(), 24*time.Hour
	at := func(days int) {
		publish.SetClock(r.Repo, func() time.Time { return start.Add(time.Duration(days) * day).UTC().Truncate(time.Second) })
	}
	old := filepath.Join(r.dir, index.DigestOf([]byte("only in the old image")).ObjectPath())
	publishAt := func(days int, from string) {
		t.Helper()
		at(days)
		if _, err := r.Publish(t.Context(), source(t, from), "local/a:1", publish.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	publishAt(0, "oci:"+layout+":v0")
	publishAt(40, "oci:"+layout+":v1")
	for _, row := range []struct {
		day  int
		kept bool
	}{{41, true}, {69, true}, {71, false}, {72, false}} {
		at(row.day)
		if _, err := r.GC(t.Context(), time.Hour, false); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(old); (err == nil) != row.kept {
			t.Errorf("day %d: %v, want it kept %t", row.day, err, row.kept)
		}
	}
	r.verified()
}
