package main

import (
	"os"
	"path/filepath"

	"github.com/skimfs/skimfs/internal/testkit"
)

// squashfuse is what a node without setuid programs mounts an image file with. Cold means that the
// disk is read; that the whole file must be on it first isn't counted.
type squashfuse struct {
	program, image, dir string
	service             *service
}

// newSquashfuse makes a squashfs of the tree below root.
func newSquashfuse(s *scope, root string) *squashfuse {
	dir := s.TempDir()
	q := &squashfuse{program: testkit.Program(s, "squashfuse_ll"), image: filepath.Join(dir, "image.sqfs"), dir: filepath.Join(dir, "mnt")}
	s.check(os.Mkdir(q.dir, 0o755))
	run(s, testkit.Program(s, "mksquashfs"), root, q.image, "-quiet", "-no-progress", "-comp", "zstd", "-Xcompression-level", "3")
	return q
}

func (q *squashfuse) name() string          { return "squashfuse" }
func (q *squashfuse) states() []state       { return []state{cold, cached} }
func (q *squashfuse) memory(s *scope) int64 { return anonymous(s, q.service.pid()) }

func (q *squashfuse) usage(s *scope) usage {
	if q.service == nil {
		return usage{} // it starts with the mount
	}
	return usage{cpu: cpuSeconds(s, q.service.pid())}
}

func (q *squashfuse) enter(s *scope, st state) {
	q.service = nil
	if st == cold {
		dropPages(s, q.image)
	} else {
		readPages(s, q.image)
	}
}

func (q *squashfuse) mount(s *scope) string {
	q.service = startService(s, command(s.ctx, q.program, "-f", q.image, q.dir))
	s.Cleanup(func() {
		unmount(q.dir)
		q.service.end()
	})
	awaitMount(s, q.dir, q.service)
	return q.dir
}
