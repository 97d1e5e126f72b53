package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"bazil.org/fuse"
)

func TestStats(t *testing.T) {
	for name, c := range map[string]struct {
		values           []float64
		median, min, max float64
	}{
		"an odd number has a middle":              {[]float64{3, 1, 2}, 2, 1, 3},
		"an even number has the mean of two":      {[]float64{4, 1, 3, 2}, 2.5, 1, 4},
		"one value is all three":                  {[]float64{7}, 7, 7, 7},
		"the median does not follow one far away": {[]float64{1, 1, 1000}, 1, 1, 1000},
	} {
		if got := statsOf(c.values); got.median != c.median || got.min != c.min || got.max != c.max || got.n != len(c.values) {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if got := statsOf(nil); !math.IsNaN(got.median) || got.n != 0 {
		t.Errorf("no values: got %+v", got)
	}
}

func TestScopeUndoesInReverse(t *testing.T) {
	var did []string
	cause := errors.New("cause")
	var dir string
	err := inScope(context.Background(), func(s *scope) {
		dir = s.TempDir()
		s.Cleanup(func() { did = append(did, "first") })
		s.Cleanup(func() { did = append(did, "second"); s.Error("not undone") })
		s.within(func(s *scope) {
			s.Cleanup(func() { did = append(did, "inner") })
			s.Fatal(cause)
		})
		did = append(did, "went on")
	})
	if want := []string{"inner", "second", "first"}; !slices.Equal(did, want) {
		t.Errorf("got %q, want %q", did, want)
	}
	if !errors.Is(err, cause) || !strings.Contains(err.Error(), "not undone") {
		t.Errorf("got error %v, want both", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary directory stays: %v", err)
	}
}

func TestAStoppedScopeSaysSoAndCleansUp(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	cleaned := false
	err := inScope(ctx, func(s *scope) {
		s.Cleanup(func() { cleaned = true })
		stop()
		run(s, "true")
		t.Error("a program was run after the stop")
	})
	if !cleaned || !onlyStopped(err) {
		t.Errorf("cleaned %v, error %v", cleaned, err)
	}
}

func TestLimitHoldsTheTree(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	for name, content := range map[string]string{"a": "alpha", "empty": "", "d/b": "beta"} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("a", filepath.Join(root, "link")), os.Link(filepath.Join(root, "a"), filepath.Join(root, "d", "again"))); err != nil {
		t.Fatal(err)
	}
	tree, pack := filepath.Join(dir, "tree"), filepath.Join(dir, "pack")
	if err := packTree(root, tree, pack); err != nil {
		t.Fatal(err)
	}
	l, err := loadLimit(tree, pack)
	if err != nil {
		t.Fatal(err)
	}
	find := func(path string) *limitNode {
		id := fuse.NodeID(1)
		for part := range strings.SplitSeq(path, "/") {
			var ok bool
			if id, ok = l.entries[entryKey{id, part}]; !ok {
				t.Fatalf("%s is missing", path)
			}
		}
		return &l.nodes[id-1]
	}
	for path, want := range map[string]string{"a": "alpha", "empty": "", "d/b": "beta", "d/again": "alpha"} {
		if n := find(path); string(l.pack[n.Offset:n.Offset+n.Size]) != want {
			t.Errorf("%s: got %q, want %q", path, l.pack[n.Offset:n.Offset+n.Size], want)
		}
	}
	if got := find("link").Target; got != "a" {
		t.Errorf("link: got %q", got)
	}
	if got := len(l.pack); got != len("alphabeta") {
		t.Errorf("the pack has %d bytes: a hard link's content is there twice", got)
	}
	if !bytes.Contains(l.listings[0], []byte("empty")) {
		t.Error("the root's listing lacks a name")
	}
}

func TestLayoutUnpacks(t *testing.T) {
	err := inScope(context.Background(), func(s *scope) {
		layout := writeLayout(s, []func(*tar.Writer) error{
			func(w *tar.Writer) error {
				return errors.Join(addDir(w, "d/"), addFile(w, "d/f", 5, strings.NewReader("below")))
			},
			func(w *tar.Writer) error { return addFile(w, "d/f", 5, strings.NewReader("above")) },
		})
		data, err := os.ReadFile(filepath.Join(unpack(s, layout), "d", "f"))
		if string(data) != "above" {
			t.Errorf("got %q, %v", data, err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOnlyChooses(t *testing.T) {
	for name, c := range map[string]struct {
		only string
		want bool
	}{
		"nothing said means all":       {"", true},
		"a row":                        {"find", true},
		"another row":                  {"^demo/cat", false},
		"a contestant of another name": {"/native$", true},
		"another image":                {"^big/", false},
	} {
		o := options{only: regexp.MustCompile(c.only)}
		if got := o.wantedImage("demo", []work{{name: "find", states: []state{cached}}}); got != c.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestReportNamesWhatMisses(t *testing.T) {
	r := &results{Samples: []sample{
		{Image: "many", Row: "mount", State: cached, Contestant: "skimfs", Seconds: 0.5},
		{Image: "many", Row: "mount", State: cold, Contestant: "skimfs", Seconds: 0.1},
		{Image: "many", Row: "find", State: hot, Contestant: "skimfs", Seconds: 0.2},
		{Image: "many", Row: "find", State: hot, Contestant: "native", Seconds: 0.1},
	}}
	var out bytes.Buffer
	r.markdown(&out)
	for _, want := range []string{
		"| mount, 100 k files, catalog cached | ≤ 0.02 s | 0.5 s | **missed** |",
		"| mount, 100 k files, cold through squid | ≤ 0.25 s | 0.1 s | held |",
		"| hot ÷ native: many, find | ≤ 1.05 × | 2 × | **missed** |",
	} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("the report lacks %q:\n%s", want, &out)
		}
	}
	if data, err := r.png(); err != nil {
		t.Error(err)
	} else if drawn, err := png.Decode(bytes.NewReader(data)); err != nil || drawn.Bounds().Dx() < 600 {
		t.Errorf("the drawing: %v, %v", drawn, err)
	}
}

func TestFiguresAreReplacedWhereThePageSays(t *testing.T) {
	figuresBegin, figuresEnd := figuresLines("figures")
	page := "words\n" + figuresBegin + "old\n" + figuresEnd + "more words\n"
	for name, c := range map[string]struct{ page, want string }{
		"a page with lines for figures": {page, "words\n" + figuresBegin + "\nnew\n\n" + figuresEnd + "more words\n"},
		"a page without":                {"words\n", "new\n"},
		"an end without a beginning":    {figuresEnd, "new\n"},
		"no page":                       {"", "new\n"},
	} {
		if got := string(insertFigures([]byte(c.page), []byte("new\n"), "figures")); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}
