package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize/english"
	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

const (
	churnLimit  = 500e6
	churnLaps   = 20
	churnHot    = churnLimit / 20 // bytes of what is read again and again
	churnRead   = 4 << 10
	spareProcs  = 2 // goroutines that may run besides one for each CPU, as in the daemon
	reopenBytes = 10e9
)

// churnResult is what a cache did while many times its limit went through it.
type churnResult struct {
	sizes             string
	writers           int
	seconds           float64
	objects, bytes    int64 // that went through
	peak, indexPeak   int64 // of du, on everything and on the index
	indexFirst        int64 // peak in the first quarter
	written, copied   int64 // bytes
	hot, hotAgain     int64 // objects read again and again, and how often one had to be filled anew
	uncached, damaged int64
	read, limit       latencies // of cached 4 KiB reads by another process meanwhile, and of such reads of a plain file through a third
	shrunk            float64   // seconds from setting half the limit to du below it
}

// measureChurn streams 20 times the limit through a cache of 500 MB.
func measureChurn(s *scope, writers int, sizes string, size func(n uint64) int) churnResult {
	procs := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(procs)
	runtime.GOMAXPROCS(procs + spareProcs)
	dir, err := os.MkdirTemp("", "skimfs-churn-")
	s.check(err)
	s.Cleanup(func() { os.RemoveAll(dir) })
	db, err := cachedb.Open(cachedb.Config{Dir: dir, Limit: churnLimit, Memory: -1})
	s.check(err)
	c := &churner{db: db, dir: dir, size: size, result: churnResult{sizes: sizes, writers: writers}}
	for n, left := uint64(1<<40), int64(churnHot); left > 0; n++ {
		c.hot = append(c.hot, hotObject{n, digestOf(n), size(n)})
		left -= int64(size(n))
	}
	c.result.hot = int64(len(c.hot))
	before, begun := written(), time.Now()
	s.check(c.run(s.ctx))
	r := &c.result
	r.seconds, r.written = time.Since(begun).Seconds(), written()-before
	r.objects, r.bytes, r.hotAgain = int64(c.next.Load()), c.streamed.Load(), c.hotFills.Load()-r.hot
	stats := db.Stats()
	r.copied, r.uncached, r.damaged = stats.Copied, stats.Uncached, stats.VerifyFailures
	begun = time.Now()
	s.check(db.SetLimit(churnLimit / 2))
	for diskUsage(dir) > churnLimit/2 && s.ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	r.shrunk = time.Since(begun).Seconds()
	s.check(db.Close())
	return *r
}

// hotObject is read again and again. What it is called and how long it is, is computed before: the reader is to measure the cache alone.
type hotObject struct {
	n      uint64
	digest index.Digest
	size   int
}

type churner struct {
	db                 *cachedb.DB
	dir                string
	size               func(n uint64) int
	hot                []hotObject
	next               atomic.Uint64
	streamed, hotFills atomic.Int64
	result             churnResult
}

// run has writers stream, a reader read and a watcher watch until all laps are run.
func (c *churner) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var writers, others sync.WaitGroup
	for range c.result.writers {
		writers.Go(func() {
			for c.streamed.Load() < churnLaps*churnLimit && ctx.Err() == nil {
				n := c.next.Add(1)
				if err := c.get(ctx, n, &c.streamed, int64(c.size(n))); err != nil {
					cancel(err)
				}
				if err := c.get(ctx, c.hot[n%uint64(len(c.hot))].n, &c.hotFills, 1); err != nil {
					cancel(err)
				}
			}
		})
	}
	over := make(chan struct{})
	others.Go(func() {
		if err := c.read(ctx, over); err != nil {
			cancel(err)
		}
	})
	others.Go(func() { c.watch(over) })
	writers.Wait()
	close(over)
	others.Wait()
	return context.Cause(ctx)
}

// get reads object n through the cache, and adds to filled if it wasn't there.
func (c *churner) get(ctx context.Context, n uint64, filled *atomic.Int64, add int64) error {
	want := contentOf(n, c.size(n))
	got, err := c.db.Get(ctx, digestOf(n), int64(len(want)), cachedb.ClassFile, func(context.Context) ([]byte, error) {
		filled.Add(add)
		return want, nil
	})
	if err == nil && string(got) != string(want) {
		err = fmt.Errorf("object %d: wrong content", n)
	}
	return err
}

