package publishd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/skimfs/skimfs/internal/peer"
)

// Config says what a daemon is. Zero values mean the default given at the field.
type Config struct {
	State       string        // directory of the queue and the logs
	Repo, Keys  string        // repository that is published into, and its keys
	Worker      []string      // command that runs one job, see RunWorker
	NATS        string        // URL of a JetStream cluster; "": a server of its own in this process
	Sync        bool          // write each record through to the disk; else within a second
	Jobs        int           // that run at a time; min(4, half the CPUs), at least 1
	PerRegistry int           // jobs of one registry at a time; 4
	MaxQueue    int           // live jobs; 100,000
	MaxAttempts int           // of a job; 6
	Backoff     time.Duration // before the second attempt; 2 s
	MaxBackoff  time.Duration // 10 min
	Aging       time.Duration // a queued job's priority goes up by one each; 10 min
	Stall       time.Duration // without progress, then an attempt ends; 10 min
	Rate        int64         // bytes per second from registries, all jobs together; 0: no limit
	Requests    int           // requests per second to one registry, all jobs together; 0: no limit
	Memory      int64         // bytes that each process of a job may use; 2 GiB
	Reserve     int64         // bytes that stay free on the repository's disk; 1 GiB
	Retain      time.Duration // of what has ended; 30 days
	Timeout     time.Duration // of a registry's answer; 1 min
	Log         *slog.Logger
}

// Caller is who asks.
type Caller struct {
	Name  string            // of the token, or uid:N
	Local *peer.Credentials // of his process, if he came over the local socket
	Admin bool
	Here  bool   // he is at this machine, over the socket or from loopback
	Node  string // of the daemon that he asked; "": this one
}

// Daemon converts in the background.
type Daemon struct {
	cfg   Config
	queue *queue
	log   *slog.Logger
	node  string // this worker's name

	submitting sync.Mutex // one change of who waits for what at a time
	poke       chan struct{}
	pool       sync.WaitGroup

	mu        sync.Mutex // guards all below; taken after queue.mu, never before
	running   map[string]*run
	resolving map[string]bool
	rests     map[string]time.Time // registries to leave alone until
	served    map[string]uint64    // submitter → number of the last job started for it
	starts    uint64
	order     orderCache
	watchers  map[chan struct{}]bool
	failures  map[string]int // of registries, in a row

	transport *transport
	negatives negatives
	unlock    func()
}

// Open opens the queue and takes back what a daemon before it left running.
func Open(ctx context.Context, cfg Config) (*Daemon, error) {
	cfg.Jobs = cmp.Or(cfg.Jobs, max(1, min(4, runtime.NumCPU()/2)))
	cfg.PerRegistry = cmp.Or(cfg.PerRegistry, 4)
	cfg.MaxQueue = cmp.Or(cfg.MaxQueue, 100_000)
	cfg.MaxAttempts = cmp.Or(cfg.MaxAttempts, 6)
	cfg.Backoff = cmp.Or(cfg.Backoff, 2*time.Second)
	cfg.MaxBackoff = cmp.Or(cfg.MaxBackoff, 10*time.Minute)
	cfg.Aging = cmp.Or(cfg.Aging, 10*time.Minute)
	cfg.Stall = cmp.Or(cfg.Stall, 10*time.Minute)
	cfg.Memory = cmp.Or(cfg.Memory, 2<<30)
	cfg.Reserve = cmp.Or(cfg.Reserve, 1<<30)
	cfg.Retain = cmp.Or(cfg.Retain, 30*24*time.Hour)
	cfg.Timeout = cmp.Or(cfg.Timeout, time.Minute)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	// Builds of other users pass through the state directory and the spool, each to his own below it, and see no name. The state directory
	// comes first: parents that are missing are made as passable as it is.
	for _, d := range []struct {
		name string
		mode os.FileMode
	}{{"", 0o711}, {"logs", 0o700}, {"spool", 0o711}} {
		dir := filepath.Join(cfg.State, d.name)
		if err := errors.Join(os.MkdirAll(dir, d.mode), os.Chmod(dir, d.mode)); err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
	}
	d := &Daemon{cfg: cfg, log: cfg.Log, poke: make(chan struct{}, 1), running: map[string]*run{}, resolving: map[string]bool{}, rests: map[string]time.Time{}, served: map[string]uint64{}, failures: map[string]int{}, watchers: map[chan struct{}]bool{}}
	d.transport = newTransport(0, d.requestsEach())
	unlock, err := lockState(cfg.State)
	if err != nil {
		return nil, err
	}
	if d.node, err = nodeName(cfg.State); err != nil {
		unlock()
		return nil, err
	}
	if d.queue, err = openQueue(ctx, cfg.State, cfg.NATS, cfg.Sync, cfg.Log); err != nil {
		unlock()
		return nil, err
	}
	d.queue.mu.Lock()
	d.queue.onJob = d.jobChanged
	d.queue.mu.Unlock()
	if err := d.recover(ctx); err != nil {
		d.queue.close()
		unlock()
		return nil, err
	}
	d.unlock = unlock
	return d, nil
}

