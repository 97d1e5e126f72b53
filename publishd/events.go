package publishd

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// eventID names an event: the sequence number of the change, and which of the operations that it changed, which are told of in the order of
// their ids.
type eventID struct {
	seq uint64
	op  string
}

// afterAll comes after the ids of all operations.
const afterAll = "z"

func (e eventID) String() string { return fmt.Sprintf("%d.%s", e.seq, e.op) }

func parseEventID(text string) (e eventID, err error) {
	seq, op, _ := strings.Cut(text, ".")
	e.op = op
	if e.seq, err = strconv.ParseUint(seq, 10, 63); err != nil || strings.Trim(op, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
		return e, problem(InvalidArgument, "event id %q: want the id of an event", text)
	}
	return e, nil
}

// sse writes server-sent events.
type sse struct {
	w    http.ResponseWriter
	c    *http.ResponseController
	only string // id of an operation, or ""
}

func (s *sse) send(id, event string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	// Who reads too slowly loses the connection and comes back with the id of the last event he saw.
	_ = s.c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if id != "" {
		id = "id: " + id + "\n"
	}
	if _, err := fmt.Fprintf(s.w, "%sevent: %s\ndata: %s\n\n", id, event, b); err != nil {
		return err
	}
	return s.c.Flush()
}

// events streams changes. Without Last-Event-ID all that is known comes first.
func (a *api) events(w http.ResponseWriter, r *http.Request, _ Caller) error {
	select {
	case a.listeners <- struct{}{}:
		defer func() { <-a.listeners }()
	default:
		p := problem(QueueFull, "%d clients listen already", maxSSE)
		p.RetryAfter = 10 * time.Second
		return p
	}
	s := &sse{w: w, c: http.NewResponseController(w), only: r.PathValue("id")}
	if s.only != "" {
		if _, err := a.Get(s.only); err != nil {
			return err
		}
	}
	last := r.Header.Get("Last-Event-ID")
	if last == "" {
		last = r.URL.Query().Get("since")
	}
	var from eventID
	var err error
	if last != "" {
		if from, err = parseEventID(last); err != nil {
			return err
		}
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	if _, err := fmt.Fprint(w, "retry: 2000\n\n"); err != nil {
		return nil
	}
	if last == "" {
		if from, err = a.snapshot(s); err != nil {
			return nil
		}
	}
	a.follow(r, s, from)
	return nil
}

// snapshot sends all operations as they are, and returns the id from which to go on.
func (a *api) snapshot(s *sse) (eventID, error) {
	a.queue.mu.Lock()
	seen := a.queue.seen
	var all []Operation
	for id := range a.queue.ops {
		if s.only == "" || s.only == id {
			all = append(all, a.queue.view(id))
		}
	}
	a.queue.mu.Unlock()
	slices.SortFunc(all, func(a, b Operation) int { return strings.Compare(a.Name, b.Name) })
	for _, o := range all {
		o.Metadata.MaxAttempts = a.cfg.MaxAttempts
		if err := s.send("", "op.state", o); err != nil {
			return eventID{}, err
		}
	}
	at := eventID{seen, afterAll}
	return at, s.send(at.String(), "snapshot", map[string]int{"operations": len(all)})
}

// follow sends each change after from, until the client leaves.
func (a *api) follow(r *http.Request, s *sse, from eventID) {
	ctx := r.Context()
	q := a.queue
	prefix := "$KV." + bucketName + "."
	start := max(from.seq, 1)
	cons, err := q.js.OrderedConsumer(ctx, "KV_"+bucketName, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{prefix + "op.>", prefix + "job.>"}, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: start,
	})
	if err != nil {
		a.log.Warn("streaming events", "err", err)
		return
	}
	messages := make(chan jetstream.Msg, 256)
	stop, err := cons.Consume(func(m jetstream.Msg) {
		select {
		case messages <- m:
		case <-ctx.Done():
		}
	})
	if err != nil {
		a.log.Warn("streaming events", "err", err)
		return
	}
	defer stop.Stop()
	moved := make(chan struct{}, 1)
	a.mu.Lock()
	a.watchers[moved] = true
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.watchers, moved)
		a.mu.Unlock()
	}()
	alive, progress := time.NewTicker(15*time.Second), time.NewTicker(time.Second)
	defer alive.Stop()
	defer progress.Stop()
	dirty := false
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-messages:
			if a.sendChange(s, m, strings.TrimPrefix(m.Subject(), prefix), from) != nil {
				return
			}
		case <-moved:
			dirty = true
		case <-progress.C:
			if dirty && a.sendProgress(s) != nil {
				return
			}
			dirty = false
		case <-alive.C:
			_ = s.c.SetWriteDeadline(time.Now().Add(10 * time.Second))
			if _, err := fmt.Fprint(s.w, ": alive\n\n"); err != nil || s.c.Flush() != nil {
				return
			}
		}
	}
}

