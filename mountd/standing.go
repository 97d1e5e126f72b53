package mountd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

const (
	// patience is how long a mount waits for an answer of the servers when it can do without one.
	patience = time.Second
	// probeFirst is the pause before servers that didn't answer are asked again, doubled each time up to probeLast.
	probeFirst = 5 * time.Second
	probeLast  = 3 * time.Minute
)

// standing is how a repository stands with the servers of an origin: whether they answer, and what of theirs was refused. There is one
// for each repository and key that an origin is asked for.
type standing struct {
	mu        sync.Mutex         // guards what follows
	questions map[bool]*question // under way; by whether past all caches
	asked     time.Time          // when the last one ended
	probing   bool               // somebody asks from time to time
	offline   error              // why no server answered last, nil if one did
	refused   error              // why the newest revision isn't taken, nil if it is
}

// question is one exchange with the servers that all who want to know share. It ends by itself.
type question struct {
	done chan struct{} // closed when rev and err are there
	rev  *revision
	err  error
}

// StandingStatus tells how a repository stands with its servers.
type StandingStatus struct {
	Offline     bool   `json:"offline"`                // no server answered when last asked
	OfflineWhy  string `json:"offline_why,omitempty"`  // what asking ended in
	Refused     string `json:"refused,omitempty"`      // why the newest revision on the servers isn't taken
	RefusedKind Kind   `json:"refused_kind,omitempty"` // of what kind that reason is
}

func (s *standing) status() StandingStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out StandingStatus
	if s.offline != nil {
		out.Offline, out.OfflineWhy = true, s.offline.Error()
	}
	if s.refused != nil {
		out.Refused, out.RefusedKind = s.refused.Error(), KindOf(s.refused)
	}
	return out
}

// standing returns how what src names under o stands with g's servers.
func (g *origin) standing(src Source, o Options) *standing {
	key := src.Name + "\n" + o.PublicKey
	if o.pinned() {
		key += "\n" + o.pin()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.standings[key]
	if s == nil {
		s = &standing{questions: map[bool]*question{}}
		if g.standings == nil {
			g.standings = map[string]*standing{}
		}
		g.standings[key] = s
	}
	return s
}

// allStandings returns those of g.
func (g *origin) allStandings() []*standing {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []*standing
	for _, s := range g.standings {
		out = append(out, s)
	}
	return out
}

// offlineNow reports whether no server answered when last asked.
func (s *standing) offlineNow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offline != nil
}

// ask joins the question under way, or puts it. With fresh, caches on the way are passed by. Nobody has to wait for its end.
func (d *Daemon) ask(g *origin, src Source, o Options, fresh bool) *question {
	s := g.standing(src, o)
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.questions[fresh]; q != nil {
		return q
	}
	q := &question{done: make(chan struct{})}
	release, ok := d.active.hold()
	if !ok {
		q.err = problem(Stopping, "the daemon is about to end")
		close(q.done)
		return q
	}
	s.questions[fresh] = q
	d.origins.share(g)
	d.wg.Go(func() {
		defer release()
		defer d.origins.release(g)
		ctx, cancel := context.WithTimeout(d.ctx, 2*trustTime)
		defer cancel()
		q.rev, q.err = d.newest(ctx, g, src, o, fresh)
		d.settle(s, g, src, o, q)
		close(q.done)
	})
	return q
}

// settle notes how a question ended, and says so if that is news.
func (d *Daemon) settle(s *standing, g *origin, src Source, o Options, q *question) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for fresh, other := range s.questions {
		if other == q {
			delete(s.questions, fresh)
		}
	}
	s.asked = time.Now()
	where := src.Name
	if where == "" {
		where = src.URL
	}
	refused := q.err
	if q.err == nil {
		refused = q.rev.warning
	}
	switch kind := KindOf(refused); {
	case d.ctx.Err() != nil:
		return
	case refused == nil:
	case kind == Unreachable:
		if s.offline == nil {
			d.log.Warn("offline: no server answers", "repository", where, "err", refused)
		}
		s.offline = refused
		d.probe(s, g, src, o)
		return
	case !keeps(kind):
		return
	case s.refused == nil || KindOf(s.refused) != kind:
		metrics.GetOrCreateCounter(fmt.Sprintf(`skimfs_revisions_refused_total{why=%q}`, kind)).Inc()
		d.log.Error("the newest revision is refused: what was accepted before is kept", "repository", where, "err", refused)
	}
	if s.offline != nil {
		d.log.Info("online again", "repository", where)
	}
	if s.refused != nil && refused == nil {
		d.log.Info("the newest revision is accepted again", "repository", where, "revision", q.rev.Revision)
	}
	s.offline, s.refused = nil, refused
}

