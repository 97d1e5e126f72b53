package index

import (
	"errors"
	"fmt"
)

var (
	// ErrFormat marks bytes that break the format; the wrapping text names the place.
	ErrFormat = errors.New("malformed")
	// ErrSignature marks a note that no accepted key signed.
	ErrSignature = errors.New("not signed by an accepted key")
	// ErrExpired marks a whitelist outside its time.
	ErrExpired = errors.New("expired")
	// ErrRevoked marks a key, root or revision that the whitelist revokes.
	ErrRevoked = errors.New("revoked")
)

// DigestError reports content that is not what its digest promises.
type DigestError struct{ Want, Got Digest }

func (e *DigestError) Error() string {
	return fmt.Sprintf("content has digest %v, want %v", e.Got, e.Want)
}
