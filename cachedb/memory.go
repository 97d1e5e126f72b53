package cachedb

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// memory is the tier above the disk: whole objects, least recently used leave first, bounded by bytes.
type memory struct {
	mu    sync.Mutex // guards what follows
	lru   *simplelru.LRU[key, []byte]
	bytes int64
	limit int64
}

// memoryOverhead is what an entry costs besides its content.
const memoryOverhead = 160

func newMemory(limit int64) *memory {
	m := &memory{limit: limit}
	// The count is bounded by the bytes: an entry costs at least memoryOverhead.
	m.lru, _ = simplelru.NewLRU(int(max(limit, memoryOverhead)/memoryOverhead+1), func(_ key, b []byte) {
		m.bytes -= int64(cap(b)) + memoryOverhead
	})
	return m
}

func (m *memory) get(k key) ([]byte, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lru.Get(k)
}

// put keeps b, which nobody may change from now on. Objects above a quarter of the limit are not kept.
func (m *memory) put(k key, b []byte) {
	cost := int64(cap(b)) + memoryOverhead
	if cost > m.limit/4 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lru.Contains(k) {
		return
	}
	m.bytes += cost
	m.lru.Add(k, b)
	for m.bytes > m.limit {
		m.lru.RemoveOldest()
	}
}

func (m *memory) size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bytes
}

func (m *memory) drop(k key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lru.Remove(k)
}
