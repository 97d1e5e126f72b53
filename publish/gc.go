package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skimfs/skimfs/index"
)

// DefaultGrace is the age below which GC leaves an object alone, needed or not.
const DefaultGrace = 3 * 24 * time.Hour

// GCReport says what GC has deleted, or would have.
type GCReport struct {
	Objects   int   `json:"objects"`
	Bytes     int64 `json:"bytes"` // compressed
	Revisions int   `json:"revisions"`
	Images    int   `json:"images"` // that left the current revision
	Kept      int   `json:"kept"`   // objects that stay
}

// GC deletes the objects that no revision within the retention time needs and that are older than grace, and the manifests of older
// revisions. Images to which no name has led in that time leave the name tree first, in a new revision. No publish runs meanwhile.
func (r *Repo) GC(ctx context.Context, grace time.Duration, dryRun bool) (GCReport, error) {
	var report GCReport
	end, err := r.begin(ctx)
	if err != nil {
		return report, err
	}
	defer end()
	old, kept, err := r.revisions()
	if err != nil {
		return report, err
	}
	before := r.manifest
	named, err := r.dropUnnamed(ctx, kept, dryRun, &report)
	if err != nil {
		return report, err
	}
	if r.manifest != before {
		kept = append(kept, before)
	}
	live := map[string]bool{}
	for _, m := range append(kept, r.manifest) {
		// Of a revision that was replaced, images without a name may be gone already.
		only := named
		if m == r.manifest && !dryRun {
			only = nil // it holds no others by now
		}
		use, err := r.reachOnly(ctx, m.Root, only)
		if err != nil {
			return report, fmt.Errorf("revision %d: %w", m.Revision, err)
		}
		for d := range use.objects {
			live[d.ObjectPath()] = true
		}
	}
	report.Revisions = len(old)
	if !dryRun {
		for _, n := range old {
			if err := os.Remove(r.revisionPath(n)); err != nil {
				return report, fmt.Errorf("deleting revision: %w", err)
			}
		}
	}
	return report, r.deleteObjects(ctx, live, r.now().Add(-grace), dryRun, &report)
}

// revisions returns the numbers of revisions beyond the retention time, and the manifests of the others. The time of a revision begins when
// the one after it is signed: until then it is what nodes mount.
func (r *Repo) revisions() (old []uint64, kept []*index.Manifest, err error) {
	entries, err := os.ReadDir(filepath.Join(r.dir, "revisions"))
	if err != nil {
		return nil, nil, fmt.Errorf("listing revisions: %w", err)
	}
	var past []*index.Manifest
	for _, e := range entries {
		n, err := strconv.ParseUint(e.Name(), 10, 64)
		if err != nil {
			continue
		}
		text, err := os.ReadFile(r.revisionPath(n))
		if err != nil {
			return nil, nil, fmt.Errorf("listing revisions: %w", err)
		}
		m, err := index.OpenManifest(text, r.name, r.whitelist)
		if errors.Is(err, index.ErrSignature) {
			// By a key that was dropped since. Its time stays as it was.
			m, err = index.UnverifiedManifest(text)
		}
		switch {
		case errors.Is(err, index.ErrRevoked), err == nil && n > r.manifest.Revision:
			// Revoked, or written by a publish that was killed before it counted.
			old = append(old, n)
		case err != nil:
			return nil, nil, fmt.Errorf("revision %d: %w", n, err)
		case n < r.manifest.Revision:
			past = append(past, m)
		}
	}
	slices.SortFunc(past, func(a, b *index.Manifest) int { return cmp.Compare(b.Revision, a.Revision) })
	limit, after := r.now().Add(-r.manifest.Retention), r.manifest
	for _, m := range past {
		if after.Time.Before(limit) {
			old = append(old, m.Revision)
		} else {
			kept = append(kept, m)
		}
		after = m
	}
	return old, kept, nil
}

// dropUnnamed takes images out of the current revision to which no name leads in it or in those kept, and returns those that have one.
func (r *Repo) dropUnnamed(ctx context.Context, kept []*index.Manifest, dryRun bool, report *GCReport) (map[index.ImageRef]bool, error) {
	named, images := map[string]bool{}, map[index.ImageRef]bool{}
	for _, m := range append(kept, r.manifest) {
		root, err := r.store.catalog(ctx, m.Root)
		if err != nil {
			return nil, fmt.Errorf("revision %d: %w", m.Revision, err)
		}
		view, err := index.NewView(root, r.store.catalog)
		if err != nil {
			return nil, fmt.Errorf("revision %d: %w", m.Revision, err)
		}
		t, err := loadNames(ctx, view, m.Next, r.now())
		if err != nil {
			return nil, fmt.Errorf("revision %d: %w", m.Revision, err)
		}
		_, flats := t.names()
		for _, flat := range flats {
			named[flat] = true
			if e := t.at(flat); e != nil && e.Image != nil {
				images[*e.Image] = true
			}
		}
	}
	stop := errors.New("dry run")
	_, err := r.revise(ctx, func(t *nameTree) error {
		for _, flat := range t.flats() {
			if named[flat] {
				continue
			}
			report.Images++
			if err := t.remove(flat); err != nil {
				return err
			}
		}
		if dryRun {
			return stop
		}
		return nil
	})
	if errors.Is(err, stop) {
		err = nil
	}
	return images, err
}

// flats returns the paths of all images.
func (t *nameTree) flats() []string {
	var out []string
	flat := child(t.root, flatDir)
	if flat == nil {
		return nil
	}
	for two, e := range flat.Children {
		for name := range e.Children {
			out = append(out, flatDir+"/"+two+"/"+name)
		}
	}
	slices.Sort(out)
	return out
}

// deleteObjects deletes what is not live and older than limit.
func (r *Repo) deleteObjects(ctx context.Context, live map[string]bool, limit time.Time, dryRun bool, report *GCReport) error {
	return filepath.WalkDir(filepath.Join(r.dir, "objects"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		name, err := filepath.Rel(r.dir, path)
		if err != nil {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		if live[filepath.ToSlash(name)] || !strings.HasSuffix(name, ".zst") || st.ModTime().After(limit) {
			report.Kept++
			return nil
		}
		report.Objects++
		report.Bytes += st.Size()
		if dryRun {
			return nil
		}
		return os.Remove(path)
	})
}
