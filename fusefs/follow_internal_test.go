package fusefs

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLastCPU(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35"
	for _, c := range []struct {
		claim, stat string
		want        int
	}{
		{"a plain name", "7 (sh)" + rest + " 3 0 0\n", 3},
		{"a name with a parenthesis and spaces", "7 (a) b 9 (c)" + rest + " 11 0 0\n", 11},
		{"the last field", "7 (sh)" + rest + " 3", 3},
		{"too few fields", "7 (sh)" + rest, -1},
		{"no number", "7 (sh)" + rest + " x 0", -1},
		{"a negative number", "7 (sh)" + rest + " -3 0", -1},
		{"nothing", "", -1},
	} {
		t.Run(c.claim, func(t *testing.T) {
			if got := lastCPU([]byte(c.stat)); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

// TestFollower: a reader goes to its only client's CPU, and anywhere once the clients are on several.
func TestFollower(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Log("one CPU: there is nowhere to go")
	}
	done := make(chan struct{})
	go func() { // its thread ends with it
		defer close(done)
		f := newFollower()
		if f == nil {
			return
		}
		affinity := func() (set unix.CPUSet) {
			if err := unix.SchedGetaffinity(0, &set); err != nil {
				t.Error(err)
			}
			return set
		}
		here := f.cpuOf(uint32(os.Getpid()))
		if here < 0 {
			t.Error("the CPU of this process is not known")
			return
		}
		for range followEvery {
			f.note(uint32(os.Getpid()))
		}
		if set := affinity(); set.Count() != 1 {
			t.Errorf("after requests of one thread it may run on %d CPUs", set.Count())
		}
		for i := range followLost + 1 {
			f.seen, f.last = followEvery-1, i+1000 // as if the one before had been elsewhere
			f.note(uint32(os.Getpid()))
		}
		if set := affinity(); set != f.all {
			t.Errorf("after requests from everywhere it may run on %d CPUs, want %d", set.Count(), f.all.Count())
		}
	}()
	<-done
}
