package cachedb

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// memory is the tier above the disk: whole objects, least recently used leave first, bounded by bytes.
//
// Reads wait for nobody: who holds the lock may have lost his CPU. While another holds it a use goes unnoticed.
type memory struct {
	limit   int64
	content sync.Map // by key, what lru has, []byte

	mu    sync.Mutex // guards what follows, and changes of content
	lru   *simplelru.LRU[key, int64]
	bytes int64
}

// memoryOverhead is what an entry costs besides its content.
const memoryOverhead = 320

func newMemory(limit int64) *memory {
	m := &memory{limit: limit}
	// The count is bounded by the bytes: an entry costs at least memoryOverhead.
	m.lru, _ = simplelru.NewLRU(int(max(limit, memoryOverhead)/memoryOverhead+1), func(k key, cost int64) {
		m.bytes -= cost
		m.content.Delete(k)
	})
	return m
}

func (m *memory) get(k key) ([]byte, bool) {
	v, ok := m.content.Load(k)
	if !ok {
		return nil, false
	}
	if m.mu.TryLock() {
		m.lru.Get(k)
		m.mu.Unlock()
	}
	return v.([]byte), true
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
	m.content.Store(k, b)
	m.lru.Add(k, cost)
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
