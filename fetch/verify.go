package fetch

import (
	"errors"
	"io"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/skimfs/skimfs/index"
)

// objectCheck returns the check of the object d: it turns the bytes of an answer into verified plain content of size bytes.
func objectCheck(dec *index.ObjectDecoder, d index.Digest, size int64) func([]byte) ([]byte, error) {
	return func(object []byte) ([]byte, error) { return dec.Decode(object, d, size) }
}

// readBody reads all of r, of which length is announced (< 0: not), into a buffer that the caller gives back with
// buffers.put. More than limit bytes are errTooLong. n follows the bytes read.
func readBody(r io.Reader, length, limit int64, n *atomic.Int64) ([]byte, error) {
	if length > limit {
		return nil, errTooLong
	}
	size := length
	if length < 0 {
		size = min(limit, unannounced)
	}
	buf := buffers.get(int(size) + 1) // the byte beyond finds the end, or that there is none
	for fill := 0; ; {
		if fill == len(buf) {
			more := buffers.get(int(min(2*int64(fill), limit+1)))
			copy(more, buf)
			buffers.put(buf)
			buf = more
		}
		m, err := r.Read(buf[fill:])
		fill += m
		n.Store(int64(fill))
		switch {
		case int64(fill) > limit:
			err = errTooLong
		case errors.Is(err, io.EOF):
			return buf[:fill], nil
		}
		if err != nil {
			buffers.put(buf)
			return nil, err
		}
	}
}

// unannounced is what to make room for at first if an answer doesn't tell its length.
const unannounced = 64 << 10

// buffers keeps the memory of compressed bytes between requests.
var buffers bufferPool

// bufferPool holds buffers by the power of two of their length, from 4 KiB to 16 MiB. Longer ones are not kept.
type bufferPool [13]sync.Pool

const smallest = 12

// get returns n bytes of any content.
func (bp *bufferPool) get(n int) []byte {
	class := max(bits.Len(uint(n-1)), smallest)
	if class-smallest >= len(bp) {
		return make([]byte, n)
	}
	if p, ok := bp[class-smallest].Get().(*[]byte); ok {
		return (*p)[:n]
	}
	return make([]byte, n, 1<<class)
}

// put takes back what get returned.
func (bp *bufferPool) put(b []byte) {
	class := bits.Len(uint(cap(b))) - 1
	if class < smallest || class-smallest >= len(bp) || cap(b) != 1<<class {
		return
	}
	bp[class-smallest].Put(&b)
}
