package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	later := time.Now().Add(2 * time.Hour)
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
			name: "a clock set back", before: map[string][]byte{"manifest": w.forged(t, "", func(m *index.Manifest) { m.Revision, m.Root, m.Time = 2, older.Root, later })},
			manifest: w.files["manifest"], whitelist: list(func(l *index.Whitelist) { l.Expires = later.Add(-time.Hour) }), kind: mountd.Expired, text: "expired at",
		},
		{
			name: "a whitelist from before a key was revoked", manifest: w.forged(t, secret, func(m *index.Manifest) { m.Revision = 9 }),
			before:    map[string][]byte{"whitelist": list(func(l *index.Whitelist) { l.Keys, l.RevokedKeys = []string{real}, []string{public} })},
			whitelist: list(func(l *index.Whitelist) { l.Time, l.Keys = time.Now().Add(-time.Hour), []string{real, public} }), kind: mountd.Revoked, text: "revokes",
		},
		{name: "a whitelist of another master key", manifest: w.files["manifest"], whitelist: foreignWhitelist(t, real), kind: mountd.WrongKey, text: "master key"},
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
