package cachedb

import (
	"encoding/binary"
	"testing"
	"time"
)

func TestALargeTableIsToldOnce(t *testing.T) {
	told := make(chan struct{}, 10)
	var tab table
	tab.large = func() { told <- struct{}{} }
	defer tab.reset()
	add := func(from, to uint64) {
		for n := from; n < to; n++ {
			var k key
			k[0] = byte(n)
			binary.LittleEndian.PutUint64(k[4:], n*0x9e3779b97f4a7c15)
			if !tab.add(k, loc{pack: 1, size: 1}) {
				t.Fatalf("object %d is there", n)
			}
		}
	}
	add(0, 300_000)
	if n := tab.bytes.Load(); n < 300_000*52 || n > largeTable {
		t.Fatalf("300,000 objects take %d bytes", n)
	}
	select {
	case <-told:
		t.Error("300,000 objects are called large")
	case <-time.After(50 * time.Millisecond):
	}
	add(300_000, 800_000)
	select {
	case <-told:
	case <-time.After(10 * time.Second):
		t.Fatalf("800,000 objects, %d bytes, are not called large", tab.bytes.Load())
	}
	select {
	case <-told:
		t.Error("told twice")
	case <-time.After(50 * time.Millisecond):
	}
	tab.reset()
	if n := tab.bytes.Load(); n != 0 {
		t.Errorf("empty, it takes %d bytes", n)
	}
}
