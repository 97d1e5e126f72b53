package publish

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skimfs/skimfs/index"
)

// Options of a publish. The zero value is good.
type Options struct {
	Platform Platform // default HostPlatform, or the only one there is
	All      bool     // publish every platform
	Bare     bool     // add nothing to the image
	Limits   Limits
	Progress *Progress // counts along, may be nil
	// RegistryTimeout is how long a registry may take for a manifest; default DefaultRegistryTimeout.
	RegistryTimeout time.Duration
	// Transport carries all requests to registries; default one like net/http's. Whatever it refuses with ErrForbidden is PermissionDenied.
	// With one of his own the caller asks again by himself when a registry answers 429: the publish ends.
	Transport http.RoundTripper
}

// Progress counts what a publish has done so far.
type Progress struct {
	Layers       atomic.Int64 // known
	LayersDone   atomic.Int64
	LayersKept   atomic.Int64 // of those done, converted before
	BlobTotal    atomic.Int64 // compressed bytes of the layers that are read
	BlobBytes    atomic.Int64 // of these, read
	Files, Bytes atomic.Int64 // regular files and their plain bytes converted
}

// Result says what a publish has done with one image.
type Result struct {
	Name       string       `json:"name"`
	Manifest   index.Digest `json:"manifest"` // digest of the OCI image manifest
	Flat       string       `json:"flat"`     // path of the image's root in the repository
	Slot       uint32       `json:"slot"`
	Platform   string       `json:"platform"`
	Root       index.Digest `json:"root"` // digest of the image's root catalog
	Revision   uint64       `json:"revision"`
	Changed    bool         `json:"changed"` // the revision is new
	Layers     int          `json:"layers"`
	LayersRead int          `json:"layers_read"` // of these, read: not converted before
	Files      int64        `json:"files"`
	Entries    int64        `json:"entries"`
	Bytes      int64        `json:"bytes"`            // plain, of all files
	Objects    int64        `json:"objects"`          // different objects of files
	NewObjects int64        `json:"new_objects"`      // objects that the repository did not have, catalogs included
	Compressed int64        `json:"compressed_bytes"` // of the image's different objects
	Catalogs   int          `json:"catalogs"`
	Seconds    float64      `json:"seconds"`
}

