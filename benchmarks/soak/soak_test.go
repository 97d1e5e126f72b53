package soak_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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

const (
	images  = 8
	mounts  = 64
	stable  = 48 // of them; the others come and go
	readers = 256
	proxies = 4
	servers = 2

	quota = "40MB"
	files = 40 + 13*images // that so small a cache has open at most: packs, and each image's chunks of 200 kB and more

	name     = "images.example.org"
	deadline = 20 * time.Second
	hangs    = deadline + 30*time.Second // without a word from a reader, on a machine with so many
)

// sizes are those of each image's files, in bytes: most are small, and two have several chunks.
var sizes = append(append(slices.Repeat([]int{700, 9_000, 33_000}, 10), slices.Repeat([]int{200_000}, 8)...), 1_500_000, 2_600_000)

// readScript reads what its list says, over and over, a piece of at most 1 MiB each time, compares it with what was published and says how that ended: 0 equal,
// 1 different, 2 not readable. Every other process goes past the kernel's cache, so that the daemon is asked. Between two pieces it pauses, half a second times the pace.
const readScript = `use strict; use Fcntl; $| = 1;
my ($home, $references, $list, $direct, $pace) = @ARGV;
sub piece { my ($path, $skip, $flags) = @_; my $all = "";
	sysopen(my $f, $path, O_RDONLY | $flags) or return; sysseek($f, $skip, 0);
	while (length($all) < 1 << 20) { my $n = sysread($f, $all, (1 << 20) - length($all), length($all)); return unless defined $n; last unless $n }
	return $all }
open(my $l, "<", $list) or die; my @lines = <$l>;
while (1) { for (@lines) {
	exit if -e "$home/stop";
	my ($path, $reference, $skip) = split;
	my $got = piece("$home/mnt/$path", $skip, $direct ? O_DIRECT : 0);
	print defined $got ? $got eq piece("$references/$reference", $skip, 0) ? 0 : 1 : 2, " $path\n";
	for (1 .. $pace) { exit if -e "$home/stop"; select(undef, undef, undef, 0.3 + rand 0.4) } } }`

// tally counts what readers said.
type tally struct {
	equal, different, failed, gone atomic.Int64 // gone: failed on a mount that comes and goes
	last                           [readers]atomic.Int64
}

func (c *tally) add(reader int, line string) {
	c.last[reader].Store(time.Now().UnixNano())
	status, path, _ := strings.Cut(line, " ")
	var mount int
	_, _ = fmt.Sscanf(path, "m%d/", &mount)
	switch {
	case status == "0":
		c.equal.Add(1)
	case status == "1":
		c.different.Add(1)
	case mount >= stable:
		c.gone.Add(1)
	default:
		c.failed.Add(1)
	}
}

// silent returns how long the quietest reader has said nothing.
func (c *tally) silent() time.Duration {
	oldest := time.Now().UnixNano()
	for i := range c.last {
		oldest = min(oldest, c.last[i].Load())
	}
	return time.Since(time.Unix(0, oldest))
}

// sample is the daemon's size at a time.
type sample struct{ memory, descriptors int }

func sampleOf(pid int) (s sample, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	fds, fdErr := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err := errors.Join(err, fdErr); err != nil {
		return s, err
	}
	_, rest, _ := strings.Cut(string(status), "\nVmRSS:")
	if s.memory, err = strconv.Atoi(strings.Fields(rest)[0]); err != nil {
		return s, err
	}
	s.memory *= 1 << 10
	s.descriptors = len(fds)
	return s, nil
}

// most returns the largest values of some samples.
func most(all []sample) (m sample) {
	for _, s := range all {
		m = sample{max(m.memory, s.memory), max(m.descriptors, s.descriptors)}
	}
	return m
}

