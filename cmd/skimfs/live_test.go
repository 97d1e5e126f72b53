package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/mountd"
)

// liveRepo is a repository that a test publishes into while it is mounted.
type liveRepo struct {
	t         *testing.T
	dir, keys string
	url       string
	down      atomic.Bool // the server refuses to answer
	asked     atomic.Int64
}

func newLiveRepo(t *testing.T) *liveRepo {
	t.Helper()
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	base := t.TempDir()
	r := &liveRepo{t: t, dir: filepath.Join(base, "repo"), keys: filepath.Join(base, "keys")}
	r.skimfs("repo", "create", r.dir, "--name", testName, "--keys", r.keys)
	files := http.FileServer(http.Dir(r.dir))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.asked.Add(1)
		if r.down.Load() {
			if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
				c.Close()
			}
			return
		}
		files.ServeHTTP(w, q)
	}))
	t.Cleanup(s.Close)
	r.url = s.URL
	return r
}

// skimfs runs a publisher's command.
func (r *liveRepo) skimfs(args ...string) string {
	r.t.Helper()
	cmd := exec.Command(testkit.Build(r.t), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("skimfs %q: %v\n%s", args, err, stderr.Bytes())
	}
	return string(out)
}

// publish publishes an image with a shell, a few programs with their libraries, and a file etc/version.
func (r *liveRepo) publish(name, version string) {
	r.t.Helper()
	dir := r.t.TempDir()
	const script = `cd "$1"; mkdir -p bin etc proc tmp; echo "$2" >version; echo "$2" >etc/version
		cd bin; for name in sh cat grep ls sleep; do cp -L "$(command -v $name)" .; done; cd ..
		cp -L --parents $(ldd bin/* | grep -o '/[^ :]*' | grep '\.so') .`
	if out, err := exec.Command("sh", "-euc", script, "sh", dir, version).CombinedOutput(); err != nil {
		r.t.Fatalf("making an image: %v\n%s", err, out)
	}
	r.skimfs("publish", "--repo", r.dir, "--keys", r.keys, "dir:"+dir, name)
}

// node returns a node that trusts the repository.
func (r *liveRepo) node() *node { return newNode(r.t, &world{keys: r.keys}) }

// container runs a script in an image, in a mount namespace of its own with /proc and a tmpfs mounted below the image.
type container struct {
	cmd   *exec.Cmd
	mu    sync.Mutex // guards out
	out   bytes.Buffer
	ended chan error
}

func (c *container) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(b)
}

func (c *container) said() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.String()
}

// busyScript reads, starts programs and writes until TERM, and ends with the version it sees then.
const busyScript = `stop=; trap stop=1 TERM; exec 3</etc/version; cd /etc
while [ -z "$stop" ]; do
	cat version >/tmp/null || exit 3
	ls /proc/self/fd >/tmp/null || exit 4
	echo x >/tmp/f && [ "$(cat /tmp/f)" = x ] || exit 5
	echo tick
	sleep 0.02
done
cat version; cat <&3; grep -c " /tmp tmpfs\| /proc proc" /proc/mounts; pwd`

func (n *node) container(root, script string) *container {
	n.t.Helper()
	c := &container{ended: make(chan error, 1)}
	c.cmd = exec.Command("unshare", "-m", "--propagation", "private", "sh", "-ec",
		`mount -t proc proc "$1/proc"; mount -t tmpfs tmpfs "$1/tmp"; exec chroot "$1" /bin/sh -c "$2"`, "sh", root, script)
	c.cmd.Stdout, c.cmd.Stderr = c, c
	if err := c.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	go func() { c.ended <- c.cmd.Wait() }()
	n.t.Cleanup(func() { c.cmd.Process.Kill() })
	n.await("the container to run", func() bool {
		select {
		case err := <-c.ended:
			n.t.Fatalf("the container ended: %v\n%s", err, c.said())
		default:
		}
		return strings.Contains(c.said(), "tick")
	})
	return c
}

// ticks checks that the container goes on.
func (n *node) ticks(c *container) {
	n.t.Helper()
	before := strings.Count(c.said(), "tick")
	n.await("the container to go on", func() bool {
		select {
		case err := <-c.ended:
			n.t.Fatalf("the container ended: %v\n%s", err, c.said())
		default:
		}
		return strings.Count(c.said(), "tick") > before+1
	})
}

