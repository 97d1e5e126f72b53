package mountd

import (
	"cmp"
	"os"
	"slices"
	"time"

	"github.com/skimfs/skimfs/fetch"
)

// Status is what an operator asks first. Field names in JSON are stable.
type Status struct {
	PID           int            `json:"pid"`
	Version       string         `json:"version"`
	Socket        string         `json:"socket"`
	Started       time.Time      `json:"started"`
	UptimeSeconds int64          `json:"uptime_seconds"`
	OnDemand      bool           `json:"on_demand"` // it ends by itself when idle
	Cache         CacheStatus    `json:"cache"`
	Fetch         FetchStatus    `json:"fetch"` // by all clients since the start
	Origins       []OriginStatus `json:"origins"`
	Mounts        []MountStatus  `json:"mounts"`
}

// CacheStatus tells of the cache.
type CacheStatus struct {
	Dir            string  `json:"dir"`
	Bytes          int64   `json:"bytes"` // on disk
	Limit          int64   `json:"limit"` // bytes on disk
	Objects        int64   `json:"objects"`
	MemoryBytes    int64   `json:"memory_bytes"`
	PinnedBytes    int64   `json:"pinned_bytes"`
	HitsMemory     int64   `json:"hits_memory"`
	HitsDisk       int64   `json:"hits_disk"`
	Misses         int64   `json:"misses"`
	HitRatio       float64 `json:"hit_ratio"` // 0 to 1; 1 before the first use
	Evictions      int64   `json:"evictions"`
	VerifyFailures int64   `json:"verify_failures"`
	Uncached       int64   `json:"uncached"` // answered and not stored: no room

	Lower []LowerStatus `json:"lower"` // lower caches that mounts name
}

// FetchStatus counts requests over HTTP.
type FetchStatus struct {
	Requests    int64            `json:"requests"`
	Bytes       int64            `json:"bytes"`        // of bodies as they came, compressed
	FileObjects int64            `json:"file_objects"` // objects with content of files: files, or chunks of large ones
	Retries     int64            `json:"retries"`
	Refreshes   int64            `json:"refreshes"` // past the caches on the way
	Hedges      int64            `json:"hedges"`    // second requests, for answers that were slow to begin
	Failovers   int64            `json:"failovers"`
	Errors      map[string]int64 `json:"errors"` // failed tries by kind
}

// OriginStatus tells of a set of servers and the way to them.
type OriginStatus struct {
	Servers []string    `json:"servers"`
	Server  string      `json:"server"` // in use
	Proxy   string      `json:"proxy"`  // in use, or DIRECT
	InUse   bool        `json:"in_use"` // by a mount
	Fetch   FetchStatus `json:"fetch"`
}

// MountStatus tells of a mount.
type MountStatus struct {
	ID         int64         `json:"id"` // in this daemon's life: the label "mount" of metrics
	Source     string        `json:"source"`
	Target     string        `json:"target"`
	State      string        `json:"state"`           // "mounted", or "lost": it waits to be mounted again
	Error      string        `json:"error,omitempty"` // why it is lost
	Kind       string        `json:"kind"`            // "image" or "repository"
	Repository string        `json:"repository"`
	Revision   uint64        `json:"revision"`
	Root       string        `json:"root"`               // digest of the repository's root catalog
	Image      string        `json:"image,omitempty"`    // digest of the image's root catalog
	Manifest   string        `json:"manifest,omitempty"` // digest of the OCI image manifest
	Platform   string        `json:"platform,omitempty"`
	Mounted    time.Time     `json:"mounted"`
	Offline    bool          `json:"offline"` // no server answered at mount time, or at the last check
	Leases     []LeaseStatus `json:"leases,omitempty"`
	Since      time.Time     `json:"since"`                 // shows this revision since
	Published  time.Time     `json:"published"`             // this revision
	Follows    bool          `json:"follows"`               // shows new revisions as they come: a repository that isn't pinned
	Checked    time.Time     `json:"checked,omitzero"`      // when a server last said that there is none newer
	CheckError string        `json:"check_error,omitempty"` // why the last check failed

	Standing StandingStatus `json:"standing"` // of the repository with its servers, now

	FilesFetched   int64   `json:"files_fetched"`   // files of which the beginning was fetched
	ObjectsFetched int64   `json:"objects_fetched"` // chunks of files
	BytesFetched   int64   `json:"bytes_fetched"`   // of file content, decompressed
	Hits           int64   `json:"hits"`            // reads of a chunk that this node had
	Misses         int64   `json:"misses"`
	HitRatio       float64 `json:"hit_ratio"` // 0 to 1; 1 before the first read
	Errors         int64   `json:"errors"`    // reads that failed
}

func (d *Daemon) status() Status {
	sum, files, each := d.origins.totals()
	slices.SortFunc(each, func(a, b OriginStatus) int { return slices.Compare(a.Servers, b.Servers) })
	return Status{
		PID: os.Getpid(), Version: d.cfg.Version, Socket: d.place.socket(), Started: d.begun, UptimeSeconds: int64(time.Since(d.begun).Seconds()),
		OnDemand: d.cfg.Idle > 0, Cache: d.cacheStatus(), Fetch: fetchStatus(sum, files), Origins: each, Mounts: d.mountStatuses(),
	}
}

func (d *Daemon) cacheStatus() CacheStatus {
	s := d.db.Stats()
	return CacheStatus{
		Dir: d.place.cache, Bytes: s.Bytes, Limit: s.Limit, Objects: s.Objects, MemoryBytes: s.MemoryBytes, PinnedBytes: s.Pinned,
		HitsMemory: s.Hits.Memory, HitsDisk: s.Hits.Disk, Misses: s.Misses, HitRatio: ratio(s.Hits.Memory+s.Hits.Disk, s.Misses),
		Evictions: s.Evictions, VerifyFailures: s.VerifyFailures, Uncached: s.Uncached,
		Lower: d.lowerStatuses(),
	}
}

func fetchStatus(s fetch.Stats, files int64) FetchStatus {
	if s.Errors == nil {
		s.Errors = map[string]int64{}
	}
	return FetchStatus{s.Requests, s.Bytes, files, s.Retries, s.Refreshes, s.Hedges, s.Failovers, s.Errors}
}

func ratio(hits, misses int64) float64 {
	if hits+misses == 0 {
		return 1
	}
	return float64(hits) / float64(hits+misses)
}

// mountStatuses returns all mounts by target.
func (d *Daemon) mountStatuses() []MountStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]MountStatus, 0, len(d.mounts))
	for _, m := range d.mounts {
		out = append(out, m.status())
	}
	slices.SortFunc(out, func(a, b MountStatus) int { return cmp.Compare(a.Target, b.Target) })
	return out
}
