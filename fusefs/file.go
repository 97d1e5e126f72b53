package fusefs

import (
	"context"
	"fmt"

	"github.com/skimfs/skimfs/index"
)

// Open checks that a node can be opened for reading. Nothing is kept of it: file handles are always 0, and an adapter may
// tell the kernel not to ask at all.
func (c *Core) Open(id NodeID, dir bool) error {
	at, err := c.at(id, false)
	if err != nil {
		return err
	}
	_, n, err := at.pos.Node()
	switch {
	case err != nil:
		return err
	case dir && !n.IsDir():
		return errNotDir
	case !dir && n.IsDir():
		return errIsDir
	}
	return nil
}

// Read fills p with the file's bytes from off on, as far as the file goes, from what is on this node. It reads nothing,
// and Later is true of its error, if part of that is elsewhere: then ReadWait gets it.
func (c *Core) Read(id NodeID, off int64, p []byte) (int, error) {
	return c.read(c.ctx, false, id, off, p)
}

// ReadWait is Read that waits until ctx ends.
func (c *Core) ReadWait(ctx context.Context, id NodeID, off int64, p []byte) (int, error) {
	return c.read(ctx, true, id, off, p)
}

// read is Read, or with wait ReadWait.
func (c *Core) read(ctx context.Context, wait bool, id NodeID, off int64, p []byte) (int, error) {
	at, err := c.at(id, false)
	if err != nil {
		return 0, err
	}
	cat, n, err := at.pos.Node()
	if err != nil {
		return 0, err
	}
	switch {
	case n.IsDir():
		return 0, errIsDir
	case !n.IsRegular() || off < 0:
		return 0, errInvalid
	case off >= n.Size:
		return 0, nil
	}
	p = p[:min(int64(len(p)), n.Size-off)]
	if !wait && c.prefetch != nil {
		c.ahead.note(c.prefetch, id, cat, &n, off, int64(len(p)))
	}
	for done := 0; done < len(p); {
		from := off + int64(done)
		chunk, err := cat.Chunk(&n, from)
		if err != nil {
			return 0, err
		}
		from -= chunk.Offset
		part := p[done:min(int64(len(p)), int64(done)+chunk.Size-from)]
		if err := c.readChunk(ctx, wait, chunk, part, from); err != nil {
			return 0, err
		}
		done += len(part)
	}
	return len(p), nil
}

func (c *Core) readChunk(ctx context.Context, wait bool, chunk index.Chunk, p []byte, off int64) error {
	if chunk.IsHole() {
		clear(p)
		return nil
	}
	if c.cached != nil && c.cached.ReadCached(chunk, p, off) {
		return nil
	}
	if !wait {
		return errContent
	}
	if err := c.cfg.Chunks.ReadChunk(ctx, chunk, p, off); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("reading chunk %v: %w", chunk.Digest, &sourceError{err})
	}
	return nil
}