// M18 M19 M22 N11: new revisions show, and disturb nothing that runs.
func TestM18ARepositoryShowsNewRevisionsAndWhatRunsGoesOn(t *testing.T) {
	t.Parallel()
	r := newLiveRepo(t)
	const app = "docker.io/library/app:1"
	r.publish(app, "one")
	n := r.node()
	target := n.target("m")
	n.ok("mount", testName, target, "-o", "max_ttl=400ms,timeout_direct=2s,server="+r.url)
	image := filepath.Join(target, app)
	link := func(name string) string {
		return strings.TrimSpace(n.sh(`readlink "$1"`, filepath.Join(target, name)).stdout)
	}
	shows := func(name, version string) {
		t.Helper()
		n.await(name+" to show "+version, func() bool {
			return n.sh(`exec cat "$1"`, filepath.Join(target, name, "etc/version")).stdout == version+"\n"
		})
	}
	first := link(app)
	c := n.container(image, busyScript)
	root := filepath.Join(filepath.Dir(image), first)
	inode := n.sh(`stat -c %i "$1" "$1/bin"`, root).stdout
	for i, p := range []struct{ name, version string }{
		{"docker.io/library/other:1", "other"}, {"docker.io/library/other:2", "more"}, {"docker.io/library/missing:1", "found"},
		{"quay.io/elsewhere:1", "far"}, {app, "two"},
	} {
		path := filepath.Join(target, p.name)
		if got := n.sh(`ls "$1"`, path); p.name != app && got.status == 0 {
			t.Errorf("%s is there before it is published", p.name)
		}
		r.publish(p.name, p.version)
		shows(p.name, p.version)
		n.ticks(c)
		// Walking in from outside makes the kernel look at each name again; what is mounted below must stay.
		if got := n.sh(`ls -a "$1" "$1/.." && stat -c %i "$1" "$1/bin"`, root); got.status != 0 || !strings.HasSuffix(got.stdout, inode) {
			t.Errorf("publish %d: the image in use is %q, had inodes %q", i+1, got.stdout+got.stderr, inode)
		}
	}
	if now := link(app); now == first || now == "" {
		t.Errorf("the moved tag leads to %q, led to %q", now, first)
	}
	st := n.status()
	if m := st.Mounts[0]; m.Revision != 7 || m.Kind != "repository" || !m.Follows || m.Checked.IsZero() || m.Offline || m.Errors != 0 {
		t.Errorf("the mount is %+v", m)
	}
	if got := n.sh(`getfattr --only-values -n user.skimfs.revision "$1"`, target).stdout; got != "7" {
		t.Errorf("user.skimfs.revision is %q, want 7", got)
	}

	// Offline, and back.
	r.down.Store(true)
	n.await("offline mode", func() bool { return n.status().Mounts[0].Offline })
	n.ticks(c)
	shows(app, "two")
	n.kill(st.PID)
	if m := n.status().Mounts; len(m) != 1 || m[0].State != "mounted" || m[0].Revision != 7 {
		t.Errorf("after a crash without a server: %+v, want revision 7 mounted", m)
	}
	shows(app, "two")
	n.await("offline mode again", func() bool { return strings.Count(n.log(), "entering offline mode") == 2 })
	r.down.Store(false)
	r.publish("docker.io/library/late:1", "late")
	shows("docker.io/library/late:1", "late")
	if log := n.log(); strings.Count(log, "entering offline mode") != 2 || strings.Count(log, "recovered from offline mode") != 1 {
		t.Errorf("the log tells of offline mode %d times, of recovery %d times, want 2 (one by each daemon) and 1:\n%s",
			strings.Count(log, "entering offline mode"), strings.Count(log, "recovered from offline mode"), log)
	}
}

// M22: the end of the container, with the daemon alive throughout.
func TestM22AContainerKeepsItsImageToTheEnd(t *testing.T) {
	t.Parallel()
	r := newLiveRepo(t)
	r.publish("docker.io/library/app:1", "one")
	n := r.node()
	target := n.target("m")
	n.ok("mount", testName, target, "-o", "max_ttl=200ms,server="+r.url)
	c := n.container(filepath.Join(target, "docker.io/library/app:1"), busyScript)
	for i := range 3 {
		r.publish("docker.io/library/app:1", fmt.Sprint("version ", i))
		n.await("the new version", func() bool {
			return n.sh(`exec cat "$1"`, filepath.Join(target, "docker.io/library/app:1/etc/version")).stdout == fmt.Sprintf("version %d\n", i)
		})
		n.sh(`echo 2 >/proc/sys/vm/drop_caches`)
	}
	n.ticks(c)
	// Its namespace shows other paths than this one.
	if got := n.ok("fuser", target); !strings.Contains(got, fmt.Sprintf("%7d sh               cwd root exe fd map", c.cmd.Process.Pid)) {
		t.Errorf("who uses the mount: %q, want pid %d", got, c.cmd.Process.Pid)
	}
	c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-c.ended:
		if _, last, _ := strings.Cut(c.said(), "one\n"); err != nil || last != "one\n2\n/etc\n" {
			t.Errorf("the container ended with %v, having seen %q", err, strings.ReplaceAll(c.said(), "tick\n", ""))
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the container does not end")
	}
	if r := n.run("umount", target); r.status != 0 {
		t.Errorf("umount: %s", r.stderr)
	}
}

