package fusefs

import (
	"context"

	"github.com/skimfs/skimfs/index"
)

// ChunkReader is where file content comes from.
type ChunkReader interface {
	// ReadChunk fills p with the bytes of the chunk from off on, off counted from the chunk's start. It may wait for the
	// network until ctx ends. It must not keep p.
	ReadChunk(ctx context.Context, c index.Chunk, p []byte, off int64) error
}

// CachedReader is implemented by a ChunkReader that can answer from this node alone.
type CachedReader interface {
	// ReadCached fills p as ReadChunk does if that needs no waiting, and otherwise reports false.
	ReadCached(c index.Chunk, p []byte, off int64) bool
}

// Prefetcher is implemented by a ChunkReader that wants to know early what will be read.
type Prefetcher interface {
	// Prefetch begins to bring the chunk to this node. It returns at once and does nothing when there is no room or the chunk
	// is here.
	Prefetch(c index.Chunk)
}