// read times cached reads of 4 KiB by another process, which asks as the kernel asks a FUSE daemon, a thread that waits in a read. In turn with
// them it asks one that has nothing else to do than to read from a plain file: what the machine, as busy as it is, allows.
func (c *churner) read(ctx context.Context, over chan struct{}) error {
	f, err := os.CreateTemp("", "skimfs-plain-")
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	if _, err := f.Write(make([]byte, churnRead)); err != nil {
		return err
	}
	var pipes [4]int // requests and replies
	for i := 0; i < len(pipes); i += 2 {
		if err := unix.Pipe2(pipes[i:i+2], unix.O_CLOEXEC); err != nil {
			return err
		}
	}
	theirs := []*os.File{os.NewFile(uintptr(pipes[1]), "requests"), os.NewFile(uintptr(pipes[2]), "replies")}
	cmd := self(ctx, "child-ask", f.Name())
	cmd.ExtraFiles = theirs
	var out bytes.Buffer
	cmd.Stdout = &out
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	for _, t := range theirs {
		t.Close()
	}
	if err != nil {
		return err
	}
	go func() {
		<-over
		stdin.Close()
	}()
	p := make([]byte, churnRead)
	answered := answer(pipes[0], pipes[3], p, func() error { return c.readHot(p) })
	unix.Close(pipes[0])
	unix.Close(pipes[3])
	if err := errors.Join(answered, cmd.Wait()); err != nil {
		return err
	}
	var times [2]latencies
	err = json.Unmarshal(out.Bytes(), &times)
	c.result.read, c.result.limit = times[0], times[1]
	return err
}

// readHot fills p from somewhere in a hot object that is cached.
func (c *churner) readHot(p []byte) error {
	for {
		o := &c.hot[rand.IntN(len(c.hot))]
		if o.size < len(p) {
			continue
		}
		ok, err := c.db.ReadAt(o.digest, int64(o.size), p, int64(rand.IntN(o.size-len(p)+1)))
		if ok || err != nil {
			return err
		}
	}
}

// answer replies with p, which read fills, to each byte that comes, until no more can.
func answer(requests, replies int, p []byte, read func() error) error {
	for {
		if n, err := unix.Read(requests, p[:1]); n <= 0 || err != nil {
			return err
		}
		if err := read(); err != nil {
			return err
		}
		if _, err := unix.Write(replies, p); err != nil {
			return err
		}
	}
}

// ask is a child: a reader beside the stream, not a second stream.
func ask(args []string) error {
	const requests, replies = 3, 4
	other := self(context.Background(), "child-plain", args...)
	in, err := other.StdinPipe()
	if err != nil {
		return err
	}
	out, err := other.StdoutPipe()
	if err != nil {
		return err
	}
	if err := other.Start(); err != nil {
		return err
	}
	var over atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		over.Store(true)
	}()
	runtime.LockOSThread()
	var times [2]latencies
	pairs := [2][2]int{{requests, replies}, {int(in.(*os.File).Fd()), int(out.(*os.File).Fd())}}
	p := make([]byte, churnRead)
	for !over.Load() {
		for i, fd := range pairs {
			begun := time.Now()
			if _, err := unix.Write(fd[0], p[:1]); err != nil {
				return err
			}
			if n, err := unix.Read(fd[1], p); n != len(p) || err != nil {
				return fmt.Errorf("answer of %d bytes: %w", n, err)
			}
			times[i].since(begun)
			time.Sleep(time.Millisecond)
		}
	}
	in.Close()
	return errors.Join(other.Wait(), json.NewEncoder(os.Stdout).Encode(times))
}

// servePlain is a child that answers with a plain file's first 4 KiB, which the page cache has.
func servePlain(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	runtime.LockOSThread()
	p := make([]byte, churnRead)
	return answer(0, 1, p, func() error {
		_, err := f.ReadAt(p, 0)
		return err
	})
}

// watch takes the peaks of du.
func (c *churner) watch(over chan struct{}) {
	for {
		select {
		case <-over:
			return
		case <-time.After(100 * time.Millisecond):
		}
		index := diskUsage(filepath.Join(c.dir, "index"))
		c.result.peak = max(c.result.peak, diskUsage(c.dir))
		c.result.indexPeak = max(c.result.indexPeak, index)
		if c.streamed.Load() < churnLaps*churnLimit/4 {
			c.result.indexFirst = max(c.result.indexFirst, index)
		}
	}
}

