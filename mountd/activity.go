package mountd

import (
	"sync"
	"time"
)

// activity ends a daemon that nobody uses: stop is called once after idle without a hold.
type activity struct {
	idle time.Duration // 0: never
	stop func()

	mu    sync.Mutex // guards what follows
	holds int
	timer *time.Timer
	over  bool
}

func newActivity(idle time.Duration, stop func()) *activity {
	a := &activity{idle: idle, stop: stop}
	if idle > 0 {
		a.timer = time.AfterFunc(idle, a.expire)
	}
	return a
}

// hold keeps the daemon alive until release is called. It fails when the daemon is about to end.
func (a *activity) hold() (release func(), ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return nil, false
	}
	a.holds++
	if a.timer != nil {
		a.timer.Stop()
	}
	return sync.OnceFunc(a.release), true
}

func (a *activity) release() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.holds--; a.holds == 0 && a.timer != nil {
		a.timer.Reset(a.idle)
	}
}

func (a *activity) expire() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.holds == 0 && !a.over {
		a.over = true
		a.stop()
	}
}

// end lets no further hold succeed.
func (a *activity) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
}
