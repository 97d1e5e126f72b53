package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
)

// TestRandomStacks: whatever layers do to each other, a mounted image is what umoci unpacks. The
// seeds are the same each time; SKIMFS_SEED is the first one, SKIMFS_STACKS how many there are.
func TestRandomStacks(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	t.Parallel()
	first, count := number(t, "SKIMFS_SEED", 1), number(t, "SKIMFS_STACKS", 200)
	t.Logf("%d stacks from SKIMFS_SEED=%d on", count, first)
	// So many repositories and unpacked images at a time.
	const batch = 250
	for done := uint64(0); done < count; done += batch {
		from, n := first+done, min(batch, count-done)
		t.Run(fmt.Sprintf("from %d", from), func(t *testing.T) { checkStacks(t, from, n) })
	}
}

// number returns what a variable of the environment holds.
func number(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// alone tells which stacks are mounted by themselves, too; furnished, which get furniture.
func alone(seed uint64) bool     { return seed%16 == 0 }
func furnished(seed uint64) bool { return seed%8 == 0 }

func checkStacks(t *testing.T, first, count uint64) {
	stacks := map[uint64]testkit.Stack{}
	repo := publish(t)
	for seed := first; seed < first+count; seed++ {
		stacks[seed] = testkit.RandomStack(t, seed)
		img := image{source: "oci:" + stacks[seed].Layout + ":latest", as: stackName(seed)}
		if !furnished(seed) {
			img.flags = []string{"--bare"}
		}
		published := t.Run(fmt.Sprintf("publish SKIMFS_SEED=%d", seed), func(t *testing.T) {
			defer showStack(t, seed, stacks[seed])
			repo.add(t, img)
		})
		if !published {
			delete(stacks, seed)
		}
	}
	origin := testkit.StartNginx(t, repo.dir)
	n := newNode(t)
	all := n.mount(t, repo, origin.URL, "", "")
	for seed, stack := range stacks {
		t.Run(fmt.Sprintf("SKIMFS_SEED=%d", seed), func(t *testing.T) {
			t.Parallel()
			defer showStack(t, seed, stack)
			unpacked := testkit.Unpack(t, stack.Layout, "gzip")
			want := testkit.Walk(t, unpacked)
			for _, e := range want {
				if late(e) && e.Type != "dir" {
					t.Errorf("umoci gave %q, a %s, a time that no layer has", e.Path, e.Type)
				}
			}
			// The name is a symlink to the image's root.
			compareStack(t, testkit.Walk(t, filepath.Join(all, stackName(seed))+"/."), want, !furnished(seed))
			if alone(seed) {
				mounted := n.mount(t, repo, origin.URL, stackName(seed), "")
				got := testkit.Walk(t, mounted)
				compareStack(t, got, want, !furnished(seed))
				checkInodes(t, got)
				n.umount(t, mounted)
			}
		})
	}
}

// showStack says what a failed test is about.
func showStack(t *testing.T, seed uint64, s testkit.Stack) {
	if t.Failed() {
		t.Logf("SKIMFS_SEED=%d SKIMFS_STACKS=1 shows this alone; the layers are\n%s", seed, s.Listing())
	}
}

func stackName(seed uint64) string { return fmt.Sprintf("local/stack:%d", seed) }

// compareStack compares a mounted stack with what umoci made of it.
func compareStack(t *testing.T, got, want []testkit.Entry, bare bool) {
	t.Helper()
	g, w := byPath(got), byPath(want)
	if len(got) == 0 || len(got) < len(want) {
		t.Errorf("%d entries mounted, %d unpacked", len(got), len(want))
	}
	for _, d := range testkit.Diff(got, want) {
		switch {
		case d.Field == "mtime" && late(w[d.Path]) && !late(g[d.Path]): // see testkit.Latest
		case strings.HasPrefix(d.Field, "xattr ") && d.Got == "" && d.Want == "(none)": // umoci loses empty xattrs, containerd and we don't
		case !bare && isException(d, g, w):
		default:
			t.Errorf("%v", d)
		}
	}
}

// late tells whether an entry has the time of its unpacking.
func late(e testkit.Entry) bool {
	sec, _, _ := strings.Cut(e.Mtime, ".")
	n, err := strconv.ParseInt(sec, 10, 64)
	return err == nil && n > testkit.Latest.Unix()
}
