package mountd

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// descriptorPair is a connection over which descriptors come, and its other end.
func descriptorPair(t *testing.T) (got *descriptorConn, sender *net.UnixConn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	a, err := descriptorListener{l}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a.(*descriptorConn), c.(*net.UnixConn)
}

// closed reports whether the other end of a pipe is closed everywhere.
func closed(t *testing.T, r *os.File) bool {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(r.Fd()), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, 0); err != nil {
		t.Fatal(err)
	}
	return fds[0].Revents&unix.POLLHUP != 0
}

// TestDescriptorsThatNobodyTakesAreClosed: those of a caller who sends more than one, or who leaves, stay open nowhere.
func TestDescriptorsThatNobodyTakesAreClosed(t *testing.T) {
	conn, sender := descriptorPair(t)
	var pipes []*os.File
	buf := make([]byte, 8)
	send := func() {
		t.Helper()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		if n, err := (&deviceSender{UnixConn: sender, device: w}).Write([]byte("x")); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		w.Close()
		if n, err := conn.Read(buf); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		pipes = append(pipes, r)
	}
	send()
	send()
	if !closed(t, pipes[0]) || closed(t, pipes[1]) {
		t.Error("want the first one closed when the second comes, and that one open")
	}
	f := conn.take()
	if f == nil || conn.take() != nil {
		t.Fatal("want one, once")
	}
	send()
	if closed(t, pipes[1]) {
		t.Error("what was taken is closed")
	}
	f.Close()
	conn.Close()
	if !closed(t, pipes[2]) {
		t.Error("what nobody took outlives the connection")
	}
}
