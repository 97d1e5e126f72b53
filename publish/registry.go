package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/skimfs/skimfs/index"
)

// registry is a repository at a registry, logged in to.
type registry struct {
	repo   name.Repository
	puller *remote.Puller
	client *http.Client
	limit  time.Duration // for a manifest, or to log in

	transport http.RoundTripper
	patient   bool // a 429 is an invitation to ask again, not the end
}

// DefaultRegistryTimeout is how long a registry may take for a manifest, or to log in.
const DefaultRegistryTimeout = time.Minute

func openRegistry(ctx context.Context, text string, want choice) ([]*image, string, io.Closer, error) {
	ref, err := name.ParseReference(text)
	if err != nil {
		return nil, "", nil, err
	}
	puller, err := remote.NewPuller(want.options()...)
	if err != nil {
		return nil, "", nil, err
	}
	b := &registry{repo: ref.Context(), puller: puller, limit: want.timeout, transport: want.roundTripper(), patient: want.transport == nil}
	got, err := b.get(ctx, ref)
	if err != nil {
		return nil, "", nil, err
	}
	if err := b.login(ctx); err != nil {
		return nil, "", nil, err
	}
	images, err := pick(ctx, b, got.Manifest, got.MediaType, want)
	if err != nil {
		return nil, "", nil, err
	}
	as, err := canonicalName(text)
	return images, as, b, err
}

// get reads a manifest in bounded time: a registry may accept a connection and say nothing.
func (r *registry) get(ctx context.Context, ref name.Reference) (*remote.Descriptor, error) {
	limited, cancel := context.WithTimeoutCause(ctx, r.limit, fmt.Errorf("registry %s did not answer within %v: %w", r.repo.RegistryStr(), r.limit, errSilent))
	defer cancel()
	got, err := r.puller.Get(limited, ref)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		return nil, context.Cause(limited)
	}
	return got, err
}

// login makes the client that reads blobs: with the credentials of docker's config, which go to the registry alone.
func (r *registry) login(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, r.repo)
	if err != nil {
		return err
	}
	t, err := transport.NewWithContext(ctx, r.repo.Registry, auth, r.transport, []string{r.repo.Scope(transport.PullScope)})
	if err != nil {
		return err
	}
	r.client = &http.Client{Transport: t}
	return nil
}

func (r *registry) manifest(ctx context.Context, desc v1.Descriptor) ([]byte, error) {
	m, err := r.get(ctx, r.repo.Digest(desc.Digest.String()))
	if err != nil {
		return nil, err
	}
	return m.Manifest, nil
}

func (*registry) Close() error { return nil }

func (r *registry) open(ctx context.Context, d index.Digest, size int64) (io.ReadCloser, error) {
	b := &remoteBlob{ctx: ctx, r: r, size: size}
	b.url = fmt.Sprintf("%s://%s/v2/%s/blobs/%s", r.repo.Scheme(), r.repo.RegistryStr(), r.repo.RepositoryStr(), d)
	return b, b.connect()
}

const (
	blobAttempts = 6                // in a row without a byte
	blobStall    = 60 * time.Second // without a byte
)

// remoteBlob reads a blob and goes on where it was when a connection breaks.
type remoteBlob struct {
	ctx    context.Context // of the conversion that reads
	r      *registry
	url    string
	at     int64
	size   int64
	body   io.ReadCloser
	cancel context.CancelFunc
	stall  *time.Timer
	failed int // attempts since the last byte
}

// connect asks for the rest of the blob, several times if it must.
func (b *remoteBlob) connect() error {
	for {
		err := b.request()
		if err == nil {
			return nil
		}
		if err := b.again(err); err != nil {
			return err
		}
	}
}

// again waits before the next attempt, or returns err if there is none.
func (b *remoteBlob) again(err error) error {
	var te *transport.Error
	if errors.As(err, &te) && (!te.Temporary() && te.StatusCode < 500 || te.StatusCode == http.StatusTooManyRequests && !b.r.patient) {
		return err
	}
	if b.failed++; b.failed >= blobAttempts {
		return err
	}
	select {
	case <-b.ctx.Done():
		return b.ctx.Err()
	case <-time.After(100 * time.Millisecond << b.failed):
		return nil
	}
}

func (b *remoteBlob) request() error {
	b.Close()
	ctx, cancel := context.WithCancel(b.ctx)
	b.cancel, b.stall = cancel, time.AfterFunc(blobStall, cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url, nil)
	if err != nil {
		return err
	}
	if b.at > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.at, b.size-1))
	}
	resp, err := b.r.client.Do(req)
	if err != nil {
		return err
	}
	b.body = resp.Body
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		return err
	}
	if b.at > 0 && resp.StatusCode == http.StatusOK {
		// This registry knows no ranges: skip what was read.
		_, err = io.CopyN(io.Discard, moving{b}, b.at)
	}
	return err
}

// moving reads a blob's body as it comes and notes that it moves.
type moving struct{ b *remoteBlob }

func (m moving) Read(p []byte) (int, error) {
	m.b.stall.Reset(blobStall)
	return m.b.body.Read(p)
}

func (b *remoteBlob) Read(p []byte) (int, error) {
	for {
		b.stall.Reset(blobStall)
		n, err := b.body.Read(p)
		b.at += int64(n)
		if n > 0 {
			b.failed = 0
			return n, nil
		}
		if err == nil {
			return 0, nil
		}
		if errors.Is(err, io.EOF) {
			if b.at >= b.size {
				return 0, io.EOF
			}
			err = io.ErrUnexpectedEOF
		}
		if b.ctx.Err() != nil {
			return 0, b.ctx.Err()
		}
		if err := b.again(fmt.Errorf("GET %s: %w", b.url, err)); err != nil {
			return 0, err
		}
		if err := b.connect(); err != nil {
			return 0, err
		}
	}
}

func (b *remoteBlob) Close() error {
	if b.cancel != nil {
		b.stall.Stop()
		b.cancel()
	}
	if b.body != nil {
		return b.body.Close()
	}
	return nil
}

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
