package cachedb_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/internal/testkit"
)

// disk is an ext4 in a file, mounted.
type disk struct {
	t           testing.TB
	image, root string
}

func newDisk(t testing.TB, megabytes int64) *disk {
	t.Helper()
	testkit.NeedRoot(t)
	dir := scratchDir(t)
	d := &disk{t: t, image: filepath.Join(dir, "image"), root: filepath.Join(dir, "root")}
	if err := errors.Join(os.WriteFile(d.image, nil, 0o600), os.Truncate(d.image, megabytes<<20), os.Mkdir(d.root, 0o700)); err != nil {
		t.Fatal(err)
	}
	d.run("mkfs.ext4", "-q", "-m", "0", d.image)
	d.mount()
	t.Cleanup(func() { _ = unix.Unmount(d.root, unix.MNT_DETACH) }) // the device goes with the mount
	return d
}

func (d *disk) run(name string, args ...string) {
	d.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func (d *disk) mount() {
	d.t.Helper()
	d.run("mount", "-o", "loop", d.image, d.root)
}

// losePower drops whatever is not on the disk, and the journal's open transaction: from now on every access is an error.
func (d *disk) losePower() {
	d.t.Helper()
	f, err := os.Open(d.root)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	const shutdown, noLogFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
		d.t.Fatalf("shutting down %s: %v", d.root, err)
	}
}

// restart checks the filesystem, as after a boot, and mounts it again. Nobody uses it. It is another file then: where a mount namespace of
// somebody else has the mount as well, the kernel would show the one that lost its power again.
func (d *disk) restart() {
	d.t.Helper()
	d.run("umount", d.root)
	d.run("cp", "--sparse=always", d.image, d.image+".new")
	d.run("mv", d.image+".new", d.image)
	var failed *exec.ExitError
	if out, err := exec.Command("e2fsck", "-fy", d.image).CombinedOutput(); errors.As(err, &failed) && failed.ExitCode() > 1 || err != nil && failed == nil {
		d.t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	d.mount()
}
