package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// image is one of the images measured, unpacked once for the contestants that need it so.
type image struct {
	name       string
	layout     string // OCI layout, tag "latest"
	packed     int64  // bytes of its layers as they are shipped
	root       string // the files
	files      int64  // with directories
	bytes      int64  // of regular files
	small      string // file with the paths of the small files, each ended by NUL
	smallFiles int64
	smallBytes int64
	works      []work
	// warm has the squid and the node that have everything read it; by default all is read.
	warm func(s *scope, root string)
	// discard has the layout removed when a registry has it.
	discard bool
}

// newImage describes the image tagged "latest" in a layout, whose files are below root.
func newImage(s *scope, name, layout, root string) *image {
	i := &image{name: name, layout: layout, root: root}
	_, i.packed = measureTree(s, filepath.Join(layout, "blobs"))
	i.files, i.bytes = measureTree(s, i.root)
	var list bytes.Buffer
	s.check(filepath.WalkDir(i.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Size() > smallLimit {
			return err
		}
		rel, err := filepath.Rel(i.root, path)
		list.WriteString(rel + "\x00")
		i.smallFiles++
		i.smallBytes += info.Size()
		return err
	}))
	i.small = filepath.Join(s.TempDir(), "small")
	s.check(os.WriteFile(i.small, list.Bytes(), 0o644))
	return i
}

// unpack is testkit.Unpack without its limit of time, for gzip layers.
func unpack(s *scope, layout string) string {
	bundle := filepath.Join(s.TempDir(), "bundle")
	args := []string{"unpack", "--image", layout + ":latest", bundle}
	if os.Getuid() != 0 {
		args = append(args, "--rootless")
	}
	run(s, testkit.Program(s, "umoci"), args...)
	return filepath.Join(bundle, "rootfs")
}

func (i *image) has(path string) bool {
	_, err := os.Lstat(filepath.Join(i.root, path))
	return err == nil
}

// link is the way to the servers.
type link struct {
	rtt  time.Duration
	mbit float64 // 10^6 bit/s, 0 for no limit
}

func (l link) String() string {
	text := ""
	if l.rtt > 0 {
		text = l.rtt.String()
	}
	if l.mbit > 0 {
		if text != "" {
			text += ", "
		}
		text += strconv.FormatFloat(l.mbit, 'g', -1, 64) + " Mbit/s"
	}
	return text
}

// to returns the address of a server as seen through the link.
func (l link) to(s *scope, addr string) string {
	if l == (link{}) {
		return addr
	}
	return testkit.NewDelayProxy(s, addr, l.rtt, l.mbit).Addr
}
