package cachedb_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

func newLower(t *testing.T, dir string) *cachedb.Lower {
	l := cachedb.NewLower(dir, slog.New(slog.DiscardHandler))
	t.Cleanup(l.Close)
	return l
}

func lowerFile(dir string, d index.Digest) string {
	sum := d.Sum()
	h := hex.EncodeToString(sum[:])
	return filepath.Join(dir, h[:2], h)
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// K12: many nodes fill one directory at once; files appear whole and readable to whom the directory is.
func TestLowerK12IsSharedByManyNodes(t *testing.T) {
	t.Parallel()
	dir := scratchDir(t)
	must(t, os.Chmod(dir, fs.ModeSetgid|0o775))
	var wg sync.WaitGroup
	for range 8 {
		l := newLower(t, dir)
		wg.Go(func() {
			for n := range 20 {
				plain := content(uint64(n), 1000*n+1)
				d := index.DigestOf(plain)
				if got, err := l.Get(t.Context(), d, int64(len(plain))); err == nil {
					if !bytes.Equal(got, plain) {
						t.Errorf("object %d: wrong bytes", n)
					}
					continue
				} else if !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("object %d: %v", n, err)
				}
				if err := l.Put(t.Context(), d, plain); err != nil {
					t.Errorf("object %d: %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	for n := range 20 {
		path := lowerFile(dir, index.DigestOf(content(uint64(n), 1000*n+1)))
		file, err1 := os.Stat(path)
		sub, err2 := os.Stat(filepath.Dir(path))
		must(t, err1, err2)
		if file.Mode() != 0o444 || sub.Mode().Perm() != 0o775 || sub.Mode()&fs.ModeSetgid == 0 {
			t.Errorf("modes %v in %v", file.Mode(), sub.Mode())
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*", ".new-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// S07: whoever may write in a lower cache can make an object useless there, and nothing else: nobody waits for a FIFO, no file outside is
// read or written, nothing large is read, and what is put in an object's place is replaced.
func TestLowerS07WithstandsWhoMayWrite(t *testing.T) {
	t.Parallel()
	plain := content(1, 100_000)
	d := index.DigestOf(plain)
	wrong := bytes.Clone(plain)
	wrong[77_777] ^= 1
	for _, row := range []struct {
		name  string
		lay   func(path, outside string) error
		stays bool // an object can't be put in its place
	}{
		{"one bit flipped", func(path, _ string) error { return os.WriteFile(path, wrong, 0o644) }, false},
		{"partial file", func(path, _ string) error { return os.WriteFile(path, plain[:50_000], 0o644) }, false},
		{"longer file", func(path, _ string) error { return os.WriteFile(path, append(bytes.Clone(plain), 0), 0o644) }, false},
		{"empty file", func(path, _ string) error { return os.WriteFile(path, nil, 0o644) }, false},
		{"huge file", func(path, _ string) error {
			return errors.Join(os.WriteFile(path, plain, 0o644), os.Truncate(path, 1<<42))
		}, false},
		{"FIFO", func(path, _ string) error { return unix.Mkfifo(path, 0o666) }, false},
		{"socket", func(path, _ string) error { return unix.Mknod(path, unix.S_IFSOCK|0o666, 0) }, false},
		{"endless device", func(path, _ string) error { return unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) }, false},
		{"directory", func(path, _ string) error { return os.MkdirAll(filepath.Join(path, "x"), 0o755) }, true},
		{"symlink out", func(path, outside string) error { return os.Symlink(outside, path) }, false},
		{"symlink to itself", func(path, _ string) error { return os.Symlink(path, path) }, false},
		{"its directory is a symlink out", func(path, outside string) error {
			return errors.Join(os.Remove(filepath.Dir(path)), os.Symlink(filepath.Dir(outside), filepath.Dir(path)))
		}, true},
		{"its directory is a file", func(path, _ string) error {
			return errors.Join(os.Remove(filepath.Dir(path)), os.WriteFile(filepath.Dir(path), nil, 0o644))
		}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			dir, other := scratchDir(t), t.TempDir()
			path := lowerFile(dir, d)
			// It has the right content, so that only where it lies can be wrong with it.
			outside := filepath.Join(other, filepath.Base(path))
			must(t, os.WriteFile(outside, plain, 0o644), os.Mkdir(filepath.Dir(path), 0o777))
			if err := row.lay(path, outside); errors.Is(err, unix.EPERM) {
				t.Skip(err)
			} else {
				must(t, err)
			}
			l := newLower(t, dir)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if got, err := l.Get(ctx, d, int64(len(plain))); err == nil || got != nil {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if l.Late() || ctx.Err() != nil {
				t.Error("it made the reader wait")
			}
			err := l.Put(ctx, d, plain)
			if (err != nil) != row.stays {
				t.Errorf("Put: %v", err)
			}
			got, err := l.Get(ctx, d, int64(len(plain)))
			if (err != nil) != row.stays || err == nil && !bytes.Equal(got, plain) {
				t.Errorf("after Put: %d bytes, %v", len(got), err)
			}
			if list, err := os.ReadDir(other); err != nil || len(list) != 1 {
				t.Errorf("outside: %v %v", list, err)
			}
			if b, err := os.ReadFile(outside); err != nil || !bytes.Equal(b, plain) {
				t.Error("the file outside was changed")
			}
		})
	}
}

// A directory that is not there is a miss, before it is mounted and after it vanished, and never made.
func TestLowerMayVanishAndComeBack(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(scratchDir(t), "lower")
	l := newLower(t, dir)
	plain := content(2, 5000)
	d := index.DigestOf(plain)
	absent := func() {
		t.Helper()
		if _, err := l.Get(t.Context(), d, 5000); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if err := l.Put(t.Context(), d, plain); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("it was made")
		}
	}
	absent()
	must(t, os.Mkdir(dir, 0o755), l.Put(t.Context(), d, plain))
	if !l.Has(t.Context(), d, 5000) || l.Has(t.Context(), d, 5001) {
		t.Error("Has is wrong")
	}
	must(t, os.Rename(dir, dir+"-away"))
	absent()
	must(t, os.Rename(dir+"-away", dir))
	if got, err := l.Get(t.Context(), d, 5000); err != nil || !bytes.Equal(got, plain) {
		t.Error(err)
	}
	if s := l.Stats(); s.Hits != 1 || s.Misses != 2 || s.Stored != 1 || s.WriteErrors != 2 {
		t.Errorf("%+v", s)
	}
}

// Notes are small and named by valid repository names only.
func TestLowerNotesStayInside(t *testing.T) {
	t.Parallel()
	dir := scratchDir(t)
	l := newLower(t, dir)
	must(t, l.PutNotes(t.Context(), "images.example.org", []byte("m"), []byte("w"), []string{"http://a/b"}))
	if b, err := l.Note(t.Context(), "images.example.org", "manifest"); err != nil || string(b) != "m" {
		t.Error(string(b), err)
	}
	if name, err := l.RepositoryAt(t.Context(), "http://a/b"); err != nil || name != "images.example.org" {
		t.Error(name, err)
	}
	if _, err := l.Note(t.Context(), "../../etc", "manifest"); !errors.Is(err, index.ErrFormat) {
		t.Error(err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "notes", "images.example.org", "whitelist"), make([]byte, index.MaxNote+1), 0o644))
	if _, err := l.Note(t.Context(), "images.example.org", "whitelist"); err == nil {
		t.Error("a note of any length is read")
	}
}
