package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/gcerrors"
	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/index"
)

// store keeps objects in a repository. It is safe for concurrent use.
type store struct {
	dir    string
	bucket *blob.Bucket
	enc    *index.ObjectEncoder
	dec    *index.ObjectDecoder
	// doubt is set when the last writer ended without syncing: then what is found is read and checked, not just looked at.
	doubt bool

	added atomic.Int64 // objects written by this store
	dirty atomic.Bool  // something was written since the last sync

	mu    sync.Mutex // guards known
	known map[index.Digest]*stored
}

// stored is what a store knows of an object; once is done when it is known to be there.
type stored struct {
	once sync.Once
	size int64 // compressed bytes
	err  error
}

func openStore(dir string) (*store, error) {
	// Temporary files lie beside the objects, where a rename can reach.
	bucket, err := fileblob.OpenBucket(dir, &fileblob.Options{NoTempDir: true, Metadata: fileblob.MetadataDontWrite, DirFileMode: 0o755})
	if err != nil {
		return nil, fmt.Errorf("opening repository %s: %w", dir, err)
	}
	enc, err := index.NewObjectEncoder()
	if err != nil {
		return nil, err
	}
	dec, err := index.NewObjectDecoder()
	if err != nil {
		return nil, err
	}
	return &store{dir: dir, bucket: bucket, enc: enc, dec: dec, known: map[index.Digest]*stored{}}, nil
}

func (s *store) entry(d index.Digest) *stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.known[d]
	if k == nil {
		k = &stored{}
		s.known[d] = k
	}
	return k
}

// put makes sure that the object d, which holds plain, is in the repository, and returns its compressed size in bytes. scratch
// is space to compress in; put returns it, perhaps grown.
func (s *store) put(ctx context.Context, d index.Digest, plain, scratch []byte) (size int64, _ []byte, err error) {
	k := s.entry(d)
	k.once.Do(func() {
		var ok bool
		if k.size, ok = s.present(ctx, d, int64(len(plain))); ok {
			return
		}
		scratch = s.enc.Encode(scratch[:0], plain)
		if k.err = s.write(ctx, d.ObjectPath(), scratch); k.err != nil {
			return
		}
		k.size = int64(len(scratch))
		s.added.Add(1)
		objectsWritten.Inc()
		objectBytes.Add(len(scratch))
	})
	return k.size, scratch, k.err
}

// has reports whether the object d is in the repository with the given plain and compressed sizes.
func (s *store) has(ctx context.Context, d index.Digest, plain, compressed int64) bool {
	k := s.entry(d)
	ok := true
	k.once.Do(func() {
		if s.doubt {
			k.size, ok = s.present(ctx, d, plain)
		} else {
			var a *blob.Attributes
			a, k.err = s.bucket.Attributes(ctx, d.ObjectPath())
			if ok = k.err == nil; ok {
				k.size = a.Size
			}
		}
		if ok = ok && k.size == compressed; !ok {
			// Whoever converts the layer anew looks again.
			s.forget(d)
		}
	})
	return ok && k.err == nil && k.size == compressed
}

func (s *store) forget(d index.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, d)
}

// present reports whether the repository holds the object d of plain bytes in one piece, and its compressed size.
func (s *store) present(ctx context.Context, d index.Digest, plain int64) (size int64, ok bool) {
	a, err := s.bucket.Attributes(ctx, d.ObjectPath())
	if err != nil || a.Size == 0 || a.Size > index.MaxObjectLen(plain) {
		return 0, false
	}
	object, err := s.bucket.ReadAll(ctx, d.ObjectPath())
	if err != nil || index.CheckFrame(object, plain) != nil {
		return 0, false
	}
	if s.doubt {
		if _, err := s.dec.Decode(object, d, plain); err != nil {
			return 0, false
		}
	}
	return int64(len(object)), true
}

func (s *store) write(ctx context.Context, key string, data []byte) error {
	// The content type is given so that nobody sniffs; a cancelled context leaves no file.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.dirty.Store(true)
	w, err := s.bucket.NewWriter(ctx, key, &blob.WriterOptions{ContentType: "application/zstd"})
	if err != nil {
		return fmt.Errorf("writing %s: %w", key, err)
	}
	if _, err := w.Write(data); err != nil {
		cancel()
		return fmt.Errorf("writing %s: %w", key, errors.Join(err, w.Close()))
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("writing %s: %w", key, err)
	}
	return nil
}

// get returns the verified plain content of the object d. It is an index.ObjectGetter.
func (s *store) get(ctx context.Context, d index.Digest, size int64) ([]byte, error) {
	r, err := s.bucket.NewReader(ctx, d.ObjectPath(), nil)
	if err != nil {
		if gcerrors.Code(err) == gcerrors.NotFound {
			return nil, fmt.Errorf("reading %s: %w", d.ObjectPath(), fs.ErrNotExist)
		}
		return nil, fmt.Errorf("reading %s: %w", d.ObjectPath(), err)
	}
	defer r.Close()
	if r.Size() > index.MaxObjectLen(size) {
		return nil, fmt.Errorf("object %v: %d bytes are too many for %d of content: %w", d, r.Size(), size, index.ErrFormat)
	}
	object, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", d.ObjectPath(), err)
	}
	return s.dec.Decode(object, d, size)
}

func (s *store) catalog(ctx context.Context, ref index.CatalogRef) (*index.Catalog, error) {
	return ref.Load(ctx, s.get)
}

// sync brings all that was written to disk.
func (s *store) sync() error {
	if !s.dirty.Swap(false) {
		return nil
	}
	f, err := os.Open(s.dir)
	if err != nil {
		return fmt.Errorf("syncing repository: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		s.dirty.Store(true)
		return fmt.Errorf("syncing repository %s: %w", s.dir, err)
	}
	return nil
}

// sweep removes temporary files that a killed writer left among the objects.
func (s *store) sweep() error {
	return filepath.WalkDir(filepath.Join(s.dir, "objects"), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !e.IsDir() && strings.HasSuffix(path, ".tmp") {
			err = os.Remove(path)
		}
		return err
	})
}

// replaceFile writes a file so that at any time the old or the new content is there, and the new one to stay once it returns.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