// M20 M21: pins, and a look on request.
func TestM21AMountPinnedByRevisionDateOrDigestStays(t *testing.T) {
	t.Parallel()
	r := newLiveRepo(t)
	const app = "docker.io/library/app:1"
	var times []time.Time
	for _, version := range []string{"one", "two", "three"} {
		for len(times) > 0 && !time.Now().After(times[len(times)-1].Add(time.Second)) {
			time.Sleep(20 * time.Millisecond) // manifests tell whole seconds
		}
		r.publish(app, version)
		times = append(times, time.Now().UTC().Truncate(time.Second))
	}
	n := r.node()
	version := func(at string) string { return strings.TrimSpace(n.sh(`exec cat "$1/etc/version"`, at).stdout) }
	server := "max_ttl=200ms,server=" + r.url
	digest := ""
	for i, row := range []struct{ name, source, options, want string }{
		{"a revision", testName, "revision=2", "one"},
		{"the next", testName, "revision=3", "two"},
		{"the current one", testName, "revision=4", "three"},
		{"a date", testName, "date=" + times[1].Format(time.RFC3339), "two"},
		{"today", testName, "date=" + times[2].Format(time.DateOnly), "three"},
		{"an image of a revision", testName + "/" + app, "revision=2", "one"},
	} {
		target := n.target("pin" + strconv.Itoa(i))
		n.ok("mount", row.source, target, "-o", row.options+","+server)
		at := target
		if row.source == testName {
			at = filepath.Join(target, app)
		}
		if got := version(at); got != row.want {
			t.Errorf("%s shows version %q, want %q", row.name, got, row.want)
		}
		if i == 0 {
			digest = filepath.Base(n.sh(`readlink "$1"`, at).stdout)
		}
	}
	target := n.target("digest")
	n.ok("mount", testName+"/docker.io/library/app@sha256:"+strings.TrimSpace(digest), target, "-o", server)
	if got := version(target); got != "one" {
		t.Errorf("by digest: version %q, want one", got)
	}
	for name, row := range map[string]struct{ options, want string }{
		"a revision of the future": {"revision=99", "no revision 99 yet"},
		"a date before all":        {"date=2001-01-01", "no revision from"},
		"a revision and a date":    {"revision=2,date=2026-01-01", "both a revision and a date"},
		"a date that is none":      {"date=yesterday", "is no date"},
		"a revision that is none":  {"revision=-1", "is no number of a revision"},
	} {
		if got := n.run("mount", testName, n.target("bad"), "-o", row.options+","+server); got.status == 0 || !strings.Contains(got.stderr, row.want) {
			t.Errorf("%s: status %d, %q, want %q", name, got.status, got.stderr, row.want)
		}
	}
	r.publish(app, "four")
	live := n.target("live")
	n.ok("mount", testName, live, "-o", "server="+r.url)
	r.publish(app, "five")
	n.ok("mount", testName, live, "-o", "remount,server="+r.url)
	n.await("the remounted one to show what is there", func() bool { return version(filepath.Join(live, app)) == "five" })
	if got := version(filepath.Join(n.home, "mnt", "pin2", app)); got != "three" {
		t.Errorf("the pinned one shows %q, want three", got)
	}
	// All of it without a server, by a new daemon.
	r.down.Store(true)
	n.kill(n.status().PID)
	n.ok("mount", testName, n.target("again"), "-o", "revision=2,max_ttl=200ms,timeout_direct=1s,server="+r.url)
	if got := version(filepath.Join(n.home, "mnt", "again", app)); got != "one" {
		t.Errorf("offline, a pin seen before shows %q, want one", got)
	}
	for _, m := range n.status().Mounts {
		if m.State != "mounted" || (m.Follows != (m.Target == live)) {
			t.Errorf("after the crash: %+v", m)
		}
	}
}

