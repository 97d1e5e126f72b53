package cachedb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// asideDir is where a cache goes that can't be opened, below its own directory: for whoever wants to know why. It counts as the index does,
// and is the first to leave when there is need for room.
const asideDir = "damaged"

// spoiled reports whether it is what the directory holds that kept a cache from being opened, rather than what its surroundings allow.
func spoiled(err error) bool {
	for _, e := range []error{errDamaged, errRecord, unix.ENOTDIR, unix.EISDIR, unix.EEXIST, unix.ENOTEMPTY, unix.ELOOP} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// moveAside moves all that is in dir below asideDir but the state records, if they can be read, and returns where it is now.
func moveAside(dir string) (string, error) {
	aside := filepath.Join(dir, asideDir)
	if err := errors.Join(os.RemoveAll(aside), os.Mkdir(aside, 0o700)); err != nil {
		return "", err
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, e := range list {
		if _, err := readStateFile(filepath.Join(dir, e.Name())); e.Name() == asideDir || e.Name() == "state" && err == nil {
			continue
		}
		if err := os.Rename(filepath.Join(dir, e.Name()), filepath.Join(aside, e.Name())); err != nil {
			return "", fmt.Errorf("moving a cache aside: %w", err)
		}
	}
	return aside, syncDir(dir)
}

// dropAside removes what was moved aside, and returns the bytes that frees.
func (db *DB) dropAside() (freed int64) {
	for _, name := range []string{asideDir, "index.damaged"} {
		dir := filepath.Join(db.dir, name)
		n := diskUsage(dir)
		if n == 0 {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			db.log.Warn("removing what was moved aside", "dir", dir, "err", err)
			continue
		}
		freed += n
	}
	if freed > 0 {
		db.measureIndex()
		db.quota.freed.Add(freed)
		db.space.forget()
	}
	return freed
}
