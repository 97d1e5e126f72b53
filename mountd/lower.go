package mountd

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

const (
	lowerPatience = 2 * time.Second // for a lower cache, before a server is asked beside it
	notePatience  = 5 * time.Second // for the servers' manifest, before the lower cache's will do
)

// lowers are the lower caches that mounts name, by directory. They stay as long as the daemon.
type lowers struct {
	mu sync.Mutex // guards m
	m  map[string]*cachedb.Lower
}

// take returns the lower cache in dir, nil for "".
func (all *lowers) take(dir string, open func(string) *cachedb.Lower) *cachedb.Lower {
	if dir == "" {
		return nil
	}
	all.mu.Lock()
	defer all.mu.Unlock()
	l := all.m[dir]
	if l == nil {
		l = open(dir)
		if all.m == nil {
			all.m = map[string]*cachedb.Lower{}
		}
		all.m[dir] = l
	}
	return l
}

func (all *lowers) list() []*cachedb.Lower {
	all.mu.Lock()
	defer all.mu.Unlock()
	out := make([]*cachedb.Lower, 0, len(all.m))
	for _, l := range all.m {
		out = append(out, l)
	}
	return out
}

// source is one of the places that have something; it ends soon after its context.
type source func(ctx context.Context) ([]byte, error)

// either asks first, and second as well once first has failed in a way that after finds worth it, or has not answered within patience. The
// first good answer counts. Without one it returns both errors; second's is nil if it was not asked.
func either(ctx context.Context, patience time.Duration, first, second source, after func(error) bool) (b []byte, fromSecond bool, errs [2]error) {
	ctx, cancel := context.WithCancel(ctx)
	type answer struct {
		b   []byte
		who int
		err error
	}
	answers := make(chan answer, 2)
	var asked sync.WaitGroup
	defer asked.Wait()
	defer cancel()
	ask := func(who int, s source) {
		asked.Go(func() {
			b, err := s(ctx)
			answers <- answer{b, who, err}
		})
	}
	ask(0, first)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for waiting, both := 1, false; waiting > 0; {
		more := false
		select {
		case a := <-answers:
			if a.err == nil {
				return a.b, a.who == 1, errs
			}
			waiting--
			errs[a.who] = a.err
			more = after(a.err)
		case <-timer.C:
			more = true
		}
		if more && !both && ctx.Err() == nil {
			both = true
			waiting++
			ask(1, second)
		}
	}
	return nil, false, errs
}

// reach returns an object from the lower cache or from a server; fetched says that it was a server. A lower cache that answers slowly gets a
// server beside it, and one that owes answers is asked only for what no server gives.
func (g *origin) reach(ctx context.Context, d index.Digest, size int64) (plain []byte, fetched bool, err error) {
	if g.client == nil {
		return nil, false, fmt.Errorf("object %v: %w", d, fs.ErrNotExist) // an import's
	}
	network := func(ctx context.Context) ([]byte, error) { return g.client.Object(ctx, d, size) }
	if g.lower == nil {
		plain, err = network(ctx)
		return plain, true, err
	}
	below := func(ctx context.Context) ([]byte, error) { return g.lower.Get(ctx, d, size) }
	first, second, patience := below, network, lowerPatience
	late := g.lower.Late()
	if late {
		first, second, patience = network, below, forever
	}
	plain, fromSecond, errs := either(ctx, patience, first, second, func(error) bool { return true })
	fetched = fromSecond != late
	switch {
	case plain == nil && (late || errs[1] == nil):
		return nil, fetched, errs[0]
	case plain == nil: // a server's error says what to do about it
		return nil, fetched, errs[1]
	case fetched:
		g.lower.PutLater(d, plain)
	}
	return plain, fetched, nil
}

