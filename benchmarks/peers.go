package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

// store is one way to keep objects.
type store interface {
	put(d index.Digest, plain []byte) error
	get(d index.Digest, p []byte) error
	Close() error
}

var stores = []struct {
	name string
	open func(dir string) (store, error)
}{
	{"cachedb", openCache}, {"files", openFiles}, {"badger", openBadger},
}

// peerRow is what a store did with objects of a size.
type peerRow struct {
	size     int
	store    string
	put, get latencies
}

var peerSizes = []int{1 << 10, 4 << 10, 16 << 10, 32 << 10, 64 << 10, 256 << 10, 1 << 20}

const (
	peerObjects = 4000
	peerBytes   = 128 << 20
)

// measurePeers has each store keep and give back the same objects, in turn.
func measurePeers(s *scope, rounds int) []peerRow {
	var rows []peerRow
	for _, size := range peerSizes {
		progress("cache: peers: %d KiB", size>>10)
		at := len(rows)
		for _, st := range stores {
			rows = append(rows, peerRow{size: size, store: st.name})
		}
		for round := range rounds {
			for i := range stores {
				n := (i + round) % len(stores)
				s.check(rows[at+n].measure(s, n))
			}
		}
	}
	return rows
}

func (r *peerRow) measure(s *scope, which int) error {
	dir, err := os.MkdirTemp("", "skimfs-peer-")
	s.check(err)
	defer os.RemoveAll(dir)
	st, err := stores[which].open(dir)
	s.check(err)
	objects := min(peerObjects, peerBytes/r.size)
	p := make([]byte, r.size)
	for n := range objects {
		fillContent(p, uint64(n))
		d := digestOf(uint64(n))
		begun := time.Now()
		err := st.put(d, p)
		r.put.since(begun)
		s.check(err)
	}
	for _, n := range rand.Perm(objects) {
		d := digestOf(uint64(n))
		begun := time.Now()
		err := st.get(d, p)
		r.get.since(begun)
		s.check(err)
	}
	return st.Close()
}

type cacheStore struct{ *cachedb.DB }

func openCache(dir string) (store, error) {
	db, err := cachedb.Open(cachedb.Config{Dir: dir, Memory: -1})
	return cacheStore{db}, err
}

func (c cacheStore) put(d index.Digest, plain []byte) error {
	if ok, err := c.Put(d, cachedb.ClassFile, plain); !ok {
		return fmt.Errorf("cachedb did not keep %v: %w", d, err)
	}
	return nil
}

func (c cacheStore) get(d index.Digest, p []byte) error {
	if ok, err := c.ReadAt(d, int64(len(p)), p, 0); !ok {
		return fmt.Errorf("cachedb does not have %v: %w", d, err)
	}
	return nil
}

// fileStore is a file for each object in 256 directories, written aside and renamed.
type fileStore string

func openFiles(dir string) (store, error) {
	for i := range 256 {
		if err := os.Mkdir(filepath.Join(dir, hex.EncodeToString([]byte{byte(i)})), 0o700); err != nil {
			return nil, err
		}
	}
	return fileStore(dir), nil
}

func (f fileStore) path(d index.Digest) string { return filepath.Join(string(f), d.Hex()[:2], d.Hex()) }

func (f fileStore) put(d index.Digest, plain []byte) error {
	t, err := os.CreateTemp(string(f), "new-")
	if err != nil {
		return err
	}
	if _, err := t.Write(plain); err != nil {
		return err
	}
	if err := t.Close(); err != nil {
		return err
	}
	return os.Rename(t.Name(), f.path(d))
}

func (f fileStore) get(d index.Digest, p []byte) error {
	file, err := os.Open(f.path(d))
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.ReadFull(file, p)
	return err
}

func (fileStore) Close() error { return nil }

// badgerStore keeps values in badger's value log, which suits it best.
type badgerStore struct{ *badger.DB }

func openBadger(dir string) (store, error) {
	db, err := badger.Open(badger.DefaultOptions(dir).WithLogger(nil).WithValueThreshold(1 << 10).WithCompression(0).WithDetectConflicts(false).WithMetricsEnabled(false))
	return badgerStore{db}, err
}

func (b badgerStore) put(d index.Digest, plain []byte) error {
	sum := d.Sum()
	return b.Update(func(txn *badger.Txn) error { return txn.Set(sum[:], plain) })
}

func (b badgerStore) get(d index.Digest, p []byte) error {
	sum := d.Sum()
	return b.View(func(txn *badger.Txn) error {
		item, err := txn.Get(sum[:])
		if err != nil {
			return err
		}
		return item.Value(func(v []byte) error {
			copy(p, v)
			return nil
		})
	})
}

func peerTables(w io.Writer, rows []peerRow) {
	if len(rows) == 0 {
		return
	}
	table := func(title string, cell func(put bool, r peerRow) string) {
		fmt.Fprintf(w, "\n### %s\n\n| size | put: cachedb | files | badger | get: cachedb | files | badger |\n|--:|--:|--:|--:|--:|--:|--:|\n", title)
		for i := 0; i < len(rows); i += len(stores) {
			fmt.Fprintf(w, "| %d KiB |", rows[i].size>>10)
			for _, put := range []bool{true, false} {
				for _, r := range rows[i : i+len(stores)] {
					fmt.Fprintf(w, " %s |", cell(put, r))
				}
			}
			fmt.Fprintln(w)
		}
	}
	of := func(put bool, r peerRow) latencies {
		if put {
			return r.put
		}
		return r.get
	}
	table("The cache beside plain files and badger: latency, µs: median (99th percentile)", func(put bool, r peerRow) string {
		l := of(put, r)
		return fmt.Sprintf("**%.1f** (%.0f)", 1e6*l.at(0.5), 1e6*l.at(0.99))
	})
	table("The same: throughput of one thread, MB/s", func(put bool, r peerRow) string {
		l := of(put, r)
		return fmt.Sprintf("%.0f", float64(r.size)*float64(len(l))/l.sum()/1e6)
	})
}
