package mountd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

// Work that can be done on the content of an image, or of a part of it.
const (
	Prefetch = "prefetch" // bring it to this node
	Pin      = "pin"      // bring it, and keep it until Unpin
	Unpin    = "unpin"
	Evict    = "evict"  // drop what no pin keeps
	Export   = "export" // write it into an archive: POST /v1/cache/export
	Count    = "count"  // only tell how much there is, and how much of it is here
)

// WorkRequest asks for work on the content of a source.
type WorkRequest struct {
	Action  string   `json:"action"`
	Source  string   `json:"source"`
	Paths   []string `json:"paths,omitempty"` // below the source; none: all of it
	Options Options  `json:"options"`
	Rate    int64    `json:"rate,omitempty"`  // bytes of content a second; 0: as fast as can be
	Lower   bool     `json:"lower,omitempty"` // prefetch: bring all of it to the lower cache, too
}

// WorkProgress is a line of the answer; the last one has Done. Objects and bytes are of plain content, catalogs included.
type WorkProgress struct {
	Objects       int64  `json:"objects"`
	Bytes         int64  `json:"bytes"`
	CachedObjects int64  `json:"cached_objects"` // of these, on this node now
	CachedBytes   int64  `json:"cached_bytes"`
	Fetched       int64  `json:"fetched_objects"` // by this request
	FetchedBytes  int64  `json:"fetched_bytes"`
	Stored        int64  `json:"stored_objects"` // in the lower cache, by this request
	Evicted       int64  `json:"evicted_objects"`
	Pinned        bool   `json:"pinned"`
	Done          bool   `json:"done"`
	Kind          Kind   `json:"kind,omitempty"` // of the error that ended it
	Error         string `json:"error,omitempty"`
}

// pinRecord is the state record of content that stays until it is unpinned.
type pinRecord struct {
	Source  string           `json:"source"`
	Paths   []string         `json:"paths"`
	Options Options          `json:"options"`
	Root    index.CatalogRef `json:"root"` // of the repository, at the revision that was pinned
	Objects int64            `json:"objects"`
	Bytes   int64            `json:"bytes"`
	Since   time.Time        `json:"since"`
}

const pinState = "keep/"

func (p *pinRecord) key() string { return pinState + p.Source + "\x00" + strings.Join(p.Paths, "\x00") }

// needed is the content that a part of a repository consists of, each object once.
type needed struct {
	mu    sync.Mutex // guards size and class
	size  map[index.Digest]int64
	class map[index.Digest]cachedb.Class
	bytes int64
}

func (n *needed) add(d index.Digest, size int64, class cachedb.Class) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.size[d]; !ok {
		n.size[d], n.class[d] = size, class
		n.bytes += size
	}
}

// collect finds all that paths below base consist of, with the catalogs on the way to it.
func (d *Daemon) collect(ctx context.Context, g *origin, root index.CatalogRef, base string, paths []string) (*needed, error) {
	n := &needed{size: map[index.Digest]int64{}, class: map[index.Digest]cachedb.Class{}}
	load := func(ctx context.Context, ref index.CatalogRef) (*index.Catalog, error) {
		return ref.Load(ctx, func(ctx context.Context, d index.Digest, size int64) ([]byte, error) {
			n.add(d, size, cachedb.ClassCatalog)
			plain, _, err := g.object(ctx, d, size, cachedb.ClassCatalog, func() {})
			return plain, err
		})
	}
	c, err := load(ctx, root)
	if err != nil {
		return nil, err
	}
	view, err := index.NewView(c, load)
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		paths = []string{""}
	}
	for _, p := range paths {
		f, err := view.Resolve(ctx, cleanPath(base+"/"+p), true)
		if err == nil {
			err = n.walk(ctx, f)
		}
		if err != nil {
			return nil, fmt.Errorf("finding %q: %w", cleanPath(base+"/"+p), err)
		}
	}
	return n, nil
}

