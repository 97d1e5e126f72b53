package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/skimfs/skimfs/index"
)

// registry is a repository at a registry.
type registry struct {
	repo    name.Repository
	top     []byte // what the reference names, an image manifest or an image index
	topHash v1.Hash
}

func remoteOptions(ctx context.Context) []remote.Option {
	return []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithUserAgent("skimfs")}
}

func openRegistry(ctx context.Context, text string, want choice) ([]*image, string, io.Closer, error) {
	ref, err := name.ParseReference(text)
	if err != nil {
		return nil, "", nil, err
	}
	got, err := remote.Get(ref, remoteOptions(ctx)...)
	if err != nil {
		return nil, "", nil, err
	}
	b := &registry{repo: ref.Context(), top: got.Manifest, topHash: got.Digest}
	images, err := pick(ctx, b, got.Descriptor, want)
	if err != nil {
		return nil, "", nil, err
	}
	as, err := canonicalName(text)
	return images, as, b, err
}

func (r *registry) open(ctx context.Context, d index.Digest, _ int64) (io.ReadCloser, error) {
	ref := r.repo.Digest(d.String())
	if r.topHash.String() == d.String() {
		return io.NopCloser(strings.NewReader(string(r.top))), nil
	}
	l, err := remote.Layer(ref, remoteOptions(ctx)...)
	if err != nil {
		return nil, err
	}
	body, err := l.Compressed()
	if err == nil {
		return body, nil
	}
	// An image manifest below an image index is no blob.
	if m, mErr := remote.Get(ref, remoteOptions(ctx)...); mErr == nil {
		return io.NopCloser(strings.NewReader(string(m.Manifest))), nil
	}
	return nil, err
}

func (*registry) Close() error { return nil }

// canonicalName turns a reference as people write it (debian:12) into a name in a repository (docker.io/library/debian:12).
func canonicalName(text string) (string, error) {
	ref, err := name.ParseReference(text)
	if err != nil {
		return "", err
	}
	host := ref.Context().RegistryStr()
	if host == name.DefaultRegistry {
		host = "docker.io"
	}
	tag := ref.Identifier()
	if _, isDigest := ref.(name.Digest); isDigest {
		tag = strings.Replace(tag, ":", "-", 1)
		if before, _, ok := strings.Cut(text, "@"); ok {
			if t, err := name.NewTag(before, name.StrictValidation); err == nil {
				tag = t.TagStr()
			}
		}
	}
	as := host + "/" + ref.Context().RepositoryStr() + ":" + tag
	return as, CheckName(as)
}

var (
	hostText = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]+)?$`)
	partText = regexp.MustCompile(`^[a-z0-9]+([._-]+[a-z0-9]+)*$`)
	tagText  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
)

// ErrName marks a name that no image can have in a repository.
var ErrName = errors.New("not of the form registry/repository:tag")

// CheckName returns nil if as can name an image in a repository: registry/repository:tag, as in docker.io/library/debian:12, or with
// @os-arch behind it.
func CheckName(as string) error {
	bad := func(why string) error { return fmt.Errorf("name %q: %s: %w", as, why, ErrName) }
	parts := strings.Split(as, "/")
	if len(parts) < 2 {
		return bad("no registry")
	}
	last := len(parts) - 1
	repository, tag, ok := strings.Cut(parts[last], ":")
	if !ok {
		return bad("no tag")
	}
	if len(parts[last]) > 255 {
		return bad("longer than 255 bytes")
	}
	if t, platform, ok := strings.Cut(tag, "@"); ok {
		if !partText.MatchString(platform) {
			return bad(fmt.Sprintf("platform %q", platform))
		}
		tag = t
	}
	if !tagText.MatchString(tag) {
		return bad(fmt.Sprintf("tag %q", tag))
	}
	if len(parts[0]) > 255 || !hostText.MatchString(parts[0]) {
		return bad(fmt.Sprintf("registry %q", parts[0]))
	}
	for _, p := range append(parts[1:last:last], repository) {
		if len(p) > 255 || !partText.MatchString(p) {
			return bad(fmt.Sprintf("repository %q", p))
		}
	}
	return nil
}
