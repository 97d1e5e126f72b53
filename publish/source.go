package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/skimfs/skimfs/index"
)

// Source says where images come from. Get one from ParseSource.
type Source struct {
	text string
	kind string // docker, oci, oci-archive, docker-archive, dir
	path string // or reference
	tag  string
}

// ParseSource reads one of
//
//	docker://REF              a registry; credentials come from docker's config, localhost is asked over plain HTTP
//	oci:DIR[:TAG]             an OCI layout
//	oci-archive:FILE[:TAG]    an OCI layout in a tar file, read in place
//	docker-archive:FILE[:REF] what docker save writes, read in place
//	dir:PATH                  a directory, as an image of one layer
func ParseSource(text string) (Source, error) {
	kind, rest, ok := strings.Cut(text, ":")
	s := Source{text: text, kind: kind}
	switch {
	case !ok || rest == "":
		return s, fmt.Errorf("source %q: want docker://REF, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF] or dir:PATH", text)
	case kind == "docker":
		if s.path, ok = strings.CutPrefix(rest, "//"); !ok || s.path == "" {
			return s, fmt.Errorf("source %q: want docker://REF", text)
		}
	case kind == "dir":
		s.path = rest
	case kind == "oci" || kind == "oci-archive" || kind == "docker-archive":
		s.path = rest
		// A colon may belong to the path: what exists is right.
		if _, err := os.Stat(rest); err != nil {
			if path, tag, ok := strings.Cut(rest, ":"); ok {
				s.path, s.tag = path, tag
			}
		}
	default:
		return s, fmt.Errorf("source %q: unknown kind %q: want docker, oci, oci-archive, docker-archive or dir", text, kind)
	}
	return s, nil
}

func (s Source) String() string { return s.text }

// Platform is what an image runs on.
type Platform struct{ OS, Arch, Variant string }

// HostPlatform is linux on this machine's architecture.
func HostPlatform() Platform { return Platform{OS: "linux", Arch: runtime.GOARCH} }

var platformText = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9.]+)?$`)

// ParsePlatform reads os/arch or os/arch/variant.
func ParsePlatform(text string) (Platform, error) {
	if !platformText.MatchString(text) {
		return Platform{}, fmt.Errorf("platform %q: want os/arch or os/arch/variant, as in linux/arm64", text)
	}
	p := strings.Split(text, "/")
	out := Platform{OS: p[0], Arch: p[1]}
	if len(p) == 3 {
		out.Variant = p[2]
	}
	return out, nil
}

func (p Platform) String() string {
	if p.Variant == "" {
		return p.OS + "/" + p.Arch
	}
	return p.OS + "/" + p.Arch + "/" + p.Variant
}

func (p Platform) matches(q *v1.Platform) bool {
	return q != nil && p.OS == q.OS && p.Arch == q.Architecture && (p.Variant == "" || p.Variant == q.Variant)
}

// image is an image of one platform before it is converted.
type image struct {
	manifest index.Digest // of the OCI image manifest
	config   []byte       // verbatim
	file     *v1.ConfigFile
	layers   []layerBlob
	platform Platform
	tree     func(ctx context.Context, c *converter) (*layer, error) // of a source without layers: its files
}

// created is the image's creation time, 1970 if it has none.
func (i *image) created() time.Time {
	if t := i.file.Created.Time; !t.IsZero() {
		return t
	}
	return time.Unix(0, 0)
}

// layerBlob is a layer before it is converted.
type layerBlob struct {
	digest index.Digest // of the blob; zero if nobody promised one
	diffID index.Digest // of the tar archive in it
	size   int64        // of the blob in bytes
	open   func(ctx context.Context) (io.ReadCloser, error)
}

// blobs is a place with blobs that are found by digest.
type blobs interface {
	// open returns a blob of size bytes. Its content is not checked yet.
	open(ctx context.Context, d index.Digest, size int64) (io.ReadCloser, error)
	// manifest returns an image manifest or image index. Its content is not checked yet.
	manifest(ctx context.Context, desc v1.Descriptor) ([]byte, error)
	io.Closer
}

// maxJSON bounds manifests, indexes and configs in bytes.
const maxJSON = 8 << 20

// readBlob returns the verified content of a small blob.
func readBlob(ctx context.Context, b blobs, desc v1.Descriptor) ([]byte, error) {
	d, err := digestOf(desc.Digest)
	if err != nil {
		return nil, err
	}
	if desc.Size > maxJSON {
		return nil, fmt.Errorf("blob %v: %d bytes are too many for a description", d, desc.Size)
	}
	r, err := b.open(ctx, d, desc.Size)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxJSON+1))
	if err != nil {
		return nil, fmt.Errorf("reading blob %v: %w", d, err)
	}
	if got := index.DigestOf(data); got != d {
		return nil, fmt.Errorf("blob: %w", &index.DigestError{Want: d, Got: got})
	}
	return data, nil
}

func digestOf(h v1.Hash) (index.Digest, error) { return index.ParseDigest(h.String()) }

// choice says which platforms of a source are wanted.
type choice struct {
	platform Platform
	explicit bool // the user asked for it
	all      bool
	timeout  time.Duration // for a registry's manifest
	// transport to the registry; nil: ggcr's
	transport http.RoundTripper
}

// follow reads the manifest that a descriptor names and picks from it.
func follow(ctx context.Context, b blobs, desc v1.Descriptor, want choice) ([]*image, error) {
	data, err := b.manifest(ctx, desc)
	if err != nil {
		return nil, err
	}
	d, err := digestOf(desc.Digest)
	if err != nil {
		return nil, err
	}
	if got := index.DigestOf(data); got != d {
		return nil, fmt.Errorf("image manifest: %w", &index.DigestError{Want: d, Got: got})
	}
	return pick(ctx, b, data, desc.MediaType, want)
}

// pick returns the images that are wanted of an image manifest or an image index.
func pick(ctx context.Context, b blobs, data []byte, mediaType types.MediaType, want choice) ([]*image, error) {
	var head struct {
		MediaType types.MediaType `json:"mediaType"`
		Manifests []v1.Descriptor `json:"manifests"`
		Config    v1.Descriptor   `json:"config"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("image manifest: %w: %w", errUnsupported, err)
	}
	switch {
	case mediaType.IsSchema1() || head.MediaType.IsSchema1():
		return nil, fmt.Errorf("image manifest: schema 1: %w", errUnsupported)
	case len(head.Manifests) == 0 && head.Config.Size == 0:
		return nil, fmt.Errorf("image manifest: neither an image manifest nor an image index: %w", errUnsupported)
	case len(head.Manifests) == 0:
		i, err := readImage(ctx, b, data)
		if err != nil {
			return nil, err
		}
		if want.explicit && !want.all && !want.platform.matches(&v1.Platform{OS: i.platform.OS, Architecture: i.platform.Arch, Variant: i.platform.Variant}) {
			return nil, fmt.Errorf("image is for %v only, not for %v", i.platform, want.platform)
		}
		return []*image{i}, nil
	}
	return pickAmong(ctx, b, head.Manifests, want)
}

