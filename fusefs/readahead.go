package fusefs

import (
	"sync"

	"github.com/skimfs/skimfs/index"
)

const (
	readers     = 256       // files read at the same time that are told apart
	slack       = 512 << 10 // the kernel sends several reads at once, in any order
	firstWindow = 2         // chunks
	lastWindow  = 32
	confident   = 3 // sequential reads before anything is asked for
)

// readAhead asks for the chunks that a sequential reader will want. It keeps a small fixed table: a file that falls
// out of it starts anew.
type readAhead struct {
	budget int64 // bytes ahead of each reader
	table  [readers]reader
}

type reader struct {
	mu     sync.Mutex // guards what follows
	id     NodeID
	end    int64 // of the furthest read
	steps  int   // reads in sequence
	window int   // chunks
	asked  int64 // up to this byte
}

// note tells of a read of size bytes at off of the file n, and asks for chunks behind it if the reader is sequential.
func (a *readAhead) note(to Prefetcher, id NodeID, cat *index.Catalog, n *index.Node, off, size int64) {
	if n.Count < 2 || a.budget <= 0 {
		return
	}
	r := &a.table[(uint64(id)*0x9e3779b97f4a7c15)>>56%readers]
	r.mu.Lock()
	defer r.mu.Unlock()
	end := off + size
	switch {
	case r.id != id || off < r.end-slack || off > r.end+slack:
		r.id, r.end, r.steps, r.window, r.asked = id, end, 0, 0, 0
		return
	case end <= r.end:
		return
	}
	r.end = end
	if r.steps++; r.steps < confident {
		return
	}
	r.asked = max(r.asked, end)
	chunk := int64(1) << n.Shift
	if r.window == 0 {
		r.window = firstWindow
	} else if r.asked-end > int64(r.window)*chunk/2 {
		return // half of what was asked for is still ahead
	} else {
		r.window = min(2*r.window, lastWindow)
	}
	goal := min(end+min(int64(r.window)*chunk, a.budget), n.Size)
	for r.asked < goal {
		c, err := cat.Chunk(n, r.asked)
		if err != nil {
			return
		}
		r.asked = c.Offset + c.Size
		if !c.IsHole() {
			to.Prefetch(c)
		}
	}
}
