package publishd

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/publish"
)

const (
	maxResolving = 16
	negativeLife = 10 * time.Second // so long an image that was not found is not asked for again
	breakerAfter = 3                // failures of a registry in a row, then it rests
	breakerRest  = 30 * time.Second
	spaceRetry   = 10 * time.Second
)

// runnable says whether a job could run now.
func (j *job) runnable(now time.Time) bool {
	switch j.State {
	case Queued:
		return true
	case WaitingRetry, Blocked:
		return j.NextRun == nil || !now.Before(*j.NextRun)
	}
	return false
}

// schedule starts what fits: jobs while there is room for them, and the resolving of those that come next.
func (d *Daemon) schedule(ctx context.Context) {
	d.mu.Lock()
	room := d.cfg.Jobs - len(d.running)
	resolvers := maxResolving - len(d.resolving)
	d.mu.Unlock()
	if ctx.Err() != nil || room <= 0 && resolvers <= 0 {
		return
	}
	now := time.Now()
	d.queue.mu.Lock()
	var all []*job
	candidates := d.queue.live
	if room <= 0 {
		candidates = d.queue.light // nothing else can begin, and there may be many
	}
	for id := range candidates {
		if j := d.queue.jobs[id]; j.runnable(now) || j.State == Running && j.Request.Kind == ConvertMany {
			all = append(all, j)
		}
	}
	d.queue.mu.Unlock()
	for room > 0 || resolvers > 0 {
		j := d.next(all, now, room > 0, resolvers > 0)
		if j == nil {
			return
		}
		switch {
		case j.Request.Kind == ConvertMany:
			if d.claimResolving(j.ID) {
				resolvers--
				d.pool.Go(func() { d.recipe(ctx, j) })
			}
		case !j.resolved():
			if d.claimResolving(j.ID) {
				resolvers--
				d.pool.Go(func() { d.resolve(ctx, j) })
			}
		default:
			if d.start(ctx, j) {
				room--
			}
		}
	}
}

func (d *Daemon) claimResolving(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.resolving[id] {
		return false
	}
	d.resolving[id] = true
	return true
}

func (d *Daemon) doneResolving(id string) {
	d.mu.Lock()
	delete(d.resolving, id)
	d.mu.Unlock()
	d.wake()
}

// next takes out of all the job whose turn it is: by priority, which grows with age; then of the submitter with fewest jobs running; then of
// him who was served longest ago; then the oldest.
func (d *Daemon) next(all []*job, now time.Time, run, resolve bool) *job {
	d.mu.Lock()
	defer d.mu.Unlock()
	per, regs := map[string]int{}, map[string]int{}
	for _, r := range d.running {
		per[r.job.Submitter]++
		regs[r.job.Registry]++
	}
	best := -1
	for i, j := range all {
		if j == nil || d.resolving[j.ID] || d.running[j.ID] != nil || d.elsewhere(j) {
			continue
		}
		if w := j.needsWorker(); !w && !resolve || w && (!run || j.Registry != "" && regs[j.Registry] >= d.cfg.PerRegistry) {
			continue
		}
		if until, ok := d.rests[j.Registry]; ok && j.Registry != "" && now.Before(until) {
			continue
		}
		if best < 0 || d.before(j, all[best], now, per) {
			best = i
		}
	}
	if best < 0 {
		return nil
	}
	j := all[best]
	all[best] = nil
	return j
}

// elsewhere says whether only another daemon, which shares the queue, can do a job.
func (d *Daemon) elsewhere(j *job) bool {
	return j.Node != "" && j.Node != d.node && d.cfg.NATS != ""
}

func (d *Daemon) before(a, b *job, now time.Time, per map[string]int) bool {
	if x, y := a.effective(now, d.cfg.Aging), b.effective(now, d.cfg.Aging); x != y {
		return x > y
	}
	if x, y := per[a.Submitter], per[b.Submitter]; x != y {
		return x < y
	}
	if x, y := d.served[a.Submitter], d.served[b.Submitter]; x != y {
		return x < y
	}
	return a.ID < b.ID
}

