package index_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/skimfs/skimfs/index"
)

// viewable is an image whose names and symlinks all suit io/fs.
func viewable(s *store) *index.Entry {
	hard := file(s, []byte("hard"))
	hole := make([]byte, 2*index.ChunkSize+9)
	copy(hole[index.ChunkSize+5:], "in the middle")
	setuid := file(s, []byte("su"))
	setuid.Mode |= 0o4000
	tmp := dir()
	tmp.Mode |= 0o1000
	return dir(
		"hard", hard, "etc", dir("link", link(hard), "passwd", file(s, []byte("root"))), "big", file(s, random(index.ChunkSize+1)),
		"hole", file(s, hole), "empty", file(s, nil), "abs", symlink("/etc/passwd"), "rel", symlink("../../etc/./link"), "dirlink", symlink("deep"), "tmp", tmp,
		"su", setuid, "deep", fill(flat("x", 30), "er", fill(flat("y", 17000), "up", symlink("../x000001"))),
	)
}

func TestFS(t *testing.T) {
	s := newStore()
	root := viewable(s)
	deep := root.Children["deep"]
	deep.Children["er"] = dir("up", symlink("../x000001"), "f", file(s, []byte("f")), "est", dir("g", file(s, []byte("g"))))
	for name, child := range deep.Children {
		if child.IsRegular() {
			s.put(index.DigestOf([]byte(name)), []byte(name))
		}
	}
	ref, err := index.BuildSplit(root, s.put, 4, 2)
	if err != nil {
		t.Fatal(err)
	}
	image, err := s.load(t.Context(), ref.Catalog)
	if err != nil {
		t.Fatal(err)
	}
	if got := shape(t, s, s.view(t, image)); len(got) != 4 {
		t.Fatalf("catalogs %v, want the root, deep, deep/er and deep/er/est", got)
	}
	flat := numbered(4, dir("abcd", &index.Entry{Inode: root.Inode, Number: 5, Image: &ref}))
	flat.Split = true
	nref, err := index.BuildNames(numbered(1, dir(".flat", flat, "docker.io", numbered(2, dir("debian:12", numbered(3, symlink("../.flat/abcd")))))), s.put)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.load(t.Context(), nref)
	if err != nil {
		t.Fatal(err)
	}
	fsys := index.NewFS(t.Context(), s.view(t, c).Root(), s.read)
	if err := fstest.TestFS(fsys, "docker.io/debian:12", ".flat/abcd/tmp", ".flat/abcd/hole", ".flat/abcd/deep/er/up", ".flat/abcd/deep/er/est/g"); err != nil {
		t.Error(err)
	}
}

func TestFSContent(t *testing.T) {
	s := newStore()
	_, c := s.image(t, viewable(s))
	fsys := index.NewFS(t.Context(), s.view(t, c).Root(), s.read)
	s.put(index.DigestOf([]byte("x000001")), []byte("x000001"))
	hole := make([]byte, 2*index.ChunkSize+9)
	copy(hole[index.ChunkSize+5:], "in the middle")
	for name, want := range map[string]string{"etc/link": "hard", "abs": "root", "rel": "hard", "empty": "", "deep/er/up": "x000001", "dirlink/x000001": "x000001",
		"big": string(random(index.ChunkSize + 1)), "hole": string(hole)} {
		if got, err := fs.ReadFile(fsys, name); string(got) != want || err != nil {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(want))
		}
	}
	f, err := fsys.Open("hole")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	if n, err := f.(io.ReaderAt).ReadAt(got, index.ChunkSize-10); n != 100 || err != nil || !bytes.Equal(got, hole[index.ChunkSize-10:][:100]) {
		t.Errorf("reading across a hole's end: %d, %v, %q", n, err, got)
	}
	for name, want := range map[string]fs.FileMode{"su": 0o644 | fs.ModeSetuid, "tmp": 0o755 | fs.ModeDir | fs.ModeSticky, "abs": 0o644, "deep/er": 0o755 | fs.ModeDir} {
		if info, err := fs.Stat(fsys, name); err != nil || info.Mode() != want {
			t.Errorf("%s: mode %v, %v, want %v", name, info, err, want)
		}
	}
	if info, err := fs.Lstat(fsys, "abs"); err != nil || info.Mode() != 0o777|fs.ModeSymlink {
		t.Errorf("lstat of a symlink: %v, %v", info, err)
	}
	if to, err := fs.ReadLink(fsys, "rel"); to != "../../etc/./link" || err != nil {
		t.Errorf("readlink: %q, %v", to, err)
	}
	if _, err := fs.ReadLink(fsys, "su"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("readlink of a file: %v", err)
	}
	for _, name := range []string{"none", "su/none", "deep/none/none"} {
		if _, err := fsys.Open(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("open %s: %v", name, err)
		}
	}
	for _, name := range []string{"/etc", "../x", "etc/", ""} {
		if _, err := fsys.Open(name); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("open %q: %v", name, err)
		}
	}
}