// pickAmong chooses from an image index.
func pickAmong(ctx context.Context, b blobs, manifests []v1.Descriptor, want choice) ([]*image, error) {
	var out []*image
	var have []string
	for _, m := range manifests {
		if m.Platform != nil && m.Platform.OS == "unknown" {
			continue // an attestation, not an image
		}
		if m.Platform != nil {
			have = append(have, Platform{m.Platform.OS, m.Platform.Architecture, m.Platform.Variant}.String())
		}
		if m.Platform != nil && !want.all && !want.platform.matches(m.Platform) {
			continue
		}
		images, err := follow(ctx, b, m, want)
		if err != nil {
			return nil, err
		}
		out = append(out, images...)
		if !want.all {
			return out, nil
		}
	}
	if len(out) == 0 {
		return nil, &PlatformError{Want: want.platform, Have: have}
	}
	return out, nil
}

// PlatformError says that a source has no image for a platform.
type PlatformError struct {
	Want Platform
	Have []string
}

func (e *PlatformError) Error() string {
	return fmt.Sprintf("no image for %v, there are: %s", e.Want, strings.Join(e.Have, ", "))
}

// readImage reads what belongs to an OCI or Docker image manifest, but for the layers.
func readImage(ctx context.Context, b blobs, manifest []byte) (*image, error) {
	m, err := v1.ParseManifest(strings.NewReader(string(manifest)))
	if err != nil {
		return nil, fmt.Errorf("image manifest: %w: %w", errUnsupported, err)
	}
	config, err := readBlob(ctx, b, m.Config)
	if err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	i, err := newImage(index.DigestOf(manifest), config)
	if err != nil {
		return nil, err
	}
	if len(i.file.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("image config: %d diff_ids for %d layers", len(i.file.RootFS.DiffIDs), len(m.Layers))
	}
	for n, l := range m.Layers {
		digest, err := digestOf(l.Digest)
		if err != nil {
			return nil, err
		}
		diffID, err := digestOf(i.file.RootFS.DiffIDs[n])
		if err != nil {
			return nil, err
		}
		if !l.MediaType.IsLayer() && !strings.HasSuffix(string(l.MediaType), "+zstd") {
			return nil, fmt.Errorf("layer %v: media type %q is no layer's: %w", digest, l.MediaType, errUnsupported)
		}
		open := func(ctx context.Context) (io.ReadCloser, error) { return b.open(ctx, digest, l.Size) }
		i.layers = append(i.layers, layerBlob{digest: digest, diffID: diffID, size: l.Size, open: open})
	}
	return i, nil
}

