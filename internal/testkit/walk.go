package testkit

import (
	"bytes"
	"crypto/sha256"
	"encoding/gob"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Entry is all that a file system tells of one name.
type Entry struct {
	Path     string // relative to the root; the root is "."
	Type     string // file dir symlink fifo socket char block
	Mode     string // octal, permissions with setuid, setgid and sticky
	UID, GID uint32
	Mtime    string // seconds.nanoseconds since 1970
	Nlink    uint64
	Size     int64             // of files and symlinks
	Xattrs   map[string]string // name to value, as they are
	Target   string            // of a symlink
	Device   string            // major:minor of a device
	SHA256   string            // of a file's content, in hex
	LinkedTo string            // the first path, in order, with the same inode, if there is another one
	Inode    uint64            // not compared
}

// fields names and prints what is compared of an entry.
func (e Entry) fields() map[string]string {
	f := map[string]string{
		"type": e.Type, "mode": e.Mode, "uid": fmt.Sprint(e.UID), "gid": fmt.Sprint(e.GID), "mtime": e.Mtime, "nlink": fmt.Sprint(e.Nlink),
		"size": fmt.Sprint(e.Size), "target": e.Target, "device": e.Device, "sha256": e.SHA256, "linked to": e.LinkedTo,
	}
	for name, value := range e.Xattrs {
		f["xattr "+name] = value
	}
	return f
}

// Difference is one thing that two trees disagree about.
type Difference struct {
	Path  string
	Field string // "missing", "unexpected", "xattr NAME", or a field of Entry in lower case
	Got   string
	Want  string
}

func (d Difference) String() string {
	switch d.Field {
	case "missing", "unexpected":
		return fmt.Sprintf("%q: %s (%s)", d.Path, d.Field, d.Got+d.Want)
	default:
		return fmt.Sprintf("%q: %s is %q, want %q", d.Path, d.Field, d.Got, d.Want)
	}
}

// Diff returns what differs between two walks, in the order of the paths.
func Diff(got, want []Entry) []Difference {
	have, wanted := byPath(got), byPath(want)
	var all []Difference
	for _, path := range slices.Sorted(maps.Keys(union(have, wanted))) {
		g, ok := have[path]
		w, wantIt := wanted[path]
		switch {
		case !ok:
			all = append(all, Difference{Path: path, Field: "missing", Want: w.Type})
		case !wantIt:
			all = append(all, Difference{Path: path, Field: "unexpected", Got: g.Type})
		default:
			gf, wf := g.fields(), w.fields()
			for _, field := range slices.Sorted(maps.Keys(union(gf, wf))) {
				gv, has := gf[field]
				wv, wantHas := wf[field]
				if gv != wv || has != wantHas {
					all = append(all, Difference{path, field, orNone(gv, has), orNone(wv, wantHas)})
				}
			}
		}
	}
	return all
}

func orNone(value string, present bool) string {
	if present {
		return value
	}
	return "(none)"
}

func byPath(entries []Entry) map[string]Entry {
	m := make(map[string]Entry, len(entries))
	for _, e := range entries {
		m[e.Path] = e
	}
	return m
}

func union[V any](a, b map[string]V) map[string]V {
	u := maps.Clone(a)
	maps.Copy(u, b)
	return u
}

// walkVariable turns a test binary into the walker of the directory it names.
const walkVariable = "SKIMFS_TESTKIT_WALK"

func init() {
	root, ok := os.LookupEnv(walkVariable)
	if !ok {
		return
	}
	entries, err := walk(root)
	if err == nil {
		err = gob.NewEncoder(os.Stdout).Encode(entries)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Walk lists a tree, its root included, sorted by path. Another process reads it, whole files too;
// any error there ends the test.
func Walk(t testing.TB, root string) []Entry {
	t.Helper()
	entries, err := TryWalk(root)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// TryWalk is Walk for trees that may not be readable.
func TryWalk(root string) ([]Entry, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), walkVariable+"="+root)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("walking %s: %w: %s", root, err, bytes.TrimSpace(stderr.Bytes()))
	}
	var entries []Entry
	if err := gob.NewDecoder(&stdout).Decode(&entries); err != nil {
		return nil, fmt.Errorf("walking %s: %w", root, err)
	}
	return entries, nil
}

func walk(root string) ([]Entry, error) {
	var entries []Entry
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		e, err := look(path)
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		e.Path = rel
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	nameLinks(entries)
	return entries, nil
}

// nameLinks fills LinkedTo: equal inodes must mean equal files, whatever the link count says.
func nameLinks(sorted []Entry) {
	first := map[uint64]int{}
	for i, e := range sorted {
		if e.Type == "dir" {
			continue
		}
		at, seen := first[e.Inode]
		if !seen {
			first[e.Inode] = i
			continue
		}
		sorted[at].LinkedTo, sorted[i].LinkedTo = sorted[at].Path, sorted[at].Path
	}
}

func look(path string) (Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Entry{}, fmt.Errorf("stat: %w", err)
	}
	e := Entry{
		Mode: fmt.Sprintf("%04o", st.Mode&0o7777), UID: st.Uid, GID: st.Gid,
		Mtime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec), Nlink: uint64(st.Nlink), Inode: st.Ino,
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type, e.Size = "file", st.Size
		e.SHA256, err = hashFile(path, st.Size)
	case unix.S_IFDIR:
		e.Type = "dir"
	case unix.S_IFLNK:
		e.Type, e.Size = "symlink", st.Size
		e.Target, err = os.Readlink(path)
	case unix.S_IFIFO:
		e.Type = "fifo"
	case unix.S_IFSOCK:
		e.Type = "socket"
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Type = map[bool]string{true: "char", false: "block"}[st.Mode&unix.S_IFMT == unix.S_IFCHR]
		e.Device = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	if err != nil {
		return Entry{}, err
	}
	e.Xattrs, err = xattrs(path)
	return e, err
}

// hashFile insists on as many bytes as stat promised.
func hashFile(path string, size int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	// Trees have many files and most are small: no buffer of the usual size for each.
	n, err := io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, min(size, 1<<17)+1))
	if err != nil {
		return "", err
	}
	if n != size {
		return "", fmt.Errorf("read %d bytes of %d", n, size)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func xattrs(path string) (map[string]string, error) {
	n, err := unix.Llistxattr(path, nil)
	if err == unix.ENOTSUP || n == 0 && err == nil {
		return nil, nil
	}
	list := make([]byte, 64<<10)
	if err == nil {
		n, err = unix.Llistxattr(path, list)
	}
	if err != nil {
		return nil, fmt.Errorf("listxattr: %w", err)
	}
	all := map[string]string{}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("getxattr %q: %w", name, err)
		}
		all[name] = string(value[:n])
	}
	return all, nil
}