// note returns a repository's manifest or whitelist: what was given with the repository, or from a server, or, if none answers, from the
// lower cache; then below says why. The bytes have passed check.
func (r *repository) note(ctx context.Context, what string, ttl time.Duration, fresh bool, check func([]byte) error) (text []byte, below, err error) {
	if text, ok := r.given[what]; ok {
		return text, nil, check(text)
	}
	// Two may be asked at once, and check is one caller's.
	var checking sync.Mutex
	checked := func(b []byte) error {
		checking.Lock()
		defer checking.Unlock()
		return check(b)
	}
	server := func(ctx context.Context) ([]byte, error) {
		return r.client.FileChecked(ctx, what, ttl, index.MaxNote, fresh, checked)
	}
	if r.lower == nil {
		text, err = server(ctx)
		return text, nil, err
	}
	limited, cancel := context.WithTimeout(ctx, trustTime)
	defer cancel()
	text, fromBelow, errs := either(limited, notePatience, server, func(ctx context.Context) ([]byte, error) {
		name := r.name
		if name == "" {
			var err error
			if name, err = r.lower.RepositoryAt(ctx, r.servers[0]); err != nil {
				return nil, err
			}
		}
		b, err := r.lower.Note(ctx, name, what)
		if err == nil {
			err = checked(b)
		}
		return b, err
	}, func(err error) bool { return KindOf(err) == Unreachable })
	if text == nil {
		return nil, nil, errs[0]
	}
	if fromBelow {
		if below = errs[0]; below == nil {
			below = problem(Unreachable, "no answer within %v", notePatience)
		}
	}
	return text, below, check(text) // once more: the one that lost may have come to its check last
}

// share puts what was accepted into the lower cache, unless that has the same or something newer.
func (r *repository) share(ctx context.Context) error {
	a, w := r.accepted(), r.seenWhitelist()
	whitelist, err := r.db.State(r.state("whitelist"))
	if a == nil || w == nil || err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, lowerPatience)
	defer cancel()
	manifest, _ := r.lower.Note(ctx, r.name, "manifest")
	other, _ := r.lower.Note(ctx, r.name, "whitelist")
	if bytes.Equal(manifest, a.Note) && bytes.Equal(other, whitelist) {
		return nil
	}
	if m, err := index.OpenManifest(manifest, r.name, w); err == nil && m.Revision > a.Revision {
		return nil
	}
	return r.lower.PutNotes(ctx, r.name, a.Note, whitelist, r.servers)
}

// toLower makes k fill the lower cache, and puts the notes there. From then on k fetches from servers alone: what comes from there must not be
// written twice. The caller releases what that takes.
func (k *work) toLower(ctx context.Context, rev *revision, action string) (release func(), err error) {
	switch {
	case action != Prefetch:
		return nil, problem(Usage, "only a prefetch fills a lower cache")
	case k.g.lower == nil:
		return nil, problem(Usage, "no lower cache is named: cache_lower=DIR")
	}
	if !rev.offline {
		if err := rev.share(ctx); err != nil {
			return nil, err
		}
	}
	o := k.o
	o.Lower = ""
	direct, err := k.d.origins.take(k.src, o, k.d.db, k.d.cfg.Version, k.d.log)
	if err != nil {
		return nil, err
	}
	k.lower, k.servers = k.g.lower, direct
	return func() { k.d.origins.release(direct) }, nil
}

// LowerStatus tells what this daemon did with a lower cache.
type LowerStatus struct {
	Dir         string `json:"dir"`
	Hits        int64  `json:"hits"`
	Misses      int64  `json:"misses"`
	Damaged     int64  `json:"damaged"` // files that were not what their names say
	Slow        int64  `json:"slow"`    // reads that took longer than anybody waited
	Failed      int64  `json:"failed"`  // reads that ended in another error
	Stored      int64  `json:"stored"`
	WriteErrors int64  `json:"write_errors"`
	Hung        int64  `json:"hung"` // operations now that nobody waits for any more
}

func (d *Daemon) lowerStatuses() []LowerStatus {
	out := []LowerStatus{}
	for _, l := range d.origins.lowers.list() {
		s := l.Stats()
		out = append(out, LowerStatus{l.Dir(), s.Hits, s.Misses, s.Damaged, s.Slow, s.Failed, s.Stored, s.WriteErrors, s.Late})
	}
	return out
}