// resolve finds out what a source means now. A job for the same image takes over its operations.
func (d *Daemon) resolve(ctx context.Context, j *job) {
	defer d.doneResolving(j.ID)
	var got publish.Resolved
	err := d.negatives.recall(j.asked(), time.Now())
	if err == nil {
		got, err = d.ask(ctx, j)
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		p := explain(err)
		if p.Reason == "IMAGE_NOT_FOUND" {
			d.negatives.remember(j.asked(), p, time.Now())
		}
		d.settle(ctx, j.ID, p, true)
		return
	}
	d.registryAnswered(j.Registry)
	d.submitting.Lock()
	defer d.submitting.Unlock()
	key := j.workKey(got.Manifest.String())
	d.queue.mu.Lock()
	other := d.queue.jobs[d.queue.keys[key]]
	var ops []string
	if other != nil && other.ID != j.ID && !other.State.Final() && other.State != Cancelling {
		ops = d.queue.wanted(j.ID)
	} else {
		other = nil
	}
	d.queue.mu.Unlock()
	if other == nil {
		_, err = d.queue.changeJob(ctx, j.ID, func(j *job) bool {
			j.Digest, j.Bytes, j.Key = got.Manifest.String(), got.Bytes, key
			return j.runnable(time.Now()) || j.State == WaitingRetry
		})
		d.logIf(err, "resolving", j.ID)
		return
	}
	touched := false
	_, err = d.queue.changeJob(ctx, other.ID, func(o *job) bool {
		touched = !o.State.Final() && o.State != Cancelling
		o.share(j)
		return touched
	})
	if err == nil && !touched {
		d.wake() // it ended just now; next time there is no other
		return
	}
	for _, id := range ops {
		if err == nil {
			err = d.queue.changeOp(ctx, id, func(o *op) bool { d.queue.move(o, other.ID); return true })
		}
	}
	if err == nil {
		dedupedTotal.Add(len(ops))
		err = d.queue.kv.Purge(ctx, "job."+j.ID)
	}
	d.logIf(err, "joining jobs of one image", j.ID)
}

func (d *Daemon) logIf(err error, doing, job string) {
	if err != nil && !errors.Is(err, context.Canceled) {
		d.log.Error(doing, "job", job, "err", err)
	}
}

func (d *Daemon) ask(ctx context.Context, j *job) (publish.Resolved, error) {
	src, err := publish.ParseSource(j.Request.Source)
	if err != nil {
		return publish.Resolved{}, err
	}
	w := watch(d.transport.of(j.Here))
	opt := publish.Options{RegistryTimeout: d.cfg.Timeout, Transport: w}
	if j.Request.Platform != "" {
		if opt.Platform, err = publish.ParsePlatform(j.Request.Platform); err != nil {
			return publish.Resolved{}, err
		}
	}
	got, err := publish.Resolve(ctx, src, opt)
	counts, later := w.take()
	countRequests(j.Registry, counts)
	if err != nil {
		p := explain(err)
		p.RetryAfter = later
		return got, p
	}
	return got, nil
}

// explain turns an error of publish into a problem.
func explain(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	why := publish.Why(err)
	p = problem(Reason(why), "%v", err)
	p.Temporary = why.Temporary()
	return p
}

