package publishd_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publishd"
)

// TestBuildsFromAnImageInTheLocalRegistry: buildah, for real, over plain HTTP from loopback, and what it made can be read in the repository.
func TestBuildsFromAnImageInTheLocalRegistry(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t)
	testkit.Program(t, "buildah")
	base := testkit.StartRegistry(t).Push(layout(t), "library/base:1")
	dir := tree(t, "brought along")
	write(t, filepath.Join(dir, "Containerfile"), "ARG BASE\nFROM $BASE\nCOPY file /srv/added\nENV GREETING=hello\n")
	s := newService(t)
	o := s.done(s.submit(publishd.Request{Kind: publishd.Build, Source: dir, As: "local/built:1", Args: map[string]string{"BASE": base}}).ID())
	if o.Metadata.State != publishd.Succeeded {
		log, _ := os.ReadFile(filepath.Join(s.home, "publishd.log"))
		t.Fatalf("%+v\n%s", o, log)
	}
	url := testkit.StartNginx(t, s.repo).URL + "#local/built:1"
	key := "pubkey=" + filepath.Join(s.keys, "queue.example.org.pub")
	if got := s.ok("cat", "-o", key, url, "/srv/added"); got != "brought along" {
		t.Errorf("/srv/added holds %q", got)
	}
	if got := s.ok("cat", "-o", key, url, "/.singularity.d/env/10-docker2singularity.sh"); !strings.Contains(got, "GREETING") {
		t.Errorf("the environment lacks what the Containerfile sets:\n%s", got)
	}
}

// TestABuildThatFailsSaysSo, and is not tried again: the same Containerfile would fail the same way.
func TestABuildThatFailsSaysSo(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t)
	testkit.Program(t, "buildah")
	dir := tree(t, "")
	write(t, filepath.Join(dir, "Containerfile"), "FROM scratch\nCOPY missing /\n")
	s := newService(t)
	o := s.done(s.submit(publishd.Request{Kind: publishd.Build, Source: dir, As: "local/built:1"}).ID())
	if o.Metadata.State != publishd.Failed || o.Error == nil || !strings.Contains(o.Error.Detail, "buildah") {
		t.Errorf("%+v", o)
	}
}

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
