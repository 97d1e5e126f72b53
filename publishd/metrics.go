package publishd

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"github.com/skimfs/skimfs/publish"
)

// Metrics counts what this process has done with jobs.
var Metrics = metrics.NewSet()

var (
	queueWait    = Metrics.NewHistogram("skimfs_job_queue_wait_seconds")
	dedupedTotal = Metrics.NewCounter("skimfs_job_joined_total")
	bytesRead    = Metrics.NewCounter(`skimfs_convert_bytes_total{direction="read"}`)
	bytesWritten = Metrics.NewCounter(`skimfs_convert_bytes_total{direction="written"}`)
)

func retriesTotal(r Reason) {
	Metrics.GetOrCreateCounter(fmt.Sprintf("skimfs_job_retries_total{reason=%q}", string(r))).Inc()
}

func endedTotal(k Kind, s State) {
	Metrics.GetOrCreateCounter(fmt.Sprintf("skimfs_jobs_ended_total{kind=%q,result=%q}", string(k), string(s))).Inc()
}

func jobSeconds(k Kind, s State, d time.Duration) {
	Metrics.GetOrCreateHistogram(fmt.Sprintf("skimfs_job_duration_seconds{kind=%q,result=%q}", string(k), string(s))).Update(d.Seconds())
}

// registries are those that have a label of their own: whoever submits could name any number of them.
var registries struct {
	mu    sync.Mutex // guards names
	names map[string]bool
}

const maxRegistries = 50 // further ones are counted as "other"

func registryLabel(name string) string {
	registries.mu.Lock()
	defer registries.mu.Unlock()
	if !registries.names[name] {
		if len(registries.names) >= maxRegistries {
			return "other"
		}
		if registries.names == nil {
			registries.names = map[string]bool{}
		}
		registries.names[name] = true
	}
	return name
}

// countRequests counts answers of a registry by status.
func countRequests(registry string, counts map[string]int) {
	for status, n := range counts {
		Metrics.GetOrCreateCounter(fmt.Sprintf("skimfs_registry_requests_total{code=%q,registry=%q}", status, registryLabel(registry))).Add(n)
	}
}

// takeCounts returns what a worker process has counted of its publish.
func takeCounts() map[string]uint64 {
	counts := map[string]uint64{}
	for _, name := range publish.Metrics.ListMetricNames() {
		counts[name] = publish.Metrics.GetOrCreateCounter(name).Get()
	}
	return counts
}

// addCounts makes what a worker process has counted part of this process's metrics.
func addCounts(counts map[string]uint64) {
	known := publish.Metrics.ListMetricNames()
	for name, n := range counts {
		if slices.Contains(known, name) {
			publish.Metrics.GetOrCreateCounter(name).Add(int(n))
		}
	}
	bytesWritten.Add(int(counts["skimfs_publish_object_bytes_total"]))
}

// WriteMetrics writes everything in the Prometheus text format.
func (d *Daemon) WriteMetrics(w io.Writer) {
	type label struct {
		kind  Kind
		state State
	}
	jobs := map[label]int{}
	now := time.Now()
	var oldest time.Duration
	d.queue.mu.Lock()
	for id := range d.queue.live {
		j := d.queue.jobs[id]
		jobs[label{j.Request.Kind, j.State}]++
		if j.State == Queued {
			oldest = max(oldest, now.Sub(j.Created))
		}
	}
	operations, seen := len(d.queue.ops), d.queue.seen
	d.queue.mu.Unlock()
	d.mu.Lock()
	running, resolving := len(d.running), len(d.resolving)
	var reserved int64
	for _, r := range d.running {
		reserved += r.reserved
	}
	d.mu.Unlock()
	for _, k := range []Kind{Convert, Build, ConvertMany, Prefetch} {
		for _, s := range []State{Queued, Running, WaitingRetry, Blocked, Cancelling} {
			fmt.Fprintf(w, "skimfs_jobs{kind=%q,state=%q} %d\n", k, s, jobs[label{k, s}])
		}
	}
	fmt.Fprintf(w, "skimfs_job_oldest_queued_seconds %g\nskimfs_operations %d\nskimfs_queue_revision %d\n", oldest.Seconds(), operations, seen)
	fmt.Fprintf(w, "skimfs_workers_running %d\nskimfs_workers_limit %d\nskimfs_resolving %d\nskimfs_disk_reserved_bytes %d\n", running, d.cfg.Jobs, resolving, reserved)
	Metrics.WritePrometheus(w)
	publish.Metrics.WritePrometheus(w)
	metrics.WriteProcessMetrics(w)
}
