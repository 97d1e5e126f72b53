package fusefs_test

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/skimfs/skimfs/fusefs"
	"github.com/skimfs/skimfs/index"
	"golang.org/x/sys/unix"
)

func TestOthersGoOnWhileOneWaits(t *testing.T) {
	z := newZoo(t)
	c, _ := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog)})
	dir := mount(t, c)
	d := z.root.Children["data"].Children["big"].Chunks[0]
	open := z.shut(d)
	defer open()
	var ended []chan struct{}
	var outs []*logs
	for range 12 { // more than there are readers
		_, out, end := background(t, `cat $1/data/big | cksum`, dir)
		ended, outs = append(ended, end), append(outs, out)
	}
	z.await(t, d, 1)
	if got := sh(t, `df $1 >/dev/null; stat -c %s $1/etc/hello; ls $1/many | wc -l; cat $1/etc/hello; readlink $1/sym/relative; tail -c 7 $1/data/big | wc -c`, dir); got != "6\n3000\nhello\n../etc/hello\n7" {
		t.Errorf("while reads hang: %q", got)
	}
	for _, end := range ended {
		select {
		case <-end:
			t.Fatal("a reader did not wait")
		default:
		}
	}
	open()
	want := sh(t, `cat $1/data/big | cksum`, dir)
	for i, end := range ended {
		<-end
		if got := strings.TrimSpace(outs[i].String()); got != want {
			t.Errorf("a reader that waited got %s, want %s", got, want)
		}
	}
}

func TestNestedCatalogFailsThenHeals(t *testing.T) {
	s := newSplit(t)
	c, l := s.newCore(t, fusefs.Config{Tree: s.tree(t, s.ref.Catalog)})
	dir := mount(t, c)
	s.setBroken(s.nested.Digest, true)
	for range 2 {
		out, status := try(t, `stat $1/$2/deep; ls $1/$2`, dir, s.dir)
		if status == 0 || strings.Count(out, "Input/output error") != 2 || strings.Contains(out, "No such file") {
			t.Errorf("without its catalog: status %d, %s", status, out)
		}
	}
	if got := sh(t, `ls $1; stat -c %F $1/$2; df $1 >/dev/null`, dir, s.dir); got != "a\nb\ndirectory" {
		t.Errorf("the parent shows %q", got)
	}
	if n := strings.Count(l.String(), "input/output error"); n != 4 {
		t.Errorf("4 failures were logged %d times: %s", n, l)
	}
	for _, word := range []string{"op=lookup", "op=readdir", "inode=", errBroken.Error()} {
		if !strings.Contains(l.String(), word) {
			t.Errorf("the log lacks %s: %s", word, l)
		}
	}
	s.setBroken(s.nested.Digest, false)
	if got := sh(t, `cat $1/$2/deep/file-00007; ls $1/$2/deep | wc -l`, dir, s.dir); got != s.dir+"7\n12000" {
		t.Errorf("healed it shows %q", got)
	}
}

func TestStatGoesOnWhileACatalogLoads(t *testing.T) {
	s := newSplit(t)
	c, _ := s.newCore(t, fusefs.Config{Tree: s.tree(t, s.ref.Catalog)})
	dir := mount(t, c)
	open := s.shut(s.nested.Digest)
	defer open()
	var ended []chan struct{}
	for _, name := range []string{"x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9"} {
		_, _, end := background(t, `stat $1/$2/$3`, dir, s.dir, name)
		ended = append(ended, end)
	}
	s.await(t, s.nested.Digest, 1)
	other := map[string]string{"a": "b", "b": "a"}[s.dir]
	if got := sh(t, `df $1 >/dev/null; stat -c %F $1/$2; cat $1/$3/deep/file-00003`, dir, s.dir, other); got != "directory\n"+other+"3" {
		t.Errorf("while a catalog loads: %q", got)
	}
	open()
	for _, end := range ended {
		<-end
	}
}

