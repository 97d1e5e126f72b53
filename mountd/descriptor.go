package mountd

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/fusefs"
)

// TargetDevice is fusefs.TargetDevice: the device that a target such as /dev/fd/3 names, nil if the target is a path.
func TargetDevice(target string) (*os.File, error) {
	f, err := fusefs.TargetDevice(target)
	if err != nil {
		return nil, &Error{Usage, err}
	}
	return f, nil
}

// checkDevice checks a request for a device that is mounted already, and gives it a target: a name that no other has.
func (d *Daemon) checkDevice(ctx context.Context, req *MountRequest, device *os.File) error {
	_, member := memberOf(ctx)
	switch {
	case !req.Device:
		return nil
	case member:
		return problem(Permission, "what other programs have mounted is served by a daemon of their user")
	case device == nil:
		return problem(Usage, "no descriptor came along with the request")
	case req.Remount || req.Lease != "":
		return problem(Usage, "what another program mounted can't be remounted, nor end with a lease")
	}
	if err := fusefs.CheckDevice(device); err != nil {
		return &Error{Usage, err}
	}
	req.Target = fmt.Sprintf("fd:%d", d.devices.Add(1))
	return nil
}

// MountDevice is Mount for a FUSE device that is mounted already; the reply tells the name that the daemon gives it. The mount ends when whoever made it
// unmounts it, or with the daemon: nobody can make it again.
func (c *Client) MountDevice(ctx context.Context, req MountRequest, device *os.File) (*MountReply, error) {
	sender := *c
	sender.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // each connection carries the descriptor once
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dialUnix(ctx, c.place.socket())
			if err != nil {
				return nil, err
			}
			return &deviceSender{UnixConn: conn.(*net.UnixConn), device: device}, nil
		},
	}}
	req.Device, req.Target = true, ""
	reply := &MountReply{}
	return reply, sender.do(ctx, http.MethodPost, "/v1/mounts", req, reply)
}

// deviceSender sends a descriptor with the first bytes that are written.
type deviceSender struct {
	*net.UnixConn
	device *os.File // nil once it is sent
}

func (s *deviceSender) Write(b []byte) (int, error) {
	if s.device == nil || len(b) == 0 {
		return s.UnixConn.Write(b)
	}
	n, _, err := s.WriteMsgUnix(b, unix.UnixRights(int(s.device.Fd())), nil)
	if err != nil {
		return n, err
	}
	s.device = nil
	if n < len(b) {
		rest, err := s.UnixConn.Write(b[n:])
		return n + rest, err
	}
	return n, nil
}

// descriptorListener accepts connections over which a descriptor may come.
type descriptorListener struct{ net.Listener }

func (l descriptorListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if u, ok := c.(*net.UnixConn); ok {
		return &descriptorConn{UnixConn: u}, err
	}
	return c, err
}

// descriptorConn keeps the descriptor that came last, until it is taken or the connection closed.
type descriptorConn struct {
	*net.UnixConn

	mu     sync.Mutex // guards what follows
	got    *os.File
	closed bool
}

// maxRights is the room for descriptors of one message; the kernel closes those beyond.
const maxRights = 4

func (c *descriptorConn) Read(b []byte) (int, error) {
	var rights [64]byte
	n, m, _, _, err := c.ReadMsgUnix(b, rights[:unix.CmsgSpace(4*maxRights)])
	if m > 0 {
		c.keep(rights[:m])
	}
	return n, err
}

func (c *descriptorConn) keep(rights []byte) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			c.put(os.NewFile(uintptr(fd), "descriptor"))
		}
	}
}

// put replaces the descriptor that is kept, while the connection is open.
func (c *descriptorConn) put(f *os.File) {
	c.mu.Lock()
	old := f
	if !c.closed {
		old, c.got = c.got, f
	}
	c.mu.Unlock()
	if old != nil {
		old.Close()
	}
}

// take returns the descriptor that came, or nil. It is the caller's from then on.
func (c *descriptorConn) take() *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.got
	c.got = nil
	return f
}

func (c *descriptorConn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	if f := c.take(); f != nil {
		f.Close()
	}
	return c.UnixConn.Close()
}
