package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/mountd"
)

// Limits of the matrix's mounts. Where nothing helps they are short, so that a cell is, and in the relation that the defaults have.
const (
	matrixDeadline = 1500 * time.Millisecond
	matrixLimits   = "deadline=1.5s,timeout=500ms,timeout_direct=500ms"
	detourDeadline = 20 * time.Second // room for a retry on the faulty way, after a pause of up to 2 s
	detourLimits   = "deadline=20s,timeout=1s,timeout_direct=1s"
	healLimits     = "deadline=20s,timeout=5s,timeout_direct=5s"    // nothing waits there, but for a busy machine
	cachedLimits   = "deadline=1.5s,timeout=10s,timeout_direct=10s" // whoever waits for the network here misses the bound
	cellsAtOnce    = 12                                             // they wait most of the time
)

// Bounds, at least five times what a quiet machine shows. A mount makes two requests that have a deadline together, and tries each again.
const (
	mountBound  = 20 * time.Second
	readBound   = 5 * matrixDeadline
	cachedBound = 5 * time.Second // a mount of what is cached waits for a second, and a process has to start
)

// heals are the faults that skimfs gets the better of even where there is no other way: what is wrong is asked for once more, past all caches.
var heals = []testkit.Fault{testkit.FlipOnce, testkit.FlipKept}

// What a cell measures, as columns of the table in docs/operate.md.
const (
	firstMount   = "mount"
	cachedRead   = "cached read"
	uncachedRead = "uncached read"
	cachedMount  = "mount of what is cached"
	detour       = "uncached read with another way"
)

var (
	matrixPlaces  = []string{"proxy", "origin"}
	matrixColumns = []string{firstMount, cachedMount, cachedRead, uncachedRead, detour}
)

// matrix holds the times that it took.
type matrix struct {
	w      *world
	origin *server

	mu    sync.Mutex                  // guards times
	times map[[3]string]time.Duration // by place, fault and column
}

// TestFaultMatrixW05 has each fault at the only proxy and at the only origin while a node mounts for the first time, reads what is cached, reads what is
// not, and mounts once more; then, with another proxy or origin to go to. Every cell ends in bounded time with the right bytes or an input/output error, never
// with wrong bytes; cached reads ask nobody; what is cached can be mounted; and when the fault is gone the same mount and the same daemon go on by themselves.
// (Rows W05–W07, W10, W20, W21 and D10 of CernVM-FS' semantics.) With -v it prints the times as docs/operate.md has them.
func TestFaultMatrixW05(t *testing.T) {
	t.Parallel()
	w := published(t)
	m := &matrix{w: w, origin: serveWorld(t, w), times: map[[3]string]time.Duration{}}
	cells := map[string]func(*testing.T){}
	for _, fault := range testkit.Faults {
		for _, place := range matrixPlaces {
			cells[place+" "+string(fault)] = func(t *testing.T) { m.cell(t, fault, place).try() }
		}
	}
	together(t, cellsAtOnce, cells)
	t.Log("\n" + m.table())
}

// cell is one fault at one place.
type cell struct {
	*node
	m         *matrix
	fault     testkit.Fault
	place     string
	bad       *testkit.Faulty
	source    string
	target    string
	way, ways string // options: the only way, and another beside it
	cached    string // options: the only way, to mount what is cached
}

func (m *matrix) cell(t *testing.T, fault testkit.Fault, place string) *cell {
	origin := m.origin.Listener.Addr().String()
	c := &cell{node: newNode(t, m.w), m: m, fault: fault, place: place, bad: testkit.NewFaulty(t, origin)}
	c.target = c.node.target("m")
	c.way, c.ways, c.cached = matrixLimits, detourLimits, cachedLimits
	if c.heals() {
		c.way = healLimits
	}
	if place == "proxy" {
		c.source = m.origin.image()
		c.way += ",proxy=" + c.bad.URL
		c.cached += ",proxy=" + c.bad.URL
		c.ways += ",proxy=" + c.bad.URL + ";" + testkit.NewFaulty(t, origin).URL
	} else {
		c.source = c.bad.URL + "#" + testImage
		c.ways += ",server=" + m.origin.URL
	}
	return c
}

func (c *cell) heals() bool { return slices.Contains(heals, c.fault) }