// nodeName returns the name of this worker, which stays the same.
func nodeName(dir string) (string, error) {
	path := filepath.Join(dir, "node")
	b, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(b))) > 0 {
		return strings.TrimSpace(string(b)), nil
	}
	name := newID(time.Now())
	return name, os.WriteFile(path, []byte(name+"\n"), 0o600)
}

// recover gives every operation its job, and takes back the jobs that this worker ran when it was killed.
func (d *Daemon) recover(ctx context.Context) error {
	if err := d.adopt(ctx, 0); err != nil {
		return err
	}
	q := d.queue
	q.mu.Lock()
	var mine, unwanted []string
	for id := range q.live {
		switch j := q.jobs[id]; {
		case (j.State == Running || j.State == Cancelling) && j.Worker == d.node:
			mine = append(mine, id)
		case len(q.wanted(id)) == 0:
			unwanted = append(unwanted, id)
		}
	}
	q.mu.Unlock()
	for _, id := range mine {
		d.log.Info("taking back a job that was interrupted", "job", id)
		if err := d.interrupted(ctx, id); err != nil {
			return err
		}
	}
	for _, id := range unwanted {
		if err := d.cancelUnwanted(ctx, id); err != nil {
			return err
		}
	}
	left, err := filepath.Glob(filepath.Join(d.cfg.State, "spool", "*"))
	for _, dir := range left {
		if err := removeSpool(dir); err != nil {
			d.log.Warn("removing what a job left", "dir", dir, "err", err)
		}
	}
	return err
}

// adopt gives operations older than age their jobs: the daemon that took them died before it wrote these.
func (d *Daemon) adopt(ctx context.Context, age time.Duration) error {
	q := d.queue
	q.mu.Lock()
	var orphans []*op
	for _, o := range q.ops {
		if q.jobs[o.Job] == nil && o.Cancelled == nil && time.Since(o.since()) >= age {
			orphans = append(orphans, o)
		}
	}
	q.mu.Unlock()
	for _, o := range orphans {
		r := o.Request
		j, err := d.check(&r, o.caller())
		j.ID, j.Created = o.Job, o.Created
		if err != nil {
			j.Request = o.Request
			j.end(Failed, asProblem(err))
		}
		if err := d.putJob(ctx, &j); err != nil {
			return err
		}
	}
	return nil
}

// interrupted puts a job back whose worker is gone. The attempt is not charged.
func (d *Daemon) interrupted(ctx context.Context, id string) error {
	_, err := d.queue.changeJob(ctx, id, func(j *job) bool {
		d.queue.mu.Lock()
		unwanted := len(d.queue.wanted(id)) == 0
		d.queue.mu.Unlock()
		switch {
		case j.State == Cancelling, j.State == Running && unwanted:
			j.end(Cancelled, problem(CancelledReason, "cancelled"))
		case j.State == Running:
			j.State, j.Worker, j.Stage, j.Progress = Queued, "", "", Progress{}
			j.Attempt--
			j.Problem = problem(Interrupted, "the worker ended while it ran")
			retriesTotal(Interrupted)
		default:
			return false
		}
		return true
	})
	return err
}

// Close ends what runs, puts it back into the queue, and closes the queue.
func (d *Daemon) Close() {
	d.pool.Wait()
	d.queue.close()
	d.unlock()
}

// pace is how long the scheduler rests: it looks at all that is queued, and is woken by each change.
const pace = 20 * time.Millisecond

// Run works until ctx ends.
func (d *Daemon) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		d.schedule(ctx)
		time.Sleep(pace)
		select {
		case <-ctx.Done():
			d.pool.Wait()
			return
		case <-d.poke:
		case <-tick.C:
			d.expire(ctx)
		case <-beat.C:
			d.pool.Go(func() { d.beat(ctx) })
		}
	}
}