func TestSqfsAliasTakesChRunIn(t *testing.T) {
	t.Parallel()
	r := newLiveRepo(t)
	chrun := testkit.Program(t, "ch-run")
	r.publish("docker.io/library/app:1", "one")
	n := r.node()
	target := n.target("m")
	n.ok("mount", testName, target, "-o", "sqfs_alias,server="+r.url)
	alias := filepath.Join(target, "docker.io/library/app:1.sqfs")
	if got := n.sh(`ls "$1" && stat -L -c %F "$2"`, filepath.Dir(alias), alias).stdout; got != "app:1\napp:1.sqfs\ndirectory\n" {
		t.Errorf("listed and seen by stat: %q", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got := runCommand(ctx, t, exec.Command("env", "USER=root", chrun, alias, "--", "/bin/cat", "/etc/version"))
	if got.status != 0 || got.stdout != "one\n" {
		t.Errorf("ch-run %s: status %d, %q\n%s", alias, got.status, got.stdout, got.stderr)
	}
	var info mountd.MountStatus = n.status().Mounts[0]
	if info.Errors != 0 {
		t.Errorf("the mount is %+v", info)
	}
}

// P04: nodes follow a rollback as they follow any publish.
func TestP04NodesFollowARollback(t *testing.T) {
	t.Parallel()
	r := newLiveRepo(t)
	const app = "docker.io/library/app:1"
	r.publish(app, "one")
	r.publish(app, "two")
	n := r.node()
	target := n.target("m")
	n.ok("mount", testName, target, "-o", "max_ttl=200ms,server="+r.url)
	version := func() string { return n.sh(`exec cat "$1/etc/version"`, filepath.Join(target, app)).stdout }
	if got := version(); got != "two\n" {
		t.Fatalf("version %q", got)
	}
	if got := r.skimfs("repo", "rollback", r.dir, "2", "--keys", r.keys); !strings.Contains(got, "moved   "+app) || !strings.Contains(got, "revision 4") {
		t.Errorf("rollback prints %q", got)
	}
	n.await("the rollback", func() bool { return version() == "one\n" })
	if got := r.skimfs("repo", "history", r.dir, "--keys", r.keys); !strings.HasPrefix(got, "revision 4 of ") || strings.Count(got, "moved") != 2 || strings.Count(got, ", current") != 1 {
		t.Errorf("history prints %q", got)
	}
	if got := n.run("repo", "rollback", r.dir, "77", "--keys", r.keys); got.status != exitFailed || !strings.Contains(got.stderr, "hint: skimfs repo history") {
		t.Errorf("to nowhere: status %d, %q", got.status, got.stderr)
	}
}

// N18 N19 N22: what a mount tells of itself.
func TestN18AMountTellsOfItself(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	repo, image := n.target("repo"), n.target("image")
	n.ok("mount", testName, repo, "-o", "server="+s.URL)
	n.ok("mount", s.image(), image)
	n.read(filepath.Join(image, "big"))
	get := func(at, name string) string {
		return n.sh(`getfattr --only-values -n "user.skimfs.$2" "$1" 2>/dev/null`, at, name).stdout
	}
	for name, want := range map[string]string{
		"repository": testName, "revision": "3", "pid": strconv.Itoa(n.status().PID), "host": s.URL, "host_list": s.URL, "proxy": "DIRECT", "proxy_list": "DIRECT",
		"uptime": "0", "nioerr": "0", "ndownload": "0", "hitrate": "n/a", "expires": "3", "source": testName, "nothing": "", "image": "",
		"tag": "", "timeout": "5", "timeout_direct": "10", "timestamp_last_ioerr": "0",
	} {
		if got := get(repo, name); got != want {
			t.Errorf("the repository's %s is %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]string{"expires": "never (fixed root catalog)", "tag": testImage, "ndownload": "4", "rx": "3222", "image": n.status().Mounts[0].Image} {
		if got := get(image, name); got != want {
			t.Errorf("the image's %s is %q, want %q", name, got, want)
		}
	}
	if got := strings.Count(get(filepath.Join(image, "big"), "chunk_list"), "\n"); got != 4 || get(filepath.Join(image, "big"), "chunks") != "4" {
		t.Errorf("big has %d lines of chunks", got)
	}
	if got := n.sh(`getfattr -d -m - "$1"; getfattr -R -d -m skimfs "$2"`, repo, image).stdout; strings.Count(got, "user.skimfs.") < 12 || strings.Contains(got, image) {
		t.Errorf("listed: %s", got)
	}
	// Blocks of all files, and what the image and its furniture have in entries.
	entries := strings.TrimSpace(n.sh(`find "$1" -printf '%i\n' | sort -u | wc -l`, image).stdout)
	if got := n.sh(`stat -f -c '%b %S %c' "$1"`, image).stdout; got != "880 4096 "+entries+"\n" {
		t.Errorf("statfs says %q, want the size and %s entries", got, entries)
	}
}
