package fusefs_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/skimfs/skimfs/fusefs"
	"github.com/skimfs/skimfs/index"
)

const readSize = 128 << 10

// newStream is a Core over a file of n equal chunks, and the file's NodeID.
func newStream(t *testing.T, n int, readAhead int64) (*store, *fusefs.Core, fusefs.NodeID) {
	t.Helper()
	s := newStore()
	root := newDir(0o755)
	stream := add(root, "stream", s.file(t, 0o644, bytes.Repeat([]byte{1}, index.ChunkSize)))
	stream.Size, stream.Chunks = int64(n)*index.ChunkSize, slices.Repeat(stream.Chunks, n)
	ref := s.image(t, root, index.ImageInfo{})
	c, _ := s.newCore(t, fusefs.Config{Tree: s.tree(t, ref.Catalog), ReadAhead: readAhead})
	return s, c, walk(t, c, fusefs.RootID, "stream").Node
}

func readAt(t *testing.T, c *fusefs.Core, id fusefs.NodeID, off int64) {
	t.Helper()
	if _, err := c.Read(id, off, make([]byte, readSize)); err != nil {
		t.Fatal(err)
	}
}

func TestSequentialReaderIsReadAhead(t *testing.T) {
	const chunks = 64
	s, c, id := newStream(t, chunks, 0)
	seen := map[int64]int{}
	furthest := int64(0)
	for off := int64(0); off < chunks*index.ChunkSize; off += 2 * readSize {
		// The kernel's reads come in pairs, and not in order.
		readAt(t, c, id, off+readSize)
		readAt(t, c, id, off)
		for _, chunk := range s.prefetched()[len(seen):] {
			seen[chunk.Offset]++
			furthest = max(furthest, chunk.Offset-off)
			if chunk.Offset+chunk.Size <= off {
				t.Errorf("chunk at %d was asked for behind the reader at %d", chunk.Offset, off)
			}
		}
	}
	for off := int64(2 * index.ChunkSize); off < chunks*index.ChunkSize; off += index.ChunkSize {
		if seen[off] != 1 {
			t.Errorf("chunk at %d was asked for %d times, want once", off, seen[off])
		}
	}
	if limit := int64(33 * index.ChunkSize); furthest > limit || furthest < 16*index.ChunkSize {
		t.Errorf("the furthest chunk was %d bytes ahead, want 16 to 33 chunks", furthest)
	}
}

func TestReadAheadKeepsItsBudget(t *testing.T) {
	const budget = 4 * index.ChunkSize
	s, c, id := newStream(t, 32, budget)
	for off := int64(0); off < 32*index.ChunkSize; off += readSize {
		readAt(t, c, id, off)
		for _, chunk := range s.prefetched() {
			if ahead := chunk.Offset - off; ahead > budget+readSize {
				t.Fatalf("at %d a chunk %d bytes ahead was asked for", off, ahead)
			}
		}
	}
	if len(s.prefetched()) == 0 {
		t.Error("nothing was asked for")
	}
}

func TestRandomReaderIsNotReadAhead(t *testing.T) {
	s, c, id := newStream(t, 64, 0)
	for i := range int64(200) {
		readAt(t, c, id, (i*37%64)*index.ChunkSize)
	}
	if n := len(s.prefetched()); n != 0 {
		t.Errorf("%d chunks were asked for", n)
	}
	for off := int64(0); off < 8*index.ChunkSize; off += readSize {
		readAt(t, c, id, off)
	}
	before := len(s.prefetched())
	if before == 0 {
		t.Fatal("nothing was asked for a sequential reader")
	}
	for i := range int64(50) {
		readAt(t, c, id, (20+i*17%40)*index.ChunkSize)
	}
	if n := len(s.prefetched()); n != before {
		t.Errorf("%d chunks more were asked for once the reader jumped", n-before)
	}
}
