package e2e

import (
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
)

const demoPath = "local/demo:latest"

func demoRepository(t testing.TB) *repository {
	t.Helper()
	return publish(t, image{source: "oci:" + testkit.DemoImage(t) + ":latest", as: demoPath})
}

const python = `import json; print(json.dumps([1, 2]))`

// bwrap runs the demo's program in a root directory.
func bwrap(t testing.TB, root string) {
	t.Helper()
	got := output(t, "bwrap", "--ro-bind", root, "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "python3", "-c", python)
	if got != "[1, 2]\n" {
		t.Fatalf("python3 printed %q", got)
	}
}

// TestSquidServesTheSecondNode: what one node has fetched, the next one gets from squid alone; what this node has it fetches never again.
func TestSquidServesTheSecondNode(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	repo := demoRepository(t)
	origin, squid := testkit.StartNginx(t, repo.dir), testkit.StartSquid(t)
	first, second := newNode(t), newNode(t)
	proxy := "proxy=" + squid.URL

	mounted := first.mount(t, repo, origin.URL, demoPath, proxy)
	bwrap(t, mounted)
	cold := first.counters(t)
	asked := origin.Log().Class("objects").Count()
	if cold.FileObjects == 0 || asked == 0 {
		t.Fatalf("cold start: %d file objects fetched, origin asked %d times: nothing was measured", cold.FileObjects, asked)
	}
	if direct := origin.Log().Class("objects").Where(func(r testkit.Request) bool { return r.Via == "" }).Count(); direct != 0 {
		t.Errorf("%d requests went past squid", direct)
	}

	t.Run("lazy: the start fetches less than a tenth of the image", func(t *testing.T) {
		image := repo.results[demoPath].CompressedBytes
		t.Logf("cold start: %d objects, %d of %d bytes (%.1f %%)", cold.FileObjects, cold.Bytes, image, 100*float64(cold.Bytes)/float64(image))
		if cold.Bytes*10 >= image {
			t.Errorf("cold start fetched %d bytes of %d", cold.Bytes, image)
		}
	})
	t.Run("silent when warm: the same start fetches nothing", func(t *testing.T) {
		bwrap(t, mounted)
		if again := first.counters(t); again != cold {
			t.Errorf("counters went from %+v to %+v", cold, again)
		}
	})
	t.Run("a new mount reads from the node's cache", func(t *testing.T) {
		first.umount(t, mounted)
		mounted := first.mount(t, repo, origin.URL, demoPath, proxy)
		bwrap(t, mounted)
		if again := first.counters(t); again.FileObjects != cold.FileObjects {
			t.Errorf("counters went from %+v to %+v", cold, again)
		}
		first.umount(t, mounted)
	})
	t.Run("the second node is served by squid alone", func(t *testing.T) {
		before := origin.Log().Class("objects").Count()
		bwrap(t, second.mount(t, repo, origin.URL, demoPath, proxy))
		if got := second.counters(t); got.FileObjects == 0 {
			t.Errorf("the second node fetched nothing: %+v", got)
		}
		if asked := origin.Log().Class("objects").Count() - before; asked != 0 {
			t.Errorf("origin was asked for %d objects", asked)
		}
	})
	t.Run("without servers the cached start works", func(t *testing.T) {
		origin.Stop()
		squid.Stop()
		bwrap(t, first.mount(t, repo, origin.URL, demoPath, proxy))
	})
}

// TestListingFetchesNoFile: ls -lR of a whole image reads catalogs only.
func TestListingFetchesNoFile(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	repo := demoRepository(t)
	origin := testkit.StartNginx(t, repo.dir)
	n := newNode(t)
	mounted := n.mount(t, repo, origin.URL, demoPath, "")
	if lines := strings.Count(output(t, "ls", "-lR", mounted), "\n"); lines < 5000 {
		t.Fatalf("ls -lR printed %d lines", lines)
	}
	if got := n.counters(t); got.FileObjects != 0 {
		t.Errorf("ls -lR fetched %d file objects", got.FileObjects)
	}
}