func TestDeadlineIsAnIOError(t *testing.T) {
	z := newZoo(t)
	c, l := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog), Deadline: 200 * time.Millisecond})
	dir := mount(t, c)
	d := z.root.Children["etc"].Children["hello"].Chunks[0]
	open := z.shut(d)
	defer open()
	out, status := try(t, `cat $1/etc/hello`, dir)
	if status == 0 || !strings.Contains(out, "Input/output error") {
		t.Errorf("status %d, %s", status, out)
	}
	if !strings.Contains(l.String(), "deadline") || !strings.Contains(l.String(), "op=read") {
		t.Errorf("logged: %s", l)
	}
	open()
	if got := sh(t, `cat $1/etc/hello`, dir); got != "hello" {
		t.Errorf("later it reads %q", got)
	}
}

// timer reads a file, by read and by page faults, while a signal comes every 10 ms.
const timer = `
import hashlib, mmap, os, signal, sys
ticks = 0
def tick(*_):
    global ticks
    ticks += 1
signal.signal(signal.SIGALRM, tick)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
print('ready', flush=True)
os.stat(sys.argv[2]) if len(sys.argv) > 2 else None
f = os.open(sys.argv[1], os.O_RDONLY)
m = mmap.mmap(f, os.fstat(f).st_size, mmap.MAP_SHARED, mmap.PROT_READ)
print(hashlib.sha256(m).hexdigest(), hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest(), ticks > 0)
`

func TestSignalsDoNotEndAWait(t *testing.T) {
	z := newZoo(t)
	c, _ := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog)})
	dir := mount(t, c)
	want := sh(t, `sha256sum <$1/data/big | cut -d' ' -f1; echo 3 >/proc/sys/vm/drop_caches`, dir)
	var opens []func()
	chunks := z.root.Children["data"].Children["big"].Chunks
	for _, d := range chunks {
		opens = append(opens, z.shut(d))
	}
	script := t.TempDir() + "/timer.py"
	if err := os.WriteFile(script, []byte(timer), 0o600); err != nil {
		t.Fatal(err)
	}
	_, out, ended := background(t, `exec python3 "$2" "$1/data/big"`, dir, script)
	for i, open := range opens {
		z.await(t, chunks[i], 1)
		time.Sleep(100 * time.Millisecond) // let signals come
		open()
	}
	<-ended
	if got := out.String(); got != "ready\n"+want+" "+want+" True\n" {
		t.Errorf("got %q, want %s twice", got, want)
	}
}

func TestSignalsDoNotEndALookup(t *testing.T) {
	s := newSplit(t)
	set := metrics.NewSet()
	c, _ := s.newCore(t, fusefs.Config{Tree: s.tree(t, s.ref.Catalog), Metrics: set})
	dir := mount(t, c)
	open := s.shut(s.nested.Digest)
	defer open()
	script := t.TempDir() + "/timer.py"
	if err := os.WriteFile(script, []byte(timer), 0o600); err != nil {
		t.Fatal(err)
	}
	other := map[string]string{"a": "b", "b": "a"}[s.dir]
	_, out, ended := background(t, `exec python3 "$2" "$1/$4/deep/file-00001" "$1/$3/deep"`, dir, script, s.dir, other)
	poll(t, "the lookup is interrupted", func() bool { return requests(set, "interrupt") > 0 })
	time.Sleep(100 * time.Millisecond)
	open()
	<-ended
	if !strings.HasSuffix(out.String(), " True\n") {
		t.Errorf("got %q", out)
	}
}

