package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// matrixTable names a file for the worst times of the matrix, as docs/operate.md has them.
const matrixTable = "SKIMFS_FAULT_TABLE"

// Limits of the matrix's mounts: short, so that a cell is, and in the relation that the defaults have.
const (
	matrixTimeout  = 500 * time.Millisecond // for a connection, the first byte, and each window of a transfer
	matrixDeadline = 1500 * time.Millisecond
	detourDeadline = 8 * time.Second // room for a retry on the faulty way, after a pause of up to 2 s
	atOnce         = 12              // faults tried at the same time; they wait most of the time
)

// Bounds, at least five times what a quiet machine shows. A mount makes two requests that have a deadline together, and tries each again.
const (
	mountBound  = 20 * time.Second
	readBound   = 5 * matrixDeadline
	cachedBound = 2 * time.Second // a process has to start, too
)

// heals are the faults that skimfs gets the better of even where there is no other way: what is wrong is asked for once more, past all caches.
var heals = []testkit.Fault{testkit.FlipOnce, testkit.FlipKept}

// matrix holds the times that it took.
type matrix struct {
	w      *world
	origin *server
	mu     sync.Mutex
	times  map[testkit.Fault]map[string]time.Duration // by column
}

var matrixColumns = []string{"proxy: mount", "proxy: cached read", "proxy: uncached read", "origin: mount", "origin: cached read", "origin: uncached read", "proxy: another way", "origin: another way"}

// TestFaultMatrixW05 has each fault at the only proxy and at the only origin while a node mounts for the first time, reads what is cached and reads what is
// not; then, with another proxy or origin to go to. Every cell ends in bounded time with the right bytes or an error that the table
// below foresees, never with wrong bytes; cached reads ask nobody; and when the fault is gone the same daemon and mount go on by themselves.
// (Rows W05–W07, W10, W20, W21, D10 of CernVM-FS' semantics.) Times go as a table to the file that SKIMFS_FAULT_TABLE names.
func TestFaultMatrixW05(t *testing.T) {
	t.Parallel()
	w := published(t)
	m := &matrix{w: w, origin: serveWorld(t, w), times: map[testkit.Fault]map[string]time.Duration{}}
	slots := make(chan struct{}, atOnce)
	var cells sync.WaitGroup
	for _, fault := range testkit.Faults {
		m.times[fault] = map[string]time.Duration{}
		for _, place := range []string{"proxy", "origin"} {
			cells.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				// Not t.Parallel: that would have them wait for a core each.
				t.Run(place+" "+string(fault), func(t *testing.T) { m.try(t, fault, place) })
			})
		}
	}
	cells.Wait()
	if path := os.Getenv(matrixTable); path != "" && !t.Failed() {
		if err := os.WriteFile(path, m.table(), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// took notes how long a column of the fault took since begun, and holds it to its bound.
func (m *matrix) took(t *testing.T, fault testkit.Fault, column string, begun time.Time, bound time.Duration) {
	t.Helper()
	took := time.Since(begun)
	if took > bound {
		t.Errorf("%s took %v, want less than %v", column, took, bound)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.times[fault][column] = took
}

func (m *matrix) try(t *testing.T, fault testkit.Fault, place string) {
	n, bad := newNode(t, m.w), testkit.NewFaulty(t, m.origin.Listener.Addr().String())
	source, way, detour := m.origin.image(), ",proxy="+bad.URL, ",proxy="+bad.URL+";"+testkit.NewFaulty(t, m.origin.Listener.Addr().String()).URL
	if place == "origin" {
		source, way, detour = bad.URL+"#"+testImage, "", ",server="+m.origin.URL
	}
	options := func(deadline time.Duration) string {
		return fmt.Sprintf("deadline=%v,timeout=%v,timeout_direct=%[2]v", deadline, matrixTimeout)
	}
	target := n.target("m")
	want := map[string]string{"etc/motd": "skim\n", "big": string(m.w.big[:1<<20]), "usr/share/middle": string(m.w.big[:middleSize])}
	// direct reads a file's first MiB past the kernel's cache.
	direct := func(path string) result {
		return n.sh(`exec dd if="$1" bs=1M count=1 iflag=direct status=none`, filepath.Join(target, path))
	}
	right := func(r result, path string) bool { return r.status == 0 && r.stdout == want[path] }
	judge := func(what string, r result, path string) {
		t.Helper()
		switch {
		case slices.Contains(heals, fault):
			if !right(r, path) {
				t.Errorf("%s: status %d, %d bytes, %q, want the right bytes\n%s", what, r.status, len(r.stdout), r.stderr, n.log())
			}
		case r.status == 0 || r.stdout != "" || !strings.Contains(r.stderr, "Input/output error"):
			t.Errorf("%s: status %d, %d bytes, %q, want an input/output error", what, r.status, len(r.stdout), r.stderr)
		}
	}

	bad.Set(fault)
	begun := time.Now()
	r := n.run("mount", source, target, "-o", options(matrixDeadline)+way)
	m.took(t, fault, place+": mount", begun, mountBound)
	switch {
	case slices.Contains(heals, fault), r.status == 0 && fault == testkit.Trickle: // what a mount needs is short
		if r.status != 0 {
			t.Errorf("mount: status %d, %s", r.status, r.stderr)
		}
	default:
		oneHint(t, r, exitMountFailed, "", "")
		if mounted(t, target) {
			t.Error("it is mounted")
		}
	}

	bad.Set(testkit.Sound)
	n.ok("mount", source, target, "-o", options(matrixDeadline)+way)
	pid := n.status().PID
	if r := direct("etc/motd"); !right(r, "etc/motd") {
		t.Fatalf("a sound read: status %d, %q", r.status, r.stderr)
	}
	bad.Set(fault)
	begun = time.Now()
	if r := direct("etc/motd"); !right(r, "etc/motd") {
		t.Errorf("cached read: status %d, %q, %q", r.status, r.stdout, r.stderr)
	}
	m.took(t, fault, place+": cached read", begun, cachedBound)
	if asked := bad.Requests(""); asked != 0 {
		t.Errorf("a cached read made %d requests", asked)
	}
	begun = time.Now()
	r = direct("big")
	m.took(t, fault, place+": uncached read", begun, readBound)
	judge("uncached read", r, "big")

	bad.Set(testkit.Sound)
	n.await("the way to recover", func() bool { return right(direct("big"), "big") })
	n.ok("umount", target)

	n.ok("mount", source, target, "-o", options(detourDeadline)+detour)
	bad.Set(fault)
	begun = time.Now()
	if r := direct("usr/share/middle"); !right(r, "usr/share/middle") {
		t.Errorf("with another way: status %d, %d bytes, %q\n%s", r.status, len(r.stdout), r.stderr, n.log())
	}
	m.took(t, fault, place+": another way", begun, 2*detourDeadline)
	if now := n.status().PID; now != pid {
		t.Errorf("the daemon is another: %d, was %d", now, pid)
	}
	n.ok("umount", target)
}

// table writes the times as docs/operate.md has them.
func (m *matrix) table() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "| fault | %s |\n|---%s|\n", strings.Join(matrixColumns, " | "), strings.Repeat("|--:", len(matrixColumns)))
	for _, fault := range testkit.Faults {
		fmt.Fprintf(&b, "| %s ", fault)
		for _, column := range matrixColumns {
			fmt.Fprintf(&b, "| %.2f ", m.times[fault][column].Seconds())
		}
		b.WriteString("|\n")
	}
	return b.Bytes()
}
