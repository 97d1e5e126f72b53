package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/skimfs/skimfs/index"
)

type signer = note.Signer

// Repo is a repository in a directory, at its publisher.
type Repo struct {
	dir       string
	keys      Keys
	name      string
	master    note.Verifier
	manifest  *index.Manifest
	whitelist *index.Whitelist
	store     *store
	log       *slog.Logger
	now       func() time.Time
	waiting   atomic.Bool // it was said that another writes
	own       string      // path of the mark of this writer
}

// Config says how a repository is opened.
type Config struct {
	Dir  string
	Keys string       // directory of keys
	Log  *slog.Logger // for warnings; default none
}

// ErrExists marks a directory that holds a repository already.
var ErrExists = errors.New("holds a repository already")

// Name returns the repository's name.
func (r *Repo) Name() string { return r.name }

// Manifest returns the current revision's manifest.
func (r *Repo) Manifest() index.Manifest { return *r.manifest }

// Create makes an empty signed repository called name in c.Dir, with new keys in c.Keys unless the name has keys there already;
// reused says that it had.
func Create(ctx context.Context, c Config, name string) (r *Repo, reused bool, err error) {
	if err := index.ValidName(name); err != nil {
		return nil, false, err
	}
	fresh := func() error {
		if _, err := os.Lstat(filepath.Join(c.Dir, "manifest")); err == nil {
			return fmt.Errorf("creating repository: %s %w", c.Dir, ErrExists)
		}
		return nil
	}
	if err := fresh(); err != nil {
		return nil, false, err
	}
	r = newRepo(c)
	r.name = name
	if reused, err = r.keys.ensure(name); err != nil {
		return nil, false, err
	}
	if err := os.MkdirAll(filepath.Join(c.Dir, "objects"), 0o755); err != nil {
		return nil, false, fmt.Errorf("creating repository: %w", err)
	}
	unlock, err := r.lock(ctx)
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	if err := fresh(); err != nil { // somebody else was faster
		return nil, false, err
	}
	if r.store, err = openStore(c.Dir); err != nil {
		return nil, false, err
	}
	if r.master, err = r.keys.master(name); err != nil {
		return nil, false, err
	}
	if err := r.signWhitelist(r.now()); err != nil {
		return nil, false, err
	}
	signer, err := r.keys.signer(name)
	if err != nil {
		return nil, false, err
	}
	t := newNames(r.now())
	root, err := index.BuildNames(t.root, r.putter(ctx, nil))
	if err != nil {
		return nil, false, err
	}
	m := &index.Manifest{Name: name, Revision: 1, Root: root, Next: t.next, Time: r.now(), TTL: defaultTTL, Retention: defaultRetention}
	return r, reused, r.commit(m, signer)
}

func newRepo(c Config) *Repo {
	log := c.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Repo{dir: c.Dir, keys: Keys{Dir: c.Keys}, log: log, now: func() time.Time { return time.Now().UTC().Truncate(time.Second) }}
}

// Open opens the repository in c.Dir and checks its manifest against the public master key in c.Keys.
func Open(c Config) (*Repo, error) {
	r := newRepo(c)
	if err := r.reload(); err != nil {
		return nil, err
	}
	var err error
	r.store, err = openStore(c.Dir)
	return r, err
}