// Publish converts the images of a source that opt asks for and makes one revision with them under the name as; "" means the source's
// own. It may be killed at any time: the repository then still holds the revision before, and the next publish goes on.
func (r *Repo) Publish(ctx context.Context, src Source, as string, opt Options) ([]Result, error) {
	start := time.Now()
	if as != "" {
		if err := CheckName(as); err != nil {
			return nil, err
		}
	}
	if opt.Progress == nil {
		opt.Progress = &Progress{}
	}
	want := choice{platform: opt.Platform, explicit: opt.Platform != Platform{}, all: opt.All, timeout: cmp.Or(opt.RegistryTimeout, DefaultRegistryTimeout), transport: opt.Transport}
	if !want.explicit {
		want.platform = HostPlatform()
	}
	images, name, closer, err := src.open(ctx, want)
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	// Only this machine's platform has the plain name, unless the caller says otherwise.
	further := as == "" && want.explicit && !opt.All
	if as == "" {
		as = name
	}
	end, err := r.join(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	var done []converted
	for i, img := range images {
		c, err := r.convert(ctx, img, opt)
		if err != nil {
			return nil, fmt.Errorf("publishing %s: %w", src, err)
		}
		c.names = []string{as}
		if host := HostPlatform(); opt.All || further && (want.platform.OS != host.OS || want.platform.Arch != host.Arch) {
			c.names = platformNames(as, images, i)
		}
		done = append(done, c)
	}
	return r.announce(ctx, done, start)
}

// platformNames are the names of one of several platforms' images: NAME@os-arch, and NAME itself for this machine's, the first of its
// variants.
func platformNames(as string, images []*image, i int) []string {
	p := images[i].platform
	same, first := 0, true
	for j, other := range images {
		if other.platform.OS == p.OS && other.platform.Arch == p.Arch {
			same++
			first = first && j >= i
		}
	}
	name := as + "@" + p.OS + "-" + p.Arch
	if same > 1 && p.Variant != "" {
		name += "-" + p.Variant
	}
	if host := HostPlatform(); p.OS == host.OS && p.Arch == host.Arch && first {
		return []string{name, as}
	}
	return []string{name}
}

// converted is an image whose objects and catalogs are in the repository, but no revision names yet.
type converted struct {
	root   *index.Entry
	ref    index.ImageRef
	names  []string
	result Result
}

// announce makes a revision with the converted images.
func (r *Repo) announce(ctx context.Context, done []converted, start time.Time) ([]Result, error) {
	var results []Result
	changed, err := r.reviseShared(ctx, func(t *nameTree) error {
		results = nil
		for _, c := range done {
			slot, err := t.image(c.result.Flat, c.root, c.ref)
			if err != nil {
				return err
			}
			for _, name := range c.names {
				if err := t.link(name, c.result.Flat); err != nil {
					return err
				}
			}
			c.result.Name, c.result.Slot = c.names[0], slot
			results = append(results, c.result)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range results {
		results[i].Revision, results[i].Changed = r.manifest.Revision, changed
		results[i].NewObjects = r.store.added.Load()
		results[i].Seconds = time.Since(start).Seconds()
	}
	return results, nil
}

// convert brings an image's files and catalogs into the repository.
func (r *Repo) convert(ctx context.Context, img *image, opt Options) (converted, error) {
	c := newConverter(r.store, opt.Limits, opt.Progress)
	defer c.close()
	layers, read, err := r.layers(ctx, c, img)
	if err != nil {
		return converted{}, err
	}
	root, err := merge(layers, img.created())
	if err != nil {
		return converted{}, err
	}
	sizes := map[index.Digest]int64{}
	for _, l := range layers {
		for _, o := range l.Objects {
			sizes[o.digest()] = o.Stored
		}
	}
	if !opt.Bare {
		if err := furnish(root, img, func(plain []byte) (index.Digest, error) {
			d := index.DigestOf(plain)
			size, _, err := r.store.put(ctx, d, plain, nil)
			sizes[d] = size
			return d, err
		}); err != nil {
			return converted{}, err
		}
	}
	info := index.ImageInfo{Manifest: img.manifest, ConfigDigest: index.DigestOf(img.config), Platform: img.platform.String(), Converter: Converter, Bare: opt.Bare}
	res := Result{Manifest: img.manifest, Flat: flatPath(img.manifest, opt.Bare), Platform: info.Platform, Layers: len(layers), LayersRead: read}
	count(root, &info, sizes, &res.Compressed)
	if info.Entries > c.limits.Entries {
		return converted{}, &LimitError{"entries", c.limits.Entries}
	}
	ref, err := index.BuildImage(root, info, img.config, r.putter(ctx, &res.Catalogs))
	if err != nil {
		return converted{}, err
	}
	res.Root, res.Files, res.Entries, res.Bytes, res.Objects = ref.Catalog.Digest, info.Files, info.Entries, info.Bytes, info.Objects
	return converted{root: root, ref: ref, result: res}, nil
}

// layers converts the layers of an image that are not known yet, several at a time, and returns all of them and how many were read.
func (r *Repo) layers(ctx context.Context, c *converter, img *image) ([]*layer, int, error) {
	if img.tree != nil {
		c.progress.Layers.Add(1)
		l, err := img.tree(ctx, c)
		if err != nil {
			return nil, 0, err
		}
		img.manifest = l.identity()
		c.progress.LayersDone.Add(1)
		return []*layer{l}, 1, nil
	}
	m := memo{filepath.Join(r.dir, privateDir, "layers"), r.store}
	out := make([]*layer, len(img.layers))
	var read atomic.Int64
	c.progress.Layers.Add(int64(len(img.layers)))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, blob := range img.layers {
		g.Go(func() (err error) {
			l, known := m.load(ctx, blob.diffID)
			if !known {
				c.progress.BlobTotal.Add(blob.size)
				read.Add(1)
				if l, err = c.convertLayer(ctx, blob); err != nil {
					return fmt.Errorf("layer %d of %d (%v): %w", i+1, len(img.layers), blob.name(), err)
				}
				if err := m.save(blob.diffID, l); err != nil {
					return err
				}
				layersConverted.Inc()
			} else {
				c.progress.LayersKept.Add(1)
				layersReused.Inc()
			}
			out[i] = l
			c.progress.LayersDone.Add(1)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, 0, err
	}
	return out, int(read.Load()), nil
}

func (l layerBlob) name() index.Digest {
	if l.digest.IsZero() {
		return l.diffID
	}
	return l.digest
}

// count fills in an image's totals.
func count(root *index.Entry, info *index.ImageInfo, sizes map[index.Digest]int64, compressed *int64) {
	seen, objects := map[*index.Inode]bool{}, map[index.Digest]bool{}
	var walk func(e *index.Entry)
	walk = func(e *index.Entry) {
		for _, c := range e.Children {
			info.Entries++
			if c.IsRegular() && !seen[c.Inode] {
				seen[c.Inode] = true
				info.Files++
				info.Bytes += c.Size
				for _, d := range c.Chunks {
					if !d.IsZero() {
						objects[d] = true
					}
				}
			}
			walk(c)
		}
	}
	walk(root)
	info.Objects = int64(len(objects))
	for d := range objects {
		*compressed += sizes[d]
	}
}

// Remove drops names in one new revision. The images they led to stay, for what runs from them, until a GC after the retention time.
func (r *Repo) Remove(ctx context.Context, names ...string) error {
	end, err := r.join(ctx)
	if err != nil {
		return err
	}
	defer end()
	_, err = r.reviseShared(ctx, func(t *nameTree) error {
		_, before := t.names()
		for _, name := range names {
			if _, ok := before[name]; !ok {
				return &NameError{Name: name, Have: slices.Sorted(maps.Keys(before))}
			}
			if err := t.remove(name); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// NameError says that a repository has no image of a name.
type NameError struct {
	Name string
	Have []string
}

func (e *NameError) Error() string { return fmt.Sprintf("no image is called %q", e.Name) }

// Nearest returns a name that the wrong one may have meant, or "".
func (e *NameError) Nearest() string {
	for _, have := range e.Have {
		if strings.HasSuffix(have, "/"+e.Name) || strings.Contains(have, e.Name) {
			return have
		}
	}
	return ""
}
