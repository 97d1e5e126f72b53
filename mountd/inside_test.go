package mountd

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/internal/peer"
	"github.com/skimfs/skimfs/internal/testkit"
)

func testDaemon() *Daemon {
	return &Daemon{log: slog.New(slog.DiscardHandler), active: newActivity(0, func() {})}
}

func ask(t *testing.T, h http.Handler, uid int) (int, errorReply) {
	t.Helper()
	r := httptest.NewRequest("GET", "/", nil)
	r = r.WithContext(context.WithValue(r.Context(), peerKey{}, peer.Credentials{UID: uid}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var e errorReply
	if w.Code != http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
			t.Fatalf("%v in %q", err, w.Body)
		}
	}
	return w.Code, e
}

func TestTheControlAPIAnswersItsUserAndRootOnly(t *testing.T) {
	d := testDaemon()
	called := 0
	h := d.handler("GET /", func(http.ResponseWriter, *http.Request) (any, error) { called++; return struct{}{}, nil })
	for uid, want := range map[int]int{os.Geteuid(): 200, 0: 200, os.Geteuid() + 1: 403, -1: 403} {
		if got, e := ask(t, h, uid); got != want || want == 403 && e.Kind != Permission {
			t.Errorf("uid %d: %d %+v, want %d", uid, got, e, want)
		}
	}
	if got, _ := ask(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(context.Background())) // nothing is known of the peer
	}), 0); got != 403 {
		t.Errorf("a peer without credentials: %d, want 403", got)
	}
	if called == 0 || called > 2 {
		t.Errorf("the handler was called %d times", called)
	}
}

func TestAPanicIsAnErrorOfOneRequest(t *testing.T) {
	d := testDaemon()
	before := metricPanics.Get()
	h := d.handler("GET /", func(http.ResponseWriter, *http.Request) (any, error) { panic("boom") })
	for range 2 {
		if got, e := ask(t, h, 0); got != 500 || e.Kind != Internal || !strings.Contains(e.Message, "boom") {
			t.Errorf("%d %+v", got, e)
		}
	}
	if got := metricPanics.Get() - before; got != 2 {
		t.Errorf("%d panics counted, want 2", got)
	}
	if d.active.holds != 0 {
		t.Error("a panic keeps the daemon alive for ever")
	}
}

func TestActivityEndsOnceAndOnlyWithoutHolds(t *testing.T) {
	var stopped atomic.Int32
	ended := make(chan struct{}, 4)
	a := newActivity(10*time.Millisecond, func() { stopped.Add(1); ended <- struct{}{} })
	release, ok := a.hold()
	if !ok {
		t.Fatal("a new daemon can't be held")
	}
	a.expire() // a timer that fired just before hold stopped it
	if stopped.Load() != 0 {
		t.Fatal("it ends while it is held")
	}
	release()
	release() // a second call does nothing
	<-ended
	if _, ok := a.hold(); ok {
		t.Error("a daemon that ends can be held")
	}
	a.expire()
	if stopped.Load() != 1 {
		t.Errorf("it ended %d times", stopped.Load())
	}
}

func TestTargetLocksLetOneInAndWaitersLeave(t *testing.T) {
	l := targetLocks{m: map[string]chan struct{}{}}
	unlock, err := l.lock(t.Context(), "/a")
	if err != nil {
		t.Fatal(err)
	}
	if other, err := l.lock(t.Context(), "/b"); err != nil {
		t.Error("another target waits")
	} else {
		other()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if _, err := l.lock(ctx, "/a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a waiter whose time is over: %v", err)
	}
	got := make(chan error)
	go func() {
		unlock, err := l.lock(context.Background(), "/a")
		if err == nil {
			unlock()
		}
		got <- err
	}()
	unlock()
	if err := <-got; err != nil || len(l.m) != 0 {
		t.Errorf("%v, %d locks left", err, len(l.m))
	}
}

