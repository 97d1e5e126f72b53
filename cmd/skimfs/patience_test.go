package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// nestedDir returns a directory of bigImage with 1100 entries that is a nested catalog, by its path in the image, and the paths of the objects of all nested
// catalogs.
func (w *world) nestedDir(t *testing.T) (dir string, objects []string) {
	t.Helper()
	image := w.find(t, bigImage)
	root, _, err := image.Node()
	if err != nil {
		t.Fatal(err)
	}
	for i := range root.NestedCount() {
		row, err := root.Nested(i)
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, row.Catalog.Digest.ObjectPath())
	}
	for d := range 17 {
		dir := fmt.Sprint("many/d", d)
		f, err := image.Resolve(t.Context(), dir+"/f1", false)
		if err != nil {
			t.Fatal(err)
		}
		if c, _, err := f.Node(); err != nil {
			t.Fatal(err)
		} else if c != root {
			return dir, objects
		}
	}
	t.Fatal("no directory is a nested catalog")
	return "", nil
}

// metric returns the sum of a metric's values in the daemon.
func (n *node) metric(name string) (sum float64) {
	n.t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^`+name+`(?:\{[^}]*\})? (\S+)$`).FindAllStringSubmatch(n.exposed(), -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			n.t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// running is a command that goes on while the test does.
type running struct {
	*exec.Cmd
	begun          time.Time
	stdout, stderr bytes.Buffer
}

// start starts a program that touches mounts; at the test's end it is killed.
func (n *node) start(name string, args ...string) *running {
	n.t.Helper()
	r := &running{Cmd: exec.CommandContext(n.t.Context(), name, args...), begun: time.Now()}
	r.Stdout, r.Stderr = &r.stdout, &r.stderr
	if err := r.Start(); err != nil {
		n.t.Fatal(err)
	}
	return r
}

// TestPatience holds what waits to the time that it may take, and what needn't wait to not waiting.
func TestPatience(t *testing.T) {
	t.Parallel()
	w := published(t)
	together(t, 8, map[string]func(*testing.T){
		"X01 W10 a dead server holds up nobody else":          func(t *testing.T) { aDeadServerHoldsUpNobodyElse(t, w) },
		"X19 W21 096 a killed waiter leaves and fails nobody": func(t *testing.T) { aKilledWaiterLeavesAndFailsNobody(t, w) },
		"M27 timer signals through a slow fetch":              func(t *testing.T) { timerSignalsThroughASlowFetch(t, w) },
		"X01 W10 readers of one page end together":            func(t *testing.T) { readersOfOnePageEndTogether(t, w) },
		"D08 029 repeated failures hold up nobody else":       func(t *testing.T) { repeatedFailuresHoldUpNobodyElse(t, w) },
		"W12 016 017 052 079 names of a proxy":                func(t *testing.T) { names(t, w, "proxy") },
		"W12 016 017 052 079 names of an origin":              func(t *testing.T) { names(t, w, "origin") },
		"W02 W12 052 several squids by one name":              func(t *testing.T) { squidsByOneName(t, w) },
	})
}

// X01, W10: while the server is dead and 64 processes wait for a catalog that isn't here, all else answers at once (within 1 s on a quiet machine). When all tries
// have failed, at the deadline at the latest, they get an input/output error, and when the server is back the same names are there.
func aDeadServerHoldsUpNobodyElse(t *testing.T, w *world) {
	s, n := serveWorld(t, w), newNode(t, w)
	bad := testkit.NewFaulty(t, s.Listener.Addr().String())
	dir, objects := w.nestedDir(t)
	for _, path := range objects {
		s.change(t, path, remove)
	}
	const options, tries, deadline, atOnce = "deadline=8s,timeout_direct=1s", 2 * time.Second, 8 * time.Second, 5 * time.Second
	unloaded, loaded := n.target("unloaded"), n.target("loaded")
	n.ok("mount", bad.URL+"#"+bigImage, unloaded, "-o", options)
	n.ok("mount", bad.URL+"#"+testImage, loaded, "-o", options)
	n.read(filepath.Join(loaded, "big"))
	for _, path := range objects {
		s.put(path, w.files[path])
	}
	bad.Set(testkit.Silent)

	stats := n.start("sh", "-c", `for i in $(seq 64); do stat -c %N "$1/f$i" & done; wait`, "sh", filepath.Join(unloaded, dir))
	n.await("the first to wait", func() bool { return bad.Requests("") > 0 })
	for what, script := range map[string]string{
		"ls of the root": `exec ls -l "$1"`, "df": `exec df "$1"`, "ls of another mount": `exec ls -lR "$2"`, "a cached read": `exec dd if="$2/big" iflag=direct bs=1M status=none`,
	} {
		inTime(t, atOnce, func() {
			if r := n.sh(script, unloaded, loaded); r.status != 0 {
				t.Errorf("%s: status %d, %s", what, r.status, r.stderr)
			}
		})
	}
	if took := time.Since(stats.begun); took > deadline {
		t.Errorf("what should not wait took until %v after the wait began", took)
	}
	_ = stats.Wait() // the shell's own status says nothing of them
	if took := time.Since(stats.begun); took < tries || took > 5*deadline {
		t.Errorf("they waited %v, want all tries' %v and no longer than about the deadline of %v", took, tries, deadline)
	}
	if got := strings.Count(stats.stderr.String(), "Input/output error"); got != 64 || stats.stdout.Len() > 0 {
		t.Errorf("%d of 64 got an input/output error: %.300s%.300s", got, &stats.stdout, &stats.stderr)
	}
	bad.Set(testkit.Sound)
	n.await("the catalog", func() bool { return n.sh(`exec stat "$1/f1"`, filepath.Join(unloaded, dir)).status == 0 })
}

// prompt goes through a tree with what must not wait, and prints what took longest, in seconds.
const prompt = `
import os, sys, time
worst, which = 0.0, ''
def timed(name, f, *args):
    global worst, which
    begun = time.monotonic()
    result = f(*args)
    took = time.monotonic() - begun
    if took > worst:
        worst, which = took, name + ' ' + str(args)
    return result