func (n *needed) walk(ctx context.Context, f index.File) error {
	_, node, err := f.Node()
	if err != nil {
		return err
	}
	switch {
	case node.IsRegular():
		list, err := f.Chunks()
		for _, c := range list {
			if !c.IsHole() {
				n.add(c.Digest, c.Size, cachedb.ClassFile)
			}
		}
		return err
	case !node.IsDir():
		return nil
	}
	var list []index.Child
	if err := f.ReadDir(ctx, func(c index.Child) error {
		list = append(list, c)
		return ctx.Err()
	}); err != nil {
		return err
	}
	for _, c := range list {
		next, err := f.Open(ctx, c)
		if err == nil {
			err = n.walk(ctx, next)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// clean brings the request's paths into one form.
func (req *WorkRequest) clean() (Source, error) {
	if req.Rate < 0 {
		return Source{}, problem(Usage, "rate %d is negative", req.Rate)
	}
	for i := range req.Paths {
		req.Paths[i] = cleanPath(req.Paths[i])
	}
	slices.Sort(req.Paths)
	req.Paths = slices.Compact(req.Paths)
	return ParseSource(req.Source)
}

// begin finds what the request is about, in the current revision. The caller releases the work's origin.
func (d *Daemon) begin(ctx context.Context, src Source, req WorkRequest) (*work, *revision, error) {
	o, err := d.effective(src, req.Options)
	if err == nil {
		err = o.check()
	}
	if err != nil {
		return nil, nil, err
	}
	g, err := d.origins.take(src, o, d.db, d.cfg.Version, d.log)
	if err != nil {
		return nil, nil, err
	}
	rev, err := d.accept(ctx, g, src, o, false)
	var need *needed
	if err == nil {
		need, err = d.collect(ctx, g, rev.Root, src.Path, req.Paths)
	}
	if err != nil {
		d.origins.release(g)
		return nil, nil, err
	}
	return &work{d: d, g: g, servers: g, src: src, o: o, need: need, rate: req.Rate}, rev, nil
}

// postWork answers with lines of WorkProgress.
func (d *Daemon) postWork(w http.ResponseWriter, r *http.Request) (any, error) {
	var req WorkRequest
	if err := readJSON(r, &req); err != nil {
		return nil, err
	}
	if !slices.Contains([]string{Prefetch, Pin, Unpin, Evict, Count}, req.Action) {
		return nil, problem(Usage, "action %q is none of prefetch, pin, unpin, evict, count", req.Action)
	}
	src, err := req.clean()
	if err != nil {
		return nil, err
	}
	if req.Action == Unpin {
		return d.unpin(r.Context(), src, req.Paths)
	}
	k, rev, err := d.begin(r.Context(), src, req)
	if err != nil {
		return nil, err
	}
	defer d.origins.release(k.g)
	need := k.need
	k.p.Objects, k.p.Bytes = int64(len(need.size)), need.bytes
	for digest, size := range need.size {
		if d.db.Has(digest) {
			k.p.CachedObjects++
			k.p.CachedBytes += size
		}
	}
	switch req.Action {
	case Count:
	case Evict:
		if err := d.awaitPins(r.Context()); err != nil {
			return nil, err
		}
		for digest := range need.size {
			if d.db.Evict(digest) {
				k.p.Evicted++
			}
		}
	case Prefetch, Pin:
		share, limit := "nine tenths", d.db.Limit()/10*9
		if req.Action == Pin {
			share, limit = "three quarters", d.db.Limit()/4*3-d.db.Stats().Pinned
		}
		if req.Lower {
			limit = math.MaxInt64 // it need not stay here
			release, err := k.toLower(r.Context(), rev, req.Action)
			if err != nil {
				return nil, err
			}
			defer release()
		}
		if need.bytes > limit {
			return nil, problem(Conflict, "%s has %d bytes, more than is left of %s of the cache's limit of %d", req.Source, need.bytes, share, d.db.Limit())
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		err := k.fetch(r.Context(), w)
		if err == nil && req.Action == Pin {
			err = d.pin(r.Context(), k, pinRecord{src.String(), append([]string{}, req.Paths...), req.Options, rev.Root, k.p.Objects, need.bytes, time.Now()})
		}
		k.p.Done = true
		if err != nil {
			k.p.Kind, k.p.Error = KindOf(err), err.Error()
		}
		_ = json.NewEncoder(w).Encode(k.p)
		return nil, nil
	}
	k.p.Done = true
	return k.p, nil
}

// pin marks what was fetched. What left meanwhile, in a cache under pressure, is told as an error and nothing stays pinned.
func (d *Daemon) pin(ctx context.Context, k *work, record pinRecord) error {
	d.pinning.Lock()
	defer d.pinning.Unlock()
	b, err := json.Marshal(record)
	if err != nil {
		return err
	}
	if err := d.db.SetState(record.key(), b); err != nil {
		return err
	}
	for digest := range k.need.size {
		ok, err := d.db.Pin(digest)
		if err == nil && !ok {
			err = problem(System, "object %v left the cache before it was pinned: the cache has no room", digest)
		}
		if err != nil {
			return errors.Join(err, d.dropPin(ctx, record.key()))
		}
	}
	// The marks reach the index a little later than the record: a daemon that is killed in between would keep the one and not the other.
	if err := d.db.Sync(ctx); err != nil {
		return errors.Join(fmt.Errorf("writing down what is pinned: %w", err), d.dropPin(ctx, record.key()))
	}
	k.p.Pinned = true
	return nil
}

// unpin lets go what pins under a source, and under exactly these paths if there are any, keep.
func (d *Daemon) unpin(ctx context.Context, src Source, paths []string) (any, error) {
	d.pinning.Lock()
	defer d.pinning.Unlock()
	found := 0
	for _, p := range d.pins() {
		if p.Source == src.String() && (len(paths) == 0 || slices.Equal(p.Paths, paths)) {
			found++
			if err := d.dropPin(ctx, p.key()); err != nil {
				return nil, err
			}
		}
	}
	if found == 0 {
		return nil, problem(NotFound, "nothing is pinned under %s with these paths", src)
	}
	return WorkProgress{Done: true}, nil
}

// dropPin removes a record and lets go what no other pin keeps. d.pinning is held.
func (d *Daemon) dropPin(ctx context.Context, key string) error {
	keep := map[index.Digest]bool{}
	for _, p := range d.pins() {
		if p.key() == key {
			continue
		}
		need, err := d.pinContent(ctx, p)
		if err != nil {
			return fmt.Errorf("reading what %s keeps: %w", p.Source, err)
		}
		for digest := range need.size {
			keep[digest] = true
		}
	}
	if err := d.db.DeleteState(key); err != nil {
		return err
	}
	d.db.PinOnly(keep)
	return nil
}

func (d *Daemon) pins() []pinRecord {
	var out []pinRecord
	for key, b := range d.db.States(pinState) {
		var p pinRecord
		if err := json.Unmarshal(b, &p); err != nil || p.key() != key {
			d.log.Error("record of a pin is damaged", "key", key, "err", err)
			continue
		}
		out = append(out, p)
	}
	return out
}

// pinContent finds what a pin keeps.
func (d *Daemon) pinContent(ctx context.Context, p pinRecord) (*needed, error) {
	src, err := ParseSource(p.Source)
	if err != nil {
		return nil, err
	}
	o, err := d.effective(src, p.Options)
	if err != nil {
		return nil, err
	}
	g, err := d.origins.take(src, o, d.db, d.cfg.Version, d.log)
	if err != nil {
		return nil, err
	}
	defer d.origins.release(g)
	return d.collect(ctx, g, p.Root, src.Path, p.Paths)
}

// PinStatus tells of a pin.
type PinStatus struct {
	Source      string    `json:"source"`
	Paths       []string  `json:"paths"` // none: all of it
	Objects     int64     `json:"objects"`
	Bytes       int64     `json:"bytes"` // of content
	CachedBytes int64     `json:"cached_bytes"`
	Since       time.Time `json:"since"`
}

// ImageStatus tells how much of an image this node has that is mounted, or was.
type ImageStatus struct {
	Source      string    `json:"source"`
	Target      string    `json:"target"` // "": it is mounted no more
	Image       string    `json:"image"`  // digest of its root catalog
	Bytes       int64     `json:"bytes"`  // of the content of its loaded catalogs' files, each object once
	CachedBytes int64     `json:"cached_bytes"`
	AsOf        time.Time `json:"as_of"`
}

// CacheReport is the answer to GET /v1/cache. Its cost does not depend on the size of images.
type CacheReport struct {
	CacheStatus
	Pins   []PinStatus   `json:"pins"`
	Images []ImageStatus `json:"images"`
}

func (d *Daemon) getCache(http.ResponseWriter, *http.Request) (any, error) {
	out := CacheReport{CacheStatus: d.cacheStatus(), Pins: []PinStatus{}, Images: []ImageStatus{}}
	for _, p := range d.pins() {
		out.Pins = append(out.Pins, PinStatus{p.Source, p.Paths, p.Objects, p.Bytes, p.Bytes, p.Since})
	}
	d.mu.Lock()
	for _, m := range d.mounts {
		if s := m.counted.Load(); s != nil {
			out.Images = append(out.Images, *s...)
		}
	}
	d.mu.Unlock()
	out.Images = append(out.Images, d.seen.statuses(d.mountedNow())...)
	slices.SortFunc(out.Images, func(a, b ImageStatus) int { return strings.Compare(a.Target+a.Image, b.Target+b.Image) })
	return out, nil
}

// TrimRequest asks for room.
type TrimRequest struct {
	Bytes int64 `json:"bytes"` // on disk, at most, when it is done
}

// TrimReply tells what a TrimRequest did.
type TrimReply struct {
	Freed int64 `json:"freed_bytes"`
	CacheStatus
}

func (d *Daemon) postTrim(_ http.ResponseWriter, r *http.Request) (any, error) {
	var req TrimRequest
	if err := readJSON(r, &req); err != nil {
		return nil, err
	}
	if req.Bytes < 0 {
		return nil, problem(Usage, "%d bytes is negative", req.Bytes)
	}
	if err := d.awaitPins(r.Context()); err != nil {
		return nil, err
	}
	freed := d.db.Trim(req.Bytes)
	return TrimReply{freed, d.cacheStatus()}, nil
}

// VerifyRequest asks to check the whole cache.
type VerifyRequest struct {
	Repair bool `json:"repair"`
}

// VerifyReply is what was found.
type VerifyReply struct {
	Objects int64          `json:"objects"`
	Bytes   int64          `json:"bytes"`
	Damage  []DamageStatus `json:"damage"`
}

// DamageStatus tells of a fault.
type DamageStatus struct {
	What     string `json:"what"` // a digest, or a file
	Reason   string `json:"reason"`
	Repaired bool   `json:"repaired"`
}

func (d *Daemon) postVerify(_ http.ResponseWriter, r *http.Request) (any, error) {
	var req VerifyRequest
	if err := readJSON(r, &req); err != nil {
		return nil, err
	}
	reply := VerifyReply{Damage: []DamageStatus{}}
	v, err := d.db.Verify(r.Context(), req.Repair, func(x cachedb.Damage) {
		reply.Damage = append(reply.Damage, DamageStatus{x.What, x.Reason, x.Repaired})
	})
	reply.Objects, reply.Bytes = v.Objects, v.Bytes
	return reply, err
}

// awaitPins waits until what records say is pinned: a rebuilt index does not know of it at first.
func (d *Daemon) awaitPins(ctx context.Context) error {
	select {
	case <-d.repinned:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting until pinned content is known again: %w", ctx.Err())
	case <-d.ctx.Done():
		return fmt.Errorf("waiting until pinned content is known again: %w", d.ctx.Err())
	}
}

// pinAgain pins what the records say, should the index have been rebuilt since.
func (d *Daemon) pinAgain() {
	defer close(d.repinned)
	d.pinning.Lock()
	defer d.pinning.Unlock()
	for _, p := range d.pins() {
		need, err := d.pinContent(d.ctx, p)
		if err != nil {
			d.log.Warn("pinning again", "source", p.Source, "err", err)
			continue
		}
		for digest := range need.size {
			if _, err := d.db.Pin(digest); err != nil {
				d.log.Warn("pinning again", "source", p.Source, "err", err)
				break
			}
		}
	}
}

const markEvery = 10 * time.Second

// markInUse keeps the cache told which objects images in use consist of, and counts how much of these, and of those that were in use before,
// this node has.
func (d *Daemon) markInUse() {
	d.pinAgain()
	if err := d.seen.load(d.db); err != nil {
		d.log.Error("counting images", "err", err)
	}
	tick := time.NewTicker(markEvery)
	defer tick.Stop()
	var before cachedb.Stats
	for mounts := 0; ; {
		select {
		case <-d.ctx.Done():
			return
		case <-tick.C:
		}
		d.mu.Lock()
		all := make([]*mount, 0, len(d.mounts))
		for _, m := range d.mounts {
			if m.core != nil {
				all = append(all, m)
			}
		}
		d.mu.Unlock()
		now := d.db.Stats()
		d.recount(changes(now))
		if now.Fills == before.Fills && now.Evictions == before.Evictions && len(all) == mounts && mounts > 0 && now.Objects == before.Objects {
			continue // all is as it was
		}
		before, mounts = now, len(all)
		d.mark(all, changes(now))
	}
}

// changes differs, as good as always, where other objects are in the cache. It is never 0.
func changes(s cachedb.Stats) int64 {
	return 1 + s.Stored + s.Evictions + s.VerifyFailures
}

func (d *Daemon) mark(all []*mount, changes int64) {
	isNew := false
	d.db.SetInUse(func(mark func(index.Digest)) {
		for _, m := range all {
			var list []ImageStatus
			for _, t := range m.core.InUse() {
				s := ImageStatus{Source: m.record.Source, Target: m.record.Target, Image: m.record.Image.Digest.String(), AsOf: time.Now()}
				seen := map[index.Digest]struct{}{}
				for _, c := range t.Catalogs() {
					err := c.EachChunk(func(c index.Chunk) {
						mark(c.Digest)
						if _, again := seen[c.Digest]; again {
							return
						}
						seen[c.Digest] = struct{}{}
						s.Bytes += c.Size
						if d.db.Has(c.Digest) {
							s.CachedBytes += c.Size
						}
					})
					if err != nil {
						d.log.Warn("counting an image's content", "source", m.record.Source, "err", err)
					}
				}
				list = append(list, s)
				if m.record.Image.Size > 0 {
					isNew = d.seen.note(m.record.Source, m.record.Image, s, changes) || isNew
				}
			}
			m.counted.Store(&list)
		}
	})
	if isNew {
		if err := d.seen.save(d.db); err != nil {
			d.log.Warn("recording which images were mounted", "err", err)
		}
	}
}
