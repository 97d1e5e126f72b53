package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/skimfs/skimfs/index"
)

// reached is what a root catalog needs.
type reached struct {
	objects  map[index.Digest]*need
	images   map[index.ImageRef]*reachedImage
	catalogs int
}

// need is an object that something needs.
type need struct {
	size   int64  // plain bytes
	where  string // the first thing that needs it
	images int    // different images that do
}

type reachedImage struct {
	path    string
	info    index.ImageInfo
	objects map[index.Digest]bool
}

// Damage is an object that isn't right.
type Damage struct {
	Object string `json:"object"` // path of its file in the repository
	Reason string `json:"reason"`
	Needed string `json:"needed"` // what needs it first
}

// walker collects what catalogs need.
type walker struct {
	r      *Repo
	out    *reached
	damage func(d index.Digest, where string, err error) bool // whether to go on after a bad catalog
	image  *reachedImage
	only   map[index.ImageRef]bool // images to walk; nil for all
}

// reach walks all catalogs below a root. With damage, a catalog that can't be read is handed to it and left out; without, it is an error.
func (r *Repo) reach(ctx context.Context, root index.CatalogRef, damage func(d index.Digest, where string, err error) bool) (*reached, error) {
	w := &walker{r: r, out: &reached{objects: map[index.Digest]*need{}, images: map[index.ImageRef]*reachedImage{}}, damage: damage}
	return w.out, w.catalog(ctx, root, "/")
}

// reachOnly is reach that passes by all images but some; nil is all of them.
func (r *Repo) reachOnly(ctx context.Context, root index.CatalogRef, only map[index.ImageRef]bool) (*reached, error) {
	w := &walker{r: r, out: &reached{objects: map[index.Digest]*need{}, images: map[index.ImageRef]*reachedImage{}}, only: only}
	return w.out, w.catalog(ctx, root, "/")
}

// use notes an object, and reports whether this image had it already.
func (w *walker) use(d index.Digest, size int64, where string) {
	n := w.out.objects[d]
	if n == nil {
		n = &need{size: size, where: where}
		w.out.objects[d] = n
	}
	if w.image != nil && !w.image.objects[d] {
		w.image.objects[d] = true
		n.images++
	}
}

// catalog walks a catalog and all that nest in it.
func (w *walker) catalog(ctx context.Context, ref index.CatalogRef, path string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	where := "catalog of " + path
	w.use(ref.Digest, ref.ObjectSize(), where)
	get := func(ctx context.Context, d index.Digest, size int64) ([]byte, error) {
		return w.r.store.get(ctx, d, size)
	}
	if ref.Listed() {
		list, err := w.r.store.get(ctx, ref.Digest, ref.ObjectSize())
		if err == nil {
			var chunks []index.Chunk
			if chunks, err = index.DecodeChunkList(list, ref.Size); err == nil {
				for _, c := range chunks {
					w.use(c.Digest, c.Size, where)
				}
			}
		}
		if err != nil {
			return w.bad(ctx, ref.Digest, where, err)
		}
	}
	cat, err := ref.Load(ctx, get)
	if err != nil {
		return w.bad(ctx, ref.Digest, where, err)
	}
	w.out.catalogs++
	if w.damage != nil {
		if err := cat.Verify(); err != nil {
			return w.bad(ctx, ref.Digest, where, err)
		}
	}
	if err := w.nodes(cat, where); err != nil {
		return w.bad(ctx, ref.Digest, where, err)
	}
	for i := range cat.NestedCount() {
		row, err := cat.Nested(i)
		if err != nil {
			return w.bad(ctx, ref.Digest, where, err)
		}
		if row.Kind != index.NestedImage {
			if err := w.catalog(ctx, row.Catalog, path); err != nil {
				return err
			}
			continue
		}
		if err := w.imageRoot(ctx, row); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) imageRoot(ctx context.Context, row index.Nested) error {
	ref := index.ImageRef{Catalog: row.Catalog, Nodes: row.Count}
	if w.out.images[ref] != nil || w.only != nil && !w.only[ref] {
		return nil
	}
	i := &reachedImage{path: fmt.Sprintf("the image in slot %d", row.Number), objects: map[index.Digest]bool{}}
	w.out.images[ref] = i
	if cat, err := w.r.store.catalog(ctx, row.Catalog); err == nil {
		if info, ok, err := cat.Image(); ok && err == nil {
			i.info = info
			i.path = flatPath(info.Manifest, info.Bare)
		}
		if _, err := index.NewImage(row, cat); err != nil {
			return w.bad(ctx, row.Catalog.Digest, "catalog of "+i.path, err)
		}
	}
	w.image = i
	err := w.catalog(ctx, row.Catalog, i.path)
	w.image = nil
	return err
}

// nodes notes the chunks of all files of a catalog.
func (w *walker) nodes(cat *index.Catalog, where string) error {
	return eachChunk(cat, func(c index.Chunk) error {
		w.use(c.Digest, c.Size, strings.TrimPrefix(where, "catalog of "))
		return nil
	})
}

func (w *walker) bad(ctx context.Context, d index.Digest, where string, err error) error {
	if ctx.Err() == nil && w.damage != nil && w.damage(d, where, err) {
		return nil
	}
	return err
}

// Report is what Verify has found.
type Report struct {
	Images     int      `json:"images"`
	Catalogs   int      `json:"catalogs"`
	Objects    int      `json:"objects"`
	Compressed int64    `json:"compressed_bytes"`
	Damage     []Damage `json:"damage"`
}

// Verify reads everything that the current revision needs and checks it. Damage is in the report, not in the error.
func (r *Repo) Verify(ctx context.Context) (Report, error) {
	report := Report{Damage: []Damage{}}
	bad := map[index.Digest]Damage{}
	var mu sync.Mutex // guards bad and report
	note := func(d index.Digest, where string, err error) bool {
		mu.Lock()
		defer mu.Unlock()
		if _, ok := bad[d]; !ok {
			reason := err.Error()
			if errors.Is(err, fs.ErrNotExist) {
				reason = "missing"
			}
			bad[d] = Damage{d.ObjectPath(), reason, where}
		}
		return true
	}
	use, err := r.reach(ctx, r.manifest.Root, note)
	if err != nil {
		return report, err
	}
	report.Images, report.Catalogs, report.Objects = len(use.images), use.catalogs, len(use.objects)
	all := slices.Collect(maps.Keys(use.objects))
	g, gctx := errgroup.WithContext(ctx)
	n := runtime.GOMAXPROCS(0)
	for i := range n {
		g.Go(func() error {
			for j := i; j < len(all) && gctx.Err() == nil; j += n {
				d, need := all[j], use.objects[all[j]]
				if _, err := r.store.get(gctx, d, need.size); err != nil {
					note(d, need.where, err)
				} else if a, err := r.store.bucket.Attributes(gctx, d.ObjectPath()); err == nil {
					mu.Lock()
					report.Compressed += a.Size
					mu.Unlock()
				}
			}
			return gctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return report, err
	}
	byObject := func(a, b Damage) int { return strings.Compare(a.Object, b.Object) }
	report.Damage = append(report.Damage, slices.SortedFunc(maps.Values(bad), byObject)...)
	return report, nil
}
