package fusefs

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// op is a kind of request.
type op uint8

const (
	opLookup op = iota
	opForget
	opGetattr
	opReadlink
	opOpen
	opOpendir
	opRead
	opReaddir
	opRelease
	opGetxattr
	opListxattr
	opStatfs
	opFlush
	opFsync
	opAccess
	opIoctl
	opInterrupt
	opWrite
	opOther
	opCount
)

var opNames = [opCount]string{"lookup", "forget", "getattr", "readlink", "open", "opendir", "read", "readdir", "release",
	"getxattr", "listxattr", "statfs", "flush", "fsync", "access", "ioctl", "interrupt", "write", "other"}

func (o op) String() string { return opNames[o] }

// opMetrics counts and times the requests of one mount.
type opMetrics struct {
	requests [opCount]*metrics.Counter
	seconds  [opCount]atomic.Pointer[metrics.PrometheusHistogram] // made with the first value
	name     func(o op) string
	set      *metrics.Set
	detached *metrics.Counter // requests that had to wait
	bytes    *metrics.Counter // of files, given to the kernel

	mu      sync.Mutex // guards waiting
	waiting map[*waiting]struct{}
}

// waiting is a request that waits.
type waiting struct {
	since time.Time
	over  chan struct{} // closed when it is answered
}

func newOpMetrics(set *metrics.Set, labels string) *opMetrics {
	m := &opMetrics{
		set: set, waiting: map[*waiting]struct{}{},
		name:     func(o op) string { return metricName("skimfs_fuse_request_seconds", labels, "op", o.String()) },
		detached: set.GetOrCreateCounter(metricName("skimfs_fuse_waits_total", labels)),
		bytes:    set.GetOrCreateCounter(metricName("skimfs_fuse_read_bytes_total", labels)),
	}
	for o := range opCount {
		m.requests[o] = set.GetOrCreateCounter(metricName("skimfs_fuse_requests_total", labels, "op", o.String()))
	}
	return m
}

// done tells of an answered request.
func (m *opMetrics) done(o op, start time.Time) {
	h := m.seconds[o].Load()
	if h == nil {
		h = m.set.GetOrCreatePrometheusHistogramExt(m.name(o), requestBuckets)
		m.seconds[o].Store(h)
	}
	h.Update(time.Since(start).Seconds())
}

// requestBuckets are upper bounds in seconds: answers from memory, from the cache, from a near and a far server, and what comes close to a deadline.
var requestBuckets = []float64{0.00001, 0.0001, 0.001, 0.01, 0.1, 1, 10, 30}

// hungAfter is the age from which on a request that waits is counted as hung.
const hungAfter = 10 * time.Second

// wait counts a request among those that wait until done is called. What doesn't wait is answered from memory and can't hang.
func (m *opMetrics) wait(start time.Time) (done func()) {
	w := &waiting{start, make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting[w] = struct{}{}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.waiting, w)
		close(w.over)
	}
}

// drain returns when what waits now is answered, or ctx ends.
func (m *opMetrics) drain(ctx context.Context) error {
	m.mu.Lock()
	now := slices.Collect(maps.Keys(m.waiting))
	m.mu.Unlock()
	for _, w := range now {
		select {
		case <-w.over:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// hung returns how many requests wait for longer than hungAfter.
func (m *opMetrics) hung() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for w := range m.waiting {
		if time.Since(w.since) > hungAfter {
			n++
		}
	}
	return n
}

// register adds what is read off the Core when metrics are asked for.
func (c *Core) register() {
	set := c.cfg.Metrics
	set.GetOrCreateGauge(metricName("skimfs_fuse_hung_requests", c.cfg.Labels), func() float64 { return float64(c.stats.hung()) })
	set.GetOrCreateGauge(metricName("skimfs_fuse_references", c.cfg.Labels), func() float64 {
		sum := c.Lookups()
		for _, s := range c.Slots() {
			sum += s.Lookups
		}
		return float64(sum)
	})
	set.GetOrCreateGauge(metricName("skimfs_fuse_images", c.cfg.Labels), func() float64 {
		n := 0
		for _, s := range c.Slots() {
			if s.Loaded {
				n++
			}
		}
		return float64(n)
	})
}

// metricName puts a metric's name together with labels given as text and as pairs.
func metricName(name, labels string, pairs ...string) string {
	var parts []string
	for i := 0; i+1 < len(pairs); i += 2 {
		parts = append(parts, pairs[i]+`="`+pairs[i+1]+`"`)
	}
	if labels != "" {
		parts = append(parts, labels)
	}
	if len(parts) == 0 {
		return name
	}
	return name + "{" + strings.Join(parts, ",") + "}"
}
