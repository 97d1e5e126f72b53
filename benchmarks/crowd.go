package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skimfs/skimfs/fetch"
	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/internal/testkit"
)

// crowdSizes are how many clients start the image at the same moment.
var crowdSizes = []int{1, 10, 50, 200}

// readersAtOnce is how many objects a client wants at once, as a program with a few threads does.
const readersAtOnce = 8

// crowd starts an image on many simulated nodes at the same moment, through one squid. A client asks as a node does that has nothing yet, through
// connections of its own; it keeps nothing, and no kernel is before it.
type crowd struct {
	repository *repository
	key        string        // the master key's public half
	objects    []index.Chunk // that a start reads
}

// crowdRow is how a crowd fared.
type crowdRow struct {
	clients   int
	seconds   float64 // until the last had all
	objects   int     // different ones, catalogs included
	asked     int     // requests of clients for objects
	origin    int     // requests that reached the origin for them
	most      int     // of these, for the object asked for most often
	delivered int64   // bytes of the squid to clients
}

// newCrowd prepares starts that read the given objects of a repository's image, or all if there are none given.
func newCrowd(s *scope, r *repository, paths map[string]bool) *crowd {
	pub, err := os.ReadFile(filepath.Join(r.keys, repoName+".pub"))
	s.check(err)
	c := &crowd{repository: r, key: string(pub)}
	dec, err := index.NewObjectDecoder()
	s.check(err)
	read := func(_ context.Context, path string) ([]byte, error) { return os.ReadFile(filepath.Join(r.dir, path)) }
	image, err := c.image(s.ctx, read, func(ctx context.Context, d index.Digest, size int64) ([]byte, error) {
		b, err := read(ctx, d.ObjectPath())
		if err != nil {
			return nil, err
		}
		return dec.Decode(b, d, size)
	})
	s.check(err)
	seen := map[index.Digest]bool{}
	s.check(eachChunk(s.ctx, image, func(chunk index.Chunk) {
		if !chunk.IsHole() && !seen[chunk.Digest] && (paths == nil || paths[chunk.Digest.ObjectPath()]) {
			seen[chunk.Digest] = true
			c.objects = append(c.objects, chunk)
		}
	}))
	return c
}

// image resolves the image as a node does that mounts it: by manifest and whitelist, then catalog by catalog.
func (c *crowd) image(ctx context.Context, file func(ctx context.Context, path string) ([]byte, error), object func(ctx context.Context, d index.Digest, size int64) ([]byte, error)) (index.File, error) {
	master, err := index.ParseVerifier(c.key)
	if err != nil {
		return index.File{}, err
	}
	manifest, err := file(ctx, "manifest")
	if err != nil {
		return index.File{}, err
	}
	whitelist, err := file(ctx, "whitelist")
	if err != nil {
		return index.File{}, err
	}
	list, err := index.OpenWhitelist(whitelist, repoName, master)
	if err != nil {
		return index.File{}, err
	}
	m, err := index.OpenManifest(manifest, repoName, list)
	if err != nil {
		return index.File{}, err
	}
	load := func(ctx context.Context, ref index.CatalogRef) (*index.Catalog, error) { return ref.Load(ctx, object) }
	root, err := load(ctx, m.Root)
	if err != nil {
		return index.File{}, err
	}
	view, err := index.NewView(root, load)
	if err != nil {
		return index.File{}, err
	}
	return view.Resolve(ctx, imageName, true)
}

// eachChunk calls f for the chunks of all files below dir.
func eachChunk(ctx context.Context, dir index.File, f func(index.Chunk)) error {
	return dir.ReadDir(ctx, func(child index.Child) error {
		at, err := dir.Open(ctx, child)
		if err != nil {
			return err
		}
		_, n, err := at.Node()
		switch {
		case err != nil:
			return err
		case n.IsDir():
			return eachChunk(ctx, at, f)
		case n.Mode&index.ModeType != index.ModeRegular:
			return nil
		}
		chunks, err := at.Chunks()
		for _, chunk := range chunks {
			f(chunk)
		}
		return err
	})
}

