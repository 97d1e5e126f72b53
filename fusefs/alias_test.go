package fusefs_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/fusefs"
)

func TestSqfsAlias(t *testing.T) {
	r := newRepository(t)
	names := r.publish(t, map[string]string{"app:1": "../.flat/ab/0123", "app:2": "../.flat/ab/4567", "own": "../.flat/ab/4567", "own.sqfs": "../.flat/ab/0123"})
	c, _ := r.newCore(t, fusefs.Config{Tree: r.tree(t, names), SqfsAlias: true})
	dir := walk(t, c, fusefs.RootID, "registry.test")
	for name, target := range map[string]string{"app:1.sqfs": "../.flat/ab/0123", "app:2.sqfs": "../.flat/ab/4567", "own.sqfs": "../.flat/ab/0123", "own.sqfs.sqfs": "../.flat/ab/0123"} {
		e := find(t, c, dir.Node, name)
		if got, err := c.Readlink(e.Node); err != nil || string(got) != target {
			t.Errorf("%s leads to %q, %v, want %q", name, got, err, target)
		}
	}
	if a, b := find(t, c, dir.Node, "app:1"), find(t, c, dir.Node, "app:1.sqfs"); a.Node != b.Node {
		t.Errorf("the names are nodes %v and %v, want one", a.Node, b.Node)
	}
	for _, name := range []string{"registry.test.sqfs", "app:9.sqfs", ".sqfs", ".flat/ab/0123/bin.sqfs", ".flat/ab/0123.sqfs"} {
		if e := find(t, c, fusefs.RootID, name); e.Node != 0 {
			t.Errorf("%s is node %v, want none: only symlinks have a further name", name, e.Node)
		}
	}
	want := []string{".", "..", "app:1", "app:1.sqfs", "app:2", "app:2.sqfs", "own", "own.sqfs", "own.sqfs.sqfs"}
	for _, size := range []int{40, 64, 100, 4096} {
		var got []string
		for _, e := range list(t, c, dir.Node, size) {
			got = append(got, e.name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("with %d bytes for a listing: %q, want %q", size, got, want)
		}
	}
	if e := list(t, c, walk(t, c, fusefs.RootID, ".flat/ab/0123").Node, 4096); len(e) < 4 {
		t.Errorf("inside an image %+v is listed", e)
	}
	plain, _ := r.newCore(t, fusefs.Config{Tree: r.tree(t, names)})
	if e := find(t, plain, fusefs.RootID, "registry.test/app:1.sqfs"); e.Node != 0 {
		t.Error("there is a further name without the option")
	}
}

func TestANewRevisionLetsTheOldOneGo(t *testing.T) {
	r := newRepository(t)
	c, _ := r.newCore(t, fusefs.Config{Tree: r.tree(t, r.names)})
	used := walk(t, c, fusefs.RootID, ".flat/ab/0123/bin")
	for _, path := range []string{".flat", ".flat/ab", ".flat/ab/4567"} {
		walk(t, c, fusefs.RootID, path)
	}
	for _, id := range []fusefs.NodeID{fusefs.Node(11, 1)} {
		c.Forget(id, 1)
	}
	next := r.publish(t, map[string]string{"app:1": "../.flat/ab/4567"})
	if err := c.Replace(context.Background(), r.tree(t, next)); err != nil {
		t.Fatal(err)
	}
	slots := c.Slots()
	if len(slots) != 1 || slots[0].Slot != used.Node.Slot() {
		t.Errorf("known after the switch: %+v, want the image in use alone", slots)
	}
	if got := walk(t, c, fusefs.RootID, ".flat/ab/4567/bin/sh"); got.Node.Slot() != 11 {
		t.Errorf("the other image is node %v", got.Node)
	}
	if e := list(t, c, fusefs.Node(used.Node.Slot(), 1), 4096); len(e) < 3 || e[1].name != ".." || strings.Contains(e[1].id.String(), "10:") {
		t.Errorf("the image in use lists %+v", e)
	}
}

// N14 N15: maps of owners, and modes that let everybody read.
func TestN14OwnersAreMapped(t *testing.T) {
	z := newZoo(t)
	plain, _ := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog)})
	c, _ := z.newCore(t, fusefs.Config{
		Tree: z.tree(t, z.ref.Catalog), MapUID: func(uint32) uint32 { return 7 }, MapGID: func(n uint32) uint32 { return n + 1 }, WorldReadable: true,
		Owner: fusefs.Owner{UID: id(9)},
	})
	for _, e := range list(t, plain, fusefs.RootID, 4096)[2:] {
		was, now := find(t, plain, fusefs.RootID, e.name), find(t, c, fusefs.RootID, e.name)
		want := was.Mode | 0o444
		if was.IsDir() {
			want |= 0o111
		} else if was.IsSymlink() {
			want = was.Mode
		}
		if now.UID != 9 || now.GID != was.GID+1 || now.Mode != want {
			t.Errorf("%s: %d:%d %#o, want 9:%d %#o", e.name, now.UID, now.GID, now.Mode, was.GID+1, want)
		}
	}
}
