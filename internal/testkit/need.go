package testkit

import (
	"os"
	"testing"
)

// allVariable, set to "all", makes the tests that this machine can't run fail instead of being
// skipped. CI sets it.
const allVariable = "SKIMFS_TESTS"

// NeedRoot skips a test that needs root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		lack(t, "this test needs root")
	}
}

// NeedFUSE skips a test that needs /dev/fuse.
func NeedFUSE(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		lack(t, "this test needs /dev/fuse: "+err.Error())
		return
	}
	f.Close()
}

func lack(t testing.TB, what string) {
	t.Helper()
	if os.Getenv(allVariable) == "all" {
		t.Fatal(what)
	}
	t.Skip(what)
}