// run has so many clients start at once, with an empty squid between them and the origin.
func (c *crowd) run(s *scope, clients int) crowdRow {
	origin, squid := testkit.StartNginx(s, c.repository.dir), testkit.StartSquid(s)
	begin := make(chan struct{})
	g, ctx := errgroup.WithContext(s.ctx)
	ready := make(chan struct{}, clients)
	for range clients {
		g.Go(func() error { return c.start(ctx, origin.URL, squid.URL, ready, begin) })
	}
	for range clients {
		select {
		case <-ready:
		case <-ctx.Done():
		}
	}
	started := time.Now()
	close(begin)
	s.check(g.Wait())
	row := crowdRow{clients: clients, seconds: time.Since(started).Seconds()}
	atOrigin, atSquid := origin.Log().Class("objects"), squid.Log().Class("objects")
	times := map[string]int{}
	for _, r := range atOrigin {
		times[r.URI]++
		row.most = max(row.most, times[r.URI])
	}
	row.objects, row.asked, row.origin, row.delivered = len(times), atSquid.Count(), atOrigin.Count(), atSquid.Bytes()
	return row
}

// start is one client: it says that it is ready and begins when all are.
func (c *crowd) start(ctx context.Context, origin, squid string, ready chan<- struct{}, begin <-chan struct{}) error {
	// One squid on a small machine serves hundreds: it is slow and not down.
	client, err := fetch.New(fetch.Config{Servers: []string{origin}, Proxies: squid, Timeout: time.Minute})
	if err != nil {
		return err
	}
	defer client.Close()
	ready <- struct{}{}
	select {
	case <-begin:
	case <-ctx.Done():
		return ctx.Err()
	}
	note := func(ctx context.Context, path string) ([]byte, error) {
		return client.File(ctx, path, 4*time.Minute, index.MaxNote, false)
	}
	if _, err := c.image(ctx, note, client.Object); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readersAtOnce)
	for _, chunk := range c.objects {
		g.Go(func() error {
			_, err := client.Object(ctx, chunk.Digest, chunk.Size)
			return err
		})
	}
	return g.Wait()
}

// startObjects runs the demo's first program on a node and returns the paths of the objects that it needed.
func startObjects(s *scope, r *repository, image *image) map[string]bool {
	origin, k := testkit.StartNginx(s, r.dir), startNode(s)
	node := &skimfs{source: origin.URL + "#" + imageName, pubkey: filepath.Join(r.keys, repoName+".pub"), now: k, proxy: "DIRECT"}
	s.within(func(s *scope) { python("import json")(s, image, node.mount(s)) })
	paths := map[string]bool{}
	for _, r := range origin.Log().Class("objects") {
		paths[strings.TrimPrefix(r.URI, "/")] = true
	}
	return paths
}

// measureCrowds has crowds of growing size start the demo image's python.
func measureCrowds(s *scope) (rows []crowdRow) {
	layout, r := testkit.DemoImage(s), newRepository(s)
	progress("crowd: publishing")
	r.publish(s, layout)
	c := newCrowd(s, r, startObjects(s, r, &image{name: "demo"}))
	for _, clients := range crowdSizes {
		progress("crowd: %d clients", clients)
		s.within(func(s *scope) { rows = append(rows, c.run(s, clients)) })
	}
	return rows
}

// crowdTable writes the report.
func crowdTable(w io.Writer, m machine, rows []crowdRow) {
	m.markdown(w)
	fmt.Fprint(w, ".\n\n| clients at once | seconds until the last had started | objects | requests of clients | requests at the origin | for one object at most | MB from squid |\n|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, r := range rows {
		fmt.Fprintf(w, "| %d | %.2f | %d | %d | **%d** | **%d** | %.1f |\n", r.clients, r.seconds, r.objects, r.asked, r.origin, r.most, float64(r.delivered)/1e6)
	}
}
