package fetch

import (
	"sync"
	"time"
)

// Repeated failures of one file (row D08): the pause before the next request doubles with each, up to a limit, and all is forgotten when
// it has not failed for a while.
const (
	throttleFirst  = 32 * time.Millisecond
	throttleMost   = 2 * time.Second
	throttleForget = 10 * time.Second
	throttleFiles  = 4096 // remembered at once
)

// throttle remembers what failed of late.
type throttle struct {
	mu     sync.Mutex // guards failed
	failed map[string]failure
}

type failure struct {
	n    int
	last time.Time
}

// wait returns how long the next request for path has to wait.
func (t *throttle) wait(path string, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, ok := t.failed[path]
	if !ok || now.Sub(f.last) >= throttleForget {
		return 0
	}
	return pause(f.n-1, 1, throttleFirst, throttleMost) - now.Sub(f.last)
}

// failed notes that a request for path ended in an error that says something about path.
func (t *throttle) fail(path string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failed == nil {
		t.failed = make(map[string]failure)
	}
	f := t.failed[path]
	if now.Sub(f.last) >= throttleForget {
		f.n = 0
	}
	if len(t.failed) >= throttleFiles {
		for p, old := range t.failed {
			if now.Sub(old.last) >= throttleForget {
				delete(t.failed, p)
			}
		}
		for p := range t.failed {
			if len(t.failed) < throttleFiles {
				break
			}
			delete(t.failed, p) // any one: it costs a request without a pause
		}
	}
	t.failed[path] = failure{f.n + 1, now}
}

// succeed forgets path.
func (t *throttle) succeed(path string) {
	t.mu.Lock()
	delete(t.failed, path)
	t.mu.Unlock()
}
