package mountd

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/activation"
)

// listen returns the control socket: the one that systemd gives to a unit with a socket unit, else one of the daemon's own. A given
// socket must be the one where commands look for this cache's daemon.
func (d *Daemon) listen() (l net.Listener, given bool, err error) {
	files := activation.Files(true)
	for _, f := range files {
		defer f.Close() // a listener has a descriptor of its own
	}
	switch len(files) {
	case 0:
		l, err = listenUnix(d.place.socket(), d.cfg.Group)
		return l, false, err
	case 1:
	default:
		return nil, false, problem(Usage, "systemd gives %d sockets, want 1: ListenStream=%s", len(files), d.place.socket())
	}
	l, err = net.FileListener(files[0])
	if err != nil {
		return nil, false, fmt.Errorf("control socket from systemd: %w", err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	if at := l.Addr().String(); l.Addr().Network() != "unix" || filepath.Base(at) != filepath.Base(d.place.socket()) || !sameFile(at, d.place.socket()) {
		l.Close()
		return nil, false, problem(Usage, "systemd gives the socket %s, but commands look for cache %q at %s: set ListenStream= to that", at, d.place.cache, d.place.socket())
	}
	return l, true, nil
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
