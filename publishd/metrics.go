package publishd

import (
	"fmt"
	"io"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"github.com/skimfs/skimfs/publish"
)

// Metrics counts what this process has done with jobs.
var Metrics = metrics.NewSet()

var (
	queueWait    = Metrics.NewHistogram("skimfs_job_queue_wait_seconds")
	dedupedTotal = Metrics.NewCounter("skimfs_job_joined_total")
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

func convertedBytes(k Kind, p Progress) {
	Metrics.GetOrCreateCounter(fmt.Sprintf("skimfs_convert_bytes_total{kind=%q}", string(k))).Add(int(p.BytesDone))
}

// countRequests counts answers of registries by status, never by name: there may be any number of them.
func countRequests(_ string, counts map[string]int) {
	for status, n := range counts {
		Metrics.GetOrCreateCounter(fmt.Sprintf("skimfs_registry_requests_total{code=%q}", status)).Add(n)
	}
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