// A chunk or a catalog that can't be had is that error, never a missing file and never zeros.
func TestFSFailingSource(t *testing.T) {
	s := newStore()
	_, c := s.image(t, viewable(s))
	gone := errors.New("connection refused")
	v, err := index.NewView(c, func(context.Context, index.CatalogRef) (*index.Catalog, error) { return nil, gone })
	if err != nil {
		t.Fatal(err)
	}
	fsys := index.NewFS(t.Context(), v.Root(), func(context.Context, index.Chunk, []byte, int64) error { return gone })
	for _, name := range []string{"deep/er/y000001", "deep/er/none", "big"} {
		if _, err := fs.ReadFile(fsys, name); !errors.Is(err, gone) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("reading %s: %v", name, err)
		}
	}
	if _, err := fs.ReadDir(fsys, "deep/er"); !errors.Is(err, gone) {
		t.Errorf("listing: %v", err)
	}
	if info, err := fs.Stat(fsys, "deep/er"); err != nil || !info.IsDir() {
		t.Errorf("stat of the mountpoint: %v, %v", info, err)
	}
}

func TestResolve(t *testing.T) {
	s := newStore()
	_, c := sampleNames(t, s)
	v := s.view(t, c)
	debian, err := v.Resolve(t.Context(), "docker.io/library/debian:12", true)
	if err != nil {
		t.Fatal(err)
	}
	if debian.Slot != 8 || debian.Num != 1 || debian.Root.Digest.IsZero() {
		t.Errorf("image is %+v", debian)
	}
	passwd := index.DigestOf([]byte("root:x:0:0"))
	for _, row := range []struct {
		path string
		from index.File
	}{
		{"docker.io/library/debian:12/etc/passwd", v.Root()},
		{"/docker.io//library/./debian:12/abs", v.Root()},
		{"docker.io/library/debian:12/up", v.Root()},
		{"../../docker.io/library/../library/debian:12/etc/passwd", v.Root()},
		{"docker.io/library/debian:12/../../etc/passwd", v.Root()},
		{"abs", debian},
		{"../etc/passwd", debian},
		{"usr/../up", debian},
	} {
		f, err := row.from.Resolve(t.Context(), row.path, true)
		if err != nil {
			t.Errorf("%s: %v", row.path, err)
			continue
		}
		chunks, err := f.Chunks()
		if err != nil || len(chunks) != 1 || chunks[0].Digest != passwd || f.Slot != 8 {
			t.Errorf("%s leads to %+v, %v", row.path, chunks, err)
		}
	}
	if f, err := v.Resolve(t.Context(), "docker.io/library/debian:12", false); err != nil || f.Slot != 0 || f.Num != 4 {
		t.Errorf("the symlink itself: slot %d, number %d, %v", f.Slot, f.Num, err)
	}
	if _, err := debian.Resolve(t.Context(), "loop", true); err == nil || !strings.Contains(err.Error(), "symbolic links") {
		t.Errorf("symlink loop: %v", err)
	}
	if f, err := debian.Resolve(t.Context(), "loop", false); err != nil || f.Slot != 8 {
		t.Errorf("symlink loop, not followed: %v", err)
	}
	for _, path := range []string{"etc/dangling", "none", "etc/passwd/none", "abs/none"} {
		f, err := debian.Resolve(t.Context(), path, true)
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %+v, %v", path, f, err)
		}
	}
}