func TestMountInfo(t *testing.T) {
	const text = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
90 22 0:45 / /mnt/a\040b ro,nosuid - fuse.skimfs http://h\043x ro,user_id=0
91 22 0:46 / /mnt/a\040b rw - tmpfs none\134x rw
broken line
`
	table := parseMountInfo([]byte(text))
	want := []mountEntry{{"8:1", "/", "ext4", "/dev/sda1"}, {"0:45", "/mnt/a b", "fuse.skimfs", "http://h#x"}, {"0:46", "/mnt/a b", "tmpfs", `none\x`}}
	if !reflect.DeepEqual(table, want) {
		t.Errorf("%+v", table)
	}
	if e, ok := mountedAt(table, "/mnt/a b"); !ok || e.fstype != "tmpfs" {
		t.Errorf("the one on top is %+v", e)
	}
	if _, ok := mountedAt(table, "/mnt"); ok {
		t.Error("something is mounted on /mnt")
	}
}

func TestCovers(t *testing.T) {
	for _, row := range []struct {
		target, path string
		want         bool
	}{{"/a", "/a", true}, {"/a", "/a/b", true}, {"/a", "/ab", false}, {"/a/b", "/a", false}, {"/", "/a", true}} {
		if got := covers(row.target, row.path); got != row.want {
			t.Errorf("a mount on %s hides %s: %v, want %v", row.target, row.path, got, row.want)
		}
	}
}

func TestTheSocketDirectoryIsOneUsersAlone(t *testing.T) {
	base := t.TempDir()
	good := filepath.Join(base, "good")
	if err := checkRun(good, 0); err != nil {
		t.Errorf("a new one: %v", err)
	}
	if st, err := os.Stat(good); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	open := filepath.Join(base, "open")
	link := filepath.Join(base, "link")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o770), os.Symlink(good, link)); err != nil {
		t.Fatal(err)
	}
	bad := map[string]string{"one that others may enter": open, "a symlink": link}
	if os.Geteuid() == 0 {
		foreign := filepath.Join(base, "foreign")
		if err := errors.Join(os.Mkdir(foreign, 0o700), os.Chown(foreign, 1, 1)); err != nil {
			t.Fatal(err)
		}
		bad["another user's"] = foreign
	}
	for name, dir := range bad {
		if err := checkRun(dir, 0); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s: %v, want a permission error", name, err)
		}
	}
}

func TestTheCacheDirectoryIsOneUsersAlone(t *testing.T) {
	testkit.NeedRoot(t)
	base := t.TempDir()
	if _, err := cacheDir(filepath.Join(base, "new", "cache")); err != nil {
		t.Errorf("a new one: %v", err)
	}
	open, foreign, below, loose := filepath.Join(base, "open"), filepath.Join(base, "foreign"), filepath.Join(base, "squatted", "cache"), filepath.Join(base, "loose", "cache")
	for _, dir := range []string{open, foreign, below, loose} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(open, 0o777), os.Chown(foreign, 1, 1), os.Chown(filepath.Dir(below), 1, 1), os.Chmod(filepath.Dir(loose), 0o777)); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"others may write": open, "another user's": foreign, "below another user's": below, "others may replace it": loose} {
		if _, err := cacheDir(dir); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), dir) && !strings.Contains(err.Error(), filepath.Dir(dir)) {
			t.Errorf("%s: %v, want a permission error that names it", name, err)
		}
	}
	if err := os.Chmod(filepath.Dir(loose), 0o777|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if _, err := cacheDir(loose); err != nil {
		t.Errorf("in a directory like /tmp: %v", err)
	}
}

func TestALongSocketPathWorks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "mountd-0123456789ab.sock")
	for range 2 { // the second takes over what the first left
		l, err := listenUnix(path, 0)
		if err != nil {
			t.Fatal(err)
		}
		c, err := dialUnix(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		l.Close()
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", st, err)
	}
}

func TestFindKey(t *testing.T) {
	_, mine, err := index.GenerateKey("a.example.org")
	if err != nil {
		t.Fatal(err)
	}
	secret, other, err := index.GenerateKey("b.example.org")
	if err != nil {
		t.Fatal(err)
	}
	first, second := t.TempDir(), t.TempDir()
	for path, text := range map[string]string{
		filepath.Join(second, "a.example.org.pub"): mine + "\n", filepath.Join(first, "c.example.org.pub"): other, filepath.Join(first, "b.example.org.pub"): secret,
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dirs := []string{first, second}
	if k, err := findKey(dirs, "a.example.org", ""); err != nil || k.text != mine || k.Name() != "a.example.org" {
		t.Errorf("the second directory's: %v, %v", k.text, err)
	}
	if k, err := findKey(dirs, "b.example.org", other); err != nil || k.text != other {
		t.Errorf("the one given: %v, %v", k.text, err)
	}
	for name, row := range map[string][2]string{
		"none":                          {"d.example.org", ""},
		"a file with another's key":     {"c.example.org", ""},
		"a key given for another":       {"a.example.org", other},
		"the secret key in place of it": {"b.example.org", ""},
	} {
		k, err := findKey(dirs, row[0], row[1])
		if err == nil {
			t.Errorf("%s: found %v", name, k.text)
		}
		if err != nil && strings.Contains(err.Error(), secret[20:]) {
			t.Errorf("%s: the error shows a secret", name)
		}
	}
}

func TestErrorsKeepTheirKindOverTheSocket(t *testing.T) {
	for _, err := range []error{problem(Busy, "x"), &Error{Rollback, errRollback}, context.Canceled, index.ErrExpired, index.ErrFormat, fs.ErrNotExist} {
		w := httptest.NewRecorder()
		writeError(w, err)
		got := replyError(w.Result())
		if KindOf(got) != KindOf(err) || got.Error() != err.Error() {
			t.Errorf("%v (%s) arrives as %v (%s)", err, KindOf(err), got, KindOf(got))
		}
		var e errorReply
		if text := trailerText(errors.Join(err, errors.New("größer 🙂"))); json.Unmarshal([]byte(text), &e) != nil || e.Kind != KindOf(err) || strings.IndexFunc(text, func(r rune) bool { return r < 32 || r > 126 }) >= 0 {
			t.Errorf("as a trailer: %q", text)
		}
	}
}
