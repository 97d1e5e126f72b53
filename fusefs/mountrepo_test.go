package fusefs_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/skimfs/skimfs/fusefs"
	"golang.org/x/sys/unix"
)

func TestMountedRepository(t *testing.T) {
	r := newRepository(t)
	c, l := r.newCore(t, fusefs.Config{Tree: r.tree(t, r.names)})
	dir := mount(t, c)
	for i, path := range []string{".flat/ab/0123", ".flat/ab/4567"} {
		compare(t, dir+"/"+path, r.roots[i])
	}
	for _, test := range []struct{ claim, script, want string }{
		{"the tree", `cd $1 && find . -path './.flat/ab/*' -prune -o -print | sort`, ".\n./.flat\n./.flat/ab\n./registry.test\n./registry.test/app:1\n./registry.test/app:2"},
		{"names lead to images", `cat $1/registry.test/app:1/bin/sh $1/registry.test/app:2/bin/sh`, "shell 0\nshell 1"},
		{"inodes are the format's", `stat -c %i $1 $1/registry.test $1/.flat/ab $1/.flat/ab/0123 $1/.flat/ab/0123/bin`, "1\n2\n4\n42949672961\n42949672962"},
		{"a listing agrees", `ls -i $1/.flat/ab`, "42949672961 0123\n47244640257 4567"},
		{"up from an image", `cd -P $1/registry.test/app:1/bin && cd ../.. && stat -c %i . && ls`, "4\n0123\n4567"},
		{"attributes of an image's root", `cd $1 && getfattr -n user.which --only-values .flat/ab/4567`, "1"},
		{"totals of an image", `stat -f -c '%b %c' $1/.flat/ab/4567`, "512 4"},
		{"totals of what is loaded", `stat -f -c '%b' $1`, "768"},
		{"an absent image", `ls $1/registry.test/app:9 2>&1`, "ls: cannot access '$1/registry.test/app:9': No such file or directory"},
	} {
		t.Run(test.claim, func(t *testing.T) {
			got, _ := try(t, test.script, dir)
			if want := strings.ReplaceAll(test.want, "$1", dir); got != want {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
	if l.String() != "" {
		t.Errorf("logged: %s", l)
	}
}

func TestMountedImageLeavesMemoryWhenTheKernelForgets(t *testing.T) {
	r := newRepository(t)
	c, _ := r.newCore(t, fusefs.Config{Tree: r.tree(t, r.names)})
	dir := mount(t, c)
	sh(t, `ls -lR $1 >/dev/null`, dir)
	for _, s := range c.Slots() {
		if !s.Loaded || s.Lookups == 0 {
			t.Errorf("in use: %+v", s)
		}
	}
	sh(t, `echo 2 >/proc/sys/vm/drop_caches`, dir)
	poll(t, "all images are forgotten", func() bool {
		for _, s := range c.Slots() {
			if s.Loaded || s.Lookups != 0 {
				return false
			}
		}
		return c.Lookups() == 0
	})
	if got := sh(t, `cat $1/registry.test/app:1/bin/sh`, dir); got != "shell 0" {
		t.Errorf("again: %q", got)
	}
}

func TestMountedRepositoryShowsANewRevision(t *testing.T) {
	r := newRepository(t)
	set := metrics.NewSet()
	c, l := r.newCore(t, fusefs.Config{Tree: r.tree(t, r.names), TTL: 100 * time.Millisecond, Metrics: set})
	dir := mount(t, c)
	if got := sh(t, `ls $1/registry.test; cat $1/registry.test/app:1/bin/sh; cat $1/registry.test/app:3/bin/sh 2>/dev/null; true`, dir); got != "app:1\napp:2\nshell 0" {
		t.Fatalf("before: %q", got)
	}
	goOn := t.TempDir() + "/go"
	// A process that stays in the image, a file held open, and a mount on top: none may notice.
	_, out, ended := background(t, `cd -P $1/registry.test/app:1/bin && exec 3<sh && echo ready && while [ ! -e $2 ]; do sleep 0.01; done; cat <&3; cat sh; pwd -P; cd ../.. && ls | wc -l`,
		dir, goOn)
	poll(t, "the process is in the image", func() bool { return strings.Contains(out.String(), "ready") })
	onTop := dir + "/.flat/ab/0123/etc"
	sh(t, `mount -t tmpfs none "$1" && echo on top >"$1/file"`, onTop)
	t.Cleanup(func() { unix.Unmount(onTop, unix.MNT_DETACH) })

	next := r.publish(t, map[string]string{"app:1": "../.flat/ab/4567", "app:3": "../.flat/ab/0123"})
	if err := c.Replace(context.Background(), r.tree(t, next)); err != nil {
		t.Fatal(err)
	}
	poll(t, "the new names are shown", func() bool {
		got, _ := try(t, `ls $1/registry.test; cat $1/registry.test/app:1/bin/sh; cat $1/registry.test/app:3/bin/sh`, dir)
		return got == "app:1\napp:3\nshell 1\nshell 0"
	})
	if got := sh(t, `cat $1/file`, onTop); got != "on top" {
		t.Errorf("the mount on top shows %q", got)
	}
	sh(t, `touch $1`, goOn)
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the process in the image does not end")
	}
	if want := "ready\nshell 0\nshell 0\n" + dir + "/.flat/ab/0123/bin\n2\n"; out.String() != want {
		t.Errorf("the process in the image saw %q, want %q", out, want)
	}
	if l.String() != "" {
		t.Errorf("logged: %s", l)
	}
}

func TestKernelKeepsListingsInsideImagesOnly(t *testing.T) {
	r := newRepository(t)
	set := metrics.NewSet()
	c, _ := r.newCore(t, fusefs.Config{Tree: r.tree(t, r.names), Metrics: set})
	dir := mount(t, c)
	for _, test := range []struct {
		claim, path string
		kept        bool
	}{
		{"in an image", ".flat/ab/0123/bin", true},
		{"an image's root", ".flat/ab/0123", true},
		{"in the name tree", "registry.test", false},
	} {
		t.Run(test.claim, func(t *testing.T) {
			sh(t, `ls $1/$2`, dir, test.path)
			kept := false
			for range 3 { // somebody else may drop the machine's caches meanwhile
				before := requests(set, "readdir")
				sh(t, `ls $1/$2`, dir, test.path)
				kept = kept || requests(set, "readdir") == before
			}
			if kept != test.kept {
				t.Errorf("a second listing is kept: %v, want %v", kept, test.kept)
			}
		})
	}
}