// try goes through all that the cell measures.
func (c *cell) try() {
	c.bad.Set(c.fault)
	c.firstMount()

	c.bad.Set(testkit.Sound)
	c.await("a sound mount", func() bool { return c.mountNow(c.way) == nil })
	pid := c.pid()
	c.await("a sound read", func() bool { return c.reads("etc/motd") })
	c.bad.Set(c.fault)
	c.timed(cachedRead, cachedBound, func() { c.right(cachedRead, c.direct("etc/motd"), "etc/motd") })
	if asked := c.bad.Requests(""); asked != 0 {
		c.t.Errorf("a cached read made %d requests", asked)
	}
	c.uncachedRead()
	c.unmount()
	c.timed(cachedMount, cachedBound, func() {
		if err := c.mountNow(c.cached); err != nil {
			c.t.Errorf("%s: %v", cachedMount, err)
		}
	})
	c.right("a cached read thereafter", c.direct("etc/motd"), "etc/motd")

	c.bad.Set(testkit.Sound)
	c.await("the way to recover", func() bool { return c.reads("big") })
	c.unmount()
	c.await("a mount with another way", func() bool { return c.mountNow(c.ways) == nil })
	c.bad.Set(c.fault)
	c.timed(detour, 2*detourDeadline, func() { c.right(detour, c.direct("usr/share/middle"), "usr/share/middle") })
	c.unmount()
	if now := c.pid(); now != pid {
		c.t.Errorf("the daemon is another: %d, was %d", now, pid)
	}
}

// firstMount has the real command mount what the node never saw.
func (c *cell) firstMount() {
	var r result
	c.timed(firstMount, mountBound, func() { r = c.run("mount", c.source, c.target, "-o", c.way) })
	// What a mount needs is so short that it trickles in.
	if c.heals() || r.status == 0 && c.fault == testkit.Trickle {
		if r.status != 0 {
			c.t.Errorf("mount: status %d, %s", r.status, r.stderr)
		}
		return
	}
	oneHint(c.t, r, exitMountFailed, "", "")
	if mounted(c.t, c.target) {
		c.t.Error("it is mounted")
	}
}

func (c *cell) uncachedRead() {
	var r result
	c.timed(uncachedRead, readBound, func() { r = c.direct("big") })
	switch {
	case c.heals():
		c.right(uncachedRead, r, "big")
	case r.status == 0 || r.stdout != "" || !strings.Contains(r.stderr, "Input/output error"):
		c.t.Errorf("%s: status %d, %d bytes, %q, want an input/output error", uncachedRead, r.status, len(r.stdout), r.stderr)
	}
}

// direct reads the first MiB of a file past the kernel's cache.
func (c *cell) direct(path string) result {
	return c.sh(`exec dd if="$1" bs=1M count=1 iflag=direct status=none`, filepath.Join(c.target, path))
}

// content is what direct reads.
func (c *cell) content(path string) string {
	switch path {
	case "etc/motd":
		return "skim\n"
	case "usr/share/middle":
		return string(c.m.w.big[:middleSize])
	}
	return string(c.m.w.big[:1<<20])
}

func (c *cell) reads(path string) bool {
	r := c.direct(path)
	return r.status == 0 && r.stdout == c.content(path)
}

func (c *cell) right(what string, r result, path string) {
	c.t.Helper()
	if r.status != 0 || r.stdout != c.content(path) {
		c.t.Errorf("%s: status %d, %d bytes, %q, want the right bytes\n%s", what, r.status, len(r.stdout), r.stderr, c.log())
	}
}

// timed notes how long f takes and holds it to a bound.
func (c *cell) timed(column string, bound time.Duration, f func()) {
	c.t.Helper()
	begun := time.Now()
	f()
	took := time.Since(begun)
	if took > bound {
		c.t.Errorf("%s took %v, want less than %v", column, took, bound)
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.m.times[[3]string{c.place, string(c.fault), column}] = took
}

// mountNow mounts without a process of its own.
func (c *cell) mountNow(options string) error {
	o, err := parseOptions([]string{options})
	if err != nil {
		return err
	}
	_, err = c.client().Mount(c.t.Context(), mountd.MountRequest{Source: c.source, Target: c.target, Options: o.Options})
	return err
}

func (c *cell) pid() int {
	c.t.Helper()
	s, err := c.client().Status(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	return s.PID
}

func (c *cell) unmount() {
	c.t.Helper()
	if err := c.client().Unmount(c.t.Context(), c.target, false); err != nil {
		c.t.Fatal(err)
	}
}

// table writes the times, in seconds, as docs/operate.md has them: the worse of both places.
func (m *matrix) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| fault at the only way | %s |\n|---%s|\n", strings.Join(matrixColumns, " | "), strings.Repeat("|--:", len(matrixColumns)))
	for _, fault := range testkit.Faults {
		fmt.Fprintf(&b, "| %s ", fault)
		for _, column := range matrixColumns {
			var worst time.Duration
			for _, place := range matrixPlaces {
				worst = max(worst, m.times[[3]string{place, string(fault), column}])
			}
			fmt.Fprintf(&b, "| %.2f ", worst.Seconds())
		}
		b.WriteString("|\n")
	}
	return b.String()
}
