package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestTheApiPageListsEachRequest holds docs/api.md equal to the table of handlers.
func TestTheApiPageListsEachRequest(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "api.md"))
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(filepath.Join("..", "..", "mountd", "control.go"))
	if err != nil {
		t.Fatal(err)
	}
	list := func(text, pattern string) (out []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			out = append(out, m[1])
		}
		slices.Sort(out)
		return out
	}
	want := list(string(source), `"([A-Z]+ /[a-z0-9/]+)": d\.`)
	got := list(string(page), "(?m)^\\| `([A-Z]+ /[a-z0-9/]+)")
	if len(want) < 10 || !slices.Equal(got, want) {
		t.Errorf("docs/api.md lists %q, the daemon answers %q", got, want)
	}
}

// talkCommands are those of cvmfs_talk 2.12.
var talkCommands = []string{
	"tracebuffer flush", "cache instance", "cache size", "cache limit get", "cache limit set", "cache list", "cache list pinned", "cache list catalogs", "cleanup", "cleanup rate",
	"evict", "pin", "mountpoint", "device id", "remount", "remount sync", "chroot", "detach nested catalogs", "revision", "max ttl info", "max ttl set", "nameserver get",
	"nameserver set", "host info", "host probe", "host probe geo", "host switch", "host set", "proxy info", "proxy rebalance", "proxy group switch", "proxy set",
	"proxy fallback", "external host …", "external proxy …", "timeout info", "timeout set", "open catalogs", "internal affairs", "latency", "reset error counters", "pid",
	"pid cachemgr", "pid watchdog", "parameters", "hotpatch history", "vfs inodes", "vfs entries", "version", "tear down to read-only", "send mount fd",
}

// TestWhatFromCvmfsNamesExists checks that each command and option that docs/from-cvmfs.md names is one of ours.
func TestWhatFromCvmfsNamesExists(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "from-cvmfs.md"))
	if err != nil {
		t.Fatal(err)
	}
	root, n := rootCommand("skimfs"), 0
	for _, m := range regexp.MustCompile("`skimfs ([a-z ]+)").FindAllStringSubmatch(string(page), -1) {
		words := strings.Fields(m[1])
		cmd, rest, err := root.Find(words)
		if err != nil || cmd == root || cmd.HasSubCommands() && len(rest) > 0 {
			t.Errorf("no command `skimfs %s`: %v", m[1], err)
		}
		n++
	}
	metricsPage, err := os.ReadFile(filepath.Join("..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`skimfs_[a-z_]+`).FindAllString(string(page), -1) {
		if !strings.Contains(string(metricsPage), "`"+name+"`") {
			t.Errorf("no metric %s", name)
		}
		n++
	}
	_, talk, _ := strings.Cut(string(page), "## cvmfs_talk")
	talk, rows, _ := strings.Cut(talk, "## Options")
	for _, command := range talkCommands {
		if !strings.Contains(talk, "`"+command+"`") {
			t.Errorf("the page says nothing of cvmfs_talk %s", command)
		}
	}
	for _, m := range regexp.MustCompile(`[,`+"`"+`]([a-z_]+)=`).FindAllStringSubmatch(talk, -1) {
		if _, ok := findOption(m[1]); !ok {
			t.Errorf("no option %q", m[1])
		}
		n++
	}
	rows, _, _ = strings.Cut(rows, "## At")
	for line := range strings.Lines(rows) {
		cells := strings.Split(line, " | ")
		if len(cells) != 2 || !strings.HasPrefix(line, "| `CVMFS") {
			continue
		}
		for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(cells[1], -1) {
			if _, ok := findOption(m[1]); !ok {
				t.Errorf("no option %q", m[1])
			}
			n++
		}
	}
	if n < 60 {
		t.Errorf("only %d names found on the page", n)
	}
}
