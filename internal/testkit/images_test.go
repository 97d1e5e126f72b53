package testkit_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
)

var compressions = []testkit.Compression{testkit.Gzip, testkit.Zstd}

func TestWhiteoutsLeaveWhatTheirNamesSay(t *testing.T) {
	testkit.NeedRoot(t)
	for _, c := range compressions {
		t.Run(string(c), func(t *testing.T) {
			tree := find(t, testkit.Unpack(t, testkit.Whiteouts(t, c), "latest"))
			for path := range tree {
				if base := filepath.Base(path); strings.HasPrefix(base, "gone") || strings.HasPrefix(base, ".wh.") {
					t.Errorf("%s is still there", path)
				}
			}
			for path, kind := range map[string]string{
				"plain/kept": "file", "opaque/new-same-name": "file", "opaque/new-dir/newer": "file", "opaque-late/new": "file",
				"emptied": "dir", "dir-to-file": "file", "file-to-dir/new": "file", "back-and-forth/new": "file",
				"dir-to-link": "symlink", "again/new": "file", "links/b": "file", "attributes/kept": "file", "deep/er/still/kept": "file",
			} {
				if got := tree[path].Type; got != kind {
					t.Errorf("%s is %q, want a %s", path, got, kind)
				}
			}
			if got := tree["links/d"].LinkedTo; got != "links/b" {
				t.Errorf("links/d is linked to %q, want links/b", got)
			}
			if got := tree["attributes"]; got.Mode != "1770" || got.UID != 12 || got.Mtime != "1500000000.000000005" {
				t.Errorf("attributes has those of the lower layer: %+v", got)
			}
		})
	}
}

func TestOdditiesSurviveUnpacking(t *testing.T) {
	testkit.NeedRoot(t)
	for _, c := range compressions {
		t.Run(string(c), func(t *testing.T) {
			tree := find(t, testkit.Unpack(t, testkit.Oddities(t, c), "latest"))
			for claim, ok := range map[string]bool{
				"three names, one file":         tree["links/other/three"].LinkedTo == "links/one" && tree["links/one"].Nlink == 3,
				"a link across layers":          tree["links/other/above"].LinkedTo == "links/above" && tree["links/below"].Nlink == 3,
				"a linked fifo":                 tree["links/fifo"].Type == "fifo" && tree["links/fifo"].Nlink == 2,
				"a linked symlink":              tree["links/symlink-too"].Type == "symlink" && tree["links/symlink"].Nlink == 2,
				"a replaced link is alone":      tree["links/split-a"].Nlink == 1 && tree["links/split-b"].Nlink == 1,
				"mode 0000":                     tree["modes/0000"].Mode == "0000",
				"setuid":                        tree["modes/setuid"].Mode == "4755",
				"sticky":                        tree["modes/sticky"].Mode == "1777",
				"a large device number":         tree["dev/large"].Device == "4095:1048575",
				"a block device":                tree["dev/block"].Type == "block" && tree["dev/block"].Device == "7:300",
				"large owners":                  tree["owners/large"].UID == 4_294_967_294,
				"nanoseconds":                   tree["times/ns"].Mtime == "1700000000.999999999",
				"before 1970":                   tree["times/before-1970"].Mtime == "-86400.000000000",
				"a capability":                  len(tree["xattrs/capability"].Xattrs["security.capability"]) == 20,
				"an xattr of the upper layer":   tree["xattrs/user"].Xattrs["user.above"] == "only",
				"a binary xattr":                tree["xattrs/binary"].Xattrs["user.binary"] == "\x00\xff\n=\x00",
				"a long xattr":                  len(tree["xattrs/long"].Xattrs["user."+strings.Repeat("n", 250)]) == 2000,
				"an ACL":                        len(tree["xattrs/acl"].Xattrs["system.posix_acl_access"]) == 44,
				"a name with a newline":         tree["names/new\nline"].Type == "file",
				"a name that is no UTF-8":       tree["names/\xff\xfe"].Type == "file",
				"a name of 255 bytes":           tree["names/"+strings.Repeat("n", 255)].Type == "file",
				"two forms of one letter":       tree["names/e\u0301"].Type == "file" && tree["names/\u00e9"].Type == "file",
				"an absolute symlinked parent":  tree["symlinks/real/by-absolute"].Type == "file",
				"a relative symlinked parent":   tree["symlinks/real/by-relative"].Type == "file",
				"a parent that leads outside":   tree["symlinks/real/by-outside"].Type == "file",
				"a symlink kept as it was":      tree["symlinks/absolute"].Target == "/symlinks/real",
				"a symlink of 4000 bytes":       tree["symlinks/long"].Size == 4000,
				"3 MiB of zeros":                tree["sizes/zeros"].Size == 3<<20,
				"equal content has equal hash":  tree["sizes/the-same-a"].SHA256 == tree["sizes/the-same-b"].SHA256,
				"sparse: the whole size":        tree["sparse/pax-0.0-many"].Size == 2<<20,
				"sparse: PAX 0.1":               tree["sparse/pax-0.1-many"].SHA256 == tree["sparse/pax-0.0-many"].SHA256,
				"sparse: PAX 1.0":               tree["sparse/pax-1.0-many"].SHA256 == tree["sparse/pax-0.0-many"].SHA256,
				"sparse: hole at start and end": tree["sparse/pax-1.0-ends"].Size == 4<<20,
				"sparse: nothing but a hole":    tree["sparse/pax-1.0-all"].SHA256 == tree["sizes/zeros"].SHA256,
			} {
				if !ok {
					t.Errorf("lost: %s", claim)
				}
			}
			if !slices.ContainsFunc(keys(tree), func(p string) bool { return len(p) > 2500 }) {
				t.Error("lost: a path of 2.5 kB")
			}
		})
	}
}

