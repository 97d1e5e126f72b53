package publish

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/skimfs/skimfs/index"
)

// layer is a converted layer: what its tar archive says, in order, with the content of files moved into objects.
type layer struct {
	Objects []object // the different ones
	Ops     []op
	Bytes   int64 // plain bytes of all its files
}

// object is a chunk of a file as the repository holds it.
type object struct {
	Sum    [sha256.Size]byte
	Plain  int64 // bytes
	Stored int64 // compressed bytes
}

func (o object) digest() index.Digest { return index.SHA256Digest(o.Sum) }

// op is one entry of a layer.
type op struct {
	Name   string // cleaned, without a slash in front; "" is the root
	Link   string // target of a symlink, or cleaned name of a hard link's other name
	Hard   bool   // a hard link: all below is unused
	Attr   index.Attr
	Xattrs []index.Xattr
	Chunks []int32           // of a regular file: numbers of objects, -1 for a hole
	File   [sha256.Size]byte // of a regular file with more than one chunk: digest of the whole
}

// Limits are ceilings on what one image may unpack to. The zero value of each means its default.
type Limits struct {
	Bytes   int64 // plain bytes of all files of a layer; default 1 TiB
	Entries int64 // entries of all layers; default 8 million
}

func (l Limits) withDefaults() Limits {
	if l.Bytes == 0 {
		l.Bytes = 1 << 40
	}
	if l.Entries == 0 {
		l.Entries = 8 << 20
	}
	return l
}

// LimitError says which ceiling an image is above.
type LimitError struct {
	What  string // "entries" or "bytes"
	Limit int64
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("image unpacks to more than %d %s, the ceiling", e.Limit, e.What)
}

// xattrs that no image should bring: they belong to the machine it was built on. umoci leaves out the same.
var ignoredXattrs = map[string]bool{"security.selinux": true, "system.nfs4_acl": true}

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	xattrRecord    = "SCHILY.xattr."
)

// convertLayer reads a layer's blob to its end, checks both its digests, stores its files and returns it.
func (c *converter) convertLayer(ctx context.Context, l layerBlob) (*layer, error) {
	r, err := l.open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	blob := &digestReader{r: c.counted(r), hash: sha256.New()}
	diff := &digestReader{hash: sha256.New()}
	var out *layer
	plain, err := decompress(bufio.NewReaderSize(blob, 256<<10))
	if err == nil {
		defer plain.Close()
		diff.r = plain
		out, err = c.readTar(ctx, diff)
	}
	// A wrong digest explains every other mistake, so the rest is read even then, within reason.
	if drainErr := drain(ctx, diff, blob, err != nil); err == nil {
		err = drainErr
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if got := blob.digest(); l.digest != (index.Digest{}) && got != l.digest && blob.done {
		return nil, fmt.Errorf("blob: %w", &index.DigestError{Want: l.digest, Got: got})
	}
	if err != nil && blob.done {
		return nil, &corruptError{err}
	}
	if err != nil {
		return nil, err
	}
	if got := diff.digest(); got != l.diffID {
		return nil, fmt.Errorf("uncompressed content: %w", &index.DigestError{Want: l.diffID, Got: got})
	}
	return out, nil
}

// drain reads both streams to their ends: archives may have padding behind their last entry, compressed streams bytes behind theirs.
// After a failure only a little is read on.
func drain(ctx context.Context, diff, blob io.Reader, failed bool) error {
	if failed {
		_, err := io.CopyN(io.Discard, blob, 64<<20)
		return err
	}
	if _, err := io.Copy(io.Discard, diff); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	_, err := io.Copy(io.Discard, blob)
	return err
}

// digestReader hashes what is read through it. done is set at its end.
type digestReader struct {
	r    io.Reader
	hash hash.Hash
	done bool
}

func (d *digestReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.hash.Write(p[:n])
	d.done = d.done || errors.Is(err, io.EOF)
	return n, err
}

func (d *digestReader) digest() index.Digest {
	return index.SHA256Digest([sha256.Size]byte(d.hash.Sum(nil)))
}

// decompress recognises gzip and zstd by their first bytes; all else is taken as plain.
func decompress(r *bufio.Reader) (io.ReadCloser, error) {
	magic, err := r.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		return z, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// readTar turns a tar stream into a layer.
func (c *converter) readTar(ctx context.Context, r io.Reader) (*layer, error) {
	b := c.newLayer(ctx)
	defer b.wait()
	tr := tar.NewReader(bufio.NewReaderSize(r, 128<<10))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return b.finish()
		}
		if err != nil {
			return nil, fmt.Errorf("tar archive: %w", err)
		}
		if err := b.addTar(h, tr); err != nil {
			return nil, fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
}

// addTar adds one tar entry, whose content comes from r.
func (b *layerBuilder) addTar(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	o := op{Name: cleanName(h.Name)}
	if strings.HasPrefix(path.Base(o.Name), whiteoutPrefix) {
		return b.add(o)
	}
	if err := o.attributes(h); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		o.Attr.Mode |= index.ModeRegular
		return b.addFile(o, r, h.Size)
	case tar.TypeDir:
		o.Attr.Mode |= index.ModeDir
	case tar.TypeSymlink:
		o.Attr.Mode, o.Link = index.ModeSymlink|0o777, h.Linkname
	case tar.TypeLink:
		o = op{Name: o.Name, Link: cleanName(h.Linkname), Hard: true}
	case tar.TypeChar, tar.TypeBlock:
		o.Attr.Mode |= index.ModeChar
		if h.Typeflag == tar.TypeBlock {
			o.Attr.Mode = o.Attr.Mode&^index.ModeType | index.ModeBlock
		}
		if h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32 {
			return fmt.Errorf("device %d:%d is out of range", h.Devmajor, h.Devminor)
		}
		o.Attr.Major, o.Attr.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	case tar.TypeFifo:
		o.Attr.Mode |= index.ModeFIFO
	default:
		return fmt.Errorf("unknown type %q", h.Typeflag)
	}
	return b.add(o)
}

func (o *op) attributes(h *tar.Header) error {
	if h.Uid < 0 || h.Uid > math.MaxUint32 || h.Gid < 0 || h.Gid > math.MaxUint32 {
		return fmt.Errorf("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	o.Attr = index.Attr{Mode: uint32(h.Mode) & 0o7777, UID: uint32(h.Uid), GID: uint32(h.Gid), Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond())}
	xattrs := map[string]string{}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, xattrRecord); ok && !ignoredXattrs[name] {
			xattrs[name] = value
		}
	}
	o.Xattrs = index.SortXattrs(xattrs)
	return nil
}

// cleanName makes a tar name relative to the root, with nothing that leads out of it.
func cleanName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }
