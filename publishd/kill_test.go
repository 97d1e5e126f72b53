package publishd_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/skimfs/skimfs/publishd"
)

// killRounds is how often the daemon's death is tried, and with how many jobs; SKIMFS_KILLS=20 is the long test, with 100 jobs.
func killRounds() (rounds, jobs int) {
	if n, err := strconv.Atoi(os.Getenv("SKIMFS_KILLS")); err == nil {
		return n, 100
	}
	return 1, 12
}

// The daemon is killed at random moments while jobs are submitted and run: each that was answered ends exactly once, none is lost, and each
// image is in the repository once.
func TestKilledDaemonLosesNothing(t *testing.T) {
	rounds, jobs := killRounds()
	for round := range rounds {
		seed := uint64(time.Now().UnixNano())
		if text := os.Getenv("SKIMFS_SEED"); text != "" {
			seed, _ = strconv.ParseUint(text, 10, 64)
		}
		t.Run(fmt.Sprint("round", round), func(t *testing.T) {
			t.Logf("SKIMFS_SEED=%d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			s := newService(t, "--jobs", "3", "--backoff", "50ms")
			ids := map[string]string{}
			submit := func(n int) {
				for i := range n {
					name := fmt.Sprintf("local/n%d:1", len(ids))
					r := publishd.Request{Kind: publishd.Convert, Source: "dir:" + tree(t, fmt.Sprint(seed, name)), As: name, RequestID: name}
					o, err := s.Submit(t.Context(), r)
					if err != nil {
						t.Fatalf("submitting job %d: %v", i, err)
					}
					ids[name] = o.ID()
				}
			}
			for part := range 4 {
				submit(jobs / 4)
				time.Sleep(time.Duration(random.IntN(600)) * time.Millisecond) // the random moment
				s.kill()
				s.start()
				if part == 0 {
					// The same request again gives the same operation, across a death.
					name := "local/n0:1"
					if o, err := s.Get(t.Context(), ids[name]); err != nil || o.Metadata.As != name {
						t.Fatalf("operation %s is lost: %v", ids[name], err)
					}
				}
			}
			for name, id := range ids {
				if o := s.done(id); o.Metadata.State != publishd.Succeeded {
					t.Errorf("%s is %s: %+v", name, o.Metadata.State, o.Error)
				}
			}
			checkOnce(t, s, ids)
		})
	}
}

// revision is the repository's.
func (s *service) revision() int {
	s.t.Helper()
	var info struct{ Revision int }
	decode(s.t, s.ok("repo", "info", s.repo, "--keys", s.keys, "--json"), &info)
	if info.Revision == 0 {
		s.t.Fatal("repo info tells no revision")
	}
	return info.Revision
}

// checkOnce checks that each operation has one end in the record of events, and each image was published once.
func checkOnce(t *testing.T, s *service, ids map[string]string) {
	t.Helper()
	all, err := s.List(t.Context(), url.Values{})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != len(ids) {
		t.Errorf("%d operations, want %d", len(all), len(ids))
	}
	ends, last := map[string]int{}, map[string]uint64{}
	stop := fmt.Errorf("enough")
	finals := 0
	err = s.Events(t.Context(), "", "1.0", func(e publishd.Event) error {
		var o publishd.Operation
		if e.Name != "op.state" {
			return nil
		}
		if err := json.Unmarshal(e.Data, &o); err != nil {
			return err
		}
		if g := o.Metadata.Generation; g < last[o.Name] {
			t.Errorf("%s: generation %d after %d", o.Name, g, last[o.Name])
		}
		last[o.Name] = max(last[o.Name], o.Metadata.Generation)
		if o.Done {
			ends[o.Name]++
			if finals++; finals == len(ids) {
				return stop
			}
		}
		return nil
	})
	if err != nil && err.Error() != stop.Error() {
		t.Error(err)
	}
	for name, id := range ids {
		if n := ends["operations/"+id]; n != 1 {
			t.Errorf("%s ended %d times in the events, want once", name, n)
		}
	}
	// A publish that is killed between its two last steps leaves a revision that was never the current one: the next undoes what it changed.
	var history []struct {
		Revision uint64
		Changes  []struct{ Name, What string }
	}
	decode(t, s.ok("repo", "history", s.repo, "--keys", s.keys, "--json"), &history)
	times := map[string]int{}
	for _, r := range history {
		for _, c := range r.Changes {
			times[c.Name] += map[string]int{"added": 1, "removed": -1, "moved": 1}[c.What]
		}
	}
	for name := range ids {
		if times[name] != 1 {
			t.Errorf("%s was published %d times: %+v", name, times[name], history)
		}
	}
	if len(times) != len(ids) {
		t.Errorf("%d names in the repository, want %d", len(times), len(ids))
	}
	s.ok("repo", "verify", s.repo, "--keys", s.keys)
}
