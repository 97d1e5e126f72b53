package cachedb

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"time"

	"github.com/skimfs/skimfs/index"
)

// An archive carries objects and signed notes to nodes without network: a tar stream whose files are those of a lower cache, so that unpacking
// one makes a lower cache, or adds to it. The first file is archiveName, which says what follows; manifest and whitelist come next, then the
// objects, each once, in any order. All bytes of an archive are hostile until they are checked.

// ErrArchive marks bytes that are no archive, or not all of one.
var ErrArchive = errors.New("no whole export of a cache")

const (
	archiveName    = "skimfs-export"
	archiveVersion = 1
	archiveHeadMax = 64 << 10
)

// ArchiveHeader says what an archive holds.
type ArchiveHeader struct {
	Version    int      `json:"version"`
	Repository string   `json:"repository"`
	Revision   uint64   `json:"revision"` // as the manifest has it
	Servers    []string `json:"servers"`  // where the repository was found
	Objects    int64    `json:"objects"`
	Bytes      int64    `json:"bytes"` // of plain content
	Manifest   []byte   `json:"-"`
	Whitelist  []byte   `json:"-"`
}

// ArchiveWriter writes an archive.
type ArchiveWriter struct {
	tar     *tar.Writer
	objects int64
	bytes   int64
}

// NewArchiveWriter begins an archive. The caller then writes h.Objects objects and closes it.
func NewArchiveWriter(w io.Writer, h ArchiveHeader) (*ArchiveWriter, error) {
	h.Version = archiveVersion
	a := &ArchiveWriter{tar: tar.NewWriter(w), objects: h.Objects, bytes: h.Bytes}
	head, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name string
		b    []byte
	}{{archiveName, head}, {notePath(h.Repository, "manifest"), h.Manifest}, {notePath(h.Repository, "whitelist"), h.Whitelist}} {
		if err := a.file(f.name, f.b); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (a *ArchiveWriter) file(name string, b []byte) error {
	if err := a.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o444, Size: int64(len(b)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}); err != nil {
		return fmt.Errorf("exporting: %w", err)
	}
	if _, err := a.tar.Write(b); err != nil {
		return fmt.Errorf("exporting: %w", err)
	}
	return nil
}

// Object adds an object.
func (a *ArchiveWriter) Object(d index.Digest, plain []byte) error {
	a.objects--
	a.bytes -= int64(len(plain))
	return a.file(lowerPath(d), plain)
}

// Close ends the archive; an error says that it is not whole.
func (a *ArchiveWriter) Close() error {
	if a.objects != 0 || a.bytes != 0 {
		return fmt.Errorf("exporting: %d objects and %d bytes are missing", a.objects, a.bytes)
	}
	if err := a.tar.Close(); err != nil {
		return fmt.Errorf("exporting: %w", err)
	}
	return nil
}

// ReadArchive reads an archive. begin is told what it holds before any object is read; object gets each object, checked against its digest,
// and may keep plain. Their errors end it. An error that wraps ErrArchive says what is wrong with the archive: then what object was given so
// far is sound, and not all there is.
func ReadArchive(r io.Reader, begin func(ArchiveHeader) error, object func(d index.Digest, plain []byte) error) error {
	in := tar.NewReader(r)
	h, err := readArchiveHead(in)
	if err != nil {
		return err
	}
	if err := begin(h); err != nil {
		return err
	}
	left := h.Bytes
	for n := range h.Objects {
		early := func(err error) error {
			return fmt.Errorf("%w: after %d of %d objects: %w", ErrArchive, n, h.Objects, err)
		}
		e, err := in.Next()
		if err != nil {
			return early(tarError(err))
		}
		d, err := archivedDigest(e.Name)
		if err != nil {
			return early(err)
		}
		plain, err := readArchived(in, e, min(index.MaxObject, left))
		if err != nil {
			return early(err)
		}
		if sha256.Sum256(plain) != d.Sum() {
			return early(fmt.Errorf("object %v: content does not match its digest", d))
		}
		left -= int64(len(plain))
		if err := object(d, plain); err != nil {
			return err
		}
	}
	if left != 0 {
		return fmt.Errorf("%w: %d bytes of objects are missing", ErrArchive, left)
	}
	return nil
}

func readArchiveHead(in *tar.Reader) (h ArchiveHeader, err error) {
	next := func(name string, most int64) ([]byte, error) {
		e, err := in.Next()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrArchive, tarError(err))
		}
		if e.Name != name {
			return nil, fmt.Errorf("%w: %.100q where %q belongs", ErrArchive, e.Name, name)
		}
		b, err := readArchived(in, e, most)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrArchive, err)
		}
		return b, nil
	}
	head, err := next(archiveName, archiveHeadMax)
	if err != nil {
		return h, err
	}
	dec := json.NewDecoder(bytes.NewReader(head))
	if err := dec.Decode(&h); err != nil {
		return h, fmt.Errorf("%w: %s: %w", ErrArchive, archiveName, err)
	}
	switch {
	case h.Version != archiveVersion:
		return h, fmt.Errorf("%w: it has version %d, this program reads %d", ErrArchive, h.Version, archiveVersion)
	case index.ValidName(h.Repository) != nil || h.Objects <= 0 || h.Bytes < h.Objects || h.Bytes/index.MaxObject > h.Objects:
		return h, fmt.Errorf("%w: %d objects and %d bytes of repository %.100q", ErrArchive, h.Objects, h.Bytes, h.Repository)
	}
	if h.Manifest, err = next(notePath(h.Repository, "manifest"), index.MaxNote); err != nil {
		return h, err
	}
	h.Whitelist, err = next(notePath(h.Repository, "whitelist"), index.MaxNote)
	return h, err
}

func readArchived(in io.Reader, e *tar.Header, most int64) ([]byte, error) {
	if e.Typeflag != tar.TypeReg || e.Size <= 0 || e.Size > most {
		return nil, fmt.Errorf("%.100q: type %q, %d bytes", e.Name, e.Typeflag, e.Size)
	}
	b := make([]byte, e.Size)
	if _, err := io.ReadFull(in, b); err != nil {
		return nil, fmt.Errorf("%.100q: %w", e.Name, tarError(err))
	}
	return b, nil
}

// tarError says in words what reading a tar stream ended in.
func tarError(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it ends early")
	case errors.Is(err, tar.ErrHeader):
		return errors.New("it is not a tar file")
	}
	return err
}

func archivedDigest(name string) (d index.Digest, err error) {
	if d, err = index.ParseDigest("sha256:" + path.Base(name)); err != nil || lowerPath(d) != name {
		return d, fmt.Errorf("%.100q is not named as an object is", name)
	}
	return d, nil
}
