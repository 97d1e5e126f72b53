package publishd

import (
	"errors"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

func isGone(err error) bool { return errors.Is(err, jetstream.ErrKeyNotFound) }

// view is an operation as clients see it. The caller holds mu.
func (q *queue) view(id string) Operation {
	o := q.ops[id]
	out := Operation{Name: "operations/" + id, Metadata: Metadata{
		Kind: o.Request.Kind, Source: o.Request.Source, As: o.Request.As, Platform: o.Request.Platform, Job: o.Job, Submitter: o.Submitter, Labels: o.Request.Labels,
		CreateTime: o.Created, Parent: o.Parent, State: Queued, Priority: DefaultPriority, Generation: o.Base,
	}}
	m := &out.Metadata
	if o.Request.Kind == ConvertMany {
		m.Source = "" // the recipe's text
		for c := range q.children[id] {
			m.Children++
			if q.done(c) {
				m.ChildrenDone++
			}
		}
	}
	j := q.jobs[o.Job]
	if j != nil {
		m.State, m.Stage, m.Progress, m.Attempt, m.Priority = j.State, j.Stage, j.Progress, j.Attempt, j.Priority
		m.Generation = o.Base + j.Generation
		m.Digest, m.As, m.Problem, m.StartTime, m.EndTime, m.NextRunTime = j.Digest, j.As, j.Problem, j.Started, j.Ended, j.NextRun
	}
	if o.Cancelled != nil && !(j != nil && j.State.Final() && j.revision < o.revision) {
		m.Generation++
		switch m.Stage, m.NextRunTime, m.EndTime = "", nil, o.Cancelled; {
		case o.Last && j != nil && !j.State.Final():
			m.State, m.EndTime, m.Problem = Cancelling, nil, nil
		case o.Last && j != nil && j.State == Cancelled:
			m.EndTime = j.Ended // and its problem
		default: // whatever becomes of the job that others want
			m.State, m.Problem, m.Generation = Cancelled, problem(CancelledReason, "cancelled"), max(o.Final, o.Base+1)
		}
	}
	out.Done = q.done(id)
	switch m.State {
	case Succeeded:
		out.Response, m.Problem = j.Results, nil
	case Failed, Cancelled:
		out.Error, m.Problem = m.Problem, nil
	}
	return out
}

// orderCache is the order of the queue, as it was a moment ago.
type orderCache struct {
	at       time.Time
	position map[string]int
}

// positions returns the place of each queued job, 1 is next; at most a second old.
func (d *Daemon) positions() map[string]int {
	d.mu.Lock()
	cached := d.order
	d.mu.Unlock()
	if time.Since(cached.at) < time.Second {
		return cached.position
	}
	now := time.Now()
	type place struct {
		id       string
		priority int
	}
	d.queue.mu.Lock()
	var all []place
	for id := range d.queue.live {
		if j := d.queue.jobs[id]; j.State == Queued {
			all = append(all, place{id, j.effective(now, d.cfg.Aging)})
		}
	}
	d.queue.mu.Unlock()
	sort.Slice(all, func(a, b int) bool {
		if all[a].priority != all[b].priority {
			return all[a].priority > all[b].priority
		}
		return all[a].id < all[b].id
	})
	fresh := orderCache{at: now, position: make(map[string]int, len(all))}
	for i, p := range all {
		fresh.position[p.id] = i + 1
	}
	d.mu.Lock()
	d.order = fresh
	d.mu.Unlock()
	return fresh.position
}

// complete adds what is not in the records: the progress of this moment, the place in the queue.
func (d *Daemon) complete(o *Operation) {
	m := &o.Metadata
	m.MaxAttempts = d.cfg.MaxAttempts
	d.mu.Lock()
	if r := d.running[m.Job]; r != nil && m.State == Running {
		m.Stage, m.Progress = r.stage, r.progress
	}
	d.mu.Unlock()
	if m.State == Queued {
		m.QueuePosition = d.positions()[m.Job]
	}
}

// Get returns an operation. It never waits for anything but memory.
func (d *Daemon) Get(id string) (Operation, error) {
	d.queue.mu.Lock()
	if d.queue.ops[id] == nil {
		d.queue.mu.Unlock()
		return Operation{}, problem(NotFound, "no operation %q", id)
	}
	o := d.queue.view(id)
	d.queue.mu.Unlock()
	d.complete(&o)
	return o, nil
}

// Find returns the newest operation for an image: by its reference as it was submitted, or its name in the repository.
func (d *Daemon) Find(ref string) (Operation, error) {
	d.queue.mu.Lock()
	id := d.queue.names[ref]
	if id == "" {
		canonical := Request{Kind: Convert, Source: ref}
		d.queue.mu.Unlock()
		if j, err := d.check(&canonical, Caller{}); err == nil {
			d.queue.mu.Lock()
			if id = d.queue.names[canonical.Source]; id == "" {
				id = d.queue.names[j.As]
			}
			d.queue.mu.Unlock()
		}
		d.queue.mu.Lock()
	}
	d.queue.mu.Unlock()
	if id == "" {
		return Operation{}, problem(NotFound, "nothing was submitted as %q", ref)
	}
	return d.Get(id)
}

// Filter chooses operations; the zero value takes all.
type Filter struct {
	States    []State
	Submitter string
	Label     string // k=v
	Parent    string
	Kind      Kind
}

func (f Filter) takes(o Operation) bool {
	m := o.Metadata
	if len(f.States) > 0 {
		found := false
		for _, s := range f.States {
			found = found || s == m.State
		}
		if !found {
			return false
		}
	}
	if k, v, ok := strings.Cut(f.Label, "="); ok && m.Labels[k] != v {
		return false
	}
	return (f.Submitter == "" || f.Submitter == m.Submitter) && (f.Parent == "" || f.Parent == m.Parent) && (f.Kind == "" || f.Kind == m.Kind)
}

// List returns at most size operations, oldest first, from the one after the token on, and the token of the next page.
func (d *Daemon) List(f Filter, size int, token string) (out []Operation, next string) {
	d.queue.mu.Lock()
	ids := slices.Collect(maps.Keys(d.queue.ops))
	if f.Parent != "" {
		ids = slices.Collect(maps.Keys(d.queue.children[f.Parent]))
	}
	slices.Sort(ids)
	begin, found := slices.BinarySearch(ids, token)
	if found {
		begin++
	}
	for _, id := range ids[begin:] {
		if o := d.queue.view(id); f.takes(o) {
			if len(out) == size {
				next = out[size-1].ID()
				break
			}
			out = append(out, o)
		}
	}
	d.queue.mu.Unlock()
	for i := range out {
		d.complete(&out[i])
	}
	return out, next
}
