package cachedb_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/skimfs/skimfs/cachedb"
)

// O05, K21: whichever file of a cache in use is damaged, and however, Verify finds it, and after a repair and a new start all is sound. Left
// out is what nobody reads: badger's files for values that are all elsewhere, and the log of what the memtable holds as well.
func TestVerifyFindsEveryFault(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	for _, pattern := range []string{"packs/*.pack", "chunks/*/*", "state", "dirty", "lock", "index/MANIFEST", "index/*.sst"} {
		for _, how := range []string{"flipped", "cut", "removed"} {
			t.Run(pattern+" "+how, func(t *testing.T) {
				dir := scratchDir(t)
				db := open(t, cachedb.Config{Dir: dir})
				for n := range 40 {
					put(t, db, churnObject(n))
				}
				if err := db.SetState("root", []byte("accepted")); err != nil {
					t.Fatal(err)
				}
				closeDB(t, db)
				db = open(t, cachedb.Config{Dir: dir})
				path := files(t, filepath.Join(dir, pattern))[0]
				at := rng.Int64N(size(t, path))
				switch {
				case how == "removed":
					os.Remove(path)
				case how == "cut":
					os.Truncate(path, at/2)
				default:
					flip(t, path, 8*at+rng.Int64N(8))
				}
				var found []cachedb.Damage
				for _, repair := range []bool{false, true} {
					found = nil
					if _, err := db.Verify(t.Context(), repair, func(d cachedb.Damage) { found = append(found, d) }); err != nil || len(found) == 0 {
						t.Errorf("repair %v, at %d: found nothing, %v", repair, at, err)
					}
				}
				t.Log(found)
				closeDB(t, db)
				db = open(t, cachedb.Config{Dir: dir})
				found = nil
				if _, err := db.Verify(t.Context(), false, func(d cachedb.Damage) { found = append(found, d) }); err != nil || len(found) != 0 {
					t.Errorf("repaired and opened anew: %v, %v", found, err)
				}
				if v, err := db.State("root"); err != nil || string(v) != "accepted" {
					t.Errorf("state %q, %v", v, err)
				}
			})
		}
	}
}

// A cache that can't be opened for what is in its directory is moved aside with a message, and a new one begun; the state records come along.
// When there is need for room it goes first.
func TestWhatCantBeOpenedIsMovedAside(t *testing.T) {
	t.Parallel()
	for _, spoil := range []string{"index", "packs", "chunks", "dirty", "state", "lock"} {
		t.Run(spoil, func(t *testing.T) {
			dir := scratchDir(t)
			db := open(t, cachedb.Config{Dir: dir})
			put(t, db, churnObject(1))
			if err := db.SetState("root", []byte("accepted")); err != nil {
				t.Fatal(err)
			}
			closeDB(t, db)
			path := filepath.Join(dir, spoil)
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if spoil == "dirty" || spoil == "state" || spoil == "lock" {
				os.MkdirAll(filepath.Join(path, "in the way"), 0o700)
			} else {
				os.WriteFile(path, []byte("in the way"), 0o600)
			}
			var log bytes.Buffer
			db = open(t, cachedb.Config{Dir: dir, Limit: 32 << 20, Log: slog.New(slog.NewTextHandler(&log, nil))})
			if !bytes.Contains(log.Bytes(), []byte("moved aside")) || len(files(t, filepath.Join(dir, "damaged", spoil))) != 1 {
				t.Errorf("log: %s", log.Bytes())
			}
			if v, err := db.State("root"); spoil != "state" && (err != nil || string(v) != "accepted") {
				t.Errorf("state %q, %v", v, err)
			}
			put(t, db, churnObject(2))
			if db.Trim(1 << 20); len(files(t, dir+"/*")) == 0 {
				t.Fatal("nothing is left")
			}
			if _, err := os.Stat(filepath.Join(dir, "damaged")); err == nil {
				t.Error("what was moved aside stays, although there was need for room")
			}
		})
	}
}
