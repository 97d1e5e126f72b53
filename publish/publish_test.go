package publish_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publish"
)

const repoName = "test.example.org"

// repo is a repository under test.
type repo struct {
	*publish.Repo
	t         testing.TB
	dir, keys string
	log       bytes.Buffer
}

func newRepo(t testing.TB) *repo {
	t.Helper()
	r := &repo{t: t, dir: filepath.Join(t.TempDir(), "repo"), keys: filepath.Join(t.TempDir(), "keys")}
	if _, _, err := publish.Create(t.Context(), r.config(), repoName); err != nil {
		t.Fatal(err)
	}
	r.open()
	return r
}

func (r *repo) config() publish.Config {
	return publish.Config{Dir: r.dir, Keys: r.keys, Log: slog.New(slog.NewTextHandler(&r.log, nil))}
}

func (r *repo) open() {
	r.t.Helper()
	var err error
	if r.Repo, err = publish.Open(r.config()); err != nil {
		r.t.Fatal(err)
	}
}

func source(t testing.TB, text string) publish.Source {
	t.Helper()
	s, err := publish.ParseSource(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (r *repo) publish(src, as string, opt publish.Options) publish.Result {
	r.t.Helper()
	results, err := r.Publish(r.t.Context(), source(r.t, src), as, opt)
	if err != nil {
		r.t.Fatal(err)
	}
	return results[0]
}

// verified fails the test unless the current revision is whole.
func (r *repo) verified() publish.Report {
	r.t.Helper()
	r.open()
	report, err := r.Verify(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, d := range report.Damage {
		r.t.Errorf("damage: %+v", d)
	}
	return report
}

// get reads an object as a client would: from the file, trusting nothing.
func (r *repo) get(_ context.Context, d index.Digest, size int64) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(r.dir, d.ObjectPath()))
	if err != nil {
		return nil, err
	}
	dec, err := index.NewObjectDecoder()
	if err != nil {
		return nil, err
	}
	return dec.Decode(b, d, size)
}

func (r *repo) view() *index.View {
	r.t.Helper()
	load := func(ctx context.Context, ref index.CatalogRef) (*index.Catalog, error) { return ref.Load(ctx, r.get) }
	root, err := load(r.t.Context(), r.Manifest().Root)
	if err != nil {
		r.t.Fatal(err)
	}
	v, err := index.NewView(root, load)
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

func (r *repo) resolve(path string) index.File {
	r.t.Helper()
	f, err := r.view().Resolve(r.t.Context(), path, true)
	if err != nil {
		r.t.Fatal(err)
	}
	return f
}

// walk lists the published image as testkit.Walk lists a directory.
func (r *repo) walk(name string) []testkit.Entry {
	r.t.Helper()
	var out []testkit.Entry
	first := map[uint32]int{}
	var visit func(f index.File, path string)
	visit = func(f index.File, path string) {
		e := r.entry(f)
		e.Path = path
		out = append(out, e)
		if e.Type != "dir" {
			return
		}
		if err := f.ReadDir(r.t.Context(), func(c index.Child) error {
			child, err := f.Open(r.t.Context(), c)
			if err != nil {
				return err
			}
			visit(child, filepath.Join(path, string(c.Name)))
			return nil
		}); err != nil {
			r.t.Fatal(err)
		}
	}
	visit(r.resolve(name), ".")
	slices.SortFunc(out, func(a, b testkit.Entry) int { return strings.Compare(a.Path, b.Path) })
	for i, e := range out {
		if e.Type == "dir" {
			continue
		}
		at, seen := first[uint32(e.Inode)]
		if !seen {
			first[uint32(e.Inode)] = i
			continue
		}
		out[at].LinkedTo, out[i].LinkedTo = out[at].Path, out[at].Path
	}
	return out
}

func (r *repo) entry(f index.File) testkit.Entry {
	r.t.Helper()
	cat, n, err := f.Node()
	if err != nil {
		r.t.Fatal(err)
	}
	e := testkit.Entry{
		Mode: fmt.Sprintf("%04o", n.Mode&0o7777), UID: n.UID, GID: n.GID, Mtime: fmt.Sprintf("%d.%09d", n.Sec, n.Nsec), Nlink: uint64(n.Nlink),
		Inode: uint64(f.Num),
	}
	types := map[uint32]string{index.ModeRegular: "file", index.ModeDir: "dir", index.ModeSymlink: "symlink", index.ModeFIFO: "fifo",
		index.ModeSocket: "socket", index.ModeChar: "char", index.ModeBlock: "block"}
	switch e.Type = types[n.Type()]; e.Type {
	case "file":
		e.Size = n.Size
		e.SHA256 = r.hash(f, n)
	case "symlink":
		target, err := cat.Readlink(&n)
		if err != nil {
			r.t.Fatal(err)
		}
		e.Size, e.Target = n.Size, string(target)
	case "char", "block":
		e.Device = fmt.Sprintf("%d:%d", n.Major, n.Minor)
	}
	if err := cat.EachXattr(n.Xattrs, func(name, value []byte) bool {
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		e.Xattrs[string(name)] = string(value)
		return true
	}); err != nil {
		r.t.Fatal(err)
	}
	return e
}

// hash reads a file chunk by chunk, and checks the digest of the whole that the catalog may have.
func (r *repo) hash(f index.File, n index.Node) string {
	r.t.Helper()
	chunks, err := f.Chunks()
	if err != nil {
		r.t.Fatal(err)
	}
	h := sha256.New()
	for _, c := range chunks {
		plain := make([]byte, c.Size)
		if !c.IsHole() {
			if plain, err = r.get(r.t.Context(), c.Digest, c.Size); err != nil {
				r.t.Fatal(err)
			}
		}
		h.Write(plain)
	}
	sum := hex.EncodeToString(h.Sum(nil))
	if i, ok := f.Pos.Index(); ok && n.Size > index.ChunkSize {
		cat, _, _ := f.Node()
		if d, ok := cat.FileDigest(i); !ok || d.Hex() != sum {
			r.t.Errorf("whole-file digest is %v, content has %s", d, sum)
		}
	}
	return sum
}

// read returns the content of a small file.
func (r *repo) read(path string) string {
	r.t.Helper()
	f := r.resolve(path)
	chunks, err := f.Chunks()
	if err != nil {
		r.t.Fatal(err)
	}
	var out []byte
	for _, c := range chunks {
		plain := make([]byte, c.Size)
		if !c.IsHole() {
			if plain, err = r.get(r.t.Context(), c.Digest, c.Size); err != nil {
				r.t.Fatal(err)
			}
		}
		out = append(out, plain...)
	}
	return string(out)
}

// files returns the sizes and mtimes of all objects.
func (r *repo) objects() map[string]os.FileInfo {
	r.t.Helper()
	out := map[string]os.FileInfo{}
	if err := filepath.WalkDir(filepath.Join(r.dir, "objects"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		st, err := e.Info()
		out[path] = st
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	return out
}

// layoutSpec is an image for a test.
type layoutSpec struct {
	layers  [][]byte                                           // tar archives
	large   func(dir string) (diffID, blob string, size int64) // writes one more layer into the layout
	diffIDs []string                                           // in place of the right ones
	config  map[string]any
	os      string
	arch    string
}

// blobName is where a layout keeps a blob.
func blobName(layout, digest string) string {
	return filepath.Join(layout, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(s[:])
}

// writeLayout writes an OCI layout of one image for each spec, tagged v0, v1, … and below one image index tagged "all", and returns its
// directory and the digests of the first image's layer blobs.
func writeLayout(t testing.TB, specs ...layoutSpec) (dir string, blobs []string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	blob := func(mediaType string, b []byte) map[string]any {
		if err := os.WriteFile(blobName(dir, sum(b)), b, 0o644); err != nil {
			t.Fatal(err)
		}
		return map[string]any{"mediaType": mediaType, "digest": sum(b), "size": len(b)}
	}
	asJSON := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const manifestType, indexType = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
	var top, all []map[string]any
	for i, s := range specs {
		layers, diffIDs := []map[string]any{}, []string{}
		for _, l := range s.layers {
			var buf bytes.Buffer
			z := gzip.NewWriter(&buf)
			z.Write(l)
			z.Close()
			layers = append(layers, blob("application/vnd.oci.image.layer.v1.tar+gzip", buf.Bytes()))
			diffIDs = append(diffIDs, sum(l))
			if i == 0 {
				blobs = append(blobs, sum(buf.Bytes()))
			}
		}
		if s.large != nil {
			diffID, digest, size := s.large(dir)
			layers = append(layers, map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size})
			diffIDs = append(diffIDs, diffID)
		}
		if s.diffIDs != nil {
			diffIDs = s.diffIDs
		}
		if s.os == "" {
			s.os, s.arch = "linux", runtime.GOARCH
		}
		config := blob("application/vnd.oci.image.config.v1+json", asJSON(map[string]any{
			"created": "2024-02-03T04:05:06.789Z", "os": s.os, "architecture": s.arch, "config": s.config,
			"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs}}))
		m := blob(manifestType, asJSON(map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": layers}))
		m["platform"] = map[string]any{"os": s.os, "architecture": s.arch}
		all = append(all, m)
		tagged := map[string]any{"annotations": map[string]any{"org.opencontainers.image.ref.name": fmt.Sprintf("v%d", i)}}
		for k, v := range m {
			tagged[k] = v
		}
		top = append(top, tagged)
	}
	if len(specs) > 1 {
		m := blob(indexType, asJSON(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": all}))
		m["annotations"] = map[string]any{"org.opencontainers.image.ref.name": "all"}
		top = append(top, m)
	}
	for name, b := range map[string][]byte{"index.json": asJSON(map[string]any{"schemaVersion": 2, "manifests": top}), "oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir, blobs
}

// entry of a layer, for tarball.
type item struct {
	name, content, link string
	kind                byte
	mode                int64
}

func tarball(t testing.TB, items ...item) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, i := range items {
		h := &tar.Header{Name: i.name, Typeflag: i.kind, Mode: i.mode, Size: int64(len(i.content)), Linkname: i.link, ModTime: time.Unix(1700000000, 0), Format: tar.FormatPAX}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(i.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
