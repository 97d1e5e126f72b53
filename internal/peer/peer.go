// Package peer tells whose process is at the other end of a unix socket.
package peer

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Credentials are the rights of a process at the moment it connected, as the kernel tells them: what no list of users knows as well, since a user may
// be known to the network only, and a process may have given groups up.
type Credentials struct {
	UID    int      `json:"uid"`
	GID    int      `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"` // the further ones; a kernel before 4.13 tells none
}

// Of asks the kernel (SO_PEERCRED and SO_PEERGROUPS of unix(7)). A connection that is not of a unix socket is an error.
func Of(c net.Conn) (cred Credentials, err error) {
	u, ok := c.(syscall.Conn)
	if !ok || c.LocalAddr().Network() != "unix" {
		return cred, fmt.Errorf("connection of type %T tells no user", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return cred, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		var p *unix.Ucred
		if p, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			return
		}
		cred.UID, cred.GID = int(p.Uid), int(p.Gid)
		cred.Groups, err = groups(fd)
	})
	return cred, errors.Join(ctlErr, err)
}

// groups asks again with more room if there are more than most have.
func groups(fd uintptr) ([]uint32, error) {
	for list := make([]uint32, 64); ; {
		size := uint32(4 * len(list))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS, uintptr(unsafe.Pointer(&list[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return list[:size/4], nil
		case errno == unix.ENOPROTOOPT:
			return nil, nil
		case errno == unix.ERANGE && int(size) > 4*len(list):
			list = make([]uint32, size/4) // what it takes
		default:
			return nil, errno
		}
	}
}
