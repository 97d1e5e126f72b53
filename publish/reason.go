package publish

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/index"
)

// Reason says in one word why a publish ended without an image.
type Reason string

const (
	ImageNotFound       Reason = "IMAGE_NOT_FOUND"      // the source has no such image
	PlatformNotFound    Reason = "PLATFORM_NOT_FOUND"   // not for this platform
	AuthRequired        Reason = "AUTH_REQUIRED"        // the registry wants other credentials
	PermissionDenied    Reason = "PERMISSION_DENIED"    // a file can't be read
	InvalidArgument     Reason = "INVALID_ARGUMENT"     // no source can be called so
	UnsupportedMedia    Reason = "UNSUPPORTED_MEDIA"    // not an image that we can read
	CorruptLayer        Reason = "CORRUPT_LAYER"        // bytes that don't match their digest, or no tar archive
	LimitExceeded       Reason = "LIMIT_EXCEEDED"       // above a ceiling
	RepositoryUnusable  Reason = "REPOSITORY_UNUSABLE"  // keys or whitelist don't allow to sign
	RateLimited         Reason = "RATE_LIMITED"         // the registry says: later
	RegistryUnavailable Reason = "REGISTRY_UNAVAILABLE" // it doesn't answer, or answers with its own fault
	NoSpace             Reason = "NO_SPACE"             // the disk is full
	Cancelled           Reason = "CANCELLED"            // the caller left
	Internal            Reason = "INTERNAL"             // anything else
)

// Temporary reports whether the same may succeed later without anybody's doing.
func (r Reason) Temporary() bool {
	switch r {
	case RateLimited, RegistryUnavailable, NoSpace:
		return true
	}
	return false
}

// Why returns the reason of an error of this package.
func Why(err error) Reason {
	var te *transport.Error
	var digest *index.DigestError
	var platform *PlatformError
	var limit *LimitError
	var corrupt *corruptError
	var key *KeyError
	var white *WhitelistError
	var badName *name.ErrBadName
	var web *url.Error
	var timeout net.Error // an errno is one as well, hence the question below
	var op *net.OpError
	switch {
	case errors.Is(err, context.Canceled):
		return Cancelled
	case errors.As(err, &te):
		return whyHTTP(te)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return NoSpace
	case errors.As(err, &key), errors.As(err, &white), errors.Is(err, index.ErrSignature):
		return RepositoryUnusable
	case errors.As(err, &platform):
		return PlatformNotFound
	case errors.As(err, &limit):
		return LimitExceeded
	case errors.As(err, &digest), errors.As(err, &corrupt):
		return CorruptLayer
	case errors.As(err, &badName), errors.Is(err, ErrName), errors.Is(err, unix.ENOTDIR):
		return InvalidArgument
	case errors.Is(err, ErrForbidden):
		return PermissionDenied
	case errors.Is(err, errUnsupported):
		return UnsupportedMedia
	case errors.Is(err, errSilent), errors.As(err, &web), errors.As(err, &timeout) && timeout.Timeout(), errors.As(err, &op), errors.Is(err, context.DeadlineExceeded), errors.Is(err, io.ErrUnexpectedEOF):
		return RegistryUnavailable
	case errors.Is(err, fs.ErrNotExist):
		return ImageNotFound
	case errors.Is(err, fs.ErrPermission):
		return PermissionDenied
	}
	return Internal
}

func whyHTTP(te *transport.Error) Reason {
	switch {
	case te.StatusCode == http.StatusUnauthorized, te.StatusCode == http.StatusForbidden:
		return AuthRequired
	case te.StatusCode == http.StatusNotFound:
		return ImageNotFound
	case te.StatusCode == http.StatusTooManyRequests:
		return RateLimited
	case te.StatusCode >= 500, te.StatusCode == http.StatusRequestTimeout:
		return RegistryUnavailable
	}
	return Internal
}

// ErrForbidden marks an address that the caller's transport refuses to ask.
var ErrForbidden = errors.New("address is not allowed")

var (
	errUnsupported = errors.New("not supported")
	errSilent      = errors.New("no answer in time")
)

// corruptError marks what was wrong with a layer that arrived whole.
type corruptError struct{ err error }

func (e *corruptError) Error() string { return e.err.Error() }
func (e *corruptError) Unwrap() error { return e.err }

// parseReference reads a reference to an image at a registry.
func parseReference(text string) (name.Reference, error) { return name.ParseReference(text) }
