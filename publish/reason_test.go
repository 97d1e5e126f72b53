package publish_test

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"syscall"
	"testing"

	"github.com/skimfs/skimfs/publish"
)

func TestWhy(t *testing.T) {
	_, missing := os.Stat("/does/not/exist")
	for _, row := range []struct {
		claim string
		err   error
		want  publish.Reason
	}{
		{"a missing file stays missing", missing, publish.ImageNotFound},
		{"so does what may not be read", &os.PathError{Op: "open", Path: "x", Err: syscall.EACCES}, publish.PermissionDenied},
		{"a refused connection may be taken later", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, publish.RegistryUnavailable},
		{"a broken answer may come whole later", &url.Error{Op: "Get", URL: "http://r", Err: io.EOF}, publish.RegistryUnavailable},
		{"time may suffice later", os.ErrDeadlineExceeded, publish.RegistryUnavailable},
		{"a full disk is a full disk", &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, publish.NoSpace},
		{"a file is no source of a directory", &os.PathError{Op: "stat", Path: "x", Err: syscall.ENOTDIR}, publish.InvalidArgument},
		{"anything else is ours", io.ErrClosedPipe, publish.Internal},
	} {
		if got := publish.Why(fmt.Errorf("reading: %w", row.err)); got != row.want {
			t.Errorf("%s: %v is %v, want %v", row.claim, row.err, got, row.want)
		}
	}
}
