package mountd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/fetch"
	"github.com/skimfs/skimfs/index"
)

// Kind says what sort of problem ended a request. Advice and exit status hang on it.
type Kind string

const (
	Usage       Kind = "usage"       // the request makes no sense
	Permission  Kind = "permission"  // not for this user
	NoKey       Kind = "no-key"      // no public key to trust the repository by
	WrongKey    Kind = "wrong-key"   // signed by another key
	Expired     Kind = "expired"     // the whitelist is out of time
	Revoked     Kind = "revoked"     // by the whitelist
	Rollback    Kind = "rollback"    // older than what was accepted before
	Unreachable Kind = "unreachable" // no server answered, or only to refuse
	Damaged     Kind = "damaged"     // servers answered, with something that is missing or wrong
	NotFound    Kind = "not-found"   // the repository has no such path
	Target      Kind = "target"      // the target directory can't be mounted on
	Busy        Kind = "busy"        // something is mounted there, or is in use
	NotMounted  Kind = "not-mounted" // nothing of ours is mounted there
	NoFuse      Kind = "no-fuse"     // the kernel's FUSE device can't be had
	Conflict    Kind = "conflict"    // the running daemon has other settings
	CacheFailed Kind = "cache"       // the cache can't be opened
	NoDaemon    Kind = "no-daemon"   // no daemon answers and none may be started
	Stopping    Kind = "stopping"    // the daemon is about to end
	Interrupted Kind = "interrupted" // the caller left
	System      Kind = "system"      // the system refused something else
	Internal    Kind = "internal"    // a fault of this program
)

// Error is a problem with its kind. It crosses the control socket.
type Error struct {
	Kind Kind
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func problem(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Err: fmt.Errorf(format, args...)}
}

// KindOf returns the kind of err: its own, or one guessed from its cause.
func KindOf(err error) Kind {
	var own *Error
	var transfer *fetch.Error
	switch {
	case errors.As(err, &own):
		return own.Kind
	case errors.Is(err, context.Canceled):
		return Interrupted
	case errors.Is(err, errRollback):
		return Rollback
	case errors.Is(err, index.ErrRevoked):
		return Revoked
	case errors.Is(err, index.ErrExpired):
		return Expired
	case errors.Is(err, index.ErrSignature):
		return WrongKey
	case errors.As(err, &transfer):
		if transfer.Answered() {
			return Damaged
		}
		return Unreachable
	case errors.Is(err, context.DeadlineExceeded):
		return Unreachable
	case errors.Is(err, cachedb.ErrInUse), errors.Is(err, cachedb.ErrFull), errors.Is(err, cachedb.ErrLayout), errors.Is(err, errNetworkFS):
		return CacheFailed
	case errors.Is(err, index.ErrFormat):
		return Damaged
	case errors.Is(err, fs.ErrNotExist):
		return NotFound
	case errors.Is(err, fs.ErrPermission):
		return Permission
	}
	return System
}
