package publishd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publishd"
)

// A copy of the state directory, put back as docs/operate.md says, has what was queued when it was made; what was published since is found
// and not published again.
func TestABackupOfTheQueueIsPutBack(t *testing.T) {
	t.Parallel()
	s := newService(t, "--reserve", "1000000GB")
	var ids []string
	for i := range 3 {
		o := s.submit(publishd.Request{Source: "dir:" + tree(t, fmt.Sprint(i)), As: fmt.Sprintf("local/b%d:1", i), RequestID: fmt.Sprint(i)})
		ids = append(ids, o.ID())
	}
	s.stop()
	state := filepath.Join(s.home, "state", "publishd")
	backup := filepath.Join(t.TempDir(), "backup")
	testkit.Run(t, "cp", "-a", state, backup)
	s.args = nil
	finish := func() int {
		s.start()
		for _, id := range ids {
			if o := s.done(id); o.Metadata.State != publishd.Succeeded {
				t.Errorf("%s: %+v", o.Metadata.As, o.Error)
			}
		}
		return s.revision()
	}
	first := finish()
	s.stop()
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "cp", "-a", backup, state)
	if again := finish(); again != first {
		t.Errorf("revision %d after the queue was put back, %d before", again, first)
	}
}
