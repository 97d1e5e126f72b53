package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// native is a directory on an ext4 of its own, in a file: mounting that gives fresh kernel caches
// without dropping those of the whole machine. Cold means that the disk is read.
type native struct{ image, dir string }

// newNative makes an ext4 of the tree below root.
func newNative(s *scope, root string) *native {
	dir := s.TempDir()
	n := &native{filepath.Join(dir, "ext4"), filepath.Join(dir, "mnt")}
	s.check(os.Mkdir(n.dir, 0o755))
	files, bytes := measureTree(s, root)
	// Room for blocks half used, and for ext4's own tables.
	run(s, "mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-N", fmt.Sprint(files*5/4+1000), "-d", root,
		n.image, fmt.Sprintf("%dK", (bytes*11/10+files*(4096+512))>>10+64<<10))
	return n
}

// measureTree counts the files below root, directories included, and their bytes.
func measureTree(s *scope, root string) (files, bytes int64) {
	s.check(filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		files++
		if d.Type().IsRegular() && err == nil {
			bytes += info.Size()
		}
		return err
	}))
	return files, bytes
}

func (n *native) name() string       { return "native" }
func (n *native) states() []state    { return []state{cold, cached} }
func (n *native) usage(*scope) usage { return usage{} }

func (n *native) enter(s *scope, st state) {
	if st == cold {
		dropPages(s, n.image)
	} else {
		readPages(s, n.image)
	}
}

func (n *native) mount(s *scope) string {
	run(s, "mount", "-t", "ext4", "-o", "loop,ro", n.image, n.dir)
	s.Cleanup(func() { unmount(n.dir) })
	return n.dir
}
