package cachedb

import (
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

var (
	metricHitsMemory     = metrics.NewCounter(`skimfs_cache_hits_total{tier="memory"}`)
	metricHitsDisk       = metrics.NewCounter(`skimfs_cache_hits_total{tier="disk"}`)
	metricMissesMemory   = metrics.NewCounter(`skimfs_cache_misses_total{tier="memory"}`)
	metricMissesDisk     = metrics.NewCounter(`skimfs_cache_misses_total{tier="disk"}`)
	metricFills          = metrics.NewCounter(`skimfs_cache_fills_total`)
	metricFillErrors     = metrics.NewCounter(`skimfs_cache_fill_errors_total`)
	metricFillSeconds    = metrics.NewHistogram(`skimfs_cache_fill_seconds`)
	metricEvictedLimit   = metrics.NewCounter(`skimfs_cache_evictions_total{reason="limit"}`)
	metricEvictedSpace   = metrics.NewCounter(`skimfs_cache_evictions_total{reason="space"}`)
	metricEvictedAsked   = metrics.NewCounter(`skimfs_cache_evictions_total{reason="asked"}`)
	metricPinned         = metrics.NewGauge(`skimfs_cache_pinned_bytes`, nil)
	metricStoredBytes    = metrics.NewCounter(`skimfs_cache_stored_bytes_total`)
	metricCopiedBytes    = metrics.NewCounter(`skimfs_cache_copied_bytes_total`)
	metricVerifyFailures = metrics.NewCounter(`skimfs_cache_verify_failures_total`)
	metricUncachedLimit  = metrics.NewCounter(`skimfs_cache_uncached_total{reason="limit"}`)
	metricUncachedSpace  = metrics.NewCounter(`skimfs_cache_uncached_total{reason="space"}`)
	metricUncachedError  = metrics.NewCounter(`skimfs_cache_uncached_total{reason="error"}`)
	metricBytes          = metrics.NewGauge(`skimfs_cache_bytes`, nil)
	metricObjects        = metrics.NewGauge(`skimfs_cache_objects`, nil)
	metricLimit          = metrics.NewGauge(`skimfs_cache_limit_bytes`, nil)

	metricLowerHits        = metrics.NewCounter(`skimfs_cache_lower_reads_total{result="hit"}`)
	metricLowerMisses      = metrics.NewCounter(`skimfs_cache_lower_reads_total{result="missing"}`)
	metricLowerDamaged     = metrics.NewCounter(`skimfs_cache_lower_reads_total{result="damaged"}`)
	metricLowerSlow        = metrics.NewCounter(`skimfs_cache_lower_reads_total{result="slow"}`)
	metricLowerFailed      = metrics.NewCounter(`skimfs_cache_lower_reads_total{result="failed"}`)
	metricLowerStored      = metrics.NewCounter(`skimfs_cache_lower_writes_total{result="stored"}`)
	metricLowerWriteErrors = metrics.NewCounter(`skimfs_cache_lower_writes_total{result="failed"}`)
	metricMemory           = metrics.NewGauge(`skimfs_cache_memory_bytes`, nil)
)

// Stats is a snapshot of one cache: levels now, and counts since it was opened.
type Stats struct {
	Bytes       int64 // on disk, the index included
	Objects     int64 // on disk
	Limit       int64 // bytes on disk allowed
	MemoryBytes int64 // in the memory tier
	Pinned      int64 // bytes on disk that are pinned

	Hits           Hits
	Misses         int64 // Gets that neither tier could answer
	Stored         int64 // bytes of objects written to disk
	Copied         int64 // bytes copied forward from packs that left
	Fills          int64 // fills begun
	FillErrors     int64
	Evictions      int64 // objects
	VerifyFailures int64 // objects found damaged
	Uncached       int64 // fills answered but not stored: no room, or too large
	Refused        int64 // of these, for want of free space on the partition
}

// Hits counts answers by tier.
type Hits struct{ Memory, Disk int64 }

// counter counts for one cache and for the process.
type counter struct {
	n      atomic.Int64
	metric *metrics.Counter
}

func (c *counter) add(n int) {
	c.n.Add(int64(n))
	c.metric.Add(n)
}

type counters struct {
	hitsMemory, hitsDisk, missesMemory, missesDisk counter
	fills, fillErrors, verifyFailures              counter
	evictedLimit, evictedSpace, evictedAsked       counter
	stored, copied                                 counter
	uncachedLimit, uncachedSpace, uncachedError    counter
}

func (c *counters) init() {
	c.hitsMemory.metric, c.hitsDisk.metric = metricHitsMemory, metricHitsDisk
	c.missesMemory.metric, c.missesDisk.metric = metricMissesMemory, metricMissesDisk
	c.fills.metric, c.fillErrors.metric, c.verifyFailures.metric = metricFills, metricFillErrors, metricVerifyFailures
	c.evictedLimit.metric, c.evictedSpace.metric, c.evictedAsked.metric = metricEvictedLimit, metricEvictedSpace, metricEvictedAsked
	c.stored.metric, c.copied.metric = metricStoredBytes, metricCopiedBytes
	c.uncachedLimit.metric, c.uncachedSpace.metric, c.uncachedError.metric = metricUncachedLimit, metricUncachedSpace, metricUncachedError
}

func (db *DB) countDiskHit() {
	db.count.missesMemory.add(1)
	db.count.hitsDisk.add(1)
}

// Stats returns a snapshot; its cost does not depend on the cache's size.
func (db *DB) Stats() Stats {
	c := &db.count
	return Stats{
		Bytes: db.quota.bytes(), Objects: db.table.count.Load(), Limit: db.Limit(), MemoryBytes: db.memory.size(), Pinned: db.quota.pinned.Load(),
		Hits:   Hits{Memory: c.hitsMemory.n.Load(), Disk: c.hitsDisk.n.Load()},
		Misses: c.missesDisk.n.Load(), Stored: c.stored.n.Load(), Copied: c.copied.n.Load(), Fills: c.fills.n.Load(), FillErrors: c.fillErrors.n.Load(),
		Evictions:      c.evictedLimit.n.Load() + c.evictedSpace.n.Load() + c.evictedAsked.n.Load(),
		VerifyFailures: c.verifyFailures.n.Load(), Refused: c.uncachedSpace.n.Load(),
		Uncached: c.uncachedLimit.n.Load() + c.uncachedSpace.n.Load() + c.uncachedError.n.Load(),
	}
}

// UpdateGauges sets the gauges among the metrics to what they are now; with several caches in a process the last one to be asked shows.
func (db *DB) UpdateGauges() {
	s := db.Stats()
	metricBytes.Set(float64(s.Bytes))
	metricObjects.Set(float64(s.Objects))
	metricLimit.Set(float64(s.Limit))
	metricMemory.Set(float64(s.MemoryBytes))
	metricPinned.Set(float64(s.Pinned))
}

func observeFill(begun time.Time) { metricFillSeconds.Update(time.Since(begun).Seconds()) }