func newImage(manifest index.Digest, config []byte) (*image, error) {
	file, err := v1.ParseConfigFile(strings.NewReader(string(config)))
	if err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	if t := file.RootFS.Type; t != "layers" && t != "" {
		return nil, fmt.Errorf("image config: rootfs of type %q", t)
	}
	p := Platform{file.OS, file.Architecture, file.Variant}
	if p.OS == "" || p.Arch == "" {
		p = HostPlatform()
	}
	return &image{manifest: manifest, config: config, file: file, platform: p}, nil
}

// open returns the images of the source that are wanted, and their default name in the repository.
func (s Source) open(ctx context.Context, want choice) (images []*image, name string, closer io.Closer, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("reading %s: %w", s.text, err)
		}
	}()
	switch s.kind {
	case "docker":
		return openRegistry(ctx, s.path, want)
	case "dir":
		i, err := openDirectory(s.path)
		return []*image{i}, s.localName(), io.NopCloser(nil), err
	case "docker-archive":
		return openDockerArchive(ctx, s, want)
	}
	b, top, err := s.openLayout()
	if err != nil {
		return nil, "", nil, err
	}
	desc, tag, err := s.tagged(top)
	if err == nil {
		images, err = follow(ctx, b, desc, want)
	}
	if err != nil {
		return nil, "", nil, errors.Join(err, b.Close())
	}
	s.tag = tag
	return images, s.localName(), b, nil
}

// localName is the default name of an image that comes from a file: local/NAME:TAG.
func (s Source) localName() string {
	abs, err := filepath.Abs(s.path)
	if err != nil {
		abs = s.path
	}
	base := filepath.Base(abs)
	for _, ext := range []string{".tar", ".oci", ".tgz"} {
		base = strings.TrimSuffix(base, ext)
	}
	base = strings.Trim(notInName.ReplaceAllString(strings.ToLower(base), "-"), "-._")
	tag := s.tag
	if tag == "" || !tagText.MatchString(tag) {
		tag = "latest"
	}
	if base == "" {
		base = "image"
	}
	return "local/" + base + ":" + tag
}

var notInName = regexp.MustCompile(`[^a-z0-9]+`)

// tagged finds the descriptor that the source's tag names in a layout's index.json.
func (s Source) tagged(top []byte) (desc v1.Descriptor, tag string, err error) {
	m, err := v1.ParseIndexManifest(strings.NewReader(string(top)))
	if err != nil {
		return desc, "", fmt.Errorf("index.json: %w", err)
	}
	var tags []string
	for _, d := range m.Manifests {
		t := d.Annotations["org.opencontainers.image.ref.name"]
		if s.tag != "" && t == s.tag || s.tag == "" && len(m.Manifests) == 1 {
			return d, t, nil
		}
		if t != "" {
			tags = append(tags, t)
		}
	}
	if s.tag == "" {
		return desc, "", fmt.Errorf("holds %d images: name one of the tags %s", len(m.Manifests), strings.Join(tags, ", "))
	}
	return desc, "", fmt.Errorf("no image has the tag %q, there are: %s", s.tag, strings.Join(tags, ", "))
}

// openLayout opens an OCI layout and returns its index.json with it.
func (s Source) openLayout() (blobs, []byte, error) {
	if s.kind == "oci-archive" {
		a, err := openArchive(s.path)
		if err != nil {
			return nil, nil, err
		}
		top, err := a.file("index.json", maxJSON)
		if err != nil {
			return nil, nil, errors.Join(err, a.Close())
		}
		return a, top, nil
	}
	top, err := os.ReadFile(filepath.Join(s.path, "index.json"))
	return layoutDir(s.path), top, err
}

// layoutDir is an OCI layout in a directory.
type layoutDir string

func (l layoutDir) open(_ context.Context, d index.Digest, _ int64) (io.ReadCloser, error) {
	return os.Open(filepath.Join(string(l), "blobs", "sha256", d.Hex()))
}

func (l layoutDir) manifest(ctx context.Context, desc v1.Descriptor) ([]byte, error) {
	return readBlob(ctx, l, desc)
}

func (layoutDir) Close() error { return nil }
