package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/skimfs/skimfs/index"
)

// ImageStat is what a repository knows of one image.
type ImageStat struct {
	index.ImageInfo
	Name       string       `json:"name"`
	Flat       string       `json:"flat"`
	Slot       uint32       `json:"slot"`
	Root       index.Digest `json:"root"`
	Compressed int64        `json:"compressed_bytes"` // of its different objects and catalogs
	Unshared   int64        `json:"unshared_bytes"`   // of these, objects that no other image has
}

// RepoStat is what a repository is as a whole.
type RepoStat struct {
	Name             string       `json:"name"`
	Revision         uint64       `json:"revision"`
	Time             time.Time    `json:"time"`
	Root             index.Digest `json:"root"`
	Names            int          `json:"names"`
	Images           int          `json:"images"`
	Objects          int64        `json:"objects"` // different ones that the revision needs, catalogs included
	Compressed       int64        `json:"compressed_bytes"`
	Bytes            int64        `json:"bytes"` // plain, of all images
	WhitelistExpires time.Time    `json:"whitelist_expires"`
}

// Images lists the current revision's images by name.
func (r *Repo) Images(ctx context.Context) ([]ImageStat, error) {
	all, _, err := r.stat(ctx)
	return all, err
}

// Image returns one image of the current revision.
func (r *Repo) Image(ctx context.Context, name string) (ImageStat, error) {
	all, _, err := r.stat(ctx)
	if err != nil {
		return ImageStat{}, err
	}
	missing := &NameError{Name: name}
	for _, i := range all {
		if i.Name == name {
			return i, nil
		}
		missing.Have = append(missing.Have, i.Name)
	}
	return ImageStat{}, missing
}

// Info returns the current revision's totals.
func (r *Repo) Info(ctx context.Context) (RepoStat, error) {
	_, total, err := r.stat(ctx)
	return total, err
}

// stat walks all catalogs of the current revision.
func (r *Repo) stat(ctx context.Context) ([]ImageStat, RepoStat, error) {
	m := r.manifest
	total := RepoStat{Name: r.name, Revision: m.Revision, Time: m.Time, Root: m.Root.Digest, WhitelistExpires: r.whitelist.Expires}
	use, err := r.reach(ctx, m.Root, nil)
	if err != nil {
		return nil, total, err
	}
	sizes := map[index.Digest]int64{}
	for d := range use.objects {
		a, err := r.store.bucket.Attributes(ctx, d.ObjectPath())
		if err == nil {
			sizes[d] = a.Size
			total.Compressed += a.Size
		}
	}
	total.Objects, total.Images = int64(len(use.objects)), len(use.images)
	for _, i := range use.images {
		total.Bytes += i.info.Bytes
	}
	view, err := r.view(ctx)
	if err != nil {
		return nil, total, err
	}
	t, err := loadNames(ctx, view, m.Next, r.now())
	if err != nil {
		return nil, total, err
	}
	var out []ImageStat
	names, flats := t.names()
	for _, name := range names {
		e := t.at(flats[name])
		if e == nil || e.Image == nil {
			return nil, total, fmt.Errorf("name %q leads to %q: %w", name, flats[name], errors.Join(fs.ErrNotExist, index.ErrFormat))
		}
		i := use.images[*e.Image]
		st := ImageStat{ImageInfo: i.info, Name: name, Flat: flats[name], Slot: e.Number, Root: e.Image.Catalog.Digest}
		for d := range i.objects {
			st.Compressed += sizes[d]
			if use.objects[d].images == 1 {
				st.Unshared += sizes[d]
			}
		}
		out = append(out, st)
	}
	total.Names = len(names)
	return out, total, nil
}
