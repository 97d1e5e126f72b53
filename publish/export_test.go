package publish

import "time"

// SetClock gives a repository another clock.
func SetClock(r *Repo, now func() time.Time) { r.now = now }
