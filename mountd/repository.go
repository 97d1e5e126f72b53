package mountd

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/VictoriaMetrics/metrics"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/fetch"
	"github.com/skimfs/skimfs/index"
)

// origin is a set of servers reached in one way. All mounts that reach them in this way share its client.
type origin struct {
	key     string
	servers []string
	client  *fetch.Client
	db      *cachedb.DB
	lower   *cachedb.Lower // nil: none
	log     *slog.Logger

	mu        sync.Mutex // guards view, root and standings
	view      *index.View
	root      index.CatalogRef // that view shows
	standings map[string]*standing
	refs      int // guarded by origins.mu

	files atomic.Int64 // objects of ClassFile fetched
	ttl   atomic.Int64 // of the manifest accepted last, in ns
}

// origins are the origins in use, and a few that were.
type origins struct {
	mu        sync.Mutex // guards what follows
	m         map[string]*origin
	idle      []*origin   // without users, the longest idle first
	past      fetch.Stats // of those closed, and
	pastFiles int64       // their files
	set       *metrics.Set
	lowers    lowers
}

// idleOrigins is how many origins without users keep their connections.
const idleOrigins = 8

func newOrigins() *origins { return &origins{m: map[string]*origin{}, set: metrics.NewSet()} }

// take returns the origin of src under o. The caller gives it back with release.
func (all *origins) take(src Source, o Options, db *cachedb.DB, version string, log *slog.Logger) (*origin, error) {
	servers := o.servers(src)
	key := fmt.Sprintf("%q %q %q %v %v %v %v %q %q %q %q", servers, o.Proxy, o.Fallback, o.Probe, o.Timeout, o.Direct, o.Shard, o.Auth, o.CA, o.Lower, o.Agent)
	all.mu.Lock()
	defer all.mu.Unlock()
	if g := all.m[key]; g != nil {
		if g.refs++; g.refs == 1 {
			all.wake(g)
		}
		return g, nil
	}
	var auth fetch.Credentials
	if o.Auth != "" {
		var err error
		if auth, err = fetch.ReadCredentials(o.Auth); err != nil {
			return nil, &Error{Usage, err}
		}
	}
	agent := "skimfs/" + version
	if o.Agent != "" {
		agent += " (" + o.Agent + ")"
	}
	client, err := fetch.New(fetch.Config{
		Servers: servers, Proxies: o.Proxy, Fallback: o.Fallback, Probe: o.Probe, Timeout: o.Timeout, TimeoutDirect: o.Direct, UserAgent: agent, Log: log,
		Shard: o.Shard, Auth: auth, CAFile: o.CA, Metrics: all.set,
	})
	if err != nil {
		return nil, &Error{Usage, err}
	}
	lower := all.lowers.take(o.Lower, func(dir string) *cachedb.Lower { return cachedb.NewLower(dir, log) })
	g := &origin{key: key, servers: servers, client: client, db: db, lower: lower, log: log, refs: 1}
	all.m[key] = g
	return g, nil
}

func (all *origins) wake(g *origin) {
	for i, x := range all.idle {
		if x == g {
			all.idle = append(all.idle[:i], all.idle[i+1:]...)
			return
		}
	}
}

func (all *origins) release(g *origin) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if g.refs--; g.refs > 0 {
		return
	}
	all.idle = append(all.idle, g)
	for len(all.idle) > idleOrigins {
		old := all.idle[0]
		all.idle = all.idle[1:]
		delete(all.m, old.key)
		old.client.Close()
		addStats(&all.past, old.client.Stats())
		all.pastFiles += old.files.Load()
	}
}

// share takes g once more for somebody beside whoever has it.
func (all *origins) share(g *origin) {
	all.mu.Lock()
	defer all.mu.Unlock()
	g.refs++
}

// inUse reports whether somebody took g and has not given it back.
func (all *origins) inUse(g *origin) bool {
	all.mu.Lock()
	defer all.mu.Unlock()
	return g.refs > 0
}

func (all *origins) close() {
	all.mu.Lock()
	defer all.mu.Unlock()
	for _, g := range all.m {
		g.client.Close()
	}
	for _, l := range all.lowers.list() {
		l.Close()
	}
}

// standings counts the repositories in use whose servers don't answer, and those whose newest revision is refused.
func (all *origins) standings() (offline, refused int) {
	all.mu.Lock()
	defer all.mu.Unlock()
	for _, g := range all.m {
		if g.refs == 0 {
			continue
		}
		for _, s := range g.allStandings() {
			st := s.status()
			if st.Offline {
				offline++
			}
			if st.Refused != "" {
				refused++
			}
		}
	}
	return offline, refused
}

// totals returns what all clients did together, and each one that is open.
func (all *origins) totals() (sum fetch.Stats, files int64, each []OriginStatus) {
	all.mu.Lock()
	defer all.mu.Unlock()
	addStats(&sum, all.past)
	files = all.pastFiles
	each = []OriginStatus{}
	for _, g := range all.m {
		st := g.client.Stats()
		addStats(&sum, st)
		files += g.files.Load()
		each = append(each, OriginStatus{Servers: withoutCredentials(g.servers), Server: st.Server, Proxy: st.Proxy, InUse: g.refs > 0, Fetch: fetchStatus(st, g.files.Load())})
	}
	return sum, files, each
}

// withoutCredentials returns servers as they may be shown: whoever may ask for the status sees them.
func withoutCredentials(servers []string) []string {
	out := make([]string, len(servers))
	for i, s := range servers {
		out[i] = fetch.WithoutCredentials(s)
	}
	return out
}

func addStats(sum *fetch.Stats, s fetch.Stats) {
	sum.Requests += s.Requests
	sum.Bytes += s.Bytes
	sum.Retries += s.Retries
	sum.Refreshes += s.Refreshes
	sum.Hedges += s.Hedges
	sum.Failovers += s.Failovers
	for k, n := range s.Errors {
		if sum.Errors == nil {
			sum.Errors = map[string]int64{}
		}
		sum.Errors[k] += n
	}
}

// repository is an origin with a name and the key to trust it by.
type repository struct {
	*origin
	name  string // "" before its manifest was read
	key   masterKey
	given map[string][]byte // notes that count instead of the servers'
}

// state returns the key of a state record about what was accepted under this name and master key.
func (r *repository) state(what string) string {
	return "accepted/" + r.name + "/" + index.KeyID(r.key.text) + "/" + what
}

// where names the repository and its servers, for errors.
func (r *repository) where() string {
	return r.name + " at " + fetch.WithoutCredentials(strings.Join(r.servers, ";"))
}