func TestKilledWaiterLeavesAtOnce(t *testing.T) {
	s := newSplit(t)
	other := map[string]string{"a": "b", "b": "a"}[s.dir]
	file := index.DigestOf([]byte(other + "4\n"))
	for _, test := range []struct {
		claim, script string
		waitsFor      index.Digest
		before        syscall.Signal // sent first, and ignored
	}{
		{"a lookup", `exec stat $1/$2/deep`, s.nested.Digest, 0},
		{"a lookup that was interrupted before", `exec python3 -c 'import os, signal, sys; signal.signal(signal.SIGUSR1, lambda *_: 0); os.stat(sys.argv[1])' $1/$2/other`, s.nested.Digest, syscall.SIGUSR1},
		{"a listing", `exec ls $1/$2`, s.nested.Digest, 0},
		{"a read", `exec cat $1/$3/deep/file-00004`, file, 0},
	} {
		t.Run(test.claim, func(t *testing.T) {
			c, l := s.newCore(t, fusefs.Config{Tree: s.tree(t, s.ref.Catalog)})
			dir := mount(t, c)
			waiting := func() int {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.waiting[test.waitsFor]
			}
			open := s.shut(test.waitsFor)
			defer open()
			before := waiting()
			cmd, _, ended := background(t, test.script, dir, s.dir, other)
			poll(t, "the process waits", func() bool { return waiting() > before })
			if test.before != 0 {
				cmd.Process.Signal(test.before)
				time.Sleep(5 * time.Millisecond)
			}
			start := time.Now()
			cmd.Process.Kill()
			select {
			case <-ended:
			case <-time.After(patience):
				open()
				t.Fatal("a killed process is still waiting")
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("it took %v", took)
			}
			if l.String() != "" {
				t.Errorf("logged: %s", l)
			}
		})
	}
}

// faulty is a source that panics, or touches memory that is gone.
type faulty struct {
	*store
	mapped []byte
}

func (f *faulty) ReadCached(c index.Chunk, p []byte, off int64) bool {
	if f.mapped != nil {
		copy(p, f.mapped[off:])
		return true
	}
	panic("a bug in the source")
}

func TestPanicsAndFaultsFailOneRequest(t *testing.T) {
	z := newZoo(t)
	path := t.TempDir() + "/mapped"
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	mapped, err := unix.Mmap(int(file.Fd()), 0, 1<<20, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	if err := file.Truncate(0); err != nil {
		t.Fatal(err)
	}
	for name, source := range map[string]*faulty{"a panic": {store: z.store}, "a fault in mapped memory": {store: z.store, mapped: mapped}} {
		t.Run(name, func(t *testing.T) {
			set := metrics.NewSet()
			c, l := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog), Chunks: source, Metrics: set})
			dir := mount(t, c)
			out, status := try(t, `cat $1/etc/hello`, dir)
			if status == 0 || !strings.Contains(out, "Input/output error") {
				t.Errorf("status %d, %s", status, out)
			}
			if got := sh(t, `stat -c %s $1/etc/hello`, dir); got != "6" {
				t.Errorf("afterwards: %q", got)
			}
			if n := set.GetOrCreateCounter("skimfs_fuse_panics_total").Get(); n == 0 || !strings.Contains(l.String(), "readChunk") {
				t.Errorf("%d panics were counted, logged: %s", n, l)
			}
		})
	}
}

func TestCloseEndsLoads(t *testing.T) {
	s := newSplit(t)
	c, _ := s.newCore(t, fusefs.Config{Tree: s.tree(t, s.ref.Catalog)})
	dir := walk(t, c, fusefs.RootID, s.dir).Node
	defer s.shut(s.nested.Digest)()
	done := make(chan error)
	go func() {
		var e fusefs.Entry
		done <- c.Do(context.Background(), func() error { return c.Lookup(dir, []byte("deep"), &e) })
	}()
	s.await(t, s.nested.Digest, 1)
	c.Close()
	if err := <-done; err == nil {
		t.Error("a waiter got an answer from a Core that was closed")
	}
	var e fusefs.Entry
	if err := c.Do(context.Background(), func() error { return c.Lookup(dir, []byte("deep"), &e) }); err == nil {
		t.Error("a closed Core loads")
	}
}
