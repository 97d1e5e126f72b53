package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

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
	undo := r.forge(first, 100, time.Now())
	look("three", mountd.WrongKey)
	undo()
	look("three", "")
	// The second one is in wrong hands.
	second := key()
	rotate("--revoke")
	r.publish("local/a:1", "four")
	look("four", "")
	undo = r.forge(second, 100, time.Now())
	look("four", mountd.Revoked)
	undo()
	look("four", "")
}

// forge has a key sign what the publisher never made: the current content as a revision that far ahead, at another time, good for 99 years. It returns the way back.
func (r *liveRepo) forge(secret []byte, ahead uint64, at time.Time) (undo func()) {
	r.t.Helper()
	manifest := filepath.Join(r.dir, "manifest")
	real, err := os.ReadFile(manifest)
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := index.UnverifiedManifest(real)
	if err != nil {
		r.t.Fatal(err)
	}
	m.Revision, m.Time, m.TTL = m.Revision+ahead, at, 99*365*24*time.Hour
	signer, err := index.ParseSigner(strings.TrimSpace(string(secret)))
	if err != nil {
		r.t.Fatal(err)
	}
	b, err := m.Sign(signer)
	if err != nil {
		r.t.Fatal(err)
	}
	writeTest(r.t, manifest, string(b))
	return func() { writeTest(r.t, manifest, string(real)) }
}

// S06: whoever has a key that is good until it is revoked can number his revision as high and date it as late as he likes: nodes and mirrors that took it take the
// publisher's next one all the same, once they see that the key is revoked.
func TestAStolenKeysRevisionEndsWithTheKeyS06(t *testing.T) {
	t.Parallel()
	r := newLiveRepo(t)
	r.publish("local/a:1", "one")
	n, mirror := r.node(), filepath.Join(t.TempDir(), "mirror")
	target, options := n.target("m"), "server="+r.url
	n.ok("mount", testName, target, "-o", options)
	follow := func(version string) (revision uint64) {
		t.Helper()
		n.ok("mount", testName, target, "-o", options+",remount")
		r.skimfs("repo", "mirror", r.url, mirror, "--pubkey", filepath.Join(r.keys, testName+".pub"))
		if got := n.read(filepath.Join(target, "local/a:1/etc/version")); got != version+"\n" {
			t.Errorf("the mount shows %q, want %q", got, version)
		}
		return n.status().Mounts[0].Revision
	}
	before := follow("one")
	secret, err := os.ReadFile(filepath.Join(r.keys, testName+".key"))
	if err != nil {
		t.Fatal(err)
	}
	undo := r.forge(secret, 1<<40, time.Now().Add(20*24*time.Hour)) // a whitelist lives for 30 days
	if got := follow("one"); got != before+1<<40 {
		t.Fatalf("at revision %d: nothing is measured", got)
	}
	expires := n.sh(`getfattr --only-values -n user.skimfs.expires "$1"`, target).stdout
	if minutes, err := strconv.Atoi(expires); err != nil || minutes > 24*60 {
		t.Errorf("the next look is in %q minutes", expires)
	}
	undo()
	r.skimfs("repo", "rotate-key", r.dir, "--keys", r.keys, "--revoke")
	r.publish("local/a:1", "two")
	after := follow("two")
	if after <= before || after > before+10 {
		t.Errorf("at revision %d, want one of the publisher's after %d", after, before)
	}
	// It is what is remembered, and the guard holds again.
	n.ok("umount", target)
	undo = r.forge(secret, 1<<40, time.Now())
	if res := n.run("mount", testName, target, "-o", options); res.status != 0 || !strings.Contains(res.stderr, fmt.Sprintf("revision %d, accepted before", after)) {
		t.Errorf("status %d, %q", res.status, res.stderr)
	}
	undo()
}
