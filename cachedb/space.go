package cachedb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	openRoom  = 256 << 20 // free bytes badger finds when it opens, on partitions that have them
	freeValid = 20 * time.Millisecond
)

// space watches the free bytes of the partition, or of memory.
type space struct {
	measure func() (total, free int64, err error)
	total   int64
	reserve int64 // free bytes that objects leave alone; the index may use half of them

	mu    sync.Mutex // guards what follows
	asked time.Time
	last  int64
}

func newSpace(measure func() (total, free int64, err error)) (*space, error) {
	s := &space{measure: measure, asked: time.Now()}
	var err error
	if s.total, s.last, err = measure(); err != nil {
		return nil, err
	}
	s.reserve = min(256<<20, max(16<<20, s.total/16))
	return s, nil
}

// partitionFree measures the partition of dir, in bytes.
func partitionFree(dir string) func() (total, free int64, err error) {
	return func() (total, free int64, err error) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return 0, 0, fmt.Errorf("free space of %q: %w", dir, err)
		}
		return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
	}
}

// free returns the partition's free bytes, at most freeValid old. If they can't be had, there are none.
func (s *space) free() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.asked) > freeValid {
		_, s.last, _ = s.measure()
		s.asked = time.Now()
	}
	return s.last
}

// take accounts for n bytes being written (n < 0: freed) until the partition is asked again.
func (s *space) take(n int64) {
	s.mu.Lock()
	s.last -= n
	s.mu.Unlock()
}

// forget makes the next free ask the partition.
func (s *space) forget() {
	s.mu.Lock()
	s.asked = time.Time{}
	s.mu.Unlock()
}

// indexMayClose reports whether there is room for the tables that badger writes when it closes.
func (s *space) indexMayClose() bool { return s.free() >= s.reserve/2 }

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// freeForOpen makes room for badger to open in, removing packs and chunk files while nobody knows which are hot.
// It returns the number of files removed.
func (s *space) freeForOpen(dir string) (removed int, err error) {
	want := min(openRoom, s.total/4)
	enough := func() bool {
		s.forget()
		return s.free() >= want
	}
	if enough() {
		return 0, nil
	}
	for _, pattern := range []string{"tmp/*", "packs/*.pack", "chunks/*/*"} {
		files, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, f := range files {
			if os.Remove(f) == nil {
				removed++
			}
			if enough() {
				return removed, nil
			}
		}
	}
	if s.free() < s.reserve {
		return removed, fmt.Errorf("partition of %q has %d bytes free: %w", dir, s.free(), ErrFull)
	}
	return removed, nil
}

// diskUsage is what du says of the files below dirs.
func diskUsage(dirs ...string) (n int64) {
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil && unix.Lstat(path, &st) == nil {
				n += st.Blocks * 512
			}
			return nil // what vanishes meanwhile uses nothing
		})
	}
	return n
}
