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
	_, rows, _ := strings.Cut(string(page), "## Options")
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
	if n < 30 {
		t.Errorf("only %d names found on the page", n)
	}
}