func TestSoak(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	// By default it runs beside other tests and leaves them the machine.
	length, pace := 2*time.Minute, 10
	if text := os.Getenv("SKIMFS_SOAK"); text != "" {
		var err error
		pace = 1
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t)
	for i := range mounts {
		w.mount(i)
	}
	pid := w.daemon.Process.Pid

	var all sync.WaitGroup
	var counted tally
	var ended []chan error
	for i := range readers {
		ended = append(ended, w.read(i, pace, &counted, &all))
	}
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var changes, faults atomic.Int64
	all.Go(func() { w.comeAndGo(ctx, time.Duration(pace)*200*time.Millisecond, &changes) })
	all.Go(func() { w.fail(ctx, &faults) })
	var samples []sample
	for tick := time.NewTicker(length / 120); ctx.Err() == nil; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			continue
		}
		s, err := sampleOf(pid)
		if err != nil {
			t.Fatalf("the daemon: %v\n%s", err, w.log())
		}
		samples = append(samples, s)
		if quiet := counted.silent(); quiet > hangs {
			t.Fatalf("a reader has said nothing for %v\n%s", quiet, w.log())
		}
	}
	if err := os.WriteFile(filepath.Join(w.home, "stop"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	late := time.After(hangs)
	for i, end := range ended {
		select {
		case err := <-end:
			if err != nil {
				t.Errorf("reader %d: %v", i, err)
			}
		case <-late:
			t.Fatalf("reader %d does not end\n%s", i, w.log())
		}
	}
	all.Wait()

	first, last := most(samples[len(samples)/4:len(samples)/2]), most(samples[3*len(samples)/4:])
	fetched := w.status().Fetch
	t.Logf("%v: %d reads were right, %d wrong, %d failed (and %d on mounts that came and went %d times); proxies and servers failed %d times, the daemon made %d requests, %d failovers",
		length, counted.equal.Load(), counted.different.Load(), counted.failed.Load(), counted.gone.Load(), changes.Load(), faults.Load(), fetched.Requests, fetched.Failovers)
	t.Logf("at most, in the second and in the last quarter of the time: %d and %d MB of memory, %d and %d descriptors", first.memory>>20, last.memory>>20, first.descriptors, last.descriptors)
	if n := counted.different.Load(); n != 0 {
		t.Errorf("%d reads gave wrong bytes", n)
	}
	if counted.equal.Load() < 10*readers || changes.Load() == 0 || faults.Load() == 0 || fetched.Failovers == 0 {
		t.Error("that was no load")
	}
	if good, bad := counted.equal.Load(), counted.failed.Load(); bad*20 > good {
		t.Errorf("%d reads failed, %d succeeded: want less than one in twenty, since half of the network was there all the time", bad, good)
	}
	if last.memory > first.memory*5/4+32<<20 || last.descriptors > first.descriptors*5/4+64 {
		t.Errorf("the daemon grew from %+v to %+v", first, last)
	}
	for i := range mounts {
		w.unmount(i)
	}
	var now sample
	var goroutines int
	w.await(func() string {
		return fmt.Sprintf("the daemon to be as small as without a mount: %d descriptors and %d goroutines, has %d and %d", w.idle.descriptors, w.idleGoroutines, now.descriptors, goroutines)
	}, func() bool {
		now, _ = sampleOf(pid)
		goroutines = w.goroutines()
		return now.descriptors > 0 && now.descriptors <= w.idle.descriptors+files+16 && goroutines <= w.idleGoroutines+16
	})
}

// world is a node with a daemon, and the repository and the ways to it.
type world struct {
	t              *testing.T
	home           string
	references     string // directory with a directory for each image
	daemon         *exec.Cmd
	client         *mountd.Client
	options        mountd.Options
	proxies        []*testkit.Faulty
	servers        []*testkit.Faulty
	idle           sample
	idleGoroutines int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, home: testkit.Home(t), references: t.TempDir()}
	repo, keys := filepath.Join(t.TempDir(), "repo"), filepath.Join(t.TempDir(), "keys")
	w.publisher("repo", "create", repo, "--name", name, "--keys", keys)
	random := rand.NewChaCha8([32]byte{9})
	for i := range images {
		dir := filepath.Join(w.references, fmt.Sprint("i", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for f, size := range sizes {
			content := make([]byte, size)
			_, _ = random.Read(content) // it never fails
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("f", f)), content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		w.publisher("publish", "--repo", repo, "--keys", keys, "dir:"+dir, fmt.Sprintf("soak/image:%d", i))
	}
	nginx := testkit.StartNginx(t, repo)
	for range servers {
		w.servers = append(w.servers, testkit.NewFaulty(t, nginx.Addr))
	}
	for range proxies {
		w.proxies = append(w.proxies, testkit.NewFaulty(t, nginx.Addr))
	}
	p, s := w.proxies, w.servers
	w.options = mountd.Options{
		Proxy: p[0].URL + "|" + p[1].URL + ";" + p[2].URL + "|" + p[3].URL, Servers: []string{s[0].URL, s[1].URL}, Timeout: 2 * time.Second, Deadline: deadline,
	}
	pub, err := os.ReadFile(filepath.Join(keys, name+".pub"))
	if err := errors.Join(err, os.MkdirAll(filepath.Join(w.home, "etc", "keys"), 0o755), os.WriteFile(filepath.Join(w.home, "etc", "keys", name+".pub"), pub, 0o644)); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(w.home, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	w.daemon = testkit.Command(t, w.home, "mountd", "--quota", quota)
	w.daemon.Stderr = log
	if err := w.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.daemon.Process.Signal(syscall.SIGTERM); _ = w.daemon.Wait() })
	w.await(func() string { return "the daemon" }, func() bool { return strings.Contains(w.log(), "daemon ready") })
	home, err := mountd.FindHome(os.Getuid(), func(key string) string { return map[string]string{"SKIMFS_HOME": w.home}[key] })
	if err == nil {
		w.client, err = mountd.Connect(t.Context(), home, "", mountd.StartDead, mountd.StartConfig{})
	}
	if err != nil {
		t.Fatal(err)
	}
	w.mount(0)
	w.unmount(0)
	if w.idle, err = sampleOf(w.daemon.Process.Pid); err != nil {
		t.Fatal(err)
	}
	w.idleGoroutines = w.goroutines()
	return w
}

func (w *world) target(i int) string { return filepath.Join(w.home, "mnt", fmt.Sprint("m", i)) }

// mount mounts one of the images on the target of a number.
func (w *world) mount(i int) {
	w.t.Helper()
	err := os.MkdirAll(w.target(i), 0o755)
	if err == nil {
		_, err = w.client.Mount(context.Background(), mountd.MountRequest{Source: fmt.Sprintf("%s/soak/image:%d", name, i%images), Target: w.target(i), Options: w.options})
	}
	if err != nil {
		w.t.Errorf("%v\n%s", err, w.log())
	}
}

func (w *world) unmount(i int) {
	w.t.Helper()
	if err := w.client.Unmount(context.Background(), w.target(i), true); err != nil {
		w.t.Errorf("%v\n%s", err, w.log())
	}
}

// publisher runs a publisher's command.
func (w *world) publisher(args ...string) {
	w.t.Helper()
	if out, err := testkit.Command(w.t, w.home, args...).CombinedOutput(); err != nil {
		w.t.Fatalf("skimfs %q: %v\n%s", args, err, out)
	}
}

func (w *world) status() *mountd.Status {
	w.t.Helper()
	s, err := w.client.Status(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

var goroutinesLine = regexp.MustCompile(`(?m)^go_goroutines (\d+)$`)

// goroutines asks the daemon how many it has.
func (w *world) goroutines() int {
	w.t.Helper()
	var text bytes.Buffer
	if err := w.client.Metrics(w.t.Context(), &text); err != nil {
		w.t.Fatal(err)
	}
	m := goroutinesLine.FindSubmatch(text.Bytes())
	if m == nil {
		w.t.Fatalf("no go_goroutines in %s", text.Bytes())
	}
	n, _ := strconv.Atoi(string(m[1]))
	return n
}

func (w *world) log() string {
	b, _ := os.ReadFile(filepath.Join(w.home, "log"))
	return string(b[max(0, len(b)-20_000):])
}

func (w *world) await(what func() string, cond func() bool) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("waiting for %s\n%s", what(), w.log())
		}
	}
}

