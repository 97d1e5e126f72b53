package publish_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/publish"
)

// Two keys are valid while one takes the other's place; then the old one goes.
func TestKeyRotationHasTwoValidKeysAndThenOne(t *testing.T) {
	t.Parallel()
	r := twoImages(t)
	before := r.Manifest()
	oldKey := mustRead(t, r.keys, repoName+".key")
	oldID := index.KeyID(r.Whitelist().Keys[0])
	done, err := r.RotateKey(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	if done.Revision != before.Revision+1 || len(done.Valid) != 2 || len(done.Revoked) != 0 || done.Valid[0] != oldID {
		t.Errorf("rotation: %+v", done)
	}
	if m := r.Manifest(); m.Root != before.Root {
		t.Errorf("root %v, want %v as before", m.Root, before.Root)
	}
	// Another publisher still has the old key.
	other := filepath.Join(t.TempDir(), "keys")
	if err := os.MkdirAll(other, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{".key": oldKey, ".pub": mustRead(t, r.keys, repoName+".pub")} {
		if err := os.WriteFile(filepath.Join(other, repoName+name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	theirs, err := publish.Open(publish.Config{Dir: r.dir, Keys: other})
	if err != nil {
		t.Fatal(err)
	}
	if err := theirs.Remove(t.Context(), "local/image1:1"); err != nil {
		t.Errorf("publishing with the old key: %v", err)
	}
	r.open()
	// While the current revision is the old key's, that key can't go.
	drop := publish.WhitelistChange{DropKeys: []string{oldID[:8]}}
	if err := r.SignWhitelist(t.Context(), drop); !errors.Is(err, publish.ErrCurrentRefused) {
		t.Errorf("dropping the key of the current revision: %v", err)
	}
	if err := r.Remove(t.Context(), "local/image0:1"); err != nil {
		t.Fatal(err)
	}
	if err := r.SignWhitelist(t.Context(), drop); err != nil {
		t.Fatal(err)
	}
	if w := r.Whitelist(); len(w.Keys) != 1 || len(w.RevokedKeys) != 0 || index.KeyID(w.Keys[0]) != done.New {
		t.Errorf("whitelist: %+v", w)
	}
	var refused *publish.WhitelistError
	if err := theirs.Remove(t.Context(), "local/image0:1"); err == nil {
		t.Error("the dropped key still publishes")
	} else if errors.As(err, &refused); refused == nil && !errors.As(err, new(*publish.NameError)) {
		t.Errorf("publishing with the dropped key: %v", err)
	}
	// Revisions of the dropped key stay for as long as others do.
	r.open()
	if report, err := r.GC(t.Context(), 0, false); err != nil || report.Revisions != 0 {
		t.Errorf("gc: %v, %+v", err, report)
	}
}

func TestARevokedKeyIsRefusedFromThenOn(t *testing.T) {
	t.Parallel()
	r := twoImages(t)
	oldID, oldManifest := index.KeyID(r.Whitelist().Keys[0]), mustRead(t, r.dir, "manifest")
	done, err := r.RotateKey(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(done.Revoked, []string{oldID}) || !slices.Equal(done.Valid, []string{done.New}) {
		t.Errorf("rotation: %+v", done)
	}
	w := r.Whitelist()
	if _, err := index.OpenManifest(mustRead(t, r.dir, "manifest"), repoName, &w); err != nil {
		t.Errorf("the current revision: %v", err)
	}
	if _, err := index.OpenManifest(oldManifest, repoName, &w); !errors.Is(err, index.ErrRevoked) {
		t.Errorf("a revision of the revoked key: %v", err)
	}
	// Renewing doesn't bring it back, even where it still is the key at hand.
	if err := os.Rename(done.Saved, filepath.Join(r.keys, repoName+".key")); err != nil {
		t.Fatal(err)
	}
	if err := r.SignWhitelist(t.Context(), publish.WhitelistChange{}); err != nil {
		t.Fatal(err)
	}
	if w := r.Whitelist(); len(w.Keys) != 1 || len(w.RevokedKeys) != 1 {
		t.Errorf("renewed whitelist: %+v", w)
	}
	if err := r.Remove(t.Context(), "local/image0:1"); err == nil {
		t.Error("the revoked key still publishes")
	}
}

func TestTheWhitelistIsSignedWhereOnlyTheMasterKeyIs(t *testing.T) {
	t.Parallel()
	r := twoImages(t)
	offline, keys := t.TempDir(), t.TempDir()
	for _, name := range []string{"manifest", "whitelist"} {
		if err := os.WriteFile(filepath.Join(offline, name), mustRead(t, r.dir, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	master := publish.Keys{Dir: r.keys}.MasterPath(repoName)
	if err := os.Mkdir(filepath.Join(keys, "master"), 0o700); err != nil {
		t.Fatal(err)
	}
	for to, from := range map[string]string{(publish.Keys{Dir: keys}).MasterPath(repoName): master, filepath.Join(keys, repoName+".pub"): filepath.Join(r.keys, repoName+".pub")} {
		if err := os.WriteFile(to, mustRead(t, "/", from), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	there, err := publish.Open(publish.Config{Dir: offline, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	before := r.Whitelist()
	if err := there.SignWhitelist(t.Context(), publish.WhitelistChange{Life: 60 * 24 * time.Hour, MinimumRevision: 2}); err != nil {
		t.Fatal(err)
	}
	w := there.Whitelist()
	if !slices.Equal(w.Keys, before.Keys) || !w.Time.After(before.Time) || w.MinimumRevision != 2 || w.Expires.Sub(w.Time) != 60*24*time.Hour {
		t.Errorf("whitelist: %+v", w)
	}
	var id *publish.KeyIDError
	if err := there.SignWhitelist(t.Context(), publish.WhitelistChange{RevokeKeys: []string{"ffff0000ffff"}}); !errors.As(err, &id) {
		t.Errorf("revoking a key that isn't there: %v", err)
	}
	if err := there.SignWhitelist(t.Context(), publish.WhitelistChange{MinimumRevision: 99}); !errors.Is(err, publish.ErrCurrentRefused) {
		t.Errorf("revoking the current revision: %v", err)
	}
	if _, err := os.Stat(filepath.Join(keys, repoName+".key")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a signing key appeared")
	}
}
