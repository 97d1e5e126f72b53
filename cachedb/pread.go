package cachedb

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readFull reads all of b. A short file is damage, as what was promised is not there.
func readFull(f *os.File, b []byte, off int64) error {
	n := readResident(f, b, off)
	if n == len(b) {
		return nil
	}
	if _, err := f.ReadAt(b[n:], off+int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("file is short: %w", errDamaged)
		}
		return err
	}
	return nil
}

// readResident reads what of b the page cache holds, without waiting for a disk: what the kernel can't do so, some filesystems nothing, is
// left. As the call is short Go's scheduler isn't told of it. To it a thread that comes back from a call, having lost his CPU meanwhile, is
// last in a queue, where it may wait for slices of 10 ms if all CPUs are busy.
func readResident(f *os.File, b []byte, off int64) int {
	if len(b) == 0 {
		return 0
	}
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	n, _, errno := syscall.RawSyscall6(unix.SYS_PREADV2, f.Fd(), uintptr(unsafe.Pointer(&v)), 1, uintptr(off), uintptr(off>>32), unix.RWF_NOWAIT)
	runtime.KeepAlive(f)
	if errno != 0 {
		return 0
	}
	return int(n)
}
