package cachedb

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ram holds objects of a cache without a disk: a file in memory that has no name and ends with the process. Objects begin at page boundaries,
// at offsets that are not used again; what is removed leaves a hole. So nothing is fragmented, and an object takes its pages and no more.
type ram struct {
	f      *os.File
	next   atomic.Int64 // where the next object goes
	stripe [stripes]ramStripe
}

// ramStripe is the part of the objects whose digests share it.
type ramStripe struct {
	mu sync.RWMutex // guards at; held while an object is copied, so that none leaves under a read
	at map[key]int64
}

func newRAM() (*ram, error) {
	fd, err := unix.MemfdCreate("skimfs-cache", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for the cache: %w", err)
	}
	m := &ram{f: os.NewFile(uintptr(fd), "skimfs-cache")}
	for i := range m.stripe {
		m.stripe[i].at = map[key]int64{}
	}
	return m, nil
}

func (m *ram) of(k key) *ramStripe { return &m.stripe[k[1]%stripes] }

func pages(size int) int64 { return (int64(size) + fsBlock - 1) &^ (fsBlock - 1) }

// write brings plain to memory; nobody finds it before it is named.
func (m *ram) write(plain []byte) (off int64, err error) {
	n := pages(len(plain))
	off = m.next.Add(n) - n
	if _, err := m.f.WriteAt(plain, off); err != nil {
		err = errors.Join(err, m.free(off, n))
		if errors.Is(err, unix.ENOMEM) {
			err = fmt.Errorf("%w: %w", unix.ENOSPC, err)
		}
		return 0, err
	}
	return off, nil
}

func (m *ram) name(k key, off int64) {
	s := m.of(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at[k] = off
}

// writeRAM puts an object into memory, and into the table; kept is false if it came there meanwhile.
func (db *DB) writeRAM(k key, l loc, plain []byte) (kept bool, err error) {
	off, err := db.ram.write(plain)
	if err != nil {
		return false, err
	}
	defer db.chunks.lock(k).Unlock()
	if _, ok := db.table.get(k, true); ok {
		return false, db.ram.free(off, pages(len(plain)))
	}
	db.ram.name(k, off)
	db.table.add(k, l)
	return true, nil
}

func (m *ram) free(off, n int64) error {
	return unix.Fallocate(int(m.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// remove forgets an object of size bytes and gives its memory back.
func (m *ram) remove(k key, size int) error {
	s := m.of(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	off, ok := s.at[k]
	if !ok {
		return nil
	}
	delete(s.at, k)
	return m.free(off, pages(size))
}

// read fills b from offset off of the object.
func (m *ram) read(k key, b []byte, off int64) error {
	s := m.of(k)
	s.mu.RLock()
	defer s.mu.RUnlock()
	at, ok := s.at[k]
	if !ok {
		return errGone
	}
	return readFull(m.f, b, at+off)
}

// memoryFree is the memory of this machine, and what of it a program could have without others being swapped out, in bytes.
func memoryFree() (total, free int64, err error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		for name, n := range map[string]*int64{"MemTotal:": &total, "MemAvailable:": &free} {
			if value, ok := strings.CutPrefix(line, name); ok {
				if _, err := fmt.Sscan(value, n); err != nil {
					return 0, 0, fmt.Errorf("/proc/meminfo: %q: %w", line, err)
				}
				*n *= 1024
			}
		}
	}
	return total, free, nil
}
