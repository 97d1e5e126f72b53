package testkit_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/internal/testkit"
)

// sampleTree makes the same tree each time, but for its inodes.
func sampleTree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	path := func(name string) string { return filepath.Join(root, name) }
	must(os.WriteFile(path("file"), []byte("content"), 0o640))
	must(os.Link(path("file"), path("hard\nlink")))
	must(os.Symlink("file", path("link")))
	must(unix.Mkfifo(path("fifo"), 0o600))
	must(os.Mkdir(path("dir"), 0o755))
	must(unix.Lsetxattr(path("file"), "user.key", []byte("a\x00b"), 0))
	for _, name := range []string{"file", "link", "fifo", "dir", "."} {
		stamp := unix.NsecToTimespec(time.Unix(1_500_000_000, 42).UnixNano())
		must(unix.UtimesNanoAt(unix.AT_FDCWD, path(name), []unix.Timespec{stamp, stamp}, unix.AT_SYMLINK_NOFOLLOW))
	}
	return root
}

func TestEqualTreesDoNotDiffer(t *testing.T) {
	if diff := testkit.Diff(testkit.Walk(t, sampleTree(t)), testkit.Walk(t, sampleTree(t))); len(diff) > 0 {
		t.Errorf("equal trees differ: %v", diff)
	}
}

func TestDiffSeesEachChange(t *testing.T) {
	for _, row := range []struct {
		claim  string
		change func(root string) error
		want   []string // PATH FIELD
	}{
		{"content of equal length", func(r string) error { return overwrite(filepath.Join(r, "file"), "CONTENT") }, []string{"file sha256", "hard\nlink sha256"}},
		{"mode", func(r string) error { return os.Chmod(filepath.Join(r, "dir"), 0o700) }, []string{"dir mode"}},
		{"sticky bit", func(r string) error { return unix.Chmod(filepath.Join(r, "dir"), 0o1755) }, []string{"dir mode"}},
		{"a nanosecond", func(r string) error {
			stamp := unix.NsecToTimespec(time.Unix(1_500_000_000, 43).UnixNano())
			return unix.UtimesNano(filepath.Join(r, "fifo"), []unix.Timespec{stamp, stamp})
		}, []string{"fifo mtime"}},
		{"xattr gone", func(r string) error { return unix.Removexattr(filepath.Join(r, "file"), "user.key") },
			[]string{"file xattr user.key", "hard\nlink xattr user.key"}},
		{"xattr changed past a NUL", func(r string) error { return unix.Setxattr(filepath.Join(r, "file"), "user.key", []byte("a\x00c"), 0) },
			[]string{"file xattr user.key", "hard\nlink xattr user.key"}},
		{"target", func(r string) error { return resymlink(filepath.Join(r, "link"), "fifo") }, []string{"link target"}},
		{"one name gone", func(r string) error { return removeKeepingTime(r, "fifo") }, []string{"fifo missing"}},
		{"one name more", func(r string) error {
			return keepingTime(r, func() error { return os.Mkdir(filepath.Join(r, "more"), 0o755) })
		},
			[]string{". nlink", "more unexpected"}},
		{"a copy for a hard link", func(r string) error { return keepingTime(r, func() error { return copyOver(r, "file", "hard\nlink") }) },
			[]string{"file linked to", "file nlink", "hard\nlink linked to", "hard\nlink nlink", "hard\nlink xattr user.key"}},
	} {
		t.Run(row.claim, func(t *testing.T) {
			root := sampleTree(t)
			want := testkit.Walk(t, root)
			if err := row.change(root); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range testkit.Diff(testkit.Walk(t, root), want) {
				got = append(got, d.Path+" "+d.Field)
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("Diff sees %q, want %q", got, row.want)
			}
		})
	}
}

func TestWalkReportsWhatItCannotRead(t *testing.T) {
	if _, err := testkit.TryWalk(filepath.Join(t.TempDir(), "no")); err == nil {
		t.Error("a walk of nothing succeeds")
	}
}

// keepingTime restores the mtime of a directory and of the files in it that the change touches.
func keepingTime(root string, change func() error) error {
	if err := change(); err != nil {
		return err
	}
	stamp := unix.NsecToTimespec(time.Unix(1_500_000_000, 42).UnixNano())
	for _, name := range []string{".", "hard\nlink"} {
		if err := unix.UtimesNano(filepath.Join(root, name), []unix.Timespec{stamp, stamp}); err != nil {
			return err
		}
	}
	return nil
}

func overwrite(path, content string) error {
	root := filepath.Dir(path)
	return keepingTime(root, func() error { return os.WriteFile(path, []byte(content), 0) })
}

func removeKeepingTime(root, name string) error {
	return keepingTime(root, func() error { return os.Remove(filepath.Join(root, name)) })
}

func resymlink(path, target string) error {
	err := keepingTime(filepath.Dir(path), func() error {
		if err := os.Remove(path); err != nil {
			return err
		}
		return os.Symlink(target, path)
	})
	if err != nil {
		return err
	}
	stamp := unix.NsecToTimespec(time.Unix(1_500_000_000, 42).UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{stamp, stamp}, unix.AT_SYMLINK_NOFOLLOW)
}

func copyOver(root, from, to string) error {
	data, err := os.ReadFile(filepath.Join(root, from))
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(root, to)); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, to), data, 0o640)
}
