package publishd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/skimfs/skimfs/internal/peer"
)

// run is a job that runs here. Its fields but the first ones are guarded by Daemon.mu.
type run struct {
	job    *job
	cancel context.CancelCauseFunc

	reserved int64
	stage    string
	progress Progress
	moved    time.Time // when something was heard of it last
}

// spec is what a worker process is told, as one line of JSON on its stdin. When stdin ends, the worker ends.
type spec struct {
	Request  Request           `json:"request"`
	Repo     string            `json:"repo"`
	Keys     string            `json:"keys"`
	Spool    string            `json:"spool"`           // a directory that is removed afterwards
	Local    *peer.Credentials `json:"local,omitempty"` // with which local sources are read
	Here     bool              `json:"here,omitempty"`
	Rate     int64             `json:"rate,omitempty"`
	Requests float64           `json:"requests,omitempty"`
	Memory   int64             `json:"memory,omitempty"`
	Reserve  int64             `json:"reserve,omitempty"` // bytes that stay free on the spool's disk
	Timeout  time.Duration     `json:"timeout,omitempty"`
}

// report is a line of JSON that a worker process prints.
type report struct {
	Stage      string            `json:"stage,omitempty"`
	Progress   *Progress         `json:"progress,omitempty"`
	Results    []json.RawMessage `json:"results,omitempty"`
	Problem    *Problem          `json:"problem,omitempty"`
	RetryAfter time.Duration     `json:"retry_after,omitempty"`
	Requests   map[string]int    `json:"requests,omitempty"` // to registries, by status, since the last report
	Counts     map[string]uint64 `json:"counts,omitempty"`   // publish.Metrics of the worker, with its last words
}

// start claims a job and runs it. It reports whether a place is taken.
func (d *Daemon) start(ctx context.Context, j *job) bool {
	d.mu.Lock()
	need, ok := d.reserve(j)
	if !ok {
		d.mu.Unlock()
		d.block(ctx, j.ID, need)
		return false
	}
	own, cancel := context.WithCancelCause(ctx)
	r := &run{job: j, cancel: cancel, reserved: need, moved: time.Now(), stage: "starting"}
	d.running[j.ID] = r
	d.starts++
	d.served[j.Submitter] = d.starts
	d.mu.Unlock()
	claimed := false
	now := time.Now().UTC()
	_, err := d.queue.leases.Put(ctx, j.ID, []byte(d.node))
	if err == nil {
		_, err = d.queue.changeJob(ctx, j.ID, func(j *job) bool {
			if claimed = j.runnable(now); !claimed {
				return false
			}
			j.State, j.Worker, j.Stage, j.NextRun, j.Problem, j.Progress = Running, d.node, "starting", nil, nil, Progress{}
			j.Attempt++
			if j.Started == nil {
				j.Started = &now
				queueWait.Update(now.Sub(j.Created).Seconds())
			}
			return true
		})
	}
	if err != nil || !claimed {
		d.logIf(err, "claiming", j.ID)
		cancel(nil)
		d.forgetRun(j.ID)
		return false
	}
	d.pool.Go(func() {
		defer cancel(nil)
		defer d.forgetRun(j.ID)
		d.work(own, ctx, r)
	})
	return true
}

func (d *Daemon) forgetRun(id string) {
	d.mu.Lock()
	delete(d.running, id)
	d.mu.Unlock()
	d.wake()
}

// block says that a job waits for free space. The attempt is not charged.
func (d *Daemon) block(ctx context.Context, id string, need int64) {
	next := time.Now().UTC().Add(spaceRetry)
	_, err := d.queue.changeJob(ctx, id, func(j *job) bool {
		if !j.runnable(time.Now()) {
			return false
		}
		j.State, j.NextRun = Blocked, &next
		j.Problem = problem(NoSpace, "%d bytes are needed beside the %d that stay free", need, d.cfg.Reserve)
		return true
	})
	d.logIf(err, "blocking", id)
}

// work runs a claimed job to its end and records what became of it. ctx ends when the job is cancelled, daemon when the daemon ends.
func (d *Daemon) work(ctx, daemon context.Context, r *run) {
	id := r.job.ID
	lasting := context.WithoutCancel(ctx)
	begun := time.Now()
	d.log.Info("job runs", "job", id, "kind", r.job.Request.Kind, "as", r.job.As)
	if d.queue.jobState(id) == Cancelling {
		r.cancel(nil)
	}
	results, p := d.child(ctx, r)
	defer func() { _ = d.queue.leases.Delete(lasting, id) }()
	d.mu.Lock()
	progress := r.progress
	d.mu.Unlock()
	bytesRead.Add(int(progress.BytesDone))
	if p == nil {
		ended := false
		j, err := d.queue.changeJob(lasting, id, func(j *job) bool {
			if ended = j.Worker == d.node && (j.State == Running || j.State == Cancelling); !ended {
				return false
			}
			j.Progress = progress
			if j.State == Cancelling {
				j.end(Cancelled, problem(CancelledReason, "cancelled, after %s had been published", j.As))
				return true
			}
			j.Results = results
			j.end(Succeeded, nil)
			return true
		})
		d.logIf(err, "recording a success", id)
		if err == nil && ended {
			d.ended(j)
			jobSeconds(r.job.Request.Kind, j.State, time.Since(begun))
		}
		d.registryAnswered(r.job.Registry)
		return
	}
	if daemon.Err() != nil {
		d.logIf(d.interrupted(lasting, id), "putting back", id)
		return
	}
	jobSeconds(r.job.Request.Kind, d.settle(lasting, id, p, false), time.Since(begun))
}

