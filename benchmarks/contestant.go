package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/internal/testkit"
)

// state is how warm the caches are when work begins.
type state string

const (
	cold   state = "cold"   // nothing on the node, nothing in the proxy
	squid  state = "squid"  // nothing on the node, everything in the proxy
	cached state = "cached" // everything in the node's cache, on a fresh mount
	hot    state = "hot"    // again on the same mount
)

// contestant shows an image as a directory.
type contestant interface {
	name() string
	// states are those it can be brought into; hot follows from cached.
	states() []state
	// enter brings it into a state, all but the mount. Its end comes with the scope's.
	enter(*scope, state)
	// mount is timed. It returns the root of the image, unmounted at the end of the scope.
	mount(*scope) string
	// usage returns what has been used since the start of the server.
	usage(*scope) usage
}

// rememberer is a contestant with a server whose memory is of interest.
type rememberer interface {
	// memory returns the bytes of anonymous memory that the server has resident.
	memory(*scope) int64
}

// usage is what a server consumes.
type usage struct {
	cpu      float64 // seconds, user and system
	requests int64   // over the network
	bytes    int64   // received over the network
}

func (u usage) since(before usage) usage {
	return usage{u.cpu - before.cpu, u.requests - before.requests, u.bytes - before.bytes}
}

// unmount takes a mount away, at once for whoever looks it up if it is still in use.
func unmount(dir string) {
	for range 50 {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if !errors.Is(err, unix.EBUSY) {
			return
		}
		time.Sleep(20 * time.Millisecond) // a reader that has just ended
	}
	unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

// awaitMount waits for a mount to appear at dir; it reads the kernel's table and touches no mount.
func awaitMount(s *scope, dir string, p *service) {
	for {
		points, err := testkit.MountsBelow(filepath.Dir(dir))
		s.check(err)
		for _, point := range points {
			if point == dir {
				return
			}
		}
		select {
		case <-p.done:
			s.Fatalf("%s ended before it mounted", p.cmd.Path)
		case <-time.After(500 * time.Microsecond):
		}
	}
}

// userHz is the unit of times in /proc/PID/stat, the same on all Linux systems of today.
const userHz = 100

// cpuSeconds returns the processor time that a process has used.
func cpuSeconds(s *scope, pid int) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	s.check(err)
	// The name in parentheses may hold blanks.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(string(field), 10, 64)
		s.check(err)
		ticks += n
	}
	return float64(ticks) / userHz
}

// anonymous returns the bytes of anonymous memory that a process has resident.
func anonymous(s *scope, pid int) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	s.check(err)
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "Anonymous:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			s.check(err)
			return kib << 10
		}
	}
	s.Fatalf("/proc/%d/smaps_rollup has no line Anonymous", pid)
	return 0
}

// dropPages writes a file back and has the kernel forget its content.
func dropPages(s *scope, path string) {
	f, err := os.Open(path)
	s.check(err)
	defer f.Close()
	s.check(f.Sync())
	s.check(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// readPages has the kernel keep a file's content in memory.
func readPages(s *scope, path string) { run(s, "cat", path) }