func TestGNUSparseHoldsTheSameFilesAsPAX(t *testing.T) {
	layout, root := testkit.GNUSparse(t, testkit.Gzip), t.TempDir()
	blobs, err := filepath.Glob(filepath.Join(layout, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, blob := range blobs {
		if data, err := os.ReadFile(blob); err == nil && strings.HasPrefix(string(data), "\x1f\x8b") {
			testkit.Run(t, "tar", "-C", root, "-xzf", blob)
		}
	}
	got, want := find(t, root), map[string]int64{"middle": 5 << 20, "ends": 4 << 20, "all": 3 << 20, "many": 2 << 20}
	for name, size := range want {
		if e := got["sparse/gnu-"+name]; e.Size != size {
			t.Errorf("sparse/gnu-%s has %d bytes, want %d", name, e.Size, size)
		}
	}
}

func TestEmptyImagesUnpackToARootAlone(t *testing.T) {
	testkit.NeedRoot(t)
	for name, layout := range map[string]string{
		"one empty layer": testkit.Empty(t, testkit.Gzip), "one empty zstd layer": testkit.Empty(t, testkit.Zstd), "no layer": testkit.NoLayers(t),
	} {
		t.Run(name, func(t *testing.T) {
			if tree := find(t, testkit.Unpack(t, layout, "latest")); len(tree) != 1 {
				t.Errorf("%d entries, want the root alone: %v", len(tree), keys(tree))
			}
		})
	}
}

func TestImagesAreTheSameEachTime(t *testing.T) {
	for name, make := range map[string]func(testing.TB, testkit.Compression) string{
		"whiteouts": testkit.Whiteouts, "oddities": testkit.Oddities, "gnu sparse": testkit.GNUSparse, "empty": testkit.Empty,
	} {
		for _, c := range compressions {
			first, second := readIndex(t, make(t, c)), readIndex(t, make(t, c))
			if first != second {
				t.Errorf("%s, %s: the digests differ:\n%s\n%s", name, c, first, second)
			}
		}
	}
}

func TestDemoImageRunsPython(t *testing.T) {
	testkit.NeedRoot(t)
	layout := testkit.DemoImage(t)
	root := testkit.Unpack(t, layout, "latest")
	program := "import json; print(json.dumps(1))"
	about, err := os.ReadFile(filepath.Join(layout, "about.env"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(about), "numpy=1") {
		program = "import json, numpy; print(json.dumps(int(numpy.arange(2).sum())))"
	}
	if got := testkit.Run(t, "chroot", root, "python3", "-c", program); got != "1\n" {
		t.Errorf("python3 in the image printed %q, want 1", got)
	}
	tree := find(t, root)
	if got := tree["usr/local/bin/hello"]; got.Nlink != 3 {
		t.Errorf("usr/local/bin/hello has %d links, want 3", got.Nlink)
	}
	if _, there := tree["etc/dpkg/dpkg.cfg.d/99mmdebstrap"]; there {
		t.Error("the tidying layer's whiteouts do nothing")
	}
	if n := len(tree); n < 1000 {
		t.Errorf("the image has %d entries", n)
	}
}

func find(t *testing.T, root string) map[string]testkit.Entry {
	t.Helper()
	tree := map[string]testkit.Entry{}
	for _, e := range testkit.Walk(t, root) {
		tree[e.Path] = e
	}
	return tree
}

func keys(tree map[string]testkit.Entry) []string {
	var paths []string
	for path := range tree {
		paths = append(paths, path)
	}
	return paths
}

func readIndex(t *testing.T, layout string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