func churnTable(w io.Writer, all []churnResult) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(w, "\n### %d times %s through a cache of %s\n\n| |", churnLaps, byteText(churnLimit), byteText(churnLimit))
	for _, c := range all {
		fmt.Fprintf(w, " %s, %s |", c.sizes, english.Plural(c.writers, "writer", ""))
	}
	fmt.Fprintf(w, "\n|---|")
	for range all {
		fmt.Fprint(w, "--:|")
	}
	fmt.Fprintln(w)
	mb := func(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
	both := func(c churnResult, q float64) string {
		return fmt.Sprintf("%.2f ms, %.2f ms", 1e3*c.read.at(q), 1e3*c.limit.at(q))
	}
	for _, row := range []struct {
		what  string
		value func(c churnResult) string
	}{
		{"objects", func(c churnResult) string { return strconv.FormatInt(c.objects, 10) }},
		{"MB/s through it", func(c churnResult) string { return fmt.Sprintf("%.0f", float64(c.bytes)/c.seconds/1e6) }},
		{"peak of `du`, every 0.1 s", func(c churnResult) string {
			return fmt.Sprintf("%s, %.1f %% of the limit", mb(c.peak), 100*float64(c.peak)/churnLimit)
		}},
		{"peak of the index, first quarter and whole", func(c churnResult) string { return mb(c.indexFirst) + ", " + mb(c.indexPeak) }},
		{"bytes written to disk ÷ bytes put", func(c churnResult) string { return fmt.Sprintf("%.2f", float64(c.written)/float64(c.bytes)) }},
		{"bytes copied forward ÷ bytes put", func(c churnResult) string { return fmt.Sprintf("%.3f", float64(c.copied)/float64(c.bytes)) }},
		{"hot objects, and fills of these after the first", func(c churnResult) string { return fmt.Sprintf("%d, %d", c.hot, c.hotAgain) }},
		{"not kept, damaged", func(c churnResult) string { return fmt.Sprintf("%d, %d", c.uncached, c.damaged) }},
		{"cached 4 KiB reads asked for meanwhile, and from a plain file: median", func(c churnResult) string { return both(c, 0.5) }},
		{"99th percentile", func(c churnResult) string { return both(c, 0.99) }},
		{"99.9th percentile", func(c churnResult) string { return both(c, 0.999) }},
		{"longest", func(c churnResult) string { return both(c, 1) }},
		{"from half the limit set to `du` below it", func(c churnResult) string { return fmt.Sprintf("%.2f s", c.shrunk) }},
	} {
		fmt.Fprintf(w, "| %s |", row.what)
		for _, c := range all {
			fmt.Fprintf(w, " %s |", row.value(c))
		}
		fmt.Fprintln(w)
	}
}

// reopenResult is how long a cache of 10 GB takes to open.
type reopenResult struct {
	objects, bytes       int64
	killed, clean, empty float64 // seconds: after a kill, after a clean stop, and that with nothing in the page cache
}

// imageSize draws sizes as images have them: 32 KB on average, a quarter of them files of their own.
func imageSize(n uint64) int {
	if n%4 > 0 {
		return smallSize(n)
	}
	return spread(n, 32<<10+1, 128<<10)
}

// fillCache is a child that fills a cache to a number of bytes, says so, and goes on until it is killed.
func fillCache(args []string) error {
	want, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	db, err := cachedb.Open(cachedb.Config{Dir: args[0], Limit: 2 * want, Memory: -1})
	if err != nil {
		return err
	}
	for n, told := uint64(0), false; ; n++ {
		if ok, err := db.Put(digestOf(n), cachedb.ClassFile, contentOf(n, imageSize(n))); !ok {
			return fmt.Errorf("putting object %d: %w", n, err)
		}
		if !told && db.Stats().Bytes >= want {
			told = true
			fmt.Println("full")
		}
	}
}

func measureReopen(s *scope) *reopenResult {
	dir, err := os.MkdirTemp("", "skimfs-reopen-")
	s.check(err)
	s.Cleanup(func() { os.RemoveAll(dir) })
	cmd := self(s.ctx, "child-fill", dir, strconv.FormatInt(reopenBytes, 10))
	out, err := cmd.StdoutPipe()
	s.check(err)
	s.check(cmd.Start())
	_, err = bufio.NewReader(out).ReadString('\n')
	s.check(err)
	s.check(cmd.Process.Kill())
	_ = cmd.Wait() // killed
	r := &reopenResult{}
	for _, seconds := range []*float64{&r.killed, &r.clean, &r.empty} {
		if seconds == &r.empty {
			run(s, "sync")
			s.check(os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
		}
		begun := time.Now()
		db, err := cachedb.Open(cachedb.Config{Dir: dir, Limit: 2 * reopenBytes, Memory: -1})
		s.check(err)
		*seconds = time.Since(begun).Seconds()
		stats := db.Stats()
		r.objects, r.bytes = stats.Objects, stats.Bytes
		s.check(db.Close())
	}
	return r
}

func (r *reopenResult) table(w io.Writer) {
	fmt.Fprintf(w, "\n### Opening a cache of %s, %d objects\n\n| after | seconds |\n|---|--:|\n", byteText(r.bytes), r.objects)
	fmt.Fprintf(w, "| a kill in the midst of writing | %s |\n| a clean stop | %s |\n| a clean stop, nothing in the page cache | %s |\n",
		shortSeconds(r.killed), shortSeconds(r.clean), shortSeconds(r.empty))
}
