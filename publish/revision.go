package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/skimfs/skimfs/index"
)

const (
	defaultTTL       = 4 * time.Minute
	defaultRetention = 30 * 24 * time.Hour

	privateDir = ".publish"
)

// revise loads the current name tree, has edit change it, and signs the result as a new revision: objects first and synced, then the
// revision, then the manifest. Without a change the current manifest stays. The caller holds the lock.
func (r *Repo) revise(ctx context.Context, edit func(t *nameTree) error) (changed bool, err error) {
	signer, err := r.authorize(r.now())
	if err != nil {
		return false, err
	}
	view, err := r.view(ctx)
	if err != nil {
		return false, err
	}
	t, err := loadNames(ctx, view, r.manifest.Next, r.now())
	if err != nil {
		return false, fmt.Errorf("reading revision %d: %w", r.manifest.Revision, err)
	}
	if err := edit(t); err != nil {
		return false, err
	}
	root, err := index.BuildNames(t.root, r.putter(ctx, nil))
	if err != nil {
		return false, err
	}
	if root == r.manifest.Root {
		return false, nil
	}
	m := *r.manifest
	m.Root, m.Next, m.Time = root, t.next, r.now()
	if m.Time.Before(r.manifest.Time) {
		m.Time = r.manifest.Time
	}
	m.Time = m.Time.Truncate(time.Second)
	for {
		m.Revision++
		// A number that a killed publish has taken is not taken again.
		if _, err := os.Lstat(r.revisionPath(m.Revision)); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return true, r.commit(&m, signer)
}

// commit makes m the current manifest.
func (r *Repo) commit(m *index.Manifest, signer signer) error {
	text, err := m.Sign(signer)
	if err != nil {
		return err
	}
	if err := r.store.sync(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(r.dir, "revisions"), 0o755); err != nil {
		return fmt.Errorf("writing revision %d: %w", m.Revision, err)
	}
	if err := replaceFile(r.revisionPath(m.Revision), text, 0o644); err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(r.dir, "manifest"), text, 0o644); err != nil {
		return err
	}
	revisionsSigned.Inc()
	r.manifest = m
	return nil
}

func (r *Repo) revisionPath(n uint64) string {
	return filepath.Join(r.dir, "revisions", strconv.FormatUint(n, 10))
}

// putter returns an index.Put that stores catalogs and counts them.
func (r *Repo) putter(ctx context.Context, catalogs *int) index.Put {
	var scratch []byte
	return func(d index.Digest, plain []byte) (err error) {
		if catalogs != nil && len(plain) > 8 && string(plain[:8]) == "skimcat\n" {
			*catalogs++
		}
		_, scratch, err = r.store.put(ctx, d, plain, scratch)
		return err
	}
}

// view returns the current revision to read.
func (r *Repo) view(ctx context.Context) (*index.View, error) {
	root, err := r.store.catalog(ctx, r.manifest.Root)
	if err != nil {
		return nil, fmt.Errorf("reading revision %d: %w", r.manifest.Revision, err)
	}
	return index.NewView(root, r.store.catalog)
}
