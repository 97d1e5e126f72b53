package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sync/errgroup"

	"github.com/skimfs/skimfs/index"
)

// Origin is where a mirror copies from. A fetch.Client is one.
type Origin interface {
	// FileChecked returns a file that check accepts, at most limit bytes.
	FileChecked(ctx context.Context, path string, maxAge time.Duration, limit int64, noCache bool, check func([]byte) error) ([]byte, error)
}

// MirrorConfig says what Mirror copies, and to where.
type MirrorConfig struct {
	Dir      string
	Key      func(name string) (note.Verifier, error) // the public master key of the repository called name
	Images   []string                                 // names to copy, with * and ? as in path.Match; none is all
	Jobs     int                                      // objects under way at once; default 16
	Check    bool                                     // read what is there already, and copy anew what is bad
	GC       bool                                     // afterwards delete what no mirrored revision within the retention time needs
	Grace    time.Duration                            // age below which GC leaves an object alone
	Progress *MirrorProgress                          // may be nil
}

// MirrorProgress counts while a mirror is made. It may be read at any time.
type MirrorProgress struct {
	Found   atomic.Int64 // objects that the catalogs read so far need
	Done    atomic.Int64 // of these, here
	Fetched atomic.Int64 // of these, copied by this run
	Bytes   atomic.Int64 // compressed, copied by this run
}

// MirrorReport says what Mirror has done.
type MirrorReport struct {
	Name     string    `json:"name"`
	Revision uint64    `json:"revision"`
	Changed  bool      `json:"changed"`   // the mirror had another revision before, or none
	Images   int       `json:"images"`    // copied, or here before
	Skipped  int       `json:"skipped"`   // images of the revision that were not asked for
	Objects  int64     `json:"objects"`   // looked at
	New      int64     `json:"new"`       // copied
	Bytes    int64     `json:"new_bytes"` // compressed
	Deleted  *GCReport `json:"deleted,omitempty"`
	Seconds  float64   `json:"seconds"`
}

var (
	// ErrNotMirror marks a directory that holds a repository which was published there.
	ErrNotMirror = errors.New("holds a repository that is no mirror")
	// ErrOlder marks an origin that has less than the mirror.
	ErrOlder = errors.New("older than what the mirror has")
)

const (
	mirrorJobs   = 16
	objectTime   = 5 * time.Minute // for one object, all retries together
	mirrorMaxAge = 2 * 365 * 24 * time.Hour
)

// mirrorState lies in a mirror's private directory, and makes it one.
type mirrorState struct {
	Name     string   `json:"name"`
	Complete []string `json:"complete"` // root catalogs of images of which everything is here
}

// mirror is one run of Mirror.
type mirror struct {
	*Repo
	cfg      MirrorConfig
	origin   Origin
	state    mirrorState
	progress *MirrorProgress
	seen     map[index.Digest]bool // of the walker alone
	work     *errgroup.Group
}

// Mirror copies the current revision of the repository at origin into c.Dir, or brings a copy up to date: what is missing of its objects, each
// verified, several at once, and when all are on disk the manifest. An interrupted run leaves the mirror as it was, and the next one
// goes on where it ended. Nothing is deleted unless c.GC says so. Another writer of the directory is waited for.
func Mirror(ctx context.Context, origin Origin, c MirrorConfig, rc Config) (MirrorReport, error) {
	start := time.Now()
	rc.Dir = c.Dir
	m := &mirror{Repo: newRepo(rc), cfg: c, origin: origin, progress: c.Progress, seen: map[index.Digest]bool{}}
	if m.progress == nil {
		m.progress = &MirrorProgress{}
	}
	if m.cfg.Jobs <= 0 {
		m.cfg.Jobs = mirrorJobs
	}
	if err := m.isMirror(); err != nil {
		return MirrorReport{}, err
	}
	if err := os.MkdirAll(filepath.Join(c.Dir, "objects"), 0o755); err != nil {
		return MirrorReport{}, fmt.Errorf("making mirror: %w", err)
	}
	unlock, err := m.lock(ctx)
	if err != nil {
		return MirrorReport{}, err
	}
	defer unlock()
	report, err := m.run(ctx)
	report.Objects, report.New, report.Bytes = m.progress.Done.Load(), m.progress.Fetched.Load(), m.progress.Bytes.Load()
	report.Seconds = time.Since(start).Seconds()
	return report, err
}

