package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
)

// exceptions are all the ways in which a mounted image may differ from what umoci unpacks, each with its reason.
var exceptions = []struct {
	reason string
	holds  func(d testkit.Difference, got, want map[string]testkit.Entry) bool
}{
	{"furniture: mount points and .singularity.d are added for the runtimes where the image lacks them", func(d testkit.Difference, _, _ map[string]testkit.Entry) bool {
		return d.Field == "unexpected" && isFurniture(d.Path)
	}},
	{"a directory that furniture was added to has another link count", func(d testkit.Difference, got, want map[string]testkit.Entry) bool {
		return d.Field == "nlink" && got[d.Path].Type == "dir" && subdirs(got, d.Path) != subdirs(want, d.Path)
	}},
}

func isException(d testkit.Difference, got, want map[string]testkit.Entry) bool {
	for _, x := range exceptions {
		if x.holds(d, got, want) {
			return true
		}
	}
	return false
}

func isFurniture(path string) bool {
	top, _, _ := strings.Cut(path, "/")
	switch top {
	case ".singularity.d", ".run", ".exec", ".shell", ".test", "singularity", "environment":
		return true
	}
	return slices.Contains([]string{
		"proc", "sys", "dev", "tmp", "var", "var/tmp", "run", "home", "root", "mnt", "srv", "opt", "etc", "etc/hosts", "etc/resolv.conf",
		"etc/hostname", "etc/passwd", "etc/group", "etc/mtab", "run/.containerenv",
	}, path)
}

func subdirs(tree map[string]testkit.Entry, dir string) int {
	n, prefix := 0, dir+"/"
	if dir == "." {
		prefix = ""
	}
	for path, e := range tree {
		rest, below := strings.CutPrefix(path, prefix)
		if below && e.Type == "dir" && path != "." && !strings.Contains(rest, "/") {
			n++
		}
	}
	return n
}

func byPath(entries []testkit.Entry) map[string]testkit.Entry {
	m := make(map[string]testkit.Entry, len(entries))
	for _, e := range entries {
		m[e.Path] = e
	}
	return m
}

// checkOracle compares a mounted root with umoci's unpacking of the same image, entry by entry.
func checkOracle(t *testing.T, mounted, unpacked string, bare bool) {
	t.Helper()
	got, want := testkit.Walk(t, mounted), testkit.Walk(t, unpacked)
	g, w := byPath(got), byPath(want)
	bad := 0
	for _, d := range testkit.Diff(got, want) {
		if !bare && isException(d, g, w) {
			continue
		}
		if bad++; bad <= 20 {
			t.Errorf("%v", d)
		}
	}
	if bad > 20 {
		t.Errorf("and %d more", bad-20)
	}
	checkInodes(t, got)
	if len(want) == 0 || len(got) < len(want) {
		t.Errorf("%d entries mounted, %d unpacked", len(got), len(want))
	}
}

// checkInodes wants the inodes of an image mounted by itself: different ones of 32 bits.
func checkInodes(t *testing.T, got []testkit.Entry) {
	t.Helper()
	seen := map[uint64]string{}
	for _, e := range got {
		if first, dup := seen[e.Inode]; dup && e.LinkedTo != first {
			t.Errorf("%s and %s share inode %d and are no hard links", e.Path, first, e.Inode)
		} else if !dup {
			seen[e.Inode] = e.Path
		}
		if e.Inode == 0 || e.Inode >= 1<<32 {
			t.Errorf("%s has inode %d, want 32 bits above 0", e.Path, e.Inode)
		}
	}
}

// TestOracle: a mounted image is what umoci unpacks, to the last bit that a file system can tell.
func TestOracle(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	t.Parallel()
	whiteouts, oddities := testkit.Whiteouts(t, testkit.Gzip), testkit.Oddities(t, testkit.Gzip)
	cases := []struct {
		name, layout string
		bare         bool
	}{
		{"whiteouts", whiteouts, true},
		{"whiteouts-zstd", testkit.Whiteouts(t, testkit.Zstd), false},
		{"oddities", oddities, true},
		{"oddities-zstd", testkit.Oddities(t, testkit.Zstd), false},
		{"empty", testkit.Empty(t, testkit.Gzip), true},
		{"no-layers", testkit.NoLayers(t), true},
		{"demo", testkit.DemoImage(t), false},
	}
	var images []image
	for _, c := range cases {
		img := image{source: "oci:" + c.layout + ":latest", as: "local/" + c.name + ":latest"}
		if c.bare {
			img.flags = []string{"--bare"}
		}
		images = append(images, img)
	}
	repo := publish(t, images...)
	origin := testkit.StartNginx(t, repo.dir)
	n := newNode(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			mounted := n.mount(t, repo, origin.URL, "local/"+c.name+":latest", "")
			checkOracle(t, mounted, testkit.Unpack(t, c.layout, "latest"), c.bare)
			n.umount(t, mounted)
		})
	}
}
