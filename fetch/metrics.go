package fetch

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/VictoriaMetrics/metrics"
)

// Stats is what a Client did since New.
type Stats struct {
	Requests  int64            // HTTP requests made
	Bytes     int64            // body bytes received, compressed as they came
	Dials     int64            // connections begun
	Retries   int64            // tries on the same path after a pause
	Refreshes int64            // tries past the caches, for wrong or missing content
	Hedges    int64            // second requests, for an answer that was slow to begin
	Failovers int64            // changes of the current proxy or server because of a fault
	Errors    map[string]int64 // failed tries by kind, as in skimfs_fetch_errors_total
	Proxy     string           // in use, without credentials, or "DIRECT"
	Server    string           // in use, without credentials
}

// counter counts for one client and in a set that clients may share.
type counter struct {
	own    atomic.Int64
	shared *metrics.Counter
}

func (c *counter) add(n int64) {
	c.own.Add(n)
	c.shared.AddInt64(n)
}

// counters are a client's counters. The set's names:
//
//	skimfs_fetch_requests_total                 HTTP requests made
//	skimfs_fetch_bytes_total                    body bytes received
//	skimfs_fetch_dials_total                    connections begun
//	skimfs_fetch_retries_total{why=…}           further tries on the same path: transfer, content
//	skimfs_fetch_failovers_total{of=…}          changes of the current proxy or server
//	skimfs_fetch_hedges_total                   second requests, for an answer that was slow to begin
//	skimfs_fetch_hedges_won_total               of these, the quicker ones
//	skimfs_fetch_probes_total{answer=…}         questions to what had failed, and to order the servers: yes, no
//	skimfs_fetch_path_requests_total{proxy=…,server=…}  requests by the way they went, both as host:port
//	skimfs_fetch_path_bytes_total{…}                    body bytes received
//	skimfs_fetch_path_errors_total{…,kind=…}            failed tries
//	skimfs_fetch_path_seconds{…}                        seconds a good answer took, histogram
//	skimfs_fetch_errors_total{side=…,kind=…}    failed tries; sides and kinds as in retry.go
type counters struct {
	set                                    *metrics.Set
	requests, bytes, dials                 counter
	retries, refreshes, proxies, servers   counter
	hedges, hedgesWon, probesYes, probesNo counter

	mu     sync.Mutex
	errors map[string]int64 // by kind; guarded by mu
}

func newCounters(set *metrics.Set) *counters {
	if set == nil {
		set = metrics.NewSet()
	}
	c := &counters{set: set, errors: make(map[string]int64)}
	for name, counter := range map[string]*counter{
		`skimfs_fetch_requests_total`:                &c.requests,
		`skimfs_fetch_bytes_total`:                   &c.bytes,
		`skimfs_fetch_dials_total`:                   &c.dials,
		`skimfs_fetch_retries_total{why="transfer"}`: &c.retries,
		`skimfs_fetch_retries_total{why="content"}`:  &c.refreshes,
		`skimfs_fetch_failovers_total{of="proxy"}`:   &c.proxies,
		`skimfs_fetch_failovers_total{of="server"}`:  &c.servers,
		`skimfs_fetch_hedges_total`:                  &c.hedges,
		`skimfs_fetch_hedges_won_total`:              &c.hedgesWon,
		`skimfs_fetch_probes_total{answer="yes"}`:    &c.probesYes,
		`skimfs_fetch_probes_total{answer="no"}`:     &c.probesNo,
	} {
		counter.shared = set.GetOrCreateCounter(name)
	}
	return c
}

// fault counts a failed try.
func (c *counters) fault(f *fault) {
	c.set.GetOrCreateCounter(fmt.Sprintf(`skimfs_fetch_errors_total{side=%q,kind=%q}`, f.side, f.kind)).Inc()
	c.mu.Lock()
	c.errors[string(f.kind)]++
	c.mu.Unlock()
}

// pathCounters count what went one way. They are made at its first use: most ways never have one.
type pathCounters struct {
	labels          string
	requests, bytes *metrics.Counter
	seconds         *metrics.Histogram
}

func (c *counters) path(p *member, s *server) *pathCounters {
	proxy := direct
	if !p.Direct() {
		proxy = p.url.Host
	}
	labels := fmt.Sprintf(`proxy=%q,server=%q`, proxy, s.base.Host)
	return &pathCounters{
		labels:   labels,
		requests: c.set.GetOrCreateCounter("skimfs_fetch_path_requests_total{" + labels + "}"),
		bytes:    c.set.GetOrCreateCounter("skimfs_fetch_path_bytes_total{" + labels + "}"),
		seconds:  c.set.GetOrCreateHistogram("skimfs_fetch_path_seconds{" + labels + "}"),
	}
}

// failed counts a failed try by its way. A request that was overtaken did not fail.
func (c *counters) failed(way *pathCounters, f *fault) {
	if !errors.Is(f.err, errOvertaken) {
		c.set.GetOrCreateCounter(fmt.Sprintf(`skimfs_fetch_path_errors_total{%s,kind=%q}`, way.labels, f.kind)).Inc()
	}
}

// Stats returns the client's counters and its current path.
func (c *Client) Stats() Stats {
	n := c.count
	s := Stats{
		Requests: n.requests.own.Load(), Bytes: n.bytes.own.Load(), Dials: n.dials.own.Load(),
		Retries: n.retries.own.Load(), Refreshes: n.refreshes.own.Load(),
		Hedges:    n.hedges.own.Load(),
		Failovers: n.proxies.own.Load() + n.servers.own.Load(),
	}
	n.mu.Lock()
	s.Errors = maps.Clone(n.errors)
	n.mu.Unlock()
	s.Proxy, s.Server = c.Path()
	return s
}
