package mountd

import (
	"sync"
	"time"

	"github.com/skimfs/skimfs/index"
)

// An error that took long counts for a quarter of that time, at most for as long as fetch makes a try wait. The kernel has processes that wait for the same page,
// or the same name, ask one after the other: so the last of them ends soon after the first, not as many deadlines later.
const (
	failedLeast = time.Second
	failedPart  = 4
	failedMost  = 2 * time.Second
	failedAbove = 1024 // objects remembered before old ones are dropped
)

// failures are the objects that a mount could not get just now.
type failures struct {
	mu sync.Mutex // guards m
	m  map[index.Digest]failure
}

type failure struct {
	err   error
	until time.Time
}

// recent returns the error that getting d ended in just now, or nil.
func (f *failures) recent(d index.Digest, now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if one, ok := f.m[d]; ok && now.Before(one.until) {
		return one.err
	}
	return nil
}

// note remembers that getting d ended in err, after so long.
func (f *failures) note(d index.Digest, err error, took time.Duration, now time.Time) {
	if took < failedLeast {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m == nil {
		f.m = map[index.Digest]failure{}
	}
	if len(f.m) >= failedAbove {
		for old, one := range f.m {
			if !now.Before(one.until) {
				delete(f.m, old)
			}
		}
	}
	f.m[d] = failure{err, now.Add(min(took/failedPart, failedMost))}
}
