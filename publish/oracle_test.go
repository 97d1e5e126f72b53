package publish_test

import (
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publish"
)

// exceptions lists each way in which a published image may differ from what umoci unpacks, with its reason.
var exceptions = []struct {
	reason string
	match  func(d testkit.Difference) bool
}{
	{"a directory without an entry in any layer: umoci gives it the time of unpacking, we the image's creation time", func(d testkit.Difference) bool {
		return d.Field == "mtime" && implicit[d.Path]
	}},
}

// implicit are directories of testkit's images that have no entry in any layer.
var implicit = map[string]bool{}

func compare(t *testing.T, r *repo, name, layout string) {
	t.Helper()
	want := testkit.Walk(t, testkit.Unpack(t, layout, "latest"))
differences:
	for _, d := range testkit.Diff(r.walk(name), want) {
		for _, e := range exceptions {
			if e.match(d) {
				t.Logf("%v: %s", d, e.reason)
				continue differences
			}
		}
		t.Error(d)
	}
}

func TestImagesEqualWhatUmociUnpacks(t *testing.T) {
	testkit.NeedRoot(t)
	for name, layout := range map[string]func(t testing.TB, c testkit.Compression) string{
		"whiteouts": testkit.Whiteouts, "oddities": testkit.Oddities, "empty": testkit.Empty,
	} {
		for _, c := range []testkit.Compression{testkit.Gzip, testkit.Zstd} {
			t.Run(name+" "+string(c), func(t *testing.T) {
				t.Parallel()
				r, dir := newRepo(t), layout(t, c)
				r.publish("oci:"+dir, "local/"+name+":1", publish.Options{Bare: true})
				r.verified()
				compare(t, r, "local/"+name+":1", dir)
			})
		}
	}
}

func TestDemoImageEqualsWhatUmociUnpacks(t *testing.T) {
	testkit.NeedRoot(t)
	if testing.Short() {
		t.Skip("converts and unpacks 260 MB")
	}
	r, dir := newRepo(t), testkit.DemoImage(t)
	r.publish("oci:"+dir, "local/demo:1", publish.Options{Bare: true})
	compare(t, r, "local/demo:1", dir)
}
