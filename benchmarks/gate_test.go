package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/skimfs/skimfs/internal/testkit"
)

var update = flag.Bool("update", false, "rewrite testdata/expected.json")

const expectedFile = "testdata/expected.json"

// tolerance is how far a figure may be from the recorded one, up or down: what became better is
// recorded as well, so that it stays.
const tolerance = 0.05

// compare returns a line for each figure that is missing, new, or too far away.
func compare(got, want map[string]float64) (lines []string) {
	names := map[string]bool{}
	for name := range got {
		names[name] = true
	}
	for name := range want {
		names[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		g, measured := got[name]
		w, recorded := want[name]
		switch {
		case !measured:
			lines = append(lines, fmt.Sprintf("%s: not measured, recorded %.4g", name, w))
		case !recorded:
			lines = append(lines, fmt.Sprintf("%s: %.4g, not recorded", name, g))
		case math.Abs(g-w) > tolerance*math.Abs(w):
			lines = append(lines, fmt.Sprintf("%s: %.4g, recorded %.4g", name, g, w))
		}
	}
	return lines
}

func TestComparisonAllowsFivePercent(t *testing.T) {
	want := map[string]float64{"a": 100, "zero": 0}
	for name, c := range map[string]struct {
		got   map[string]float64
		lines int
	}{
		"equal":                     {map[string]float64{"a": 100, "zero": 0}, 0},
		"5 % more":                  {map[string]float64{"a": 105, "zero": 0}, 0},
		"6 % more":                  {map[string]float64{"a": 106, "zero": 0}, 1},
		"6 % less":                  {map[string]float64{"a": 94, "zero": 0}, 1},
		"something beside nothing":  {map[string]float64{"a": 100, "zero": 1}, 1},
		"one is missing":            {map[string]float64{"a": 100}, 1},
		"one that was not recorded": {map[string]float64{"a": 100, "zero": 0, "b": 1}, 1},
	} {
		if got := compare(c.got, want); len(got) != c.lines {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

// TestNothingGotMoreExpensive holds what can be counted to recorded values; seconds are not among
// them. The image is of this package's making, the same on all machines; the demo's start, of
// Debian 12's python, is counted where the demo image is made of Debian.
func TestNothingGotMoreExpensive(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	got := map[string]float64{}
	debian := false
	if err := inScope(context.Background(), func(s *scope) {
		countFixed(s, got)
		demo := testkit.DemoImage(s)
		about, err := os.ReadFile(filepath.Join(demo, "about.env"))
		s.check(err)
		if debian = bytes.Contains(about, []byte(`title="debian 12`)); debian {
			countDemo(s, demo, got)
		}
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		t.Logf("%s: %.5g", name, got[name])
	}
	if *update {
		data, err := json.MarshalIndent(got, "", "\t")
		if err == nil {
			err = os.WriteFile(expectedFile, append(data, '\n'), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	want := map[string]float64{}
	if data, err := os.ReadFile(expectedFile); err != nil {
		t.Fatal(err)
	} else if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	if !debian {
		maps.DeleteFunc(want, func(name string, _ float64) bool { return strings.HasPrefix(name, "demo start") })
	}
	for _, line := range compare(got, want) {
		t.Error(line)
	}
	if t.Failed() {
		t.Log("hint: if that is meant: go test ./benchmarks -run TestNothingGotMoreExpensive -update, and say why in the commit")
	}
}

// gateDirs directories of gatePerDir files make the fixed image.
const gateDirs, gatePerDir = 100, 50

func gateLayer(w *tar.Writer) error {
	for d := range gateDirs {
		if err := addDir(w, fmt.Sprintf("d%03d/", d)); err != nil {
			return err
		}
		for f := range gatePerDir {
			content := fmt.Sprintf("%d %d ", d, f) + strings.Repeat("content\n", f*f)
			if err := addFile(w, fmt.Sprintf("d%03d/file%02d", d, f), int64(len(content)), strings.NewReader(content)); err != nil {
				return err
			}
		}
	}
	return nil
}

// countFixed counts on the fixed image: a listing, and reading every file one after the other, cold
// and from the node's cache.
func countFixed(s *scope, got map[string]float64) {
	const entries = gateDirs*(gatePerDir+1) + 1
	layout := writeLayout(s, []func(*tar.Writer) error{gateLayer})
	r := newRepository(s)
	r.publish(s, layout)
	stored, plain := catalogBytes(s, r.dir)
	got["catalogs: bytes per entry"] = plain / entries
	got["catalogs: stored bytes per entry"] = stored / entries

	n, source := startNode(s), testkit.StartNginx(s, r.dir).URL+"#"+imageName
	for _, st := range []state{cold, cached, cached, cached} {
		for _, name := range []string{"find", "cat"} {
			s.within(func(s *scope) {
				root := n.mountFor(s, r, source)
				n.meter(s)
				idle := n.meter(s)
				m := n.meter(s)
				own := m.since(idle) // what looking costs
				if name == "find" {
					find(s, nil, root)
				} else {
					cat(1)(s, nil, root)
				}
				used := n.meter(s).since(m)
				row := name + ", " + string(st) + ": "
				if st == cold && name == "cat" {
					got[row+"objects fetched per file"] = used.fetched / (gateDirs * gatePerDir)
					got[row+"bytes fetched per file"] = used.bytes / (gateDirs * gatePerDir)
					return // allocations depend on how requests meet
				}
				if st == cached {
					got[row+"objects fetched"] = used.fetched
					got[row+"FUSE requests per file"] = used.requests / entries
					// The daemon's housekeeping allocates now and then: the least is the requests' own.
					row += "allocations per FUSE request"
					if least, seen := got[row]; !seen || (used.allocations-own.allocations)/used.requests < least {
						got[row] = (used.allocations - own.allocations) / used.requests
					}
				}
			})
		}
	}
}

// countDemo counts what the demo's start asks for: mount, then python3 -c 'import json'.
func countDemo(s *scope, layout string, got map[string]float64) {
	r := newRepository(s)
	r.publish(s, layout)
	n, source := startNode(s), testkit.StartNginx(s, r.dir).URL+"#"+imageName
	before := n.meter(s)
	root := n.mountFor(s, r, source)
	mounted := n.meter(s)
	python("import json")(s, nil, root)
	used, start := n.meter(s).since(before), n.meter(s).since(mounted)
	got["demo start: requests over HTTP"] = used.fetched
	got["demo start: objects of files"] = start.objects
	got["demo start: bytes fetched"] = used.bytes
	got["demo start: FUSE requests per request over HTTP"] = start.requests / used.fetched
}

// catalogBytes adds up the catalogs of a repository, as stored and as used.
func catalogBytes(s *scope, dir string) (stored, plain float64) {
	decoder, err := zstd.NewReader(nil)
	s.check(err)
	defer decoder.Close()
	s.check(filepath.WalkDir(filepath.Join(dir, "objects"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		content, err := decoder.DecodeAll(data, nil)
		if bytes.HasPrefix(content, []byte("skimcat\n")) {
			stored, plain = stored+float64(len(data)), plain+float64(len(content))
		}
		return err
	}))
	return stored, plain
}

// mountFor mounts an image on the node, not through a proxy, until the end of the scope.
func (n *node) mountFor(s *scope, r *repository, source string) string {
	target := filepath.Join(n.home, "mnt")
	output(s, n.command(s.ctx, "mount", source, target, "-o", "pubkey="+filepath.Join(r.keys, repoName+".pub")))
	s.Cleanup(func() {
		if out, err := n.command(context.WithoutCancel(s.ctx), "umount", target).CombinedOutput(); err != nil {
			s.Errorf("skimfs umount: %w\n%s", err, out)
			unmount(target)
		}
	})
	return target
}

// meter is what a daemon has counted since its start.
type meter struct{ fetched, objects, bytes, requests, allocations float64 }

func (m meter) since(before meter) meter {
	return meter{m.fetched - before.fetched, m.objects - before.objects, m.bytes - before.bytes, m.requests - before.requests, m.allocations - before.allocations}
}

// meter reads the daemon's status and metrics. FORGET and INTERRUPT are left out: they come when the
// kernel likes.
func (n *node) meter(s *scope) (m meter) {
	var status struct {
		Socket string
		Fetch  struct {
			Requests, Bytes float64
			FileObjects     float64 `json:"file_objects"`
		}
	}
	s.check(json.Unmarshal(output(s, n.command(s.ctx, "status", "--json")), &status))
	m.fetched, m.bytes, m.objects = status.Fetch.Requests, status.Fetch.Bytes, status.Fetch.FileObjects
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", status.Socket)
	}}}
	response, err := client.Get("http://skimfs/metrics")
	s.check(err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	s.check(err)
	for line := range strings.Lines(string(text)) {
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || line[0] == '#' {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(line[at:]), 64)
		switch name := line[:at]; {
		case err != nil:
		case name == "go_memstats_mallocs_total":
			m.allocations = value
		case strings.HasPrefix(name, "skimfs_fuse_requests_total{") && !strings.Contains(name, `op="forget"`) && !strings.Contains(name, `op="interrupt"`):
			m.requests += value
		}
	}
	return m
}
