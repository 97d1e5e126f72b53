package index

import (
	"bytes"
	"maps"
	"slices"
)

// File types of an Attr's Mode, as in st_mode.
const (
	ModeType    = 0o170000
	ModeFIFO    = 0o010000
	ModeChar    = 0o020000
	ModeDir     = 0o040000
	ModeBlock   = 0o060000
	ModeRegular = 0o100000
	ModeSymlink = 0o120000
	ModeSocket  = 0o140000
)

// Attr is what stat reports of a node.
type Attr struct {
	Mode  uint32 // st_mode: type and the permission bits 07777
	UID   uint32
	GID   uint32
	Nlink uint32
	Size  int64 // bytes; of a symlink the length of its target, of a directory or special file 0
	Sec   int64 // mtime, seconds since 1970
	Nsec  uint32
	Major uint32 // of a device
	Minor uint32
}

// Type returns the file type bits of Mode.
func (a Attr) Type() uint32 { return a.Mode & ModeType }

// IsDir reports whether a describes a directory.
func (a Attr) IsDir() bool { return a.Type() == ModeDir }

// IsRegular reports whether a describes a regular file.
func (a Attr) IsRegular() bool { return a.Type() == ModeRegular }

// IsSymlink reports whether a describes a symlink.
func (a Attr) IsSymlink() bool { return a.Type() == ModeSymlink }

// DType returns the type as readdir's d_type has it (DT_DIR and so on).
func (a Attr) DType() uint8 { return uint8(a.Type() >> 12) }

// Chunk is a part of a file: an object, or a hole of zeros where Digest is zero.
type Chunk struct {
	Digest Digest
	Size   int64 // plain bytes
	Offset int64 // of the chunk in its file
}

// IsHole reports whether the chunk holds zeros only and has no object.
func (c Chunk) IsHole() bool { return c.Digest.IsZero() }

const (
	// ChunkShift is the binary logarithm of the chunk size that is published: 1 MiB.
	ChunkShift = 20
	// ChunkSize is the chunk size that is published, in bytes.
	ChunkSize = 1 << ChunkShift

	minChunkShift = 12
	maxChunkShift = 23
	maxTarget     = 1<<16 - 1 // bytes of a symlink's target
)

// Xattr is an extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// SortXattrs turns a map of extended attributes into the order the format wants.
func SortXattrs(m map[string]string) []Xattr {
	if len(m) == 0 {
		return nil
	}
	out := make([]Xattr, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, Xattr{name, []byte(m[name])})
	}
	return out
}

// Inode is a file, directory, symlink or special file while a catalog is built. Hard links share one Inode. Nlink and, for a
// symlink, Size are the builder's to fill in.
type Inode struct {
	Attr
	Xattrs []Xattr  // sorted by name
	Target string   // of a symlink
	Chunks []Digest // of a regular file, one per chunk of ChunkSize bytes; zero for a hole
	File   Digest   // of a regular file of more than one chunk: digest of the whole
}

// Entry is a name in a directory while a catalog is built.
type Entry struct {
	*Inode
	Children map[string]*Entry // of a directory, by name
	// Number is set in a name tree only: the explicit number of a directory or symlink, or an image's slot.
	Number uint32
	// Image is set where an image hangs in a name tree: the reference to its root catalog, with Nodes in all of it.
	Image *ImageRef
	// Split marks a directory of a name tree that becomes a catalog of its own.
	Split bool
}

// ImageRef says where an image's root catalog is and how many nodes the image has.
type ImageRef struct {
	Catalog CatalogRef
	Nodes   uint32
}

// NewDir returns an empty directory to build with.
func NewDir(a Attr) *Entry {
	return &Entry{Inode: &Inode{Attr: a}, Children: map[string]*Entry{}}
}

// knownType reports whether mode has one of the file types above.
func knownType(mode uint32) bool {
	switch mode & ModeType {
	case ModeFIFO, ModeChar, ModeDir, ModeBlock, ModeRegular, ModeSymlink, ModeSocket:
		return true
	}
	return false
}

// names returns the names of a directory's children in the order of the format.
func (e *Entry) names() []string {
	names := make([]string, 0, len(e.Children))
	for name := range e.Children {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// validName reports whether name may stand in a directory.
func validName(name []byte) bool {
	return len(name) >= 1 && len(name) <= 255 && bytes.IndexByte(name, '/') < 0 && bytes.IndexByte(name, 0) < 0 &&
		string(name) != "." && string(name) != ".."
}
