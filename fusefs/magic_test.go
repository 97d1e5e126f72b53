package fusefs_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/fusefs"
	"github.com/skimfs/skimfs/index"
)

// N18: attributes of files that no image has.
func TestN18MagicXattrsOfFiles(t *testing.T) {
	z := newZoo(t)
	c, _ := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog), MagicNames: func() []string { return []string{"user.skimfs.pid"} }})
	seen := 0
	for _, e := range list(t, c, fusefs.RootID, 4096)[2:] {
		f := find(t, c, fusefs.RootID, e.name)
		get := func(name string) string {
			v, err := c.Getxattr(f.Node, "user.skimfs."+name)
			if err != nil {
				return "none"
			}
			return string(v)
		}
		if !f.IsRegular() {
			if got := get("hash") + get("chunks") + get("chunk_list"); got != "nonenonenone" {
				t.Errorf("%s of mode %#o has %q", e.name, f.Mode, got)
			}
			continue
		}
		seen++
		lines := strings.Fields(get("chunk_list"))
		if get("chunks") != strconv.Itoa(len(lines)) || get("chunk_list~?") != "1" || get("chunk_list~0") != get("chunk_list") || get("chunk_list~1") != "none" || get("chunk_list~x") != "none" {
			t.Errorf("%s: chunks %s, list %q", e.name, get("chunks"), lines)
		}
		if f.Size == 0 && get("hash") != index.DigestOf(nil).String() {
			t.Errorf("%s is empty and has hash %s", e.name, get("hash"))
		}
		if len(lines) == 1 && strings.HasSuffix(lines[0], ",0,"+strconv.FormatInt(f.Size, 10)) && !strings.HasPrefix(lines[0], get("hash")+",") {
			t.Errorf("%s has hash %s and chunk %s", e.name, get("hash"), lines[0])
		}
		names, err := c.Listxattr(f.Node, nil)
		if err != nil || strings.Contains(string(names), "skimfs") {
			t.Errorf("%s lists %q, %v", e.name, names, err)
		}
	}
	if seen == 0 {
		t.Fatal("no file was looked at")
	}
	if names, err := c.Listxattr(fusefs.RootID, nil); err != nil || !strings.Contains(string(names), "user.skimfs.pid\x00") {
		t.Errorf("the root lists %q, %v", names, err)
	}
	if _, err := c.Getxattr(fusefs.RootID, "user.skimfs.nothing"); err == nil || errors.Is(err, errBroken) {
		t.Errorf("an unknown one: %v", err)
	}
	r := newRepository(t)
	repo, _ := r.newCore(t, fusefs.Config{Tree: r.tree(t, r.names)})
	file := walk(t, repo, fusefs.RootID, ".flat/ab/0123/bin/sh")
	if v, err := repo.Getxattr(file.Node, "user.skimfs.image"); err != nil || string(v) != r.refs[0].Catalog.Digest.String() {
		t.Errorf("a file of an image is of image %q, %v", v, err)
	}
}
