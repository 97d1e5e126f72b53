package fusefs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/skimfs/skimfs/fusefs"
)

// TestMain lets the test binary play the mount helper, and prepares it.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == fusefs.HelperName {
		os.Exit(fusefs.Fusermount(os.Args[1:]))
	}
	os.Exit(run(m))
}

// toolPath is the PATH of subprocesses; that of the process itself leads to the mount helper only.
var toolPath = os.Getenv("PATH")

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "fusefs-helper-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := fusefs.PrepareHelper(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}
