package cachedb_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/index"
)

// A churner is a process that fills and reads a cache, and opens it anew, until it is killed. It says what it did, a word and
// a number a line, and ends by itself when it reads a wrong byte or can't go on.
const (
	churnDir  = "SKIMFS_TEST_CHURN_DIR"
	churnWork = "SKIMFS_TEST_CHURN" // "LIMIT FIRST REOPEN": bytes, the first object's number, objects after which it opens anew
)

func churnObject(n int) []byte { return content(uint64(n), crashSize(n%400)) }

func churn(dir string) error {
	var limit int64
	var first, reopen int
	if _, err := fmt.Sscan(os.Getenv(churnWork), &limit, &first, &reopen); err != nil {
		return err
	}
	for {
		db, err := cachedb.Open(cachedb.Config{Dir: dir, Limit: limit, Memory: -1})
		if err != nil {
			return err
		}
		fmt.Println("open", first)
		for n := first; n < first+reopen; n++ {
			if err := churnOne(db, n); err != nil {
				return err
			}
		}
		first += reopen
		if err := db.Close(); err != nil {
			return err
		}
	}
}

// churnOne stores object n, reads one of those before, and now and then brings all to the disk.
func churnOne(db *cachedb.DB, n int) error {
	for _, n := range []int{n, rand.IntN(n + 1)} {
		plain := churnObject(n)
		got, err := db.Get(context.Background(), index.DigestOf(plain), int64(len(plain)), cachedb.ClassFile, func(context.Context) ([]byte, error) { return plain, nil })
		if err != nil {
			return err
		}
		if string(got) != string(plain) {
			fmt.Println("wrong", n)
			return fmt.Errorf("object %d has a wrong byte", n)
		}
	}
	if n%40 == 0 {
		if err := db.Sync(context.Background()); err != nil {
			return err
		}
		fmt.Println("synced", n)
	}
	if n%70 == 0 {
		if err := db.SetState("last", strconv.AppendInt(nil, int64(n), 10)); err != nil {
			return err
		}
		fmt.Println("state", n)
	}
	fmt.Println("stored", n)
	return nil
}

// churned is what a churner said last, by word.
type churned map[string]int

// churner runs a churner on dir until it ends; hear is called with each word and number. What it writes to stderr is returned.
func churner(t *testing.T, dir, work string, hear func(cmd *exec.Cmd, word string, n int)) (churned, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), churnDir+"="+dir, churnWork+"="+work)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := churned{}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var word string
		var n int
		fmt.Sscan(lines.Text(), &word, &n)
		said[word] = n
		hear(cmd, word, n)
	}
	_ = cmd.Wait() // it was killed, or stderr tells
	if n, wrong := said["wrong"]; wrong {
		t.Errorf("object %d: a wrong byte", n)
	}
	return said, stderr.String()
}

// seeded returns random numbers whose seed the log tells; SKIMFS_SEED repeats it.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SKIMFS_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// rounds is how often a loop over random points runs: SKIMFS_ROUNDS, or few.
func rounds(t *testing.T, few int) int {
	t.Helper()
	if s := os.Getenv("SKIMFS_ROUNDS"); s != "" {
		if _, err := fmt.Sscan(s, &few); err != nil {
			t.Fatal(err)
		}
	}
	return few
}

// The power fails at a random instant: what was synced is there, what was not is there or gone, and no byte is wrong.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	d := newDisk(t, 256)
	dir := filepath.Join(d.root, "cache")
	state, first := -1, 0
	lost := map[int]bool{}
	for round := range rounds(t, 3) {
		if first > 2000 { // before the limit makes room
			state, first, lost = -1, 0, map[int]bool{}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
		last := first + 30 + rng.IntN(200)
		moment := time.Duration(rng.IntN(20_000)) * time.Microsecond
		said, _ := churner(t, dir, fmt.Sprint(200<<20, first, 50+rng.IntN(100)), func(cmd *exec.Cmd, word string, n int) {
			if word == "stored" && n == last {
				time.Sleep(moment) // not to wait for anything: the instant is to be random
				syncSome(dir, rng)
				d.losePower()
				_ = cmd.Process.Kill()
			}
		})
		synced := max(first-1, said["synced"])
		state = max(state, said["state"])
		d.restart()
		db := open(t, cachedb.Config{Dir: dir})
		before := len(lost)
		for n := 0; n <= said["stored"]; n++ {
			if cached(t, db, churnObject(n)) {
				delete(lost, n) // it may have been read, and so stored again
			} else if n <= synced && !lost[n] {
				t.Errorf("round %d: object %d is lost, although %d and all before were synced", round, n, synced)
			} else {
				lost[n] = true
			}
		}
		v, err := db.State("last")
		if got, _ := strconv.Atoi(string(v)); got < state {
			t.Errorf("round %d: state %q, %v; it was set to %d", round, v, err, state)
		}
		t.Logf("round %d: %d objects stored, %d synced; %d lost, %d before; %d found damaged", round, said["stored"]+1, synced+1, len(lost), before, db.Stats().VerifyFailures)
		closeDB(t, db)
		first = said["stored"] + 1
	}
}