// reload reads whitelist and manifest. An expired whitelist is no hindrance here: only signing needs a valid one.
func (r *Repo) reload() error {
	text, err := os.ReadFile(filepath.Join(r.dir, "manifest"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("opening repository: %s holds none: %w", r.dir, err)
	}
	if err != nil {
		return fmt.Errorf("opening repository: %w", err)
	}
	if r.name, err = index.ManifestName(text); err != nil {
		return fmt.Errorf("opening repository %s: %w", r.dir, err)
	}
	if r.master, err = r.keys.master(r.name); err != nil {
		return err
	}
	list, err := os.ReadFile(filepath.Join(r.dir, "whitelist"))
	if err != nil {
		return fmt.Errorf("opening repository: %w", err)
	}
	if r.whitelist, err = index.OpenWhitelist(list, r.name, r.master); err != nil {
		return fmt.Errorf("opening repository %s: %w", r.dir, err)
	}
	if r.manifest, err = index.OpenManifest(text, r.name, r.whitelist); err != nil {
		return fmt.Errorf("opening repository %s: %w", r.dir, err)
	}
	return nil
}

// Whitelist lifetimes.
const (
	// WhitelistLife is how long a signed whitelist counts.
	WhitelistLife = 30 * 24 * time.Hour
	renewAfter    = 24 * time.Hour
	warnBefore    = 7 * 24 * time.Hour
)

// authorize returns the key that signs manifests, after it made sure that the whitelist accepts it: it renews the whitelist while the
// master key is at hand, else warns before it ends and refuses after.
func (r *Repo) authorize(now time.Time) (signer, error) {
	s, err := r.keys.signer(r.name)
	if err != nil {
		return nil, err
	}
	if now.Sub(r.whitelist.Time) > renewAfter && r.keys.hasMaster(r.name) {
		if err := r.signWhitelist(now); err != nil {
			return nil, err
		}
	}
	if err := r.whitelist.CheckTime(now); err != nil {
		return nil, &WhitelistError{r.dir, err}
	}
	if left := r.whitelist.Expires.Sub(now); left < warnBefore {
		r.log.Warn("the whitelist ends soon: sign it anew with the master key", "expires", r.whitelist.Expires.Format(time.RFC3339), "command", "skimfs repo whitelist sign "+r.dir)
	}
	key, err := r.keys.signerText(r.name)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(r.whitelist.Keys, key) || slices.Contains(r.whitelist.RevokedKeys, key) {
		return nil, &WhitelistError{r.dir, fmt.Errorf("whitelist of %s does not list the key %s: %w", r.name, r.keys.path(r.name, ".key"), index.ErrSignature)}
	}
	return s, nil
}

// WhitelistError says that a repository's whitelist must be signed anew before anything can be published.
type WhitelistError struct {
	Dir string
	Err error
}

func (e *WhitelistError) Error() string { return e.Err.Error() }
func (e *WhitelistError) Unwrap() error { return e.Err }

// Whitelist returns the repository's whitelist as it is now.
func (r *Repo) Whitelist() index.Whitelist { return *r.whitelist }

// signWhitelist signs the first whitelist, or renews it.
func (r *Repo) signWhitelist(now time.Time) error {
	if r.whitelist != nil {
		return r.changeWhitelist(now, WhitelistChange{})
	}
	key, err := r.keys.signerText(r.name)
	if err != nil {
		return err
	}
	return r.writeWhitelist(index.Whitelist{Name: r.name, Time: now, Expires: now.Add(WhitelistLife), Keys: []string{key}})
}

// writeWhitelist signs w with the master key and makes it the repository's.
func (r *Repo) writeWhitelist(w index.Whitelist) error {
	master, err := r.keys.masterSigner(r.name)
	if err != nil {
		return err
	}
	text, err := w.Sign(master)
	if err != nil {
		return err
	}
	if _, err := index.OpenWhitelist(text, r.name, r.master); err != nil {
		return fmt.Errorf("the master key is not the one of %s: %w", r.keys.path(r.name, ".pub"), err)
	}
	if err := replaceFile(filepath.Join(r.dir, "whitelist"), text, 0o644); err != nil {
		return err
	}
	r.whitelist = &w
	return nil
}

// Keys is a directory of keys: NAME.pub and NAME.key, and NAME.masterkey in a folder of its own.
type Keys struct{ Dir string }

// KeyError says that a key is not where it is looked for.
type KeyError struct {
	Path string
	Err  error
}

func (e *KeyError) Error() string { return fmt.Sprintf("key %s: %v", e.Path, e.Err) }
func (e *KeyError) Unwrap() error { return e.Err }

func (k Keys) path(name, ext string) string { return filepath.Join(k.Dir, name+ext) }

// MasterPath is where the master key of a repository lies.
func (k Keys) MasterPath(name string) string {
	return filepath.Join(k.Dir, "master", name+".masterkey")
}

// PublicPath is where the public master key of a repository lies: what clients need.
func (k Keys) PublicPath(name string) string { return k.path(name, ".pub") }

func (k Keys) hasMaster(name string) bool {
	_, err := os.Stat(k.MasterPath(name))
	return err == nil
}

func readKey(path string) (string, error) {
	b, err := os.ReadFile(path)
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return "", &KeyError{path, pe.Err}
	}
	return strings.TrimSpace(string(b)), err
}

func (k Keys) master(name string) (note.Verifier, error) {
	path := k.PublicPath(name)
	text, err := readKey(path)
	if err != nil {
		return nil, err
	}
	v, err := index.ParseVerifier(text)
	if err != nil {
		return nil, &KeyError{path, err}
	}
	return v, nil
}

func (k Keys) readSigner(path string) (note.Signer, error) {
	text, err := readKey(path)
	if err != nil {
		return nil, err
	}
	s, err := index.ParseSigner(text)
	if err != nil {
		return nil, &KeyError{path, err}
	}
	return s, nil
}

func (k Keys) signer(name string) (note.Signer, error) { return k.readSigner(k.path(name, ".key")) }

func (k Keys) masterSigner(name string) (note.Signer, error) {
	return k.readSigner(k.MasterPath(name))
}

// signerText returns the verifier line of the key that signs manifests.
func (k Keys) signerText(name string) (string, error) {
	text, err := readKey(k.path(name, ".key"))
	if err != nil {
		return "", err
	}
	return index.SignerVerifier(text)
}

// ensure makes the keys of a repository that are missing and overwrites none. reused says that they were all there.
func (k Keys) ensure(name string) (reused bool, err error) {
	if err := os.MkdirAll(filepath.Dir(k.MasterPath(name)), 0o755); err != nil {
		return false, fmt.Errorf("creating keys: %w", err)
	}
	if err := os.Chmod(filepath.Dir(k.MasterPath(name)), 0o700); err != nil {
		return false, fmt.Errorf("creating keys: %w", err)
	}
	reused = true
	if _, err := os.Lstat(k.PublicPath(name)); errors.Is(err, fs.ErrNotExist) {
		reused = false
		if err := k.makeMaster(name); err != nil {
			return false, err
		}
	}
	if _, err := os.Lstat(k.path(name, ".key")); errors.Is(err, fs.ErrNotExist) {
		reused = false
		secret, _, err := index.GenerateKey(name)
		if err != nil {
			return false, err
		}
		if err := writeKey(k.path(name, ".key"), secret, 0o600); err != nil {
			return false, err
		}
	}
	return reused, nil
}

// makeMaster writes a new master key, or the public half of one that is there.
func (k Keys) makeMaster(name string) error {
	if text, err := readKey(k.MasterPath(name)); err == nil {
		public, err := index.SignerVerifier(text)
		if err != nil {
			return &KeyError{k.MasterPath(name), err}
		}
		return writeKey(k.PublicPath(name), public, 0o644)
	}
	secret, public, err := index.GenerateKey(name)
	if err != nil {
		return err
	}
	if err := writeKey(k.MasterPath(name), secret, 0o600); err != nil {
		return err
	}
	return writeKey(k.PublicPath(name), public, 0o644)
}

// writeKey writes a key that isn't there yet.
func writeKey(path, text string, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("creating keys: %w", err)
	}
	_, err = f.WriteString(text + "\n")
	if err := errors.Join(err, f.Sync(), f.Close(), syncDir(filepath.Dir(path))); err != nil {
		return fmt.Errorf("creating keys: %w", err)
	}
	return nil
}
