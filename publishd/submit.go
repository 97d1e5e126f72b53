package publishd

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/skimfs/skimfs/publish"
)

// newID returns an identifier that sorts by time.
func newID(now time.Time) string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return idOf(now, b[:])
}

func idOf(t time.Time, rest []byte) string {
	b := append(binary.BigEndian.AppendUint64(nil, uint64(t.UnixNano())), rest...)
	return strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(b))
}

// check completes a request and refuses what can't be done.
func (d *Daemon) check(r *Request, c Caller) (job, error) {
	if r.Kind == "" {
		r.Kind = Convert
	}
	j := job{Submitter: c.Name, Local: c.Local, Here: c.Here, State: Queued, Priority: DefaultPriority}
	if r.Priority != nil {
		j.Priority = *r.Priority
	}
	if j.Priority < 0 || j.Priority > 9 {
		return j, problem(InvalidArgument, "priority %d: want 0 to 9", j.Priority)
	}
	if r.Deadline != "" {
		if t, err := time.ParseDuration(r.Deadline); err != nil || t <= 0 {
			return j, problem(InvalidArgument, "deadline %q: want a duration, as in 2h", r.Deadline)
		}
	}
	if r.As != "" {
		if err := publish.CheckName(r.As); err != nil {
			return j, problem(InvalidArgument, "%v", err)
		}
	}
	if r.Platform != "" {
		if _, err := publish.ParsePlatform(r.Platform); err != nil {
			return j, problem(InvalidArgument, "%v", err)
		}
	}
	if len(r.Source) > 1<<20 || r.Source == "" {
		return j, problem(InvalidArgument, "source: want 1 to 1048576 bytes, have %d", len(r.Source))
	}
	switch r.Kind {
	case Prefetch:
		// By its name the owner of this machine says from where it comes; an address could be anything that this machine reaches.
		if strings.HasPrefix(r.Source, "-") || !c.Admin && (strings.Contains(r.Source, "://") || strings.HasPrefix(r.Source, "/")) {
			return j, problem(PermissionDenied, "prefetch: want an image of a repository by its name, as in images.example.org/docker.io/library/debian:12")
		}
	case Convert:
		if !strings.Contains(r.Source, ":") || !knownKind(r.Source) {
			r.Source = "docker://" + r.Source // as people write it: debian:12
		}
		src, err := publish.ParseSource(r.Source)
		if err != nil {
			return j, problem(InvalidArgument, "%v", err)
		}
		if src.Local() {
			if err := local(c, src.Path()); err != nil {
				return j, err
			}
		}
		r.Source = src.Canonical()
		j.Registry = src.Registry()
		if j.As = r.As; j.As == "" {
			if j.As, err = src.DefaultName(); err != nil {
				return j, problem(InvalidArgument, "source %q: %v", r.Source, err)
			}
		}
		if j.Registry == "" && !src.Local() {
			return j, problem(InvalidArgument, "source %q: no reference", r.Source)
		}
	case Build:
		if err := local(c, r.Source); err != nil {
			return j, err
		}
		if r.As == "" {
			return j, problem(InvalidArgument, "build: an image needs a name, as in local/tools:1")
		}
		j.As = r.As
	case ConvertMany:
		if _, err := parseRecipe([]byte(r.Source)); err != nil {
			return j, problem(InvalidArgument, "%v", err)
		}
	default:
		return j, problem(InvalidArgument, "kind %q: want convert, build, convert-many or prefetch", r.Kind)
	}
	if j.Registry == "" && r.Kind != ConvertMany {
		j.Node = cmp.Or(c.Node, d.node)
	}
	j.Request = *r
	j.Request.RequestID, j.Request.Priority, j.Request.Labels = "", nil, nil
	j.Key = j.workKey(r.Source)
	return j, nil
}

func knownKind(source string) bool {
	for _, k := range []string{"docker://", "oci:", "oci-archive:", "docker-archive:", "dir:"} {
		if strings.HasPrefix(source, k) {
			return true
		}
	}
	return false
}

// local refuses paths of callers whose rights are not known.
func local(c Caller, path string) error {
	if c.Local == nil {
		return problem(PermissionDenied, "sources that are files of this machine are taken over the local socket only")
	}
	if !filepath.IsAbs(path) {
		return problem(InvalidArgument, "path %q: want an absolute one", path)
	}
	return nil
}

