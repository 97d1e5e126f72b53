package index

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sync/errgroup"
)

const (
	// ListThreshold is the plain size in bytes above which a catalog is stored in chunks, below a chunk list.
	ListThreshold = 3 << 20
	// MaxCatalog is the largest plain size of a catalog in bytes that is read or written.
	MaxCatalog = 1 << 30

	listMagic   = "skimlst\n"
	listVersion = 1
	listHeader  = 24
	loadAtOnce  = 8
)

// Listed reports whether the reference names a chunk list and not the catalog itself.
func (r CatalogRef) Listed() bool { return r.Size > ListThreshold }

// ObjectSize is the plain size in bytes of the object that Digest names: the catalog, or its chunk list.
func (r CatalogRef) ObjectSize() int64 {
	if !r.Listed() {
		return r.Size
	}
	return listHeader + chunkRowSize*((r.Size+ChunkSize-1)>>ChunkShift)
}

func (r CatalogRef) String() string { return fmt.Sprintf("%v (%d bytes)", r.Digest, r.Size) }

// encodeChunkList returns the chunk list of a catalog of size bytes in the given chunks.
func encodeChunkList(size int64, chunks []Digest) []byte {
	b := make([]byte, 0, listHeader+chunkRowSize*len(chunks))
	b = append(b, listMagic...)
	b = binary.LittleEndian.AppendUint32(b, listVersion)
	b = binary.LittleEndian.AppendUint32(b, ChunkShift)
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	for i, d := range chunks {
		b = appendChunkRow(b, uint32(i), d)
	}
	return b
}

// DecodeChunkList reads the chunk list of a catalog of size plain bytes.
func DecodeChunkList(b []byte, size int64) ([]Chunk, error) {
	ref := CatalogRef{Size: size}
	if size > MaxCatalog || !ref.Listed() || int64(len(b)) != ref.ObjectSize() || string(b[:8]) != listMagic {
		return nil, fmt.Errorf("chunk list: %d bytes for a catalog of %d bytes, or no magic %q: %w", len(b), size, listMagic, ErrFormat)
	}
	if v, shift, n := binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:]), binary.LittleEndian.Uint64(b[16:]); v != listVersion || shift != ChunkShift || n != uint64(size) {
		return nil, fmt.Errorf("chunk list: version %d, shift %d, size %d: want %d, %d, %d: %w", v, shift, n, listVersion, ChunkShift, size, ErrFormat)
	}
	table := b[listHeader:]
	out := make([]Chunk, len(table)/chunkRowSize)
	for i := range out {
		d, err := chunkDigest(table, i)
		if first := chunkFirst(table, i); err != nil || first != uint64(i) || d.IsZero() {
			return nil, fmt.Errorf("chunk list: row %d has number %d and digest %v: %w", i, first, d, ErrFormat)
		}
		off := int64(i) << ChunkShift
		out[i] = Chunk{Digest: d, Offset: off, Size: min(ChunkSize, size-off)}
	}
	return out, nil
}

// ObjectGetter returns the verified plain content, size bytes long, of an object.
type ObjectGetter func(ctx context.Context, d Digest, size int64) ([]byte, error)

// Load gets the catalog that r names, through its chunk list if it has one, and checks its header.
func (r CatalogRef) Load(ctx context.Context, get ObjectGetter) (*Catalog, error) {
	if r.Size <= 0 || r.Size > MaxCatalog {
		return nil, fmt.Errorf("catalog %v: size is outside 1..%d: %w", r, MaxCatalog, ErrFormat)
	}
	b, err := get(ctx, r.Digest, r.ObjectSize())
	if err == nil && r.Listed() {
		b, err = r.assemble(ctx, b, get)
	}
	if err != nil {
		return nil, fmt.Errorf("loading catalog %v: %w", r, err)
	}
	c, err := NewCatalog(b)
	if err != nil {
		return nil, fmt.Errorf("loading catalog %v: %w", r, err)
	}
	return c, nil
}

func (r CatalogRef) assemble(ctx context.Context, list []byte, get ObjectGetter) ([]byte, error) {
	chunks, err := DecodeChunkList(list, r.Size)
	if err != nil {
		return nil, err
	}
	whole := make([]byte, r.Size)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(loadAtOnce)
	for _, c := range chunks {
		g.Go(func() error {
			b, err := get(ctx, c.Digest, c.Size)
			if err == nil && int64(len(b)) != c.Size {
				err = fmt.Errorf("chunk at %d has %d bytes, want %d: %w", c.Offset, len(b), c.Size, ErrFormat)
			}
			copy(whole[c.Offset:], b[:min(int64(len(b)), c.Size)])
			return err
		})
	}
	return whole, g.Wait()
}
