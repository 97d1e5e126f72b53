package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/publish"
)

// exposed returns what the node's daemon exposes.
func (n *node) exposed() string {
	n.t.Helper()
	var b strings.Builder
	if err := n.client().Metrics(n.t.Context(), &b); err != nil {
		n.t.Fatal(err)
	}
	return b.String()
}

func TestMetricsOfAllPackagesAreExposed(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image())
	n.read(filepath.Join(target, "big"))
	got := n.exposed()
	procs := runtime.GOMAXPROCS(0)
	if os.Getenv("GOMAXPROCS") == "" {
		procs += spareProcs
	}
	for _, want := range []string{
		"skimfs_fetch_requests_total ", `skimfs_cache_hits_total{tier="memory"} `, `skimfs_fuse_requests_total{op="lookup",mount="1"} `, "skimfs_mounts_total 1\n",
		"skimfs_mounted 1\n", `skimfs_control_requests_total{request="POST /v1/mounts",error="none"} 1`, "go_goroutines ",
		fmt.Sprintf("go_gomaxprocs %d\n", procs),
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in /metrics", want)
		}
	}
	if strings.Contains(got, n.home) {
		t.Error("a metric has a path in it")
	}
}

// listed is a metric as docs/metrics.md lists it.
type listed struct {
	kind   string
	marked bool                       // exposed only after it happened
	labels map[string]map[string]bool // the values of each label; true if that value may lack
}

const (
	aNumber   = "a number"   // instead of a label's values
	anAddress = "an address" // of a configured proxy or server
)

var address = regexp.MustCompile(`^(DIRECT|[a-z0-9.-]+:[0-9]+|[a-z0-9.-]+)$`)

// listedMetrics reads the tables of docs/metrics.md that come before the section on publish, and those after it.
func listedMetrics(t *testing.T) (daemon, publisher map[string]listed) {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	before, after, ok := strings.Cut(string(page), "\n## publish")
	if !ok {
		t.Fatal("docs/metrics.md has no section on publish")
	}
	return metricTable(t, before), metricTable(t, after)
}

var metricRow = regexp.MustCompile("^\\| `([a-z_]+)`( †)? \\| (counter|gauge|histogram) \\| ?(.*?) ?\\| [^|]+ \\|$")

func metricTable(t *testing.T, text string) map[string]listed {
	t.Helper()
	all := map[string]listed{}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		m := metricRow.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			t.Errorf("a row unlike the others: %s", line)
			continue
		}
		if _, ok := all[m[1]]; ok {
			t.Errorf("%s is listed twice", m[1])
		}
		l := listed{m[3], m[2] != "", map[string]map[string]bool{}}
		for label := range strings.SplitSeq(m[4], "; ") {
			if name, values, ok := strings.Cut(label, ": "); ok {
				may := map[string]bool{}
				always, later, _ := strings.Cut(values, "† ")
				for v := range strings.SplitSeq(always, ",") {
					may[strings.TrimSpace(v)] = false
				}
				for v := range strings.SplitSeq(later, ",") {
					may[strings.TrimSpace(v)] = true
				}
				delete(may, "")
				l.labels[strings.Trim(name, "`")] = may
			} else if label != "" {
				t.Errorf("%s: a label without values: %q", m[1], label)
			}
		}
		all[m[1]] = l
	}
	return all
}

var (
	series = regexp.MustCompile(`^([a-z_]+)(?:\{(.*)\})? \S+$`)
	pair   = regexp.MustCompile(`([a-z]+)="([^"]*)"`)
)

// comparePage holds a table equal to what is exposed.
func comparePage(t *testing.T, table map[string]listed, exposed string) {
	t.Helper()
	seen := map[string]map[string]map[string]bool{} // metric, label, values
	for line := range strings.Lines(exposed) {
		if !strings.HasPrefix(line, "skimfs_") {
			if !strings.HasPrefix(line, "go_") && !strings.HasPrefix(line, "process_") {
				t.Errorf("exposed, and of no group that the page names: %s", line)
			}
			continue
		}
		m := series.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			t.Fatalf("not a series: %s", line)
		}
		name, kind := m[1], "gauge"
		if strings.HasSuffix(name, "_total") {
			kind = "counter"
		}
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(name, suffix); ok {
				name, kind = base, "histogram"
			}
		}
		l, ok := table[name]
		if !ok {
			if seen[name] == nil {
				t.Errorf("%s is exposed and not listed", name)
			}
			seen[name] = map[string]map[string]bool{}
			continue
		}
		if l.kind != kind {
			t.Errorf("%s is listed as a %s and exposed as a %s", name, l.kind, kind)
		}
		if seen[name] == nil {
			seen[name] = map[string]map[string]bool{}
		}
		var labels []string
		for _, p := range pair.FindAllStringSubmatch(m[2], -1) {
			label, value := p[1], p[2]
			if (label == "vmrange" || label == "le") && kind == "histogram" {
				continue
			}
			labels = append(labels, label)
			if seen[name][label] == nil {
				seen[name][label] = map[string]bool{}
			}
			if _, numbered := l.labels[label][aNumber]; numbered {
				if _, err := strconv.ParseUint(value, 10, 64); err == nil {
					value = aNumber
				}
			}
			if _, addressed := l.labels[label][anAddress]; addressed && address.MatchString(value) {
				value = anAddress
			}
			if _, ok := l.labels[label][value]; !ok && !seen[name][label][value] {
				t.Errorf("%s: %s=%q is exposed and not listed", name, label, value)
			}
			seen[name][label][value] = true
		}
		for label := range l.labels {
			if !slices.Contains(labels, label) {
				t.Errorf("label %s is listed and not in %s", label, line)
			}
		}
	}
	for name, l := range table {
		if seen[name] == nil {
			if !l.marked {
				t.Errorf("%s is listed and not exposed", name)
			}
			continue
		}
		for label, values := range l.labels {
			for value, may := range values {
				if !may && !seen[name][label][value] {
					t.Errorf("%s: %s=%q is listed and not exposed", name, label, value)
				}
			}
		}
	}
}

func TestTheMetricsPageListsWhatADaemonExposes(t *testing.T) {
	t.Parallel()
	daemon, publisher := listedMetrics(t)
	if len(daemon) < 20 || len(publisher) == 0 {
		t.Fatalf("docs/metrics.md lists %d metrics of the daemon and %d of the publisher", len(daemon), len(publisher))
	}
	t.Run("publisher", func(t *testing.T) {
		var b strings.Builder
		publish.Metrics.WritePrometheus(&b)
		comparePage(t, publisher, b.String())
	})
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image())
	n.read(filepath.Join(target, "big"))
	n.ok("ls", s.image(), "/")
	n.ok("cat", s.image(), "/etc/motd")
	n.ok("stat", s.image(), "/etc/motd")
	n.ok("cache", "limit", "set", "3GB")
	n.status()
	n.exposed() // so that it counts itself
	t.Run("in use", func(t *testing.T) { comparePage(t, daemon, n.exposed()) })
	// Faults show what is marked.
	s.Close()
	for _, args := range [][]string{{"mount", "unknown.example.org/a", n.target("x")}, {"mount", s.URL + "#none", n.target("x")}, {"umount", target}} {
		n.run(args...)
	}
	t.Run("after faults", func(t *testing.T) {
		got := n.exposed()
		for _, want := range []string{"skimfs_fetch_errors_total{", `request="DELETE /v1/mounts",error="none"`} {
			if !strings.Contains(got, want) {
				t.Errorf("no %s in /metrics: nothing to compare", want)
			}
		}
		left := map[string]listed{} // the mount's series ended with it
		for name, l := range daemon {
			if _, ok := l.labels["mount"]; !ok {
				left[name] = l
			}
		}
		comparePage(t, left, got)
	})
}
