package publish

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/skimfs/skimfs/index"
)

// RevisionStat is what a repository knows of one of its revisions.
type RevisionStat struct {
	Revision uint64       `json:"revision"`
	Time     time.Time    `json:"time"`
	Root     index.Digest `json:"root"`
	Current  bool         `json:"current"`
	Changes  []NameChange `json:"changes"` // since the revision before, if that is still kept
}

// NameChange is what a revision did to a name.
type NameChange struct {
	Name string `json:"name"`
	What string `json:"what"` // added, moved or removed
	Flat string `json:"flat"` // where the name leads, or did if it was removed
}

// History lists the revisions that are kept, the newest first, and what each changed.
func (r *Repo) History(ctx context.Context) ([]RevisionStat, error) {
	all, err := r.keptRevisions()
	if err != nil {
		return nil, err
	}
	var out []RevisionStat
	var before map[string]string
	for i, m := range all {
		flats, err := r.namesOf(ctx, m)
		if err != nil {
			return nil, err
		}
		s := RevisionStat{Revision: m.Revision, Time: m.Time, Root: m.Root.Digest, Current: m.Revision == r.manifest.Revision, Changes: []NameChange{}}
		if i > 0 || m.Revision == 1 {
			s.Changes = nameChanges(before, flats)
		}
		out, before = append(out, s), flats
	}
	slices.Reverse(out)
	return out, nil
}

// keptRevisions returns the manifests that are kept, the oldest first.
func (r *Repo) keptRevisions() ([]*index.Manifest, error) {
	_, kept, err := r.revisions()
	if err != nil {
		return nil, err
	}
	all := append(kept, r.manifest)
	slices.SortFunc(all, func(a, b *index.Manifest) int { return cmp.Compare(a.Revision, b.Revision) })
	return all, nil
}

// loadRevision reads the name tree of a revision.
func (r *Repo) loadRevision(ctx context.Context, m *index.Manifest) (*nameTree, error) {
	root, err := r.store.catalog(ctx, m.Root)
	if err == nil {
		var view *index.View
		if view, err = index.NewView(root, r.store.catalog); err == nil {
			var t *nameTree
			if t, err = loadNames(ctx, view, m.Next, r.now()); err == nil {
				return t, nil
			}
		}
	}
	return nil, fmt.Errorf("reading revision %d: %w", m.Revision, err)
}

func (r *Repo) namesOf(ctx context.Context, m *index.Manifest) (map[string]string, error) {
	t, err := r.loadRevision(ctx, m)
	if err != nil {
		return nil, err
	}
	_, flats := t.names()
	return flats, nil
}

// nameChanges tells how the names after differ from those before.
func nameChanges(before, after map[string]string) []NameChange {
	out := []NameChange{}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		switch was, ok := before[name]; {
		case !ok:
			out = append(out, NameChange{name, "added", after[name]})
		case was != after[name]:
			out = append(out, NameChange{name, "moved", after[name]})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if _, ok := after[name]; !ok {
			out = append(out, NameChange{name, "removed", before[name]})
		}
	}
	return out
}

// RevisionError says that a repository does not keep a revision.
type RevisionError struct {
	Revision, Oldest, Current uint64
}

func (e *RevisionError) Error() string {
	return fmt.Sprintf("there is no revision %d: those from %d to %d are kept", e.Revision, e.Oldest, e.Current)
}

// Rollback makes a new revision in which all names lead where they led in an old one, and returns what it changed. Nodes never go back: the
// revision's number is the next one, and images that have come since stay without a name until a GC, so that nothing which runs is disturbed.
func (r *Repo) Rollback(ctx context.Context, revision uint64) ([]NameChange, error) {
	end, err := r.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	all, err := r.keptRevisions()
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(all, func(m *index.Manifest) bool { return m.Revision == revision })
	if at < 0 {
		return nil, &RevisionError{revision, all[0].Revision, r.manifest.Revision}
	}
	old, err := r.loadRevision(ctx, all[at])
	if err != nil {
		return nil, err
	}
	_, want := old.names()
	var changes []NameChange
	_, err = r.revise(ctx, func(t *nameTree) error {
		_, have := t.names()
		changes = nameChanges(have, want)
		for _, c := range changes {
			if c.What == "removed" {
				if err := t.remove(c.Name); err != nil {
					return err
				}
				continue
			}
			if err := t.restore(c.Flat, old); err != nil {
				return err
			}
			if err := t.link(c.Name, c.Flat); err != nil {
				return err
			}
		}
		return nil
	})
	return changes, err
}

// restore makes sure that the image at flat is there; one that left comes back as it was, in the slot it had.
func (t *nameTree) restore(flat string, old *nameTree) error {
	was := old.at(flat)
	if was == nil || was.Image == nil {
		return fmt.Errorf("no image at %s: %w", flat, index.ErrFormat)
	}
	if t.at(flat) != nil {
		return nil
	}
	dir, name := splitPath(flat)
	parent, err := t.dir(dir)
	if err != nil {
		return err
	}
	t.set(parent, name, was)
	return nil
}