// wake makes Run look again.
func (d *Daemon) wake() {
	select {
	case d.poke <- struct{}{}:
	default:
	}
}

// jobChanged is called, under queue.mu, after each change of a job.
func (d *Daemon) jobChanged(j *job) {
	// What another daemon took over, while this one could not renew its lease, is ended as well.
	if lost := j.State == Running && j.Worker != d.node; lost || j.State == Cancelling {
		d.mu.Lock()
		if r := d.running[j.ID]; r != nil {
			r.cancel(nil)
		}
		d.mu.Unlock()
	}
	d.wake()
}

// expire ends what waits or runs although its deadline is over.
func (d *Daemon) expire(ctx context.Context) {
	now := time.Now()
	d.queue.mu.Lock()
	var late []*job
	for id := range d.queue.live {
		if j := d.queue.jobs[id]; j.late(now) {
			late = append(late, j)
		}
	}
	d.queue.mu.Unlock()
	for _, j := range late {
		p := problem(DeadlineExceeded, "deadline of %s is over", j.Request.Deadline)
		d.mu.Lock()
		r := d.running[j.ID]
		d.mu.Unlock()
		if r != nil {
			r.cancel(p)
			continue
		}
		expired := false
		j, err := d.queue.changeJob(ctx, j.ID, func(j *job) bool {
			waits := j.State == Queued || j.State == WaitingRetry || j.State == Blocked || j.Worker == recipeWorker
			if expired = waits && j.late(now); !expired {
				return false
			}
			if j.Problem != nil {
				p = problem(DeadlineExceeded, "%s; last: %s", p.Detail, j.Problem.Detail)
			}
			j.end(Failed, p)
			return true
		})
		if expired && err == nil {
			d.ended(j)
		}
	}
}

// beat renews the leases of what runs here, takes back what others left, and removes what is too old.
func (d *Daemon) beat(ctx context.Context) {
	d.mu.Lock()
	mine := map[string]bool{}
	for id := range d.running {
		mine[id] = true
	}
	d.mu.Unlock()
	for id := range mine {
		if _, err := d.queue.leases.Put(ctx, id, []byte(d.node)); err != nil && ctx.Err() == nil {
			d.log.Warn("renewing a lease", "job", id, "err", err)
		}
	}
	d.queue.mu.Lock()
	var lost, dropped []string
	d.mu.Lock()
	for id := range d.queue.live {
		switch j := d.queue.jobs[id]; {
		case j.State != Running && j.State != Cancelling || j.Worker == recipeWorker:
		case j.Worker != d.node:
			lost = append(lost, id)
		case d.running[id] == nil:
			dropped = append(dropped, id) // its end could not be written
		}
	}
	d.mu.Unlock()
	var old, unused []string
	for id, j := range d.queue.jobs {
		if j.State.Final() && len(d.queue.waiters[id]) == 0 && time.Since(*j.Ended) > d.cfg.Retain {
			unused = append(unused, id) // its operation was retried
		}
	}
	for id := range d.queue.ops {
		if end := d.queue.ended(id); end != nil && time.Since(*end) > d.cfg.Retain {
			old = append(old, id)
		}
	}
	d.queue.mu.Unlock()
	for _, id := range lost {
		if _, err := d.queue.leases.Get(ctx, id); isGone(err) {
			dropped = append(dropped, id)
		}
	}
	for _, id := range dropped {
		d.log.Info("taking back a job that was interrupted", "job", id)
		if err := d.interrupted(ctx, id); err != nil && ctx.Err() == nil {
			d.log.Warn("taking back a job", "job", id, "err", err)
		}
	}
	if err := d.adopt(ctx, leaseLife); err != nil && ctx.Err() == nil {
		d.log.Warn("giving an operation its job", "err", err)
	}
	for _, id := range unused {
		d.removeLog(id)
		if err := d.queue.kv.Purge(ctx, "job."+id); err != nil && ctx.Err() == nil {
			d.log.Warn("forgetting a job", "job", id, "err", err)
		}
	}
	for _, id := range old {
		if err := d.Forget(ctx, id); err != nil && ctx.Err() == nil {
			d.log.Warn("forgetting an operation", "operation", id, "err", err)
		}
	}
}