// settle says what becomes of a job that could not be done, and returns its state. charge: count the attempt here, it was not at a claim.
func (d *Daemon) settle(ctx context.Context, id string, p *Problem, charge bool) State {
	ctx = context.WithoutCancel(ctx)
	var registry string
	j, err := d.queue.changeJob(ctx, id, func(j *job) bool {
		if j.State.Final() {
			return false
		}
		if charge {
			j.Attempt++
		}
		registry = j.Registry
		d.after(j, p)
		return true
	})
	if err != nil {
		d.logIf(err, "recording a failure", id)
		return ""
	}
	if p.Temporary && registry != "" && (p.Reason == RegistryRests || p.Reason == RateLimited) {
		d.registryFailed(registry, p)
	}
	if j.State.Final() {
		d.ended(j)
	} else {
		retriesTotal(p.Reason)
		d.log.Info("job will run again", "job", id, "state", j.State, "reason", p.Reason, "attempt", j.Attempt, "at", j.NextRun)
	}
	return j.State
}

// after changes a job whose attempt ended with p.
func (d *Daemon) after(j *job, p *Problem) {
	now := time.Now().UTC()
	j.Worker = ""
	switch {
	case j.State == Cancelling:
		j.end(Cancelled, problem(CancelledReason, "cancelled"))
		return
	case !p.Temporary || j.Attempt >= d.cfg.MaxAttempts:
		j.end(Failed, p)
		return
	}
	wait := backoff(d.cfg.Backoff, d.cfg.MaxBackoff, j.Attempt, rand.Float64())
	j.State = WaitingRetry
	if p.Reason == NoSpace || p.Reason == RateLimited {
		j.State = Blocked
	}
	wait = max(wait, p.RetryAfter)
	if late := j.deadline(); !late.IsZero() && now.Add(wait).After(late) {
		j.end(Failed, problem(DeadlineExceeded, "deadline of %s is over; last: %s", j.Request.Deadline, p.Detail))
		return
	}
	next := now.Add(wait)
	j.Problem, j.NextRun, j.Stage = p, &next, ""
}

func (j *job) deadline() time.Time {
	if j.Request.Deadline == "" {
		return time.Time{}
	}
	t, err := time.ParseDuration(j.Request.Deadline)
	if err != nil || t <= 0 {
		return time.Time{}
	}
	return j.Created.Add(t)
}

func (j *job) late(now time.Time) bool {
	late := j.deadline()
	return !late.IsZero() && now.After(late)
}

// share makes a job that of another request as well: as urgent as the more urgent one, until the later deadline.
func (j *job) share(o *job) {
	j.Priority = max(j.Priority, o.Priority)
	switch a, b := j.deadline(), o.deadline(); {
	case a.IsZero():
	case b.IsZero():
		j.Request.Deadline = ""
	case b.After(a):
		j.Request.Deadline = b.Sub(j.Created).String()
	}
}

// backoff is how long to wait after so many attempts: twice as long each time up to a limit, half of it by chance.
func backoff(first, limit time.Duration, attempt int, chance float64) time.Duration {
	full := limit
	if attempt < 20 {
		full = min(limit, first<<max(attempt-1, 0))
	}
	return full/2 + time.Duration(chance*float64(full/2))
}

func (d *Daemon) registryAnswered(registry string) {
	d.mu.Lock()
	delete(d.failures, registry)
	d.mu.Unlock()
}

// registryFailed lets a registry rest that asked for it or failed several times in a row.
func (d *Daemon) registryFailed(registry string, p *Problem) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures[registry]++
	rest := p.RetryAfter
	if d.failures[registry] >= breakerAfter {
		rest = max(rest, min(breakerRest, d.cfg.MaxBackoff))
	}
	if rest > 0 {
		d.rests[registry] = time.Now().Add(rest)
	}
}

// reserve sets disk space aside for a job, or says that there is not enough. The caller holds d.mu.
func (d *Daemon) reserve(j *job) (need int64, ok bool) {
	need = 2 * j.Bytes
	var st unix.Statfs_t
	if unix.Statfs(d.cfg.Repo, &st) != nil {
		return need, true
	}
	free := int64(st.Bavail)*int64(st.Bsize) - d.cfg.Reserve
	for _, r := range d.running {
		free -= r.reserved
	}
	return need, need <= free && free > 0
}
