package publish

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/skimfs/skimfs/index"
)

// Converter names the rules by which layers become objects and images become catalogs. It changes when the same image would give other
// catalogs.
const Converter = "skimfs 1"

// memoVersion changes when the form of a memo or the rules of converting a layer do.
const memoVersion = "1"

// memo remembers converted layers by their diff_id, so that a layer is read once for all images that share it.
type memo struct {
	dir   string
	store *store
}

func (m memo) path(diffID index.Digest) string {
	return filepath.Join(m.dir, memoVersion, diffID.Hex())
}

// load returns the layer if it has been converted before and all of its objects are still there.
func (m memo) load(ctx context.Context, diffID index.Digest) (*layer, bool) {
	b, err := os.ReadFile(m.path(diffID))
	if err != nil || len(b) < sha256.Size {
		return nil, false
	}
	sum, b := b[:sha256.Size], b[sha256.Size:]
	if got := sha256.Sum256(b); !bytes.Equal(got[:], sum) {
		return nil, false
	}
	l := &layer{}
	if err := gob.NewDecoder(bytes.NewReader(b)).Decode(l); err != nil {
		return nil, false
	}
	return l, m.complete(ctx, l)
}

// complete reports whether all objects of a layer are in the repository.
func (m memo) complete(ctx context.Context, l *layer) bool {
	g, ctx := errgroup.WithContext(ctx)
	n := runtime.GOMAXPROCS(0)
	for i := range n {
		g.Go(func() error {
			for j := i; j < len(l.Objects) && ctx.Err() == nil; j += n {
				o := l.Objects[j]
				if !m.store.has(ctx, o.digest(), o.Plain, o.Stored) {
					return fmt.Errorf("object %v is missing", o.digest())
				}
			}
			return ctx.Err()
		})
	}
	return g.Wait() == nil
}

// save remembers a converted layer.
func (m memo) save(diffID index.Digest, l *layer) error {
	var b bytes.Buffer
	b.Write(make([]byte, sha256.Size))
	if err := gob.NewEncoder(&b).Encode(l); err != nil {
		return fmt.Errorf("remembering layer %v: %w", diffID, err)
	}
	sum := sha256.Sum256(b.Bytes()[sha256.Size:])
	copy(b.Bytes(), sum[:])
	path := m.path(diffID)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("remembering layer %v: %w", diffID, err)
	}
	// A torn memo is recognised by its sum, so there is no need to wait for the disk.
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return fmt.Errorf("remembering layer %v: %w", diffID, err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b.Bytes())
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("remembering layer %v: %w", diffID, err)
	}
	return nil
}