// sendChange sends what one change of a record meant for operations.
func (a *api) sendChange(s *sse, m jetstream.Msg, key string, from eventID) error {
	meta, err := m.Metadata()
	if err != nil {
		return nil
	}
	seq := meta.Sequence.Stream
	gone := m.Headers().Get("KV-Operation") != ""
	what, id, _ := strings.Cut(key, ".")
	var out []Operation
	a.queue.mu.Lock()
	switch what {
	case "op":
		var o op
		if gone || json.Unmarshal(m.Data(), &o) != nil || a.queue.ops[id] == nil {
			break
		}
		v := a.queue.view(id)
		switch j := a.queue.jobs[o.Job]; {
		case o.Cancelled != nil && j != nil && j.State.Final() && j.revision < seq:
			// It had ended before.
		case o.Cancelled != nil && o.Last:
			// The end of its job follows.
			v.Metadata.State, v.Done, v.Error, v.Response, v.Metadata.EndTime = Cancelling, false, nil, nil, nil
			out = append(out, v)
		case o.Cancelled != nil:
			v.Metadata.State, v.Metadata.EndTime, v.Metadata.Problem, v.Response = Cancelled, o.Cancelled, nil, nil
			v.Metadata.Generation, v.Done, v.Error = o.Final, true, problem(CancelledReason, "cancelled")
			out = append(out, v)
		default:
			// As it began; the changes of its job follow.
			v.Metadata.State, v.Done, v.Error, v.Response, v.Metadata.EndTime = Queued, false, nil, nil, nil
			v.Metadata.Generation, v.Metadata.Attempt, v.Metadata.Stage, v.Metadata.StartTime = o.Base, 0, "", nil
			out = append(out, v)
		}
	case "job":
		var j job
		if gone || json.Unmarshal(m.Data(), &j) != nil {
			break
		}
		j.revision = seq
		for waiter := range a.queue.waiters[id] {
			o := a.queue.ops[waiter]
			if left := o.Cancelled != nil && o.revision < seq; !o.since().After(meta.Timestamp) && (!left || o.Last && j.State.Final()) {
				out = append(out, a.queue.viewAt(waiter, &j))
			}
		}
	}
	a.queue.mu.Unlock()
	slices.SortFunc(out, func(a, b Operation) int { return strings.Compare(a.Name, b.Name) })
	for _, o := range out {
		if seq == from.seq && o.ID() <= from.op || seq < from.seq || s.only != "" && o.ID() != s.only {
			continue
		}
		o.Metadata.MaxAttempts = a.cfg.MaxAttempts
		if err := s.send(eventID{seq, o.ID()}.String(), "op.state", o); err != nil {
			return err
		}
	}
	return nil
}

// viewAt is an operation as it was when its job was j. The caller holds mu.
func (q *queue) viewAt(id string, j *job) Operation {
	now, o := q.jobs[j.ID], q.ops[id]
	if q.jobs[j.ID] = j; o.Cancelled != nil && j.revision < o.revision {
		before := *o
		before.Cancelled, before.Last = nil, false
		q.ops[id] = &before
	}
	defer func() {
		q.ops[id] = o
		if q.jobs[j.ID] = now; now == nil {
			delete(q.jobs, j.ID)
		}
	}()
	return q.view(id)
}

// sendProgress sends how far what runs has come. These events have no id: they are not kept.
func (a *api) sendProgress(s *sse) error {
	a.mu.Lock()
	var jobs []string
	for id := range a.running {
		jobs = append(jobs, id)
	}
	a.mu.Unlock()
	var ops []string
	a.queue.mu.Lock()
	for _, j := range jobs {
		ops = append(ops, a.queue.wanted(j)...)
	}
	a.queue.mu.Unlock()
	for _, id := range ops {
		if s.only != "" && s.only != id {
			continue
		}
		if o, err := a.Get(id); err == nil && o.Metadata.State == Running {
			if err := s.send("", "op.progress", o); err != nil {
				return err
			}
		}
	}
	return nil
}