func (m *mirror) statePath() string { return mirrorPath(m.dir) }

func mirrorPath(dir string) string { return filepath.Join(dir, privateDir, "mirror") }

// isMirror refuses a directory with a repository of its own, and reads what is known of the mirror.
func (m *mirror) isMirror() error {
	b, err := os.ReadFile(m.statePath())
	if err == nil {
		err = json.Unmarshal(b, &m.state)
	}
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(filepath.Join(m.dir, "manifest")); err == nil {
			return fmt.Errorf("mirroring to %s: it %w", m.dir, ErrNotMirror)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("mirroring to %s: %w", m.dir, err)
	}
	return nil
}

func (m *mirror) saveState() error {
	b, err := json.Marshal(m.state)
	if err != nil {
		return err
	}
	return replaceFile(m.statePath(), append(b, '\n'), 0o644)
}

func (m *mirror) run(ctx context.Context) (report MirrorReport, err error) {
	if err := m.isMirror(); err != nil { // as it is now that the lock is held
		return report, err
	}
	local, note := m.localManifest()
	manifest, whitelist, err := m.fetchNotes(ctx, local, note)
	if err != nil {
		return report, err
	}
	report.Name, report.Revision = m.name, m.manifest.Revision
	report.Changed = local == nil || local.Revision != m.manifest.Revision
	if m.store, err = openStore(m.dir); err != nil {
		return report, err
	}
	mark := filepath.Join(m.dir, privateDir, "writing")
	if _, err := os.Stat(mark); err == nil || m.cfg.Check {
		// What a run that was killed has written need not be on disk.
		m.store.doubt = true
		m.store.dirty.Store(true)
		m.state.Complete = nil
		if err := m.store.sweep(); err != nil {
			return report, fmt.Errorf("removing temporary files of an interrupted run: %w", err)
		}
	}
	m.state.Name = m.name
	if err := errors.Join(os.WriteFile(mark, nil, 0o644), m.saveState()); err != nil {
		return report, fmt.Errorf("beginning to write: %w", err)
	}
	images, err := m.copyAll(ctx, &report)
	if err != nil {
		return report, err
	}
	if err := m.store.sync(); err != nil {
		return report, err
	}
	if err := m.replace(manifest, whitelist); err != nil {
		return report, err
	}
	for _, ref := range images {
		if s := ref.Catalog.Digest.String(); !slices.Contains(m.state.Complete, s) {
			m.state.Complete = append(m.state.Complete, s)
		}
	}
	if m.cfg.GC {
		if report.Deleted, err = m.gc(ctx); err != nil {
			return report, err
		}
	}
	if err := m.saveState(); err != nil {
		return report, err
	}
	return report, os.Remove(mark)
}

// localManifest returns what the mirror has now, read and as it stands in its file; nil if that is nothing.
func (m *mirror) localManifest() (local *index.Manifest, note []byte) {
	note, err := os.ReadFile(filepath.Join(m.dir, "manifest"))
	if err != nil {
		return nil, nil
	}
	if local, err = index.UnverifiedManifest(note); err != nil {
		return nil, nil
	}
	return local, note
}

