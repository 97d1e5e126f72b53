package fusefs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/fusefs/direct"
)

// deviceNumber is that of /dev/fuse.
var deviceNumber = unix.Mkdev(10, 229)

// TargetDevice returns the open FUSE device that a target such as /dev/fd/3 names: somebody mounted it and left the serving to us, as apptainer's
// --fusemount and libfuse's helpers do. nil says that the target is no such thing but a path.
func TargetDevice(target string) (*os.File, error) {
	fd, ok := direct.Descriptor(target)
	if !ok {
		return nil, nil
	}
	dev, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("target %q is no open descriptor: %w", target, err)
	}
	f := os.NewFile(uintptr(dev), target)
	if err := CheckDevice(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("target %q: %w", target, err)
	}
	return f, nil
}

// CheckDevice checks that f is a FUSE device.
func CheckDevice(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != deviceNumber {
		return errors.New("the descriptor is not of " + direct.Device)
	}
	return nil
}
