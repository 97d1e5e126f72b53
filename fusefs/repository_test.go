package fusefs_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/skimfs/skimfs/fusefs"
)

func TestRepositoryNumbersAndTimes(t *testing.T) {
	r := newRepository(t)
	c, _ := r.newCore(t, fusefs.Config{Tree: r.tree(t, r.names), TTL: 7 * time.Second})
	if !c.Repository() {
		t.Fatal("not seen as a repository")
	}
	for _, test := range []struct {
		claim, path  string
		id           fusefs.NodeID
		entry, attrs time.Duration
	}{
		{"a directory of the name tree", "registry.test", 2, 7 * time.Second, 7 * time.Second},
		{"one in a nested catalog", ".flat/ab", 4, 7 * time.Second, 7 * time.Second},
		{"an image", ".flat/ab/0123", fusefs.Node(10, 1), 7 * time.Second, fusefs.Forever},
		{"the other image", ".flat/ab/4567", fusefs.Node(11, 1), 7 * time.Second, fusefs.Forever},
		{"inside an image", ".flat/ab/0123/bin", fusefs.Node(10, 2), fusefs.Forever, fusefs.Forever},
		{"an absent image", ".flat/ab/89", 0, 7 * time.Second, 0},
		{"an absent file of an image", ".flat/ab/0123/bin/nope", 0, fusefs.Forever, 0},
	} {
		t.Run(test.claim, func(t *testing.T) {
			e := find(t, c, fusefs.RootID, test.path)
			if e.Node != test.id || e.EntryValid != test.entry || e.Valid != test.attrs {
				t.Errorf("node %v valid %v/%v, want %v %v/%v", e.Node, e.EntryValid, e.Valid, test.id, test.entry, test.attrs)
			}
		})
	}
	if e := walk(t, c, fusefs.RootID, "registry.test/app:1"); e.EntryValid != 7*time.Second || !e.IsSymlink() {
		t.Errorf("a symlink is %+v", e)
	}
	for ttl, want := range map[time.Duration]time.Duration{3 * time.Second: 3 * time.Second, time.Hour: time.Minute, 0: time.Minute} {
		c.SetTTL(ttl)
		if e := walk(t, c, fusefs.RootID, "registry.test/app:1"); e.EntryValid != want {
			t.Errorf("with a TTL of %v a name holds for %v, want %v", ttl, e.EntryValid, want)
		}
	}
	for i, path := range []string{".flat/ab/0123", ".flat/ab/4567"} {
		root := walk(t, c, fusefs.RootID, path)
		buf := make([]byte, 64)
		n, err := c.ReadWait(context.Background(), walk(t, c, root.Node, "bin/sh").Node, 0, buf)
		if want := "shell " + string(rune('0'+i)) + "\n"; err != nil || string(buf[:n]) != want {
			t.Errorf("%s/bin/sh has %q (%v), want %q", path, buf[:n], err, want)
		}
		if v, err := c.Getxattr(root.Node, "user.which"); err != nil || string(v) != string(rune('0'+i)) {
			t.Errorf("%s has xattr %q (%v)", path, v, err)
		}
		if e := list(t, c, root.Node, 4096); e[0].id != root.Node || e[1].id != 4 {
			t.Errorf("%s lists . and .. as %v and %v, want %v and 4", path, e[0].id, e[1].id, root.Node)
		}
	}
	e := list(t, c, 4, 4096)
	if want := []fusefs.NodeID{4, 3, fusefs.Node(10, 1), fusefs.Node(11, 1)}; len(e) != 4 ||
		!slices.Equal(want, []fusefs.NodeID{e[0].id, e[1].id, e[2].id, e[3].id}) {
		t.Errorf(".flat/ab lists %+v, want inodes %v", e, want)
	}
}

func TestImageRootNeedsNoLoad(t *testing.T) {
	r := newRepository(t)
	c, _ := r.newCore(t, fusefs.Config{Tree: r.tree(t, r.names)})
	ab := walk(t, c, fusefs.RootID, ".flat/ab")
	defer r.shut(r.refs[0].Catalog.Digest)()
	root := walk(t, c, ab.Node, "0123")
	var a fusefs.Attr
	if err := c.Getattr(root.Node, &a); err != nil || a.Mode&0o777 != 0o751 || a.Nlink != 4 {
		t.Errorf("stat says %+v, %v", a, err)
	}
	if v, err := c.Getxattr(root.Node, "user.which"); err != nil || string(v) != "0" {
		t.Errorf("xattr is %q, %v", v, err)
	}
	if _, err := c.Statfs(root.Node); err != nil {
		t.Error(err)
	}
	if n := len(list(t, c, ab.Node, 4096)); n != 4 {
		t.Errorf("its parent lists %d entries", n)
	}
	if _, err := c.Readdir(root.Node, 0, make([]byte, 4096)); !fusefs.Later(err) {
		t.Errorf("a listing says %v, want later", err)
	}
}