// fetchNotes fetches manifest and whitelist and accepts them as a node does, given what the mirror has.
func (m *mirror) fetchNotes(ctx context.Context, local *index.Manifest, note []byte) (manifest, whitelist []byte, err error) {
	manifest, err = m.origin.FileChecked(ctx, "manifest", 0, index.MaxNote, true, func(b []byte) error {
		_, err := index.ManifestName(b)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("mirroring: %w", err)
	}
	if m.name, err = index.ManifestName(manifest); err != nil {
		return nil, nil, err
	}
	for _, have := range []string{m.state.Name, nameOf(local)} {
		if have != "" && have != m.name {
			return nil, nil, fmt.Errorf("mirroring %s: %s is a mirror of %s: %w", m.name, m.dir, have, ErrNotMirror)
		}
	}
	if m.master, err = m.cfg.Key(m.name); err != nil {
		return nil, nil, err
	}
	// What a thief of a key signed that is revoked by now doesn't count.
	revoked := func(w *index.Whitelist) bool { return w.RevokesSigner(note) }
	whitelist, err = m.origin.FileChecked(ctx, "whitelist", 0, index.MaxNote, true, func(b []byte) error {
		w, err := index.OpenWhitelist(b, m.name, m.master)
		if err != nil {
			return err
		}
		now := m.now()
		if local != nil && local.Time.After(now) && !revoked(w) {
			now = local.Time
		}
		return w.CheckTime(now)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("mirroring %s: %w", m.name, err)
	}
	if m.whitelist, err = index.OpenWhitelist(whitelist, m.name, m.master); err != nil {
		return nil, nil, err
	}
	if b, err := os.ReadFile(filepath.Join(m.dir, "whitelist")); err == nil {
		if had, err := index.OpenWhitelist(b, m.name, m.master); err == nil && had.Time.After(m.whitelist.Time) {
			return nil, nil, fmt.Errorf("mirroring %s: the whitelist of %s: %w", m.name, m.whitelist.Time.Format(time.RFC3339), ErrOlder)
		}
	}
	if m.manifest, err = index.OpenManifest(manifest, m.name, m.whitelist); err != nil {
		return nil, nil, fmt.Errorf("mirroring: %w", err)
	}
	if local != nil && !revoked(m.whitelist) && (m.manifest.Revision < local.Revision || m.manifest.Revision == local.Revision && m.manifest.Root != local.Root) {
		return nil, nil, fmt.Errorf("mirroring %s: revision %d, root %v: %w (revision %d, root %v)", m.name, m.manifest.Revision, m.manifest.Root.Digest, ErrOlder, local.Revision, local.Root.Digest)
	}
	return manifest, whitelist, nil
}

func nameOf(m *index.Manifest) string {
	if m == nil {
		return ""
	}
	return m.Name
}

// replace makes the revision that was copied the mirror's.
func (m *mirror) replace(manifest, whitelist []byte) error {
	if err := os.MkdirAll(filepath.Join(m.dir, "revisions"), 0o755); err != nil {
		return fmt.Errorf("writing revision %d: %w", m.manifest.Revision, err)
	}
	if err := replaceFile(m.revisionPath(m.manifest.Revision), manifest, 0o644); err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(m.dir, "whitelist"), whitelist, 0o644); err != nil {
		return err
	}
	return replaceFile(filepath.Join(m.dir, "manifest"), manifest, 0o644)
}

// copyAll copies all that is missing of the name tree and of the images wanted, and returns these.
func (m *mirror) copyAll(ctx context.Context, report *MirrorReport) (images []index.ImageRef, err error) {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(m.cfg.Jobs)
	m.work = work
	images, walkErr := m.walk(ctx, report)
	if err := work.Wait(); err != nil {
		return nil, err
	}
	return images, walkErr
}

func (m *mirror) walk(ctx context.Context, report *MirrorReport) ([]index.ImageRef, error) {
	all, err := m.names(ctx, m.manifest.Root)
	if err != nil {
		return nil, err
	}
	wanted, err := m.selected(ctx, m.manifest, m.catalog, true)
	if err != nil {
		return nil, err
	}
	var images []index.ImageRef
	for _, ref := range all {
		if wanted != nil && !wanted[ref] {
			report.Skipped++
			continue
		}
		if slices.Contains(images, ref) {
			continue
		}
		images = append(images, ref)
		report.Images++
		if slices.Contains(m.state.Complete, ref.Catalog.Digest.String()) {
			continue
		}
		if err := m.image(ctx, ref.Catalog); err != nil {
			return nil, err
		}
	}
	return images, nil
}

// names copies the catalogs of the name tree, and returns the images in it.
func (m *mirror) names(ctx context.Context, ref index.CatalogRef) (images []index.ImageRef, err error) {
	cat, err := m.catalog(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("mirroring the name tree: %w", err)
	}
	for i := range cat.NestedCount() {
		row, err := cat.Nested(i)
		switch {
		case err != nil:
			return nil, err
		case row.Kind == index.NestedImage:
			images = append(images, index.ImageRef{Catalog: row.Catalog, Nodes: row.Count})
		default:
			below, err := m.names(ctx, row.Catalog)
			if err != nil {
				return nil, err
			}
			images = append(images, below...)
		}
	}
	return images, nil
}

// selected returns the images that the patterns name in a revision; nil is all. With all, each pattern must name one.
func (m *mirror) selected(ctx context.Context, of *index.Manifest, load index.CatalogLoader, all bool) (map[index.ImageRef]bool, error) {
	if len(m.cfg.Images) == 0 {
		return nil, nil
	}
	root, err := load(ctx, of.Root)
	if err != nil {
		return nil, err
	}
	view, err := index.NewView(root, load)
	if err != nil {
		return nil, err
	}
	t, err := loadNames(ctx, view, of.Next, m.now())
	if err != nil {
		return nil, err
	}
	names, flats := t.names()
	out := map[index.ImageRef]bool{}
	for _, pattern := range m.cfg.Images {
		matched := false
		for _, name := range names {
			ok, err := path.Match(pattern, name)
			if err != nil {
				return nil, fmt.Errorf("image pattern %q: %w", pattern, err)
			}
			if !ok && name != pattern {
				continue
			}
			if e := t.at(flats[name]); e != nil && e.Image != nil {
				out[*e.Image], matched = true, true
			}
		}
		if !matched && all {
			return nil, &NameError{pattern, names}
		}
	}
	return out, nil
}

// image copies the catalogs of an image and sees to it that the objects of its files follow.
func (m *mirror) image(ctx context.Context, ref index.CatalogRef) error {
	cat, err := m.catalog(ctx, ref)
	if err != nil {
		return fmt.Errorf("mirroring an image: %w", err)
	}
	if err := eachChunk(cat, func(c index.Chunk) error { return m.later(ctx, c.Digest, c.Size) }); err != nil {
		return fmt.Errorf("catalog %v: %w", ref.Digest, err)
	}
	for i := range cat.NestedCount() {
		row, err := cat.Nested(i)
		if err != nil {
			return fmt.Errorf("catalog %v: %w", ref.Digest, err)
		}
		if err := m.image(ctx, row.Catalog); err != nil {
			return err
		}
	}
	return nil
}

// catalog copies a catalog if it is missing, and returns it.
func (m *mirror) catalog(ctx context.Context, ref index.CatalogRef) (*index.Catalog, error) {
	return ref.Load(ctx, func(ctx context.Context, d index.Digest, size int64) ([]byte, error) {
		if err := m.once(ctx, d, size); err != nil {
			return nil, err
		}
		return m.store.get(ctx, d, size)
	})
}

// once copies an object now, unless that was done.
func (m *mirror) once(ctx context.Context, d index.Digest, size int64) error {
	if m.seen[d] {
		// A worker may be about to write it.
		if _, err := m.store.bucket.Attributes(ctx, d.ObjectPath()); err == nil {
			return nil
		}
		return m.object(ctx, d, size)
	}
	m.seen[d] = true
	m.progress.Found.Add(1)
	return m.object(ctx, d, size)
}

// later copies an object on another goroutine, unless that was done.
func (m *mirror) later(ctx context.Context, d index.Digest, size int64) error {
	if m.seen[d] {
		return nil
	}
	m.seen[d] = true
	m.progress.Found.Add(1)
	m.work.Go(func() error { return m.object(ctx, d, size) })
	return ctx.Err()
}

// object makes sure that an object of size plain bytes is here and, if it is new or in doubt, right.
func (m *mirror) object(ctx context.Context, d index.Digest, size int64) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if m.here(ctx, d, size) {
		m.progress.Done.Add(1)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, objectTime)
	defer cancel()
	object, err := m.origin.FileChecked(ctx, d.ObjectPath(), mirrorMaxAge, index.MaxObjectLen(size), false, func(b []byte) error {
		_, err := m.store.dec.Decode(b, d, size)
		return err
	})
	if err != nil {
		return fmt.Errorf("mirroring object %v: %w", d, err)
	}
	if err := m.store.write(ctx, d.ObjectPath(), object); err != nil {
		return err
	}
	m.progress.Done.Add(1)
	m.progress.Fetched.Add(1)
	m.progress.Bytes.Add(int64(len(object)))
	return nil
}

