package fusefs

import (
	"bytes"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	followEvery = 16 // requests
	// followLost is how many looks in a row may find requesters on other CPUs than the last one: then they are many, or move about.
	followLost = 4
	statCPU    = 36 // the field of /proc/TID/stat that is the last CPU, counted from behind the program's name
)

// follower keeps a reader on the CPU of the thread whose requests it reads: a request and its answer then need not wake another CPU.
// It pays where that is dear, as in virtual machines, and a process makes one request after the other. With many
// requesters the reader goes where the scheduler puts it.
type follower struct {
	all   unix.CPUSet
	seen  int // requests
	cpu   int // that it is on; -1 is any
	last  int // CPU of the last requester looked at
	moved int // looks in a row that found another one
	buf   [512]byte
}

// newFollower ties the calling goroutine to its thread, for good: the thread ends with it.
func newFollower() *follower {
	runtime.LockOSThread()
	f := &follower{cpu: -1, last: -1}
	if unix.SchedGetaffinity(0, &f.all) != nil || f.all.Count() < 2 {
		return nil // there is nowhere to go
	}
	return f
}

// note tells of a request by a thread.
func (f *follower) note(thread uint32) {
	if f == nil {
		return
	}
	if f.seen++; f.seen%followEvery != 0 {
		return
	}
	cpu := f.cpuOf(thread)
	if cpu < 0 || !f.all.IsSet(cpu) {
		return
	}
	if cpu == f.last {
		f.moved = 0
	} else if f.last >= 0 {
		f.moved = min(f.moved+1, followLost)
	}
	f.last = cpu
	want := cpu
	if f.moved == followLost {
		want = -1
	}
	if want == f.cpu {
		return
	}
	set := f.all
	if want >= 0 {
		set.Zero()
		set.Set(want)
	}
	if unix.SchedSetaffinity(0, &set) == nil {
		f.cpu = want
	}
}

// cpuOf returns the CPU that a thread ran on last, -1 if that can't be told.
func (f *follower) cpuOf(thread uint32) int {
	path := append(strconv.AppendUint(append(f.buf[:0], "/proc/"...), uint64(thread), 10), "/stat"...)
	file, err := os.Open(string(path))
	if err != nil {
		return -1
	}
	n, _ := file.Read(f.buf[:])
	file.Close()
	return lastCPU(f.buf[:n])
}

// lastCPU reads a line of /proc/TID/stat; -1 is a line that isn't one.
func lastCPU(stat []byte) int {
	_, rest, _ := bytes.Cut(stat[max(bytes.LastIndexByte(stat, ')'), 0):], []byte(" "))
	for i := 0; ; i++ {
		field, next, more := bytes.Cut(rest, []byte(" "))
		if i == statCPU {
			if cpu, err := strconv.Atoi(string(field)); err == nil && cpu >= 0 {
				return cpu
			}
			return -1
		}
		if !more {
			return -1
		}
		rest = next
	}
}
