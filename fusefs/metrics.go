package fusefs

import (
	"strings"
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
	seconds  [opCount]*metrics.Histogram
	detached *metrics.Counter // requests that had to wait
	bytes    *metrics.Counter // of files, given to the kernel
}

func newOpMetrics(set *metrics.Set, labels string) *opMetrics {
	m := &opMetrics{
		detached: set.GetOrCreateCounter(metricName("skimfs_fuse_waits_total", labels)),
		bytes:    set.GetOrCreateCounter(metricName("skimfs_fuse_read_bytes_total", labels)),
	}
	for o := range opCount {
		m.requests[o] = set.GetOrCreateCounter(metricName("skimfs_fuse_requests_total", labels, "op", o.String()))
		m.seconds[o] = set.GetOrCreateHistogram(metricName("skimfs_fuse_request_seconds", labels, "op", o.String()))
	}
	return m
}

// done tells of an answered request.
func (m *opMetrics) done(o op, start time.Time) {
	m.seconds[o].Update(time.Since(start).Seconds())
}

// register adds what is read off the Core when metrics are asked for.
func (c *Core) register() {
	set := c.cfg.Metrics
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