func (m *mirror) here(ctx context.Context, d index.Digest, size int64) bool {
	if m.store.doubt {
		_, ok := m.store.present(ctx, d, size)
		return ok
	}
	a, err := m.store.bucket.Attributes(ctx, d.ObjectPath())
	return err == nil && a.Size > 0 && a.Size <= index.MaxObjectLen(size)
}

// gc deletes what neither this revision nor one mirrored within the retention time needs.
func (m *mirror) gc(ctx context.Context) (*GCReport, error) {
	report := &GCReport{}
	old, kept, err := m.revisions()
	if err != nil {
		return report, err
	}
	live := map[string]bool{}
	// Parts of past revisions were perhaps never here.
	absent := func(_ index.Digest, _ string, err error) bool { return errors.Is(err, fs.ErrNotExist) }
	for _, of := range append(kept, m.manifest) {
		only, err := m.selected(ctx, of, m.store.catalog, false)
		if errors.Is(err, fs.ErrNotExist) && of != m.manifest {
			continue
		}
		if err != nil {
			return report, fmt.Errorf("revision %d: %w", of.Revision, err)
		}
		w := &walker{r: m.Repo, out: &reached{objects: map[index.Digest]*need{}, images: map[index.ImageRef]*reachedImage{}}, only: only}
		if of != m.manifest {
			w.damage = absent
		}
		if err := w.catalog(ctx, of.Root, "/"); err != nil {
			return report, fmt.Errorf("revision %d: %w", of.Revision, err)
		}
		for d := range w.out.objects {
			live[d.ObjectPath()] = true
		}
	}
	// What is deleted is complete no more.
	m.state.Complete = slices.DeleteFunc(m.state.Complete, func(text string) bool {
		d, err := index.ParseDigest(text)
		return err != nil || !live[d.ObjectPath()]
	})
	if err := m.saveState(); err != nil {
		return report, err
	}
	report.Revisions = len(old)
	for _, n := range old {
		if err := os.Remove(m.revisionPath(n)); err != nil {
			return report, fmt.Errorf("deleting revision: %w", err)
		}
	}
	return report, m.deleteObjects(ctx, live, m.now().Add(-m.cfg.Grace), false, report)
}

// eachChunk calls f for each object of each file of a catalog.
func eachChunk(cat *index.Catalog, f func(c index.Chunk) error) error {
	for n := range cat.Nodes() {
		node, err := cat.Node(n)
		if err != nil {
			return err
		}
		if !node.IsRegular() {
			continue
		}
		for off := int64(0); off < node.Size; {
			c, err := cat.Chunk(&node, off)
			if err != nil {
				return err
			}
			if !c.IsHole() {
				if err := f(c); err != nil {
					return err
				}
			}
			off = c.Offset + c.Size
		}
	}
	return nil
}

// isMirrorOf returns an error if the directory is a mirror, where nothing may be published.
func isMirrorOf(dir string) error {
	if _, err := os.Lstat(mirrorPath(dir)); err == nil {
		return &MirrorError{strings.TrimSuffix(dir, "/")}
	}
	return nil
}

// MirrorError says that a mirror would be changed by anything but its origin.
type MirrorError struct{ Dir string }

func (e *MirrorError) Error() string { return e.Dir + " is a mirror: it shows what its origin has" }