// keeps reports whether a problem with what servers give leaves what was accepted before in use: not a lack of keys or a mistake in the
// request.
func keeps(k Kind) bool {
	switch k {
	case Unreachable, WrongKey, Expired, Revoked, Rollback, Damaged, NotFound:
		return true
	}
	return false
}

// probe asks from time to time, in the background and one question after the other, until a server answers or nobody uses g. The caller
// holds s.mu.
func (d *Daemon) probe(s *standing, g *origin, src Source, o Options) {
	if s.probing {
		return
	}
	s.probing = true
	d.wg.Go(func() {
		defer func() {
			s.mu.Lock()
			s.probing = false
			s.mu.Unlock()
		}()
		for pause := probeFirst; ; pause = min(2*pause, probeLast) {
			if !d.sleep(pause-rand.N(pause/4)) || !d.origins.inUse(g) || !s.offlineNow() {
				return
			}
			<-d.ask(g, src, o, false).done
		}
	})
}

// sleep waits for t and reports whether the daemon goes on.
func (d *Daemon) sleep(t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-d.ctx.Done():
		return false
	}
}

// accept returns the revision of src to go by, with its root catalog loaded: the newest, which is accepted as docs/format.md section 7
// has it and recorded, or the one accepted last where no server answers or what they give is refused. Where servers are known to be away,
// or don't answer within patience, nobody waits for them. With fresh, caches on the way are passed by.
func (d *Daemon) accept(ctx context.Context, g *origin, src Source, o Options, fresh bool) (*revision, error) {
	return d.acceptWithin(ctx, g, src, o, fresh, patience)
}

// acceptWithin is accept with another patience; 0 is to wait for the answer, or the lack of one, in any case.
func (d *Daemon) acceptWithin(ctx context.Context, g *origin, src Source, o Options, fresh bool, patience time.Duration) (*revision, error) {
	s := g.standing(src, o)
	last, lastErr := d.lastAccepted(g, src, o)
	var enough <-chan time.Time
	if last != nil && patience > 0 {
		if s.offlineNow() {
			s.mu.Lock()
			why, due := s.offline, !s.probing && time.Since(s.asked) > probeFirst
			s.mu.Unlock()
			if due {
				d.ask(g, src, o, fresh)
			}
			if why != nil {
				return last.load(ctx, why)
			}
		}
		timer := time.NewTimer(patience)
		defer timer.Stop()
		enough = timer.C
	}
	q := d.ask(g, src, o, fresh)
	select {
	case <-q.done:
	case <-enough:
		return last.load(ctx, problem(Unreachable, "no answer within %v", patience))
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if last != nil && KindOf(q.err) == Revoked {
		// What was accepted before may be among what is revoked since just now.
		last, lastErr = d.lastAccepted(g, src, o)
	}
	switch {
	case q.err == nil:
		rev := *q.rev
		return &rev, nil
	case last != nil && keeps(KindOf(q.err)):
		return last.load(ctx, q.err)
	case lastErr != nil && KindOf(q.err) == Unreachable:
		return nil, lastErr
	}
	return nil, q.err
}

// await is accept that waits for the servers' answer, for as long as the question takes.
func (d *Daemon) await(ctx context.Context, g *origin, src Source, o Options, fresh bool) (*revision, error) {
	q := d.ask(g, src, o, fresh)
	select {
	case <-q.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if q.err != nil {
		return nil, q.err
	}
	rev := *q.rev
	return &rev, nil
}

// load makes a revision accepted before ready for use; why says why it isn't the newest.
func (r *revision) load(ctx context.Context, why error) (*revision, error) {
	r.offline, r.warning = KindOf(why) == Unreachable, why
	view, err := r.viewOf(ctx, r.Root)
	if err != nil {
		return nil, fmt.Errorf("root catalog of %s, revision %d, accepted before: %w", r.where(), r.Revision, errors.Join(err, why))
	}
	r.view = view
	return r, nil
}