func (q *queue) jobState(id string) State {
	q.mu.Lock()
	defer q.mu.Unlock()
	if j := q.jobs[id]; j != nil {
		return j.State
	}
	return ""
}

// ended is called once a job is final.
func (d *Daemon) ended(j *job) {
	d.log.Info("job ended", "job", j.ID, "state", j.State, "kind", j.Request.Kind, "as", j.As, "attempt", j.Attempt)
	endedTotal(j.Request.Kind, j.State)
}

// child runs a worker process.
func (d *Daemon) child(ctx context.Context, r *run) ([]json.RawMessage, *Problem) {
	j := r.job
	spool := filepath.Join(d.cfg.State, "spool", j.ID)
	if err := os.MkdirAll(spool, 0o700); err != nil {
		return nil, explain(err)
	}
	defer func() {
		if err := removeSpool(spool); err != nil {
			d.log.Warn("removing what a job left", "dir", spool, "err", err)
		}
	}()
	logFile, err := d.openLog(j.ID)
	if err != nil {
		return nil, explain(err)
	}
	defer logFile.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	in, err := json.Marshal(spec{Request: j.pinned(), Repo: d.cfg.Repo, Keys: d.cfg.Keys, Spool: spool, Local: j.Local, Here: j.Here, Rate: share(d.cfg.Rate, d.cfg.Jobs), Requests: d.requestsEach(), Memory: d.cfg.Memory, Reserve: d.cfg.Reserve, Timeout: d.cfg.Timeout})
	if err != nil {
		return nil, explain(err)
	}
	cmd := exec.Command(d.cfg.Worker[0], d.cfg.Worker[1:]...)
	// Groups of its own: what it starts ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = &redacting{w: logFile}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, explain(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, explain(err)
	}
	fmt.Fprintf(logFile, "%s attempt %d: %s %s\n", time.Now().UTC().Format(time.RFC3339), j.Attempt+1, j.Request.Kind, redact(firstLine(j.Request.Source)))
	if err := cmd.Start(); err != nil {
		return nil, explain(err)
	}
	kill := func(s syscall.Signal) { _ = syscall.Kill(-cmd.Process.Pid, s) }
	stop := context.AfterFunc(ctx, func() { stdin.Close() }) // it ends by itself
	defer stop()
	ended := make(chan struct{})
	go func() {
		<-ctx.Done()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			kill(syscall.SIGKILL)
		}
	}()
	_, _ = stdin.Write(append(in, '\n')) // if it died, Wait says so
	stalled := time.AfterFunc(d.cfg.Stall, func() { cancel(problem(Stalled, "nothing moved for %v", d.cfg.Stall).temporary()) })
	defer stalled.Stop()
	last := d.listen(stdout, r, logFile, func() { stalled.Reset(d.cfg.Stall) })
	err = cmd.Wait()
	close(ended)
	cause := context.Cause(ctx)
	cancel(nil)
	kill(syscall.SIGKILL) // whatever it left
	switch {
	case last.Results != nil:
		return last.Results, nil
	case cause != nil && ReasonOf(cause) != "":
		return nil, asProblem(cause)
	case cause != nil:
		return nil, problem(CancelledReason, "cancelled")
	case last.Problem != nil:
		last.Problem.RetryAfter = last.RetryAfter
		return nil, last.Problem
	}
	return nil, problem(Interrupted, "the worker ended: %v", err).temporary()
}

func (p *Problem) temporary() *Problem {
	p.Temporary = true
	return p
}

func firstLine(s string) string {
	if i := bytes.IndexByte([]byte(s), '\n'); i >= 0 {
		return s[:i] + " …"
	}
	return s
}

func share(total int64, jobs int) int64 {
	if total == 0 {
		return 0
	}
	return max(1, total/int64(jobs))
}

// requestsEach is how many requests per second each worker may send to a registry, and the daemon as well, which resolves.
func (d *Daemon) requestsEach() float64 { return float64(d.cfg.Requests) / float64(d.cfg.Jobs+1) }

// pinned is the request as it is run: of the image that the source meant when it was resolved, whatever the tag means meanwhile.
func (j *job) pinned() Request {
	r := j.Request
	r.As = j.As
	if j.Registry != "" && j.Digest != "" {
		r.Source = pin(r.Source, j.Digest)
	}
	return r
}

// listen reads a worker's reports until it ends, and returns the last words.
func (d *Daemon) listen(stdout io.Reader, r *run, log io.Writer, moved func()) (last report) {
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 4<<20)
	var progress Progress
	for lines.Scan() {
		var rep report
		if json.Unmarshal(lines.Bytes(), &rep) != nil {
			continue
		}
		if rep.Results != nil || rep.Problem != nil {
			last = rep
			addCounts(rep.Counts)
		}
		countRequests(r.job.Registry, rep.Requests)
		d.mu.Lock()
		if rep.Stage != "" && rep.Stage != r.stage {
			r.stage = rep.Stage
			fmt.Fprintf(log, "%s stage %s\n", time.Now().UTC().Format(time.RFC3339), rep.Stage)
			moved()
		}
		if rep.Progress != nil && *rep.Progress != progress {
			progress = *rep.Progress
			r.progress = progress
			moved()
		}
		for w := range d.watchers {
			select {
			case w <- struct{}{}:
			default:
			}
		}
		d.mu.Unlock()
	}
	if last.Problem != nil {
		fmt.Fprintf(log, "%s %s: %s\n", time.Now().UTC().Format(time.RFC3339), last.Problem.Reason, last.Problem.Detail)
	} else if last.Results != nil {
		fmt.Fprintf(log, "%s done\n", time.Now().UTC().Format(time.RFC3339))
	}
	return last
}
