package mountd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

// seenImage is an image that a mount showed. What of it is here is known after the mount is gone, and to the next daemon.
type seenImage struct {
	Source      string           `json:"source"`
	Image       index.CatalogRef `json:"image"`
	Bytes       int64            `json:"bytes"`
	CachedBytes int64            `json:"cached_bytes"`
	AsOf        time.Time        `json:"as_of"`
	Mounted     time.Time        `json:"mounted"` // when that was known last

	changes int64 // of the cache, as of AsOf; 0: counted by another daemon
}

// seenImages are the images that were mounted last.
type seenImages struct {
	mu   sync.Mutex // guards list
	list []*seenImage
}

const (
	seenState = "images" // the state record
	seenMost  = 64
)

func (all *seenImages) load(db *cachedb.DB) error {
	b, err := db.State(seenState)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	all.mu.Lock()
	defer all.mu.Unlock()
	if err == nil {
		err = json.Unmarshal(b, &all.list)
	}
	if err != nil {
		all.list = nil
		return fmt.Errorf("record of the images that were mounted: %w", err)
	}
	all.list = slices.DeleteFunc(all.list, func(s *seenImage) bool { return s == nil })
	return nil
}

// note keeps the count of an image that is mounted, and reports whether it is new.
func (all *seenImages) note(source string, image index.CatalogRef, s ImageStatus, changes int64) (isNew bool) {
	all.mu.Lock()
	defer all.mu.Unlock()
	at := slices.IndexFunc(all.list, func(s *seenImage) bool { return s.Source == source && s.Image == image })
	if at < 0 {
		if len(all.list) >= seenMost {
			oldest := slices.MinFunc(all.list, func(a, b *seenImage) int { return a.Mounted.Compare(b.Mounted) })
			all.list = slices.DeleteFunc(all.list, func(s *seenImage) bool { return s == oldest })
		}
		at, isNew = len(all.list), true
		all.list = append(all.list, &seenImage{Source: source, Image: image})
	}
	seen := all.list[at]
	seen.Bytes, seen.CachedBytes, seen.AsOf, seen.Mounted, seen.changes = s.Bytes, s.CachedBytes, s.AsOf, s.AsOf, changes
	return isNew
}

// save brings the list to the disk.
func (all *seenImages) save(db *cachedb.DB) error {
	all.mu.Lock()
	b, err := json.Marshal(all.list)
	all.mu.Unlock()
	if err != nil {
		return err
	}
	return db.SetState(seenState, b)
}

// due returns the image whose count is the oldest of those that may be wrong by now and that no mount of which mounted tells counts.
func (all *seenImages) due(mounted func(*seenImage) bool, changes int64) *seenImage {
	all.mu.Lock()
	defer all.mu.Unlock()
	var due *seenImage
	for _, s := range all.list {
		if s.changes != changes && !mounted(s) && (due == nil || s.AsOf.Before(due.AsOf)) {
			due = s
		}
	}
	return due
}

// statuses tells of all but what is mounted.
func (all *seenImages) statuses(mounted func(*seenImage) bool) (out []ImageStatus) {
	all.mu.Lock()
	defer all.mu.Unlock()
	for _, s := range all.list {
		if !mounted(s) {
			out = append(out, ImageStatus{Source: s.Source, Image: s.Image.Digest.String(), Bytes: s.Bytes, CachedBytes: s.CachedBytes, AsOf: s.AsOf})
		}
	}
	return out
}

// mountedNow reports whether an image is that of a mount.
func (d *Daemon) mountedNow() func(*seenImage) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	type image struct{ source, digest string }
	now := map[image]bool{}
	for _, m := range d.mounts {
		if m.core != nil {
			now[image{m.record.Source, m.record.Image.Digest.String()}] = true
		}
	}
	return func(s *seenImage) bool { return now[image{s.Source, s.Image.Digest.String()}] }
}

// recount counts one image that is mounted no more, out of the catalogs that are cached; one that has none any more is forgotten. changes is a
// number that differs when the cache has changed.
func (d *Daemon) recount(changes int64) {
	s := d.seen.due(d.mountedNow(), changes)
	if s == nil {
		return
	}
	bytes, cached, err := countImage(d.ctx, d.db, s.Image)
	d.seen.mu.Lock()
	if err != nil {
		d.seen.list = slices.DeleteFunc(d.seen.list, func(o *seenImage) bool { return o == s })
	}
	s.Bytes, s.CachedBytes, s.AsOf, s.changes = max(s.Bytes, bytes), cached, time.Now(), changes
	d.seen.mu.Unlock()
}

// countImage adds up the content of an image's files, each object once, and what of it is cached. Nested catalogs that are not cached are left out;
// an error says that the root catalog isn't, or can't be read.
func countImage(ctx context.Context, db *cachedb.DB, root index.CatalogRef) (bytes, cached int64, err error) {
	get := func(_ context.Context, d index.Digest, size int64) ([]byte, error) {
		b := make([]byte, size)
		ok, err := db.ReadAt(d, size, b, 0)
		if err == nil && !ok {
			err = fmt.Errorf("object %v: %w", d, fs.ErrNotExist)
		}
		return b, err
	}
	seen := map[index.Digest]struct{}{}
	add := func(c index.Chunk) {
		if _, again := seen[c.Digest]; again {
			return
		}
		seen[c.Digest] = struct{}{}
		bytes += c.Size
		if db.Has(c.Digest) {
			cached += c.Size
		}
	}
	var walk func(ref index.CatalogRef) error
	walk = func(ref index.CatalogRef) error {
		c, err := ref.Load(ctx, get)
		if err != nil {
			return err
		}
		if err := c.EachChunk(add); err != nil {
			return err
		}
		for i := range c.NestedCount() {
			row, err := c.Nested(i)
			if err != nil {
				return err
			}
			if err := walk(row.Catalog); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return ctx.Err()
	}
	err = walk(root)
	return bytes, cached, err
}
