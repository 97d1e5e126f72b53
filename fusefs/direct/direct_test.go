package direct_test

import (
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/skimfs/skimfs/fusefs/direct"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		claim string
		args  []string
		want  direct.Args
		bad   bool
	}{
		{"a mount", []string{"-o", "fsname=x,allow_other", "--", "/m"}, direct.Args{Options: []string{"fsname=x", "allow_other"}, Target: "/m"}, false},
		{"a comma and a backslash in a value", []string{"-o", `fsname=a\,b\\c`, "/m"}, direct.Args{Options: []string{`fsname=a,b\c`}, Target: "/m"}, false},
		{"a lazy unmount", []string{"-u", "-q", "-z", "--", "/m"}, direct.Args{Target: "/m", Unmount: true, Lazy: true}, false},
		{"no target", []string{"-u"}, direct.Args{}, true},
		{"two targets", []string{"/m", "/n"}, direct.Args{}, true},
		{"an unknown flag", []string{"-x", "/m"}, direct.Args{}, true},
	} {
		t.Run(c.claim, func(t *testing.T) {
			got, err := direct.Parse(c.args)
			if (err != nil) != c.bad {
				t.Fatalf("error %v", err)
			}
			if err == nil && (!slices.Equal(got.Options, c.want.Options) || got.Target != c.want.Target || got.Unmount != c.want.Unmount || got.Lazy != c.want.Lazy) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// TestRunLeavesTheRestAlone: whatever is not a plain mount that succeeds is for somebody else to do, or to explain.
func TestRunLeavesTheRestAlone(t *testing.T) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(pair[0])
	defer syscall.Close(pair[1])
	missing := t.TempDir() + "/missing"
	for _, c := range []struct {
		claim, socket string
		args          []string
	}{
		{"no socket", "", []string{"--", missing}},
		{"a socket that is no number", "3x", []string{"--", missing}},
		{"a number that is too large", "99999999999", []string{"--", missing}},
		{"an unmount", "9", []string{"-u", "--", missing}},
		{"a wrong call", "9", []string{"-x"}},
		{"a missing target", "9", []string{"--", missing}},
		{"a target that is no directory", "9", []string{"--", os.DevNull}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			t.Setenv(direct.SocketVariable, c.socket)
			if direct.Run(c.args) {
				t.Error("it says that it mounted")
			}
		})
	}
}