func TestForgottenImageLeavesMemoryAndComesBack(t *testing.T) {
	r := newRepository(t)
	c, _ := r.newCore(t, fusefs.Config{Tree: r.tree(t, r.names)})
	root := walk(t, c, fusefs.RootID, ".flat/ab/0123")
	bin := walk(t, c, root.Node, "bin")
	state := func() fusefs.SlotInfo {
		for _, s := range c.Slots() {
			if s.Slot == 10 {
				return s
			}
		}
		t.Fatal("slot 10 is unknown")
		return fusefs.SlotInfo{}
	}
	if s := state(); s.Lookups != 2 || !s.Loaded || s.Catalog != r.refs[0].Catalog {
		t.Errorf("in use the slot is %+v", s)
	}
	c.Forget(bin.Node, 1)
	if s := state(); s.Lookups != 1 || !s.Loaded {
		t.Errorf("half forgotten the slot is %+v", s)
	}
	c.Forget(root.Node, 1)
	if s := state(); s.Lookups != 0 || s.Loaded {
		t.Errorf("forgotten the slot is %+v", s)
	}
	if got := walk(t, c, fusefs.RootID, ".flat/ab/0123/bin"); got.Node != bin.Node {
		t.Errorf("inode %v, was %v", got.Node, bin.Node)
	}
	if got := c.Lookups(); got != 4 {
		t.Errorf("slot 0 has %d references, want 4", got)
	}
}

func TestNewRevision(t *testing.T) {
	r := newRepository(t)
	c, _ := r.newCore(t, fusefs.Config{Tree: r.tree(t, r.names)})
	dir := walk(t, c, fusefs.RootID, "registry.test")
	one := walk(t, c, dir.Node, "app:1")
	two := walk(t, c, dir.Node, "app:2")
	file := walk(t, c, fusefs.RootID, ".flat/ab/0123/bin/sh")

	next := r.publish(t, map[string]string{"app:1": "../.flat/ab/4567", "app:3": "../.flat/ab/0123", "app:2": "../.flat/ab/4567"})
	r.setBroken(next.Digest, false)
	tree := r.tree(t, next)
	parts, err := tree.Parts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range parts {
		r.setBroken(m.Ref.Digest, true)
	}
	if err := c.Replace(context.Background(), tree); !errors.Is(err, errBroken) {
		t.Fatalf("replacing with a tree that can't be loaded: %v", err)
	}
	if got := walk(t, c, dir.Node, "app:1"); got.Node != one.Node {
		t.Error("the old tree did not stay")
	}
	for _, m := range parts {
		r.setBroken(m.Ref.Digest, false)
	}
	if err := c.Replace(context.Background(), tree); err != nil {
		t.Fatal(err)
	}
	var a fusefs.Attr
	if err := c.Getattr(two.Node, &a); err != nil {
		t.Errorf("an unchanged symlink known before: %v", err)
	}
	if err := c.Getattr(one.Node, &a); err == nil || fusefs.Later(err) {
		t.Errorf("a symlink that is gone: %v, want stale", err)
	}
	if got := walk(t, c, fusefs.RootID, "registry.test"); got.Node != dir.Node {
		t.Errorf("the directory became %v, was %v", got.Node, dir.Node)
	}
	moved := walk(t, c, dir.Node, "app:1")
	if target, err := c.Readlink(moved.Node); err != nil || string(target) != "../.flat/ab/4567" || moved.Node == one.Node {
		t.Errorf("the retargeted link is %v to %q (%v), was %v", moved.Node, target, err, one.Node)
	}
	walk(t, c, dir.Node, "app:3")
	if err := c.Getattr(file.Node, &a); err != nil {
		t.Errorf("a file in use: %v", err)
	}
	if got := walk(t, c, fusefs.RootID, ".flat/ab/0123/bin/sh"); got.Node != file.Node {
		t.Errorf("the same file is %v, was %v", got.Node, file.Node)
	}
}

func TestUnknownNodeIsStale(t *testing.T) {
	r := newRepository(t)
	c, _ := r.newCore(t, fusefs.Config{Tree: r.tree(t, r.names)})
	var a fusefs.Attr
	for _, id := range []fusefs.NodeID{99, fusefs.Node(77, 1), 0} {
		if err := c.Getattr(id, &a); err == nil || fusefs.Later(err) {
			t.Errorf("node %v: %v, want an error", id, err)
		}
	}
}
