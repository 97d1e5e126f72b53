package testkit_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
)

func TestHomeTakesDownWhatATestLeaves(t *testing.T) {
	testkit.NeedRoot(t)
	var home string
	left := exec.Command("sleep", "600")
	t.Run("a test that leaves a mount with a blank in its name, one inside it, and a process", func(t *testing.T) {
		home = testkit.Home(t)
		outer := filepath.Join(home, "mnt", "two words")
		for _, point := range []string{outer, filepath.Join(outer, "inner")} {
			if err := os.Mkdir(point, 0o755); err != nil {
				t.Fatal(err)
			}
			testkit.Run(t, "mount", "-t", "tmpfs", "tmpfs", point)
		}
		if got, err := testkit.MountsBelow(home); err != nil || len(got) != 2 || got[1] != outer {
			t.Errorf("MountsBelow: %q, %v, want the inner, then %q", got, err, outer)
		}
		left.Env = append(os.Environ(), "SKIMFS_HOME="+home)
		if err := left.Start(); err != nil {
			t.Fatal(err)
		}
		go left.Wait() // a zombie would count as alive
		if got := testkit.Processes(home); !slices.Equal(got, []int{left.Process.Pid}) {
			t.Errorf("Processes: %v, want %d alone", got, left.Process.Pid)
		}
	})
	if got, err := testkit.MountsBelow(home); err != nil || len(got) != 0 {
		t.Errorf("still mounted: %q, %v", got, err)
	}
	if got := testkit.Processes(home); len(got) != 0 {
		t.Errorf("still running: %v", got)
	}
	if _, err := os.Stat(home); !os.IsNotExist(err) {
		t.Errorf("%s: %v, want it gone", home, err)
	}
}

func TestHomesDoNotSeeEachOther(t *testing.T) {
	one, two := testkit.Home(t), testkit.Home(t)
	other := exec.Command("sleep", "600")
	other.Env = append(os.Environ(), "SKIMFS_HOME="+one+"x")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	for _, home := range []string{one, two} {
		if got := testkit.Processes(home); len(got) != 0 {
			t.Errorf("%s: %v, want no process", home, got)
		}
	}
}
