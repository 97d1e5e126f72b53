package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skimfs/skimfs/index"
)

// WhitelistChange says how a whitelist that is signed anew differs from the one before. Keys are named by their fingerprints (index.KeyID), or
// the first 4 digits or more of those.
type WhitelistChange struct {
	Life            time.Duration  // how long it counts; default WhitelistLife
	AddKeys         []string       // verifier lines of further keys that may sign manifests
	DropKeys        []string       // keys that may no longer, without blame
	RevokeKeys      []string       // keys that may not, and what they signed is refused
	RevokeRoots     []index.Digest // root catalogs that are refused
	MinimumRevision uint64         // revisions below it are refused; 0 leaves it as it is
}

// ErrCurrentRefused marks a whitelist that would refuse the repository's current revision.
var ErrCurrentRefused = errors.New("it would refuse the current revision")

// SignWhitelist signs the whitelist anew with the master key. It lists the signing key at hand, if there is one, with those it had; what it revokes
// stays revoked. A whitelist that would refuse the current revision is not written: nodes would have nothing left to mount.
func (r *Repo) SignWhitelist(ctx context.Context, c WhitelistChange) error {
	if err := isMirrorOf(r.dir); err != nil {
		return err
	}
	unlock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := r.reload(); err != nil {
		return err
	}
	return r.changeWhitelist(r.now(), c)
}

func (r *Repo) changeWhitelist(now time.Time, c WhitelistChange) error {
	w := *r.whitelist
	w.Keys, w.RevokedKeys, w.RevokedRoots = slices.Clone(w.Keys), slices.Clone(w.RevokedKeys), slices.Clone(w.RevokedRoots)
	life := c.Life
	if life == 0 {
		life = WhitelistLife
	}
	// Nodes pass over a whitelist that is older than one they saw.
	w.Time = now
	if !w.Time.After(r.whitelist.Time) {
		w.Time = r.whitelist.Time.Add(time.Second)
	}
	w.Expires = w.Time.Add(life).Truncate(time.Second)
	add := slices.Clone(c.AddKeys)
	if key, err := r.keys.signerText(r.name); err == nil {
		if !slices.Contains(w.RevokedKeys, key) {
			add = append(add, key)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, key := range add {
		if key = strings.TrimSpace(key); !slices.Contains(w.Keys, key) {
			w.Keys = append(w.Keys, key)
		}
	}
	for _, id := range slices.Concat(c.DropKeys, c.RevokeKeys) {
		key, err := keyByID(w.Keys, id)
		if err != nil {
			return err
		}
		w.Keys = slices.DeleteFunc(w.Keys, func(k string) bool { return k == key })
		if slices.Contains(c.RevokeKeys, id) {
			w.RevokedKeys = append(w.RevokedKeys, key)
		}
	}
	for _, d := range c.RevokeRoots {
		if !slices.Contains(w.RevokedRoots, d) {
			w.RevokedRoots = append(w.RevokedRoots, d)
		}
	}
	w.MinimumRevision = max(w.MinimumRevision, c.MinimumRevision)
	text, err := os.ReadFile(filepath.Join(r.dir, "manifest"))
	if err != nil {
		return err
	}
	if _, err := index.OpenManifest(text, r.name, &w); err != nil {
		return fmt.Errorf("signing whitelist of %s: %w: %w", r.name, ErrCurrentRefused, err)
	}
	return r.writeWhitelist(w)
}

// keyByID finds the key that a fingerprint names.
func keyByID(keys []string, id string) (string, error) {
	var found []string
	for _, k := range keys {
		if len(id) >= 4 && strings.HasPrefix(index.KeyID(k), strings.ToLower(id)) {
			found = append(found, k)
		}
	}
	if len(found) != 1 {
		return "", &KeyIDError{id, len(found)}
	}
	return found[0], nil
}

// KeyIDError says that a fingerprint names no key of the whitelist, or several.
type KeyIDError struct {
	ID    string
	Found int
}

func (e *KeyIDError) Error() string {
	return fmt.Sprintf("key %q: %d keys of the whitelist have a fingerprint that begins so", e.ID, e.Found)
}

// Rotation says what RotateKey has done, with fingerprints of keys.
type Rotation struct {
	Name     string   `json:"name"`
	New      string   `json:"new_key"`
	Valid    []string `json:"valid_keys"`   // that may sign from now on
	Revoked  []string `json:"revoked_keys"` // by this change
	Revision uint64   `json:"revision"`     // signed by the new key
	Saved    string   `json:"saved"`        // where the old secret key lies now; "" if there was none
}

// RotateKey gives the repository a new signing key: the whitelist, signed with the master key, lists it beside those it had, and a new revision with
// the same content is signed by it. Publishers that still have an old key go on until it is dropped or, with revoke, at once can't.
// An interrupted change leaves a valid repository and can be made again.
func (r *Repo) RotateKey(ctx context.Context, revoke bool) (Rotation, error) {
	out := Rotation{Name: r.name, Valid: []string{}, Revoked: []string{}}
	end, err := r.begin(ctx)
	if err != nil {
		return out, err
	}
	defer end()
	if _, err := r.keys.masterSigner(r.name); err != nil {
		return out, err
	}
	secret, public, err := index.GenerateKey(r.name)
	if err != nil {
		return out, err
	}
	out.New = index.KeyID(public)
	// Nodes learn of the key before they meet its signature, and the key is on disk before anybody learns of it.
	path, next := r.keys.path(r.name, ".key"), r.keys.path(r.name, ".key.new")
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return out, fmt.Errorf("rotating key: %w", err)
	}
	if err := writeKey(next, secret, 0o600); err != nil {
		return out, err
	}
	if err := r.changeWhitelist(r.now(), WhitelistChange{AddKeys: []string{public}}); err != nil {
		return out, err
	}
	if old, err := r.keys.signerText(r.name); err == nil {
		out.Saved = r.keys.path(r.name, ".key.old-"+index.KeyID(old))
		if err := os.Rename(path, out.Saved); err != nil {
			return out, fmt.Errorf("rotating key: %w", err)
		}
	}
	if err := errors.Join(os.Rename(next, path), syncDir(r.keys.Dir)); err != nil {
		return out, fmt.Errorf("rotating key: %w", err)
	}
	if err := r.signAgain(); err != nil {
		return out, err
	}
	if revoke {
		var c WhitelistChange
		for _, k := range r.whitelist.Keys {
			if k != public {
				c.RevokeKeys = append(c.RevokeKeys, index.KeyID(k))
			}
		}
		if err := r.changeWhitelist(r.now(), c); err != nil {
			return out, err
		}
		out.Revoked = append(out.Revoked, c.RevokeKeys...)
	}
	for _, k := range r.whitelist.Keys {
		out.Valid = append(out.Valid, index.KeyID(k))
	}
	out.Revision = r.manifest.Revision
	return out, nil
}

// signAgain makes a new revision with the content of the current one. The caller holds the lock.
func (r *Repo) signAgain() error {
	signer, err := r.authorize(r.now())
	if err != nil {
		return err
	}
	m := *r.manifest
	if now := r.now(); now.After(m.Time) {
		m.Time = now
	}
	for m.Revision++; ; m.Revision++ {
		if _, err := os.Lstat(r.revisionPath(m.Revision)); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return r.commit(&m, signer)
}
