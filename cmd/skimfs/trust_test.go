package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/mountd"
)

// whitelist signs a whitelist of the world's that differs by what change does. It is newer than the one published.
func (w *world) whitelist(t *testing.T, change func(*index.Whitelist)) []byte {
	t.Helper()
	signer, err := index.ParseSigner(w.signer(t, "masterkey"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := index.SignerVerifier(w.signer(t, "key"))
	if err != nil {
		t.Fatal(err)
	}
	list := &index.Whitelist{Name: testName, Time: time.Now().Add(time.Minute), Expires: time.Now().Add(time.Hour), Keys: []string{key}}
	change(list)
	b, err := list.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestNothingOlderThanAcceptedIsMountedS04(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image())
	n.ok("umount", target)
	s.put("manifest", w.older["manifest"])
	// S04: what was accepted stays, and the node says why.
	r := n.run("mount", s.image(), target)
	if want := "revision 2, 3 was accepted before"; r.status != 0 || !strings.Contains(r.stderr, want) {
		t.Errorf("status %d, %q, want 0 and %q", r.status, r.stderr, want)
	}
	if m := n.status().Mounts[0]; m.Revision != 3 || m.Standing.RefusedKind != mountd.Rollback || m.Offline {
		t.Errorf("status: %+v", m)
	}
	// A mirror that doesn't lag behind is asked.
	n.ok("umount", target)
	mirror := serveWorld(t, w)
	if r := n.run("mount", s.image(), target, "-o", "server="+mirror.URL); r.status != 0 || r.stderr != "" {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
	// A node that never saw the newer one can't know.
	m := newNode(t, w)
	m.mount(s.image())
}

// A revision whose root catalog can't be had is not accepted: what was mounted before still is, with and without a server.
func TestABrokenRevisionLeavesTheOneBefore(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n, never := serveWorld(t, w), newNode(t, w), newNode(t, w)
	s.put("manifest", w.older["manifest"])
	target := n.mount(s.image(), "-o", shortDeadline)
	n.ok("umount", target)
	s.put("manifest", w.files["manifest"])
	_, root, _ := strings.Cut(string(w.files["manifest"]), "\nroot sha256:")
	s.change(t, "objects/"+root[:2]+"/"+root[:64]+".zst", truncate)
	r := n.run("mount", s.image(), target, "-o", shortDeadline)
	if r.status != 0 || !strings.Contains(r.stderr, "root catalog of ") || !strings.Contains(r.stderr, "revision 2, accepted before") {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
	n.ok("umount", target)
	oneHint(t, never.run("mount", s.image(), never.target("m"), "-o", shortDeadline), exitMountFailed, "root catalog of .*, revision 3", "repo verify")
	s.Close()
	if r := n.run("mount", s.image(), target, "-o", shortDeadline); r.status != 0 || !strings.Contains(r.stderr, "revision 2, accepted before") {
		t.Errorf("offline: status %d, %q", r.status, r.stderr)
	}
}

// S03: an expired whitelist stops new revisions and new nodes, not what was accepted.
func TestAnExpiredWhitelistBlocksOnlyWhatIsNewS03(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n, never := serveWorld(t, w), newNode(t, w), newNode(t, w)
	ends := time.Now().Add(2 * time.Second).Truncate(time.Second)
	s.put("whitelist", w.whitelist(t, func(l *index.Whitelist) { l.Time, l.Expires = ends.Add(-time.Hour), ends }))
	s.put("manifest", w.older["manifest"])
	target := n.mount(s.image())
	time.Sleep(time.Until(ends))
	if got := n.read(filepath.Join(target, "etc/motd")); got != "skim\n" {
		t.Errorf("a running mount: %q", got)
	}
	n.ok("umount", target)
	// The same revision again, and then a newer one.
	for _, manifest := range [][]byte{w.older["manifest"], w.files["manifest"]} {
		s.put("manifest", manifest)
		r := n.run("mount", s.image(), target)
		if r.status != 0 || !strings.Contains(r.stderr, "expired at") || !strings.Contains(r.stderr, "revision 2, accepted before") {
			t.Errorf("status %d, %q", r.status, r.stderr)
		}
		if m := n.status().Mounts[0]; m.Standing.RefusedKind != mountd.Expired {
			t.Errorf("status: %+v", m)
		}
		n.ok("umount", target)
	}
	oneHint(t, never.run("mount", s.image(), never.target("m")), exitMountFailed, "whitelist of images.example.org: .* expired at", "whitelist sign")
}

func TestARenewedWhitelistIsSeenPastCaches(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	// The first answer is an old one, as a proxy would keep it.
	s.put("whitelist", w.whitelist(t, func(l *index.Whitelist) { l.Time, l.Expires = l.Time.Add(-time.Hour), time.Now().Add(-time.Minute) }))
	s.onNoCache("whitelist", w.files["whitelist"])
	n.mount(s.image())
}

func TestARevokedRevisionIsRefusedOfflineToo(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image(), "-o", shortDeadline)
	n.ok("umount", target)
	s.put("whitelist", w.whitelist(t, func(l *index.Whitelist) { l.MinimumRevision = 4 }))
	oneHint(t, n.run("mount", s.image(), target, "-o", shortDeadline), exitMountFailed, "revision 3 is below the minimum 4", "withdrew")
	s.Close()
	oneHint(t, n.run("mount", s.image(), target, "-o", shortDeadline), exitMountFailed, "revision 3 is below the minimum 4", "withdrew")
}

func TestTheGuardIsKeyedByMasterKeyToo(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image())
	n.ok("umount", target)
	// The same name under another master key is another repository: revision 2 of it is not older than revision 3 of the first.
	secret, public, err := index.GenerateKey(testName)
	if err != nil {
		t.Fatal(err)
	}
	master, err := index.ParseSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	key, err := index.SignerVerifier(w.signer(t, "key"))
	if err != nil {
		t.Fatal(err)
	}
	list := &index.Whitelist{Name: testName, Time: time.Now().Add(-time.Hour), Expires: time.Now().Add(time.Hour), Keys: []string{key}}
	b, err := list.Sign(master)
	if err != nil {
		t.Fatal(err)
	}
	s.put("whitelist", b)
	s.put("manifest", w.older["manifest"])
	pub := filepath.Join(n.home, "other.pub")
	writeTest(t, pub, public)
	n.ok("mount", s.image(), target, "-o", "pubkey="+pub)
	if m := n.status().Mounts[0]; m.Revision != 2 {
		t.Errorf("revision %d, want 2", m.Revision)
	}
}

func TestAnImagePublishedJustNowIsFoundPastCaches(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	s.put("manifest", w.older["manifest"])
	target := n.mount(s.image())
	s.onNoCache("manifest", w.files["manifest"])
	other := n.target("other")
	n.ok("mount", s.URL+"#"+bigImage, other)
	if got := n.ok("ls", s.URL, "docker.io/library"); got != "nested:1\ntest:1\n" {
		t.Errorf("ls: %q", got)
	}
	if m := n.status().Mounts; len(m) != 2 || m[0].Target != target || m[0].Revision != 2 || m[1].Revision != 3 {
		t.Errorf("mounts: %+v", m)
	}
}

func TestReadsWithoutAMount(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	for _, row := range []struct {
		args []string
		want string
	}{
		{[]string{"ls", s.URL, "docker.io/library"}, "nested:1\ntest:1\n"},
		{[]string{"ls", s.image() + "/usr", "lib"}, "a\nb\n"},
		{[]string{"ls", s.image(), "etc/motd"}, "motd\n"},
		{[]string{"cat", testName, testImage + "/etc/motd", "-o", "server=" + s.URL}, "skim\n"},
		{[]string{"cat", s.image(), "big"}, string(w.big)},
		{[]string{"cat", s.image(), "etc/hostname"}, ""},
	} {
		if got := n.ok(row.args...); got != row.want {
			t.Errorf("skimfs %q: %d bytes %.80q, want %d bytes %.80q", row.args, len(got), got, len(row.want), row.want)
		}
	}
	if got := n.ok("ls", "-l", s.image(), "tmp/.."); !strings.Contains(got, "drwxrwxrwt ") || !strings.Contains(got, "environment -> .singularity.d/env/90-environment.sh") {
		t.Errorf("ls -l: %s", got)
	}
	if got := n.ok("stat", s.image(), "big"); !strings.Contains(got, "objects 4, 4 of them cached") || !strings.Contains(got, "digest sha256:") {
		t.Errorf("stat: %s", got)
	}
	s.change(t, w.objects(t, testImage+"/usr/lib/b")[0], remove)
	oneHint(t, n.run("cat", s.image(), "usr/lib/b", "-o", shortDeadline), exitFailed, "404", "repo verify")
}