// workKey is equal for work that has the same result: what is converted, by which rules, under which name.
func (j *job) workKey(what string) string {
	b, _ := json.Marshal([]any{j.Request.Kind, what, j.As, j.Request.Platform, j.Request.Bare, j.Request.File, j.Request.Args, publish.Converter})
	if !j.Here && onLoopback(j.Registry) {
		b = append(b, "from elsewhere"...) // and refused, unlike that of who is here
	}
	if j.Registry == "" {
		// Files may change from one moment to the next, and not everybody may read the same.
		b = append(b, newID(time.Now())...)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

func onLoopback(registry string) bool {
	host, _, err := net.SplitHostPort(registry)
	if err != nil {
		host = registry
	}
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || ip != nil && ip.IsLoopback()
}

// Submit takes a request and returns its operation, which has just begun, or that of the same request id.
func (d *Daemon) Submit(ctx context.Context, r Request, c Caller) (Operation, error) {
	return d.submit(ctx, r, c, "", newID(time.Now()))
}

// submit makes an operation of the given id. One of a recipe, whose parent is named, may be there already.
func (d *Daemon) submit(ctx context.Context, r Request, c Caller, parent, id string) (Operation, error) {
	j, err := d.check(&r, c)
	if err != nil {
		return Operation{}, err
	}
	d.submitting.Lock()
	defer d.submitting.Unlock()
	q := d.queue
	q.mu.Lock()
	whole := q.ops[parent]
	q.mu.Unlock()
	if parent != "" && (whole == nil || whole.Cancelled != nil) {
		return Operation{}, problem(CancelledReason, "the recipe was cancelled")
	}
	now := time.Now().UTC()
	o := &op{ID: id, Request: r, Submitter: c.Name, Local: c.Local, Admin: c.Admin, Here: c.Here, Node: cmp.Or(c.Node, d.node), Parent: parent, Created: now}
	if r.RequestID != "" {
		q.mu.Lock()
		before := q.ops[q.idem[idemKey(c.Name, r.RequestID)]]
		q.mu.Unlock()
		if before != nil {
			if !sameJSON(before.Request, r) {
				return Operation{}, problem(IdempotencyClash, "request id %q was used for another request", r.RequestID)
			}
			return d.Get(before.ID)
		}
	}
	q.mu.Lock()
	waiting := len(q.live)
	shared := q.jobs[q.keys[j.Key]]
	q.mu.Unlock()
	j.ID, j.Created = newID(now), now
	if shared != nil && shared.attachable() {
		o.Job = shared.ID
	} else if waiting >= d.cfg.MaxQueue && parent == "" {
		p := problem(QueueFull, "%d jobs are queued, the limit", waiting)
		p.RetryAfter = 10 * time.Second
		return Operation{}, p
	} else {
		shared = nil
		o.Job = j.ID
	}
	// The operation first: one without its job is given it.
	err = q.put(ctx, "op."+o.ID, o, 0)
	if errors.Is(err, errConflict) && parent != "" {
		return d.getAfter(o.ID, q.until(ctx, func() bool { return q.ops[o.ID] != nil })) // another daemon was faster
	}
	if err != nil {
		return Operation{}, err
	}
	if shared != nil {
		attached := false
		_, err := q.changeJob(ctx, shared.ID, func(s *job) bool {
			attached = s.attachable()
			s.share(&j)
			return attached
		})
		var p *Problem
		if gone := errors.As(err, &p) && p.Reason == NotFound; !gone && (attached || err != nil) {
			d.wake()
			return d.getAfter(o.ID, err)
		}
		// It ended meanwhile, or its operations went over to another job.
		if err := q.changeOp(ctx, o.ID, func(o *op) bool { q.move(o, j.ID); return true }); err != nil {
			return Operation{}, err
		}
	}
	err = d.putJob(ctx, &j)
	d.wake()
	return d.getAfter(o.ID, err)
}

// putJob writes the first record of a job, unless another daemon has adopted its operation.
func (d *Daemon) putJob(ctx context.Context, j *job) error {
	if err := d.queue.put(ctx, "job."+j.ID, j, 0); !errors.Is(err, errConflict) {
		return err
	}
	return nil
}

func sameJSON(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// attachable says whether another operation may wait for this job: one whose image is resolved already may be older than the request.
func (j *job) attachable() bool {
	return !j.State.Final() && j.State != Cancelling && (j.Registry == "" || j.Digest == "" && j.State != Running)
}

func (d *Daemon) getAfter(id string, err error) (Operation, error) {
	if err != nil {
		return Operation{}, err
	}
	return d.Get(id)
}

// Cancel ends an operation; the job ends with its last.
func (d *Daemon) Cancel(ctx context.Context, id string) (Operation, error) {
	d.submitting.Lock()
	defer d.submitting.Unlock()
	return d.cancel(ctx, id)
}

func (d *Daemon) cancel(ctx context.Context, id string) (Operation, error) {
	q := d.queue
	now := time.Now().UTC()
	q.mu.Lock()
	o := q.ops[id]
	var final, last bool
	var jobID string
	var children []string
	if o != nil {
		j := q.jobs[o.Job]
		final, jobID = j != nil && j.State.Final() || o.Cancelled != nil, o.Job
		last = j != nil && len(q.wanted(o.Job)) == 1
		for c := range q.children[id] {
			children = append(children, c)
		}
	}
	q.mu.Unlock()
	if o == nil {
		return Operation{}, problem(NotFound, "no operation %s", id)
	}
	if final {
		return d.Get(id)
	}
	if err := q.changeOp(ctx, id, func(o *op) bool {
		if o.Cancelled, o.Last = &now, last; !last {
			o.Final = q.generation(id) + 1
		}
		return true
	}); err != nil {
		return Operation{}, err
	}
	if err := d.cancelUnwanted(ctx, jobID); err != nil {
		return Operation{}, err
	}
	for _, c := range children {
		if _, err := d.cancel(ctx, c); err != nil {
			return Operation{}, err
		}
	}
	d.wake()
	return d.Get(id)
}

// cancelUnwanted ends a job that nobody wants any more.
func (d *Daemon) cancelUnwanted(ctx context.Context, jobID string) error {
	_, err := d.queue.changeJob(ctx, jobID, func(j *job) bool {
		d.queue.mu.Lock()
		wanted := d.queue.wanted(jobID)
		d.queue.mu.Unlock()
		if len(wanted) > 0 || j.State.Final() || j.State == Cancelling {
			return false
		}
		if j.State == Running && j.Worker != recipeWorker {
			j.State = Cancelling
			return true
		}
		j.end(Cancelled, problem(CancelledReason, "cancelled"))
		return true
	})
	return err
}

// end brings a job to a final state.
func (j *job) end(s State, p *Problem) {
	now := time.Now().UTC()
	j.State, j.Problem, j.Ended, j.NextRun, j.Worker = s, p, &now, nil, ""
	if s != Failed {
		j.Stage = ""
	}
}

// Retry runs a failed or cancelled operation again; of a recipe those of its images that are not there.
func (d *Daemon) Retry(ctx context.Context, id string) (Operation, error) {
	d.submitting.Lock()
	defer d.submitting.Unlock()
	return d.retry(ctx, id)
}

func (d *Daemon) retry(ctx context.Context, id string) (Operation, error) {
	now, err := d.Get(id)
	if err != nil {
		return now, err
	}
	if !now.Done || now.Metadata.State == Succeeded {
		return now, problem(WrongState, "operation %s is %s: only what failed or was cancelled is retried", id, now.Metadata.State)
	}
	d.queue.mu.Lock()
	old := d.queue.ops[id]
	d.queue.mu.Unlock()
	r := old.Request
	j, err := d.check(&r, old.caller())
	if err != nil {
		return now, err
	}
	j.Created = time.Now().UTC()
	j.ID = newID(j.Created)
	d.negatives.forget(j.asked())
	// The operation first, as in submit: a job that nobody wants is cancelled.
	err = d.queue.changeOp(ctx, id, func(o *op) bool {
		d.queue.move(o, j.ID)
		o.Cancelled, o.Last, o.Final = nil, false, 0
		return true
	})
	if err == nil {
		err = d.putJob(ctx, &j)
	}
	children, _ := d.List(Filter{Parent: id, States: []State{Failed, Cancelled}}, maxRecipe, "")
	for _, c := range children {
		if err == nil {
			_, err = d.retry(ctx, c.ID())
		}
	}
	d.wake()
	return d.getAfter(id, err)
}

// Forget removes the record of an operation that has ended.
func (d *Daemon) Forget(ctx context.Context, id string) error {
	d.submitting.Lock()
	defer d.submitting.Unlock()
	o, err := d.Get(id)
	if err != nil {
		return err
	}
	if !o.Done {
		return problem(WrongState, "operation %s is %s: cancel it first", id, o.Metadata.State)
	}
	if err := d.queue.kv.Purge(ctx, "op."+id); err != nil {
		return err
	}
	if err := d.queue.until(ctx, func() bool { return d.queue.ops[id] == nil }); err != nil {
		return err
	}
	d.queue.mu.Lock()
	left := len(d.queue.waiters[o.Metadata.Job])
	d.queue.mu.Unlock()
	if left > 0 {
		return nil
	}
	d.removeLog(o.Metadata.Job)
	return d.queue.kv.Purge(ctx, "job."+o.Metadata.Job)
}
