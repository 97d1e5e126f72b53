package peer_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/skimfs/skimfs/internal/peer"
	"github.com/skimfs/skimfs/internal/testkit"
)

// A process is known by its own rights, with more groups than the first question has room for.
func TestAProcessIsKnownByItsRights(t *testing.T) {
	testkit.NeedRoot(t)
	dir := t.TempDir()
	for d := dir; d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 3, 200} {
		want := make([]uint32, 0, n)
		for i := range n {
			want = append(want, uint32(70_000+i))
		}
		cmd := exec.Command(testkit.Program(t, "perl"), "-MIO::Socket::UNIX", "-e", `IO::Socket::UNIX->new(Peer => $ARGV[0])->sysread(my $b, 1)`, socket)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 60_001, Gid: 60_002, Groups: want}}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		got, err := peer.Of(c)
		c.Close()
		if waitErr := cmd.Wait(); err != nil || waitErr != nil {
			t.Fatal(err, waitErr)
		}
		slices.Sort(got.Groups)
		if got.UID != 60_001 || got.GID != 60_002 || !slices.Equal(got.Groups, want) {
			t.Errorf("with %d groups: %+v", n, got)
		}
	}
}

func TestOtherConnectionsTellNoUser(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := peer.Of(c); err == nil {
		t.Errorf("over TCP: %+v", got)
	}
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	if got, err := peer.Of(here); err == nil {
		t.Errorf("in memory: %+v", got)
	}
}
