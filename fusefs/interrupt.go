package fusefs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"bazil.org/fuse"
)

// watchEvery is how often an interrupted requester is looked at: the kernel tells of its first signal only, and the one that
// kills it may come later.
const watchEvery = 20 * time.Millisecond

// waiters knows the requests that wait. An interrupt alone doesn't end a wait: a process with a timer would never get
// through a page fault. It ends when the requester is being killed.
type waiters struct {
	mu  sync.Mutex // guards ids
	ids map[fuse.RequestID]*waiter
}

type waiter struct {
	thread uint32
	ctx    context.Context
	cancel context.CancelCauseFunc
	watch  sync.Once
}

// enter adds a request. The context it returns ends with errKilled when the requester is killed; leave must be called.
func (w *waiters) enter(ctx context.Context, h *fuse.Header) (_ context.Context, leave func()) {
	one := &waiter{thread: h.Pid}
	one.ctx, one.cancel = context.WithCancelCause(ctx)
	id := h.ID
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ids == nil {
		w.ids = map[fuse.RequestID]*waiter{}
	}
	w.ids[id] = one
	return one.ctx, func() {
		w.mu.Lock()
		delete(w.ids, id)
		w.mu.Unlock()
		one.cancel(nil)
	}
}

// interrupt tells of a signal for the requester; it is false if the request isn't waiting.
func (w *waiters) interrupt(id fuse.RequestID) bool {
	w.mu.Lock()
	one := w.ids[id]
	w.mu.Unlock()
	if one == nil {
		return false
	}
	one.watch.Do(func() { go one.watchKill() })
	return true
}

// watchKill ends the wait once the requester has SIGKILL pending.
func (w *waiter) watchKill() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		if killPending(w.thread) {
			w.cancel(errKilled)
			return
		}
		select {
		case <-w.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// killPending reports whether SIGKILL is pending for a thread. Of a thread in another PID namespace nothing is known.
func killPending(thread uint32) bool {
	if thread == 0 {
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		return false
	}
	for line := range bytes.Lines(status) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if string(name) != "SigPnd" && string(name) != "ShdPnd" {
			continue
		}
		mask, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		if err == nil && mask&(1<<(syscall.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}