// read starts a reading process; how it ends comes over the channel.
func (w *world) read(i, pace int, counted *tally, all *sync.WaitGroup) chan error {
	w.t.Helper()
	random := rand.New(rand.NewPCG(uint64(i), 1))
	var list strings.Builder
	for range 300 {
		m, f := random.IntN(mounts), random.IntN(len(sizes))
		fmt.Fprintf(&list, "m%d/f%d i%d/f%d %d\n", m, f, m%images, f, random.IntN(2)*random.IntN(sizes[f]))
	}
	path := filepath.Join(w.home, fmt.Sprint("list-", i))
	if err := os.WriteFile(path, []byte(list.String()), 0o644); err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(testkit.Program(w.t, "perl"), "-e", readScript, w.home, w.references, path, strconv.Itoa(i%2), strconv.Itoa(pace))
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = cmd.Process.Kill() })
	counted.last[i].Store(time.Now().UnixNano())
	ended := make(chan error, 1)
	all.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			counted.add(i, lines.Text())
		}
		ended <- cmd.Wait()
	})
	return ended
}

// comeAndGo unmounts and mounts, with a pause each time, until ctx ends.
func (w *world) comeAndGo(ctx context.Context, pause time.Duration, changes *atomic.Int64) {
	for i := 0; ctx.Err() == nil && !w.t.Failed(); i++ {
		n := stable + i%(mounts-stable)
		w.unmount(n)
		w.mount(n)
		changes.Add(1)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// fail has half of the ways fail, another half each time, in each way there is.
func (w *world) fail(ctx context.Context, faults *atomic.Int64) {
	p, s := w.proxies, w.servers
	halves := [][]*testkit.Faulty{{p[0], p[1]}, {s[0]}, {p[2], p[3]}, {s[1]}, {p[0], p[2]}, {p[1], p[3]}}
	for i := 0; ; i++ {
		half := halves[i%len(halves)]
		for j, f := range half {
			f.Set(testkit.Faults[(i+7*j)%len(testkit.Faults)])
			faults.Add(1)
		}
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
		}
		for _, f := range half {
			f.Set(testkit.Sound)
		}
		if ctx.Err() != nil {
			return
		}
	}
}
