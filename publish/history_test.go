package publish_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/skimfs/skimfs/publish"
)

// P04: named states, and back to one.
func TestP04HistoryAndRollback(t *testing.T) {
	base := t.TempDir()
	cfg := publish.Config{Dir: filepath.Join(base, "repo"), Keys: filepath.Join(base, "keys")}
	r, _, err := publish.Create(t.Context(), cfg, "test.example.org")
	if err != nil {
		t.Fatal(err)
	}
	put := func(name, content string) publish.Result {
		t.Helper()
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		src, err := publish.ParseSource("dir:" + dir)
		if err != nil {
			t.Fatal(err)
		}
		res, err := r.Publish(t.Context(), src, name, publish.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return res[0]
	}
	one := put("a.io/x:1", "one")                             // 2
	other := put("a.io/y:1", "other")                         // 3
	two := put("a.io/x:1", "two")                             // 4
	if err := r.Remove(t.Context(), "a.io/y:1"); err != nil { // 5
		t.Fatal(err)
	}
	put("b.io/z:1", "new") // 6
	history, err := r.History(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(history) != 6 || !history[0].Current || history[0].Revision != 6 || history[5].Revision != 1 {
		t.Fatalf("history is %+v", history)
	}
	if got, want := history[2].Changes, []publish.NameChange{{Name: "a.io/x:1", What: "moved", Flat: two.Flat}}; !reflect.DeepEqual(got, want) {
		t.Errorf("revision 4 changed %+v, want %+v", got, want)
	}
	if got, want := history[1].Changes, []publish.NameChange{{Name: "a.io/y:1", What: "removed", Flat: other.Flat}}; !reflect.DeepEqual(got, want) {
		t.Errorf("revision 5 changed %+v, want %+v", got, want)
	}
	var none *publish.RevisionError
	if _, err := r.Rollback(t.Context(), 99); !errors.As(err, &none) || none.Current != 6 || none.Oldest != 1 {
		t.Errorf("to a revision that isn't there: %v", err)
	}
	changes, err := r.Rollback(t.Context(), 3)
	if err != nil || len(changes) != 3 {
		t.Fatalf("rollback changed %+v, %v, want 3 names", changes, err)
	}
	if m := r.Manifest(); m.Revision != 7 {
		t.Errorf("the revision is %d, want 7: numbers never go back", m.Revision)
	}
	x, err := r.Image(t.Context(), "a.io/x:1")
	if err != nil || x.Flat != one.Flat || x.Slot != one.Slot {
		t.Errorf("x is %+v, %v, want %s in slot %d", x, err, one.Flat, one.Slot)
	}
	y, err := r.Image(t.Context(), "a.io/y:1")
	if err != nil || y.Flat != other.Flat || y.Slot != other.Slot {
		t.Errorf("y, which had gone, is %+v, %v, want %s in slot %d", y, err, other.Flat, other.Slot)
	}
	if _, err := r.Image(t.Context(), "b.io/z:1"); err == nil {
		t.Error("what came later still has its name")
	}
	if rep, err := r.Verify(t.Context()); err != nil || len(rep.Damage) > 0 || rep.Images != 4 {
		t.Errorf("verify: %+v, %v, want 4 whole images, the unnamed ones too", rep, err)
	}
	if again, err := r.Rollback(t.Context(), 3); err != nil || len(again) != 0 || r.Manifest().Revision != 7 {
		t.Errorf("again: %+v, %v, revision %d", again, err, r.Manifest().Revision)
	}
}
