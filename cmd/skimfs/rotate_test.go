package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/mountd"
	"github.com/skimfs/skimfs/publish"
)

// S02, S05: a node takes revisions by either key while one takes the other's place, by the new one alone afterwards, and none of a revoked one; what is
// refused leaves the mount as it was.
func TestANodeFollowsKeysThatChangeS05(t *testing.T) {
	t.Parallel()
	r := newLiveRepo(t)
	r.publish("local/a:1", "one")
	n := r.node()
	target, options := n.target("m"), "server="+r.url
	n.ok("mount", testName, target, "-o", options)
	look := func(version string, refused mountd.Kind) {
		t.Helper()
		n.run("mount", testName, target, "-o", options+",remount")
		if got := n.read(filepath.Join(target, "local/a:1/etc/version")); got != version+"\n" {
			t.Errorf("the mount shows %q, want %q", got, version)
		}
		if s := n.status().Mounts[0].Standing; s.RefusedKind != refused {
			t.Errorf("refused: %q (%s), want %q", s.RefusedKind, s.Refused, refused)
		}
	}
	key := func() []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(r.keys, testName+".key"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	rotate := func(flags ...string) (done publish.Rotation) {
		t.Helper()
		if err := json.Unmarshal([]byte(r.skimfs(append([]string{"repo", "rotate-key", r.dir, "--keys", r.keys, "--json"}, flags...)...)), &done); err != nil {
			t.Fatal(err)
		}
		return done
	}
	// forge has a key sign what the publisher never made: the current content as a revision far ahead. It returns the way back.
	manifest := filepath.Join(r.dir, "manifest")
	forge := func(secret []byte) (undo func()) {
		t.Helper()
		real, err := os.ReadFile(manifest)
		if err != nil {
			t.Fatal(err)
		}
		m, err := index.UnverifiedManifest(real)
		if err != nil {
			t.Fatal(err)
		}
		m.Revision += 100
		signer, err := index.ParseSigner(strings.TrimSpace(string(secret)))
		if err != nil {
			t.Fatal(err)
		}
		b, err := m.Sign(signer)
		if err != nil {
			t.Fatal(err)
		}
		writeTest(t, manifest, string(b))
		return func() { writeTest(t, manifest, string(real)) }
	}

	first := key()
	done := rotate()
	look("one", "")
	if got := n.status().Mounts[0].Revision; got != done.Revision || len(done.Valid) != 2 {
		t.Errorf("at revision %d after %+v", got, done)
	}
	// A publisher who still has the first key.
	ours := r.keys
	r.keys = t.TempDir()
	pub, err := os.ReadFile(filepath.Join(ours, testName+".pub"))
	if err != nil {
		t.Fatal(err)
	}
	writeTest(t, filepath.Join(r.keys, testName+".pub"), string(pub))
	if err := os.WriteFile(filepath.Join(r.keys, testName+".key"), first, 0o600); err != nil {
		t.Fatal(err)
	}
	r.publish("local/a:1", "two")
	look("two", "")
	r.keys = ours
	r.publish("local/a:1", "three")
	look("three", "")
	// The first key's time is over.
	old := slices.DeleteFunc(done.Valid, func(id string) bool { return id == done.New })[0]
	r.skimfs("repo", "whitelist", "sign", r.dir, "--keys", r.keys, "--drop-key", old)
	if show := r.skimfs("repo", "whitelist", "show", r.dir, "--keys", r.keys); strings.Contains(show, old) || !strings.Contains(show, done.New) {
		t.Errorf("the whitelist:\n%s", show)
	}
	look("three", "")
	undo := forge(first)
	look("three", mountd.WrongKey)
	undo()
	look("three", "")
	// The second one is in wrong hands.
	second := key()
	rotate("--revoke")
	r.publish("local/a:1", "four")
	look("four", "")
	undo = forge(second)
	look("four", mountd.Revoked)
	undo()
	look("four", "")
}