// syncSome brings some files to the disk before the others, as the kernel may.
func syncSome(dir string, rng *rand.Rand) {
	for range rng.IntN(4) {
		all, _ := filepath.Glob(filepath.Join(dir, []string{"packs/*", "index/*", "chunks/*/*", "index/*.mem"}[rng.IntN(4)]))
		if len(all) == 0 {
			continue
		}
		if f, err := os.Open(all[rng.IntN(len(all))]); err == nil {
			_ = f.Sync()
			f.Close()
		}
	}
}

// A kill at any instant, while the cache opens, closes, evicts, or all at once: afterwards it opens, keeps its limit, and no byte
// is wrong.
func TestKillAtAnyPoint(t *testing.T) {
	t.Parallel()
	const limit = 24 << 20
	rng := seeded(t)
	dir := scratchDir(t)
	next := 0
	for round := range rounds(t, 9) {
		said, stderr := churner(t, dir, fmt.Sprint(limit, next, 20+rng.IntN(200)), killAfter(time.Duration(rng.IntN(400))*time.Millisecond))
		if stderr != "" {
			t.Fatalf("round %d: %s", round, stderr)
		}
		next = max(next, said["stored"]+1)
		if round%3 < 2 {
			continue // the next churner is the one to recover
		}
		db := open(t, cachedb.Config{Dir: dir, Limit: limit})
		here := 0
		for n := range next {
			if cached(t, db, churnObject(n)) {
				here++
			}
		}
		if used := du(t, dir); used > limit*102/100+1<<20 {
			t.Errorf("round %d: du %d, limit %d", round, used, limit)
		}
		if f := db.Stats().VerifyFailures; f > 0 {
			t.Errorf("round %d: %d verify failures", round, f)
		}
		t.Logf("round %d: %d of %d objects are here", round, here, next)
		closeDB(t, db)
	}
}

// killAfter kills the churner some time after its first word.
func killAfter(wait time.Duration) func(*exec.Cmd, string, int) {
	var once atomic.Bool
	return func(cmd *exec.Cmd, _ string, _ int) {
		if !once.Swap(true) {
			time.AfterFunc(wait, func() { _ = cmd.Process.Kill() })
		}
	}
}

// Any file of the cache is damaged at random while the cache is in use: a flipped bit, zeros, a cut, gone. No byte is wrong. The
// process survives all but damage to the index's mapped files; then the next one or, if that dies of it, the one after
// opens the cache.
func TestDamageToAnyFileWhileRunning(t *testing.T) {
	t.Parallel()
	rng := seeded(t)
	dir := scratchDir(t)
	damaged, next := "", 0
	for round := range rounds(t, 8) {
		deaths := 0
		for {
			stop := next + 30 + rng.IntN(100)
			hit := stop - 20
			said, stderr := churner(t, dir, fmt.Sprint(48<<20, next, 1000), func(cmd *exec.Cmd, word string, n int) {
				switch {
				case word == "stored" && n == hit && deaths == 0:
					damaged = damageAny(t, dir, rng)
				case word == "stored" && n == stop:
					_ = cmd.Process.Kill()
				}
			})
			next = max(next, said["stored"]+1)
			if said["stored"] >= stop {
				break
			}
			if deaths++; !strings.HasPrefix(damaged, "index/") {
				t.Fatalf("round %d: after damage to %s the process ended: %s", round, damaged, tail(stderr))
			}
			if deaths > 2 {
				t.Fatalf("round %d: after damage to %s the cache does not open: %s", round, damaged, tail(stderr))
			}
			t.Logf("round %d: %s: %s", round, damaged, tail(stderr))
		}
		t.Logf("round %d: %s: %d deaths", round, damaged, deaths)
	}
}

// damageAny damages one file of the cache and says which, and how.
func damageAny(t *testing.T, dir string, rng *rand.Rand) string {
	t.Helper()
	for {
		kinds, _ := filepath.Glob(filepath.Join(dir, []string{"*", "index"}[rng.IntN(2)]))
		path := kinds[rng.IntN(len(kinds))]
		for st, err := os.Stat(path); err == nil && st.IsDir(); st, err = os.Stat(path) {
			list, _ := os.ReadDir(path)
			if len(list) == 0 {
				break
			}
			path = filepath.Join(path, list[rng.IntN(len(list))].Name())
		}
		how, err := damageFile(path, rng)
		if err == nil {
			name, _ := filepath.Rel(dir, path)
			return name + " " + how
		}
	}
}

var errUnfit = errors.New("no file that has bytes")

func damageFile(path string, rng *rand.Rand) (how string, err error) {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() || st.Size() == 0 {
		return "", errors.Join(err, errUnfit)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	at := rng.Int64N(st.Size()) >> rng.IntN(20) // what matters tends to be at the beginning
	switch rng.IntN(4) {
	case 0:
		b := make([]byte, 1)
		if _, err = f.ReadAt(b, at); err == nil {
			b[0] ^= 1 << rng.IntN(8)
			_, err = f.WriteAt(b, at)
		}
		return fmt.Sprintf("flipped at %d", at), err
	case 1:
		_, err = f.WriteAt(make([]byte, min(4096, st.Size()-at)), at)
		return fmt.Sprintf("zeroed at %d", at), err
	case 2:
		return fmt.Sprintf("cut to %d", at), f.Truncate(at)
	default:
		return "removed", os.Remove(path)
	}
}

func tail(s string) string {
	s = strings.TrimSpace(s)
	if i := strings.Index(s, "\n\n"); i > 0 {
		s = s[:i]
	}
	return s[max(0, len(s)-600):]
}
