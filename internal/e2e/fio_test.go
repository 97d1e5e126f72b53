package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
)

// TestReadEngines: fio finds every block of its own as it wrote it, whichever way a program reads: by all kinds of read(2), by mmap, by
// splice, asynchronously, past the page cache. Of the suites for filesystems it is the one that needs no writable one: pjdfstest and
// xfstests make what they test.
func TestReadEngines(t *testing.T) {
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	const (
		name = "local/blocks:latest"
		size = "--size=6M" // of several chunks
	)
	dir := t.TempDir()
	verified := []string{"--name=blocks", size, "--bs=4k", "--verify=crc32c", "--output=" + filepath.Join(dir, "report"), "--aux-path=" + dir}
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "fio", append(verified, "--filename="+filepath.Join(tree, "blocks"), "--rw=write", "--do_verify=0", "--verify_state_save=0")...)
	repo := publish(t, image{"dir:" + tree, name, []string{"--bare"}})
	n := newNode(t)
	mounted := n.mount(t, repo, testkit.StartNginx(t, repo.dir).URL, name, "")
	for _, engine := range []struct {
		name  string
		flags []string
	}{
		{"read", []string{"--ioengine=sync"}},
		{"pread past the page cache", []string{"--ioengine=psync", "--direct=1"}},
		{"preadv2", []string{"--ioengine=pvsync2"}},
		{"mmap", []string{"--ioengine=mmap"}},
		{"splice", []string{"--ioengine=splice"}},
		{"POSIX aio", []string{"--ioengine=posixaio", "--iodepth=8"}},
		{"Linux aio past the page cache", []string{"--ioengine=libaio", "--iodepth=8", "--direct=1"}},
		{"io_uring", []string{"--ioengine=io_uring", "--iodepth=8"}},
		{"four at once", []string{"--ioengine=psync", "--numjobs=4", "--thread"}},
	} {
		t.Run(engine.name, func(t *testing.T) {
			testkit.Run(t, "fio", append(append(verified[:len(verified):len(verified)], engine.flags...),
				"--filename="+filepath.Join(mounted, "blocks"), "--rw=randread", "--readonly", "--allow_file_create=0", "--invalidate=1")...)
		})
	}
}
