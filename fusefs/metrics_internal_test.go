package fusefs

import (
	"context"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

func TestRequestsThatWaitAreCountedAsHungAndWaitedFor(t *testing.T) {
	m := newOpMetrics(metrics.NewSet(), "")
	young := m.wait(time.Now())
	old := m.wait(time.Now().Add(-hungAfter - time.Second))
	if n := m.hung(); n != 1 {
		t.Errorf("%d requests hang, want the one that waits for longer than %v", n, hungAfter)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := m.drain(ctx); err == nil {
		t.Error("drained while two wait")
	}
	drained := make(chan error)
	go func() { drained <- m.drain(t.Context()) }()
	old()
	young()
	if err := <-drained; err != nil {
		t.Error(err)
	}
	defer m.wait(time.Now())()
	if n := m.hung(); n != 0 {
		t.Errorf("%d requests hang after their answers", n)
	}
}
