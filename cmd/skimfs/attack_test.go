package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/mountd"
)

// forged returns the world's manifest, changed and signed by a key of the given name, or the world's own where secret is "".
func (w *world) forged(t *testing.T, secret string, change func(m *index.Manifest)) []byte {
	t.Helper()
	m, err := index.UnverifiedManifest(w.files["manifest"])
	if err != nil {
		t.Fatal(err)
	}
	change(m)
	if secret == "" {
		secret = w.signer(t, "key")
	}
	signer, err := index.ParseSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// text is what a note says, without its signatures.
func text(b []byte) string { return string(b[:bytes.LastIndex(b, []byte("\n\n"))+1]) }

// signed signs any text.
func signed(t *testing.T, text, secret string) []byte {
	t.Helper()
	signer, err := index.ParseSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	b, err := note.Sign(&note.Note{Text: text}, signer)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newKey(t *testing.T, name string) (secret, public string) {
	t.Helper()
	secret, public, err := index.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	return secret, public
}

// S01–S04: whoever sits on the servers or the way to them can't make a node take anything that isn't signed for, older than what it took, or
// revoked. It goes on with what it accepted, and says so.
func TestAttacksOnTrustS02(t *testing.T) {
	t.Parallel()
	w := published(t)
	secret, public := newKey(t, testName)
	otherSecret, _ := newKey(t, "other.example.org")
	real, err := index.SignerVerifier(w.signer(t, "key"))
	if err != nil {
		t.Fatal(err)
	}
	older, err := index.UnverifiedManifest(w.older["manifest"])
	if err != nil {
		t.Fatal(err)
	}
	same := func(*index.Manifest) {}
	list := func(change func(l *index.Whitelist)) []byte { return w.whitelist(t, change) }
	now := time.Now()
	later := now.Add(2 * time.Hour)
	current := w.files["manifest"]
	signature := current[len(text(current))+1:]
	for _, row := range []struct {
		name      string
		before    map[string][]byte // served while the node accepts revision 2, or what it is given
		manifest  []byte
		whitelist []byte
		kind      mountd.Kind
		text      string
	}{
		{name: "right signature by a wrong key", manifest: w.forged(t, secret, same), kind: mountd.WrongKey, text: "signed by"},
		{name: "replayed old manifest", before: map[string][]byte{"manifest": w.files["manifest"]}, manifest: w.older["manifest"], kind: mountd.Rollback, text: "revision 2, 3 was accepted before"},
		{name: "mixed revision and catalog", manifest: w.forged(t, "", func(m *index.Manifest) { m.Revision = older.Revision }), kind: mountd.Rollback, text: "another root"},
		{name: "another repository's manifest", manifest: w.forged(t, otherSecret, func(m *index.Manifest) { m.Name = "other.example.org" }), kind: mountd.WrongKey, text: "other.example.org"},
		{name: "a whitelist from the future", manifest: w.files["manifest"], whitelist: list(func(l *index.Whitelist) { l.Time, l.Expires = later, later.Add(time.Hour) }), kind: mountd.Expired, text: "not valid before"},
		{
			name: "an expired whitelist", before: map[string][]byte{"whitelist": list(func(l *index.Whitelist) { l.Time = now.Add(-3 * time.Hour) })},
			manifest: current, whitelist: list(func(l *index.Whitelist) { l.Time, l.Expires = now.Add(-2*time.Hour), now.Add(-time.Hour) }), kind: mountd.Expired, text: "expired at",
		},
		{
			name: "a clock set back", before: map[string][]byte{"manifest": w.forged(t, "", func(m *index.Manifest) { m.Revision, m.Root, m.Time = 2, older.Root, later })},
			manifest: w.files["manifest"], whitelist: list(func(l *index.Whitelist) { l.Expires = later.Add(-time.Hour) }), kind: mountd.Expired, text: "expired at",
		},
		{
			name: "a whitelist from before a key was revoked", manifest: w.forged(t, secret, func(m *index.Manifest) { m.Revision = 9 }),
			before:    map[string][]byte{"whitelist": list(func(l *index.Whitelist) { l.Keys, l.RevokedKeys = []string{real}, []string{public} })},
			whitelist: list(func(l *index.Whitelist) { l.Time, l.Keys = time.Now().Add(-time.Hour), []string{real, public} }), kind: mountd.Revoked, text: "revokes",
		},
		{name: "a whitelist of another master key", manifest: w.files["manifest"], whitelist: foreignWhitelist(t, real), kind: mountd.WrongKey, text: "master key"},
		{
			name: "a revoked key's manifest", manifest: w.forged(t, secret, func(m *index.Manifest) { m.Revision = 9 }),
			before:    map[string][]byte{"whitelist": list(func(l *index.Whitelist) { l.Keys = []string{real, public} })},
			whitelist: list(func(l *index.Whitelist) { l.Time, l.RevokedKeys = l.Time.Add(time.Minute), []string{public} }), kind: mountd.Revoked, text: "revokes",
		},
		{name: "the master key's own manifest", manifest: w.forged(t, w.signer(t, "masterkey"), same), kind: mountd.WrongKey, text: "signed by"},
		{name: "a manifest from the future", manifest: w.forged(t, "", func(m *index.Manifest) { m.Time = later }), whitelist: list(func(*index.Whitelist) {}), kind: mountd.Expired, text: "the whitelist ends at"},
		{name: "two signatures, the right key's is of another text", manifest: append(w.forged(t, secret, func(m *index.Manifest) { m.Revision = 9 }), signature...), kind: mountd.WrongKey, text: "invalid signature"},
		{name: "two revisions in one", manifest: signed(t, text(current)+"revision 9\n", w.signer(t, "key")), kind: mountd.Damaged, text: `a second "revision"`},
		{name: "ends of lines as DOS has them", manifest: bytes.ReplaceAll(current, []byte("\n"), []byte("\r\n")), kind: mountd.Damaged, text: "not a signed note"},
		{name: "a whitelist cut off", manifest: current, whitelist: w.files["whitelist"][:len(w.files["whitelist"])-20], kind: mountd.Damaged, text: "not a signed note"},
		{name: "the whitelist in the manifest's place", manifest: w.files["whitelist"], kind: mountd.Damaged, text: "line 1"},
		{name: "truncated note", manifest: w.files["manifest"][:len(w.files["manifest"])/2], kind: mountd.Damaged, text: "not a signed note"},
		{name: "huge note", manifest: bytes.Repeat([]byte("skimfs "), index.MaxNote/7+1), kind: mountd.Damaged, text: "longer"},
		{name: "a captive portal", manifest: []byte("<html>welcome</html>"), kind: mountd.Damaged, text: "not a signed note"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s, n := serveWorld(t, w), newNode(t, w)
			s.put("manifest", w.older["manifest"])
			for path, b := range row.before {
				s.put(path, b)
			}
			source, options := testName+"/"+testImage, shortDeadline+",server="+s.URL
			target := n.mount(source, "-o", options)
			accepted := n.status().Mounts[0].Revision
			s.put("manifest", row.manifest)
			if row.whitelist != nil {
				s.put("whitelist", row.whitelist)
			}
			for i := range 2 {
				other := n.target([]string{"a", "b"}[i])
				r := n.run("mount", source, other, "-o", options)
				if r.status != 0 || !strings.Contains(r.stderr, row.text) || !strings.Contains(r.stderr, "accepted before") {
					t.Fatalf("status %d, %q, want 0 and %q", r.status, r.stderr, row.text)
				}
				if got := n.read(filepath.Join(other, "etc/motd")); got != "skim\n" {
					t.Errorf("content %q", got)
				}
			}
			for _, m := range n.status().Mounts {
				if m.Revision != accepted || m.Standing.RefusedKind != row.kind || m.Standing.Refused == "" {
					t.Errorf("status of %s: revision %d, %+v, want %d and %s", m.Target, m.Revision, m.Standing, accepted, row.kind)
				}
			}
			if got := n.read(filepath.Join(target, "etc/motd")); got != "skim\n" {
				t.Errorf("the running mount: %q", got)
			}
			if got := strings.Count(n.log(), "is refused: what was accepted before is kept"); got != 1 {
				t.Errorf("the log says why %d times, want once\n%s", got, n.log())
			}
			for _, want := range []string{"skimfs_repositories_refused 1\n", `skimfs_revisions_refused_total{why="` + string(row.kind) + `"} 1`} {
				if !strings.Contains(n.exposed(), want) {
					t.Errorf("no %q in /metrics", want)
				}
			}
		})
	}
}

// foreignWhitelist is one for the same name that another master key signed.
func foreignWhitelist(t *testing.T, key string) []byte {
	t.Helper()
	secret, _ := newKey(t, testName)
	master, err := index.ParseSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	list := index.Whitelist{Name: testName, Time: time.Now().Add(time.Minute), Expires: time.Now().Add(time.Hour), Keys: []string{key}}
	b, err := list.Sign(master)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// S02: a URL stands for the repository that was accepted from there. Another one that the node trusts as well can't take its place unasked, neither in a running
// mount nor in a new one; by its own name it can be mounted from there.
func TestAURLStaysWithItsRepositoryS02(t *testing.T) {
	t.Parallel()
	w := published(t)
	const other = "other.example.org"
	n, s := newNode(t, w), serveWorld(t, w)
	masterSecret, masterPublic := newKey(t, other)
	secret, public := newKey(t, other)
	writeTest(t, filepath.Join(n.home, "etc", "keys", other+".pub"), masterPublic)
	target := n.mount(s.URL, "-o", shortDeadline+",max_ttl=1s")
	before := n.sh(`exec ls "$1"`, target).stdout

	now := time.Now()
	list := index.Whitelist{Name: other, Time: now, Expires: now.Add(time.Hour), Keys: []string{public}}
	master, err := index.ParseSigner(masterSecret)
	if err != nil {
		t.Fatal(err)
	}
	whitelist, err := list.Sign(master)
	if err != nil {
		t.Fatal(err)
	}
	older, err := index.UnverifiedManifest(w.older["manifest"])
	if err != nil {
		t.Fatal(err)
	}
	s.put("whitelist", whitelist)
	s.put("manifest", w.forged(t, secret, func(m *index.Manifest) { m.Name, m.Root, m.Revision = other, older.Root, 9 }))
	stays := func(why string) {
		t.Helper()
		r := n.run("mount", s.URL, target, "-o", "remount")
		m := n.status().Mounts[0]
		if got := n.sh(`exec ls "$1"`, target).stdout; got != before || m.Revision != 3 || !strings.Contains(r.stderr, why) {
			t.Errorf("the mount shows revision %d, %q, want 3, %q; %q, want %q", m.Revision, got, before, r.stderr, why)
		}
	}
	stays("mount it by its name")
	if m := n.status().Mounts[0]; m.Standing.RefusedKind != mountd.WrongKey {
		t.Errorf("status: %+v", m.Standing)
	}
	n.await("a mount that says why", func() bool { // nobody waits for an answer that takes longer than a second
		r := n.run("mount", s.image(), n.target("image"), "-o", shortDeadline)
		n.ok("umount", n.target("image"))
		if r.status != 0 || !strings.Contains(r.stderr, "revision 3, accepted before") {
			t.Fatalf("status %d, %q", r.status, r.stderr)
		}
		return strings.Contains(r.stderr, "mount it by its name")
	})
	oneHint(t, n.run("mount", s.URL+"#none", n.target("none"), "-o", shortDeadline), exitMountFailed, "mount it by its name", "NAME.pub")
	if got := strings.Count(n.log(), "is refused: what was accepted before is kept"); got != 1 {
		t.Errorf("the log says why %d times, want once\n%s", got, n.log())
	}
	// Somebody means the other one.
	n.ok("mount", other, n.target("other"), "-o", shortDeadline+",server="+s.URL)
	stays("has the place of " + testName)
}
