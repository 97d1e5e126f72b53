package publish

import (
	"cmp"
	"context"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/skimfs/skimfs/index"
)

// Resolved is what a source means now: one image, before it is read.
type Resolved struct {
	Manifest index.Digest // of the OCI image manifest; zero for a directory, which has none before it is read
	Name     string       // the image's name in a repository unless another is asked for
	Bytes    int64        // compressed, of all layers; 0 if unknown
	Layers   int
}

// Resolve asks what a source means now, in bounded time, and reads no layer. Of opt count the platform, the transport and the timeout.
func Resolve(ctx context.Context, src Source, opt Options) (Resolved, error) {
	want := choice{platform: opt.Platform, explicit: opt.Platform != Platform{}, timeout: cmp.Or(opt.RegistryTimeout, DefaultRegistryTimeout), transport: opt.Transport}
	if !want.explicit {
		want.platform = HostPlatform()
	}
	images, name, closer, err := src.open(ctx, want)
	if err != nil {
		return Resolved{}, err
	}
	defer closer.Close()
	if len(images) == 0 {
		return Resolved{}, fmt.Errorf("reading %s: no image", src)
	}
	r := Resolved{Name: name, Manifest: images[0].manifest, Layers: len(images[0].layers)}
	for _, l := range images[0].layers {
		r.Bytes += l.size
	}
	return r, nil
}

// Registry returns the host, and perhaps port, of the registry that the source asks, or "".
func (s Source) Registry() string {
	if s.kind != "docker" {
		return ""
	}
	ref, err := parseReference(s.path)
	if err != nil {
		return ""
	}
	return ref.Context().RegistryStr()
}

// Local reports whether the source is read from this machine's files.
func (s Source) Local() bool { return s.kind != "docker" }

// Kind returns what stands before the colon: docker, oci, oci-archive, docker-archive or dir.
func (s Source) Kind() string { return s.kind }

// Path returns the path of a local source, without its tag.
func (s Source) Path() string {
	if s.kind == "docker" {
		return ""
	}
	return s.path
}

// DefaultName returns the name that the source's image has unless another is asked for.
func (s Source) DefaultName() (string, error) {
	if s.kind == "docker" {
		return canonicalName(s.path)
	}
	return s.localName(), nil
}

// Canonical returns the source with its reference written in full.
func (s Source) Canonical() string {
	if s.kind == "docker" {
		if ref, err := parseReference(s.path); err == nil {
			return "docker://" + ref.Name()
		}
	}
	return s.text
}

func (c choice) roundTripper() http.RoundTripper {
	if c.transport != nil {
		return c.transport
	}
	return remote.DefaultTransport
}

// options are those of every request to a registry. Whoever brings a transport of his own asks again by himself when he was asked to wait.
func (c choice) options() []remote.Option {
	options := []remote.Option{remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithUserAgent("skimfs"), remote.WithTransport(c.roundTripper())}
	if c.transport != nil {
		options = append(options, remote.WithRetryStatusCodes(http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout))
	}
	return options
}

// Tags lists the tags of a repository at a registry. Of opt count the transport and the timeout, here for the whole list.
func Tags(ctx context.Context, repository string, opt Options) ([]string, error) {
	repo, err := name.NewRepository(repository)
	if err != nil {
		return nil, err
	}
	limit := cmp.Or(opt.RegistryTimeout, DefaultRegistryTimeout)
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tags, err := remote.List(repo, append(choice{transport: opt.Transport}.options(), remote.WithContext(limited))...)
	if err != nil {
		return nil, fmt.Errorf("listing the tags of %s: %w", repository, err)
	}
	return tags, nil
}