def go(dir):
    timed('statfs', os.statvfs, dir)
    for name in timed('readdir', os.listdir, dir):
        path = os.path.join(dir, name)
        mode = timed('stat', os.lstat, path).st_mode
        timed('listxattr', lambda p: os.listxattr(p, follow_symlinks=False), path)
        if mode & 0o170000 == 0o040000:
            go(path)
        elif mode & 0o170000 == 0o120000:
            timed('readlink', os.readlink, path)
        elif mode & 0o170000 == 0o100000:
            os.close(timed('open', os.open, path, os.O_RDONLY))
for dir in sys.argv[1:]:
    go(dir)
print(worst, which)
`

// X01, W20: of a loaded catalog everything but content is answered at once and without a dial while the network is dead.
func TestLoadedCatalogsAskNobodyX01(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	bad := testkit.NewFaulty(t, s.Listener.Addr().String())
	dir, _ := w.nestedDir(t)
	small, big := n.target("small"), n.target("big")
	n.ok("mount", bad.URL+"#"+testImage, small)
	n.ok("mount", bad.URL+"#"+bigImage, big)
	if r := n.sh(`exec ls "$1" "$2"/many/*`, small, big); r.status != 0 { // no catalog is on its way any more
		t.Fatal(r.stderr)
	}
	bad.Set(testkit.Silent)
	before, dials := bad.Connections(), n.metric("skimfs_fetch_dials_total")
	if dials == 0 {
		t.Fatal("no dial is counted: nothing is measured")
	}
	r := n.start("python3", "-c", prompt, small, filepath.Join(big, dir))
	if err := r.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &r.stderr)
	}
	worst, which, _ := strings.Cut(strings.TrimSpace(r.stdout.String()), " ")
	if s, err := strconv.ParseFloat(worst, 64); err != nil || s > 0.25 {
		t.Errorf("%s took %s s, want 0.05 on a quiet machine", which, worst)
	}
	inTime(t, 2*time.Second, func() {
		if r := n.sh(`exec df "$1"`, small); r.status != 0 {
			t.Errorf("df: %s", r.stderr)
		}
	})
	if got := n.metric("skimfs_fetch_dials_total") - dials; got != 0 || bad.Connections() != before {
		t.Errorf("%v dials, %d connections, want none", got, bad.Connections()-before)
	}
	if n.metric("skimfs_fuse_requests_total") < 1100 {
		t.Error("the daemon was hardly asked: nothing is measured")
	}
}

// W21, X19, test 096 of CernVM-FS: a reader that is killed while the server is silent leaves at once; the one that waits for the same object gets it.
func aKilledWaiterLeavesAndFailsNobody(t *testing.T, w *world) {
	s, n := serveWorld(t, w), newNode(t, w)
	bad := testkit.NewFaulty(t, s.Listener.Addr().String())
	target := n.mount(bad.URL+"#"+testImage, "-o", "deadline=30s,timeout_direct=10s")
	bad.Set(testkit.Silent)
	path := filepath.Join(target, "usr/lib/a")
	killed := n.start("cat", path)
	n.await("the first to ask", func() bool { return bad.Requests("") == 1 })
	stays := n.start("cat", path)
	n.await("the second to wait", func() bool { return n.metric("skimfs_fuse_waits_total") >= 1 && waitsInKernel(stays.Process.Pid) })
	inTime(t, 5*time.Second, func() {
		if err := killed.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = killed.Wait()
	})
	if bad.Requests("") != 1 {
		t.Errorf("%d requests, want one for both", bad.Requests(""))
	}
	bad.Set(testkit.Sound)
	if err := stays.Wait(); err != nil || stays.stdout.String() != "lib a" {
		t.Errorf("the other reader: %q, %v, %s\n%s", &stays.stdout, err, &stays.stderr, n.log())
	}
}

// waitsInKernel reports whether a process sleeps for FUSE.
func waitsInKernel(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
	return err == nil && (strings.Contains(string(b), "fuse") || strings.Contains(string(b), "folio"))
}

// ticking reads a symlink, or a file by read or by page faults, while a signal comes every 10 ms, and prints the content's digest and whether signals came.
// Python's own read would try again where C's says EINTR.
const ticking = `
import ctypes, hashlib, mmap, os, signal, sys
ticks = 0
def tick(*_):
    global ticks
    ticks += 1
signal.signal(signal.SIGALRM, tick)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
how, path = sys.argv[1:]
if how == 'link':
    data = os.fsencode(os.readlink(path))
elif how == 'read':
    f = os.open(path, os.O_RDONLY)
    libc, data, part = ctypes.CDLL(None, use_errno=True), b'', ctypes.create_string_buffer(1 << 16)
    while (n := libc.read(f, part, 1 << 16)) > 0:
        data += part.raw[:n]
    if n < 0:
        sys.exit('read: ' + os.strerror(ctypes.get_errno()))
else:
    f = os.open(path, os.O_RDONLY)
    data = mmap.mmap(f, os.fstat(f).st_size, mmap.MAP_SHARED, mmap.PROT_READ)
digest = hashlib.sha256(data).hexdigest()
signal.setitimer(signal.ITIMER_REAL, 0)
print(digest, ticks > 0)
`

// M27: a program whose timer sends a signal every 10 ms gets right bytes through a fetch that takes 3 s, by read and by page fault, and a
// name in a catalog that is on its way: of signals in that wait the kernel always tells.
func timerSignalsThroughASlowFetch(t *testing.T, w *world) {
	s, n := serveWorld(t, w), newNode(t, w)
	bad := testkit.NewFaulty(t, s.Listener.Addr().String())
	dir, objects := w.nestedDir(t)
	for _, path := range objects {
		s.change(t, path, remove)
	}
	const options = "deadline=120s,timeout_direct=60s"
	unloaded, target := n.target("unloaded"), n.mount(bad.URL+"#"+testImage, "-o", options)
	n.ok("mount", bad.URL+"#"+bigImage, unloaded, "-o", options)
	// Else the name's reader may join that transfer at its last try.
	n.await("the mount to give the catalogs up", func() bool { return strings.Contains(n.log(), "loading nested catalogs") })
	for _, path := range objects {
		s.put(path, w.files[path])
	}
	bad.Set(testkit.Silent)
	readers := map[string]*running{"link": n.start("python3", "-c", ticking, "link", filepath.Join(unloaded, dir, "f1"))}
	n.await("the catalog to be asked for", func() bool { return bad.Requests("") > 0 })
	for mode, path := range map[string]string{"read": "big", "mmap": "usr/share/middle"} {
		readers[mode] = n.start("python3", "-c", ticking, mode, filepath.Join(target, path))
		object := "/" + w.objects(t, testImage+"/"+path)[0]
		n.await(mode+" to ask", func() bool { return bad.Requests(object) > 0 })
	}
	time.Sleep(3 * time.Second) // what the fetch takes
	bad.Set(testkit.Sound)
	for mode, content := range map[string][]byte{"read": w.big, "mmap": w.big[:middleSize], "link": []byte("x")} {
		r := readers[mode]
		if err := r.Wait(); err != nil || r.stdout.String() != fmt.Sprintf("%x True\n", sha256.Sum256(content)) {
			t.Errorf("%s: %v, %q, %s\n%s", mode, err, &r.stdout, &r.stderr, n.log())
		}
	}
	if !regexp.MustCompile(`(?m)^skimfs_fuse_requests_total\{.*op="interrupt".*\} [1-9]`).MatchString(n.exposed()) {
		t.Error("the daemon was told of no signal: nothing is measured")
	}
}

// D08, test 029 of CernVM-FS: what reads broken files again and again is slowed down, and nobody else, though a daemon on two CPUs has no more than two goroutines to
// read requests with.
func repeatedFailuresHoldUpNobodyElse(t *testing.T, w *world) {
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image(), "-o", "deadline=20s")
	n.read(filepath.Join(target, "big"))
	object := w.objects(t, testImage+"/etc/motd")[0]
	for _, path := range []string{"etc/motd", "usr/lib/a", "usr/lib/b", "usr/share/middle"} {
		s.change(t, w.objects(t, testImage+"/"+path)[0], remove)
	}
	const readers, reads = 24, 6
	r := n.start("sh", "-c", `cd "$1"; for i in 1 2 3 4 5 6; do for f in etc/motd usr/lib/? usr/share/middle; do for k in 1 2 3 4 5 6; do cat $f; done & done; done; wait`, "sh", target)
	n.await("the first failures", func() bool { return s.requests(object) >= 4 })
	for range 3 {
		inTime(t, 5*time.Second, func() {
			if r := n.sh(`ls -lR "$1" && exec dd if="$1/big" iflag=direct bs=1M status=none`, target); r.status != 0 {
				t.Errorf("status %d, %s", r.status, r.stderr)
			}
		})
	}
	_ = r.Wait() // the shell's own status says nothing of them
	took := time.Since(r.begun)
	if got := strings.Count(r.stderr.String(), "Input/output error"); got != readers*reads {
		t.Errorf("%d of %d got an input/output error: %.300s", got, readers*reads, &r.stderr)
	}
	// One that ends at once, then pauses of 32 ms, 64 ms …; each with a second request past the caches.
	most := 1
	for pause, end := 32*time.Millisecond, time.Duration(0); end <= took; pause = min(2*pause, 2*time.Second) {
		end += pause
		most++
	}
	if got := s.requests(object); got > 2*most || took < 900*time.Millisecond {
		t.Errorf("%d requests in %v, want at most %d", got, took, 2*most)
	}
	s.put(object, w.files[object])
	n.await("the file", func() bool { return n.sh(`exec cat "$1"`, filepath.Join(target, "etc/motd")).stdout == "skim\n" })
}

// X01, W10: processes that read the same page ask the daemon one after the other, as the kernel has it. With a dead server they all end about when the first one does,
// not a deadline after each other.
func readersOfOnePageEndTogether(t *testing.T, w *world) {
	s, n := serveWorld(t, w), newNode(t, w)
	bad := testkit.NewFaulty(t, s.Listener.Addr().String())
	const deadline = 3 * time.Second
	target := n.mount(bad.URL+"#"+testImage, "-o", "deadline=3s,timeout_direct=20s")
	bad.Set(testkit.Silent)
	r := n.start("sh", "-c", `for i in $(seq 32); do cat "$1" & done; wait`, "sh", filepath.Join(target, "usr/lib/a"))
	_ = r.Wait() // the shell's own status says nothing of them
	if took := time.Since(r.begun); took < deadline || took > 4*deadline {
		t.Errorf("they took %v, want about %v", took, deadline)
	}
	if got := strings.Count(r.stderr.String(), "Input/output error"); got != 32 {
		t.Errorf("%d of 32 got an input/output error: %.300s", got, &r.stderr)
	}
	bad.Set(testkit.Sound)
	n.await("the file", func() bool { return n.sh(`exec cat "$1"`, filepath.Join(target, "usr/lib/a")).stdout == "lib a" })
}
