package publishd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/skimfs/skimfs/internal/peer"
	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publishd"
)

// newDaemon runs a daemon in this process, whose workers are a shell script.
func newDaemon(t *testing.T, worker string) *publishd.Daemon {
	t.Helper()
	d, err := publishd.Open(t.Context(), publishd.Config{State: t.TempDir(), Repo: t.TempDir(), Reserve: 1, Worker: []string{"sh", "-c", worker}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		d.Close()
	})
	return d
}

// me is who runs the tests, over the local socket.
func me() publishd.Caller {
	return publishd.Caller{Name: "me", Local: &peer.Credentials{UID: os.Geteuid(), GID: os.Getegid()}, Here: true, Admin: true}
}

func await(t *testing.T, d *publishd.Daemon, id string, cond func(o publishd.Operation) bool) publishd.Operation {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		o, err := d.Get(id)
		if err != nil || time.Now().After(end) {
			t.Fatalf("operation %s: %v, %+v", id, err, o)
		}
		if cond(o) {
			return o
		}
	}
}

func isDone(o publishd.Operation) bool { return o.Done }

// A cancel that comes when all is done already does not make the operation succeed after all, and says what happened.
func TestACancelThatComesTooLateSaysSo(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, `read -r job; echo '{"stage":"last"}'; cat >/dev/null; echo '{"results":[{}]}'`)
	o, err := d.Submit(t.Context(), publishd.Request{Kind: publishd.Convert, Source: "dir:/x", As: "local/x:1"}, me())
	if err != nil {
		t.Fatal(err)
	}
	await(t, d, o.ID(), func(o publishd.Operation) bool { return o.Metadata.Stage == "last" })
	if o, err = d.Cancel(t.Context(), o.ID()); err != nil || o.Metadata.State != publishd.Cancelling || o.Done {
		t.Errorf("cancelled it is %s, done: %t (%v)", o.Metadata.State, o.Done, err)
	}
	if o = await(t, d, o.ID(), isDone); o.Metadata.State != publishd.Cancelled || o.Error == nil || !strings.Contains(o.Error.Detail, "published") {
		t.Errorf("in the end it is %s: %+v", o.Metadata.State, o.Error)
	}
}

// A recipe ends, however much there is to say of its images.
func TestALongRecipeEnds(t *testing.T) {
	t.Parallel()
	registry := testkit.StartRegistry(t)
	text := "version: 1\ninput:\n"
	for i := range 3 {
		text += "  - " + registry.Push(layout(t), fmt.Sprintf("a/image:%d", i)) + "\n"
	}
	d := newDaemon(t, `read -r job; printf '{"results":[{"x":"%s"}]}\n' "$(head -c 1500000 /dev/zero | tr '\0' x)"`)
	o, err := d.Submit(t.Context(), publishd.Request{Kind: publishd.ConvertMany, Source: text}, me())
	if err != nil {
		t.Fatal(err)
	}
	if o = await(t, d, o.ID(), isDone); o.Metadata.State != publishd.Succeeded || o.Metadata.ChildrenDone != 3 {
		t.Errorf("it is %s, %d of its images are done: %+v", o.Metadata.State, o.Metadata.ChildrenDone, o.Error)
	}
}

// One request, however it is written, is one request.
func TestARequestIsTheSameHoweverItIsWritten(t *testing.T) {
	t.Parallel()
	s := newService(t)
	var names []string
	for _, body := range []string{`{"source":"dir:/x","as":"local/x:1"}`, `{"as":"local/x:1","source":"dir:/x","args":{},"labels":{},"platform":"","kind":"convert"}`} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://publishd/v1/images:convert", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Idempotency-Key", "once")
		resp, err := s.http().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var o publishd.Operation
		err = json.NewDecoder(resp.Body).Decode(&o)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusAccepted {
			t.Errorf("%s: %s, %v", body, resp.Status, err)
		}
		names = append(names, o.Name)
	}
	if names[0] != names[1] {
		t.Errorf("operations %q for one request", names)
	}
}

// history is what the events tell of each operation, from the beginning until so many have ended.
func (s *service) history(ends int) map[string][]publishd.Operation {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	stop := fmt.Errorf("enough")
	all := map[string][]publishd.Operation{}
	err := s.Events(ctx, "", "1.0", func(e publishd.Event) error {
		var o publishd.Operation
		if e.Name != "op.state" {
			return nil
		}
		if err := json.Unmarshal(e.Data, &o); err != nil {
			return err
		}
		if all[o.ID()] = append(all[o.ID()], o); o.Done {
			ends--
		}
		if ends == 0 {
			return stop
		}
		return nil
	})
	if err == nil || err.Error() != stop.Error() {
		s.t.Errorf("%d operations did not end in the events: %v", ends, err)
	}
	return all
}

// checkHistory checks that each operation ended once, was in no other state afterwards, and that its generation never fell.
func checkHistory(t *testing.T, all map[string][]publishd.Operation, want int) {
	t.Helper()
	if len(all) != want {
		t.Errorf("events of %d operations, want %d", len(all), want)
	}
	for id, history := range all {
		var states []string
		ends, last := 0, uint64(0)
		for i, o := range history {
			states = append(states, string(o.Metadata.State))
			if o.Done {
				ends++
			}
			if o.Metadata.Generation < last || o.Done && i < len(history)-1 {
				t.Errorf("%s: generation %d after %d, event %d of %d, done: %t", id, o.Metadata.Generation, last, i+1, len(history), o.Done)
			}
			last = o.Metadata.Generation
		}
		if ends != 1 {
			t.Errorf("%s ended %d times: %q", id, ends, states)
		}
	}
}

// An operation that goes over to the job of another one, after an attempt of its own that failed, goes on: its generation grows, and what the
// other's job did before is not told as if it were its own.
func TestAnOperationThatJoinsAJobGoesOn(t *testing.T) {
	t.Parallel()
	registry := testkit.StartRegistry(t)
	image := layout(t)
	registry.Push(image, "a/image:1")
	registry.Push(image, "a/image:2")
	config := configOf(t, registry.Addr, "a/image", "1")
	free := make(chan struct{})
	var failures atomic.Int32
	g := newGate(t, registry.Addr)
	g.set(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/2") && failures.Add(1) <= 6 {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		if strings.Contains(r.URL.Path, "/blobs/") && !strings.HasSuffix(r.URL.Path, config) {
			select {
			case <-free:
			case <-r.Context().Done():
			}
		}
		return false
	})
	s := newService(t, "--jobs", "1", "--backoff", "300ms")
	first := s.submit(publishd.Request{Source: g.ref("a/image:1"), As: "local/shared:1"})
	s.await("the first to run", func() bool { return s.get(first.ID()).Metadata.State == publishd.Running })
	second := s.submit(publishd.Request{Source: g.ref("a/image:2"), As: "local/shared:1"})
	s.await("an attempt of it to fail", func() bool { return s.get(second.ID()).Metadata.State == publishd.WaitingRetry })
	for range 4 { // each changes the job that they share
		s.submit(publishd.Request{Source: g.ref("a/image:2"), As: "local/shared:1"})
	}
	last := uint64(0)
	s.await("the second to join it", func() bool {
		m := s.get(second.ID()).Metadata
		if m.Generation < last {
			t.Errorf("generation %d after %d", m.Generation, last)
		}
		last = m.Generation
		return m.Job == s.get(first.ID()).Metadata.Job
	})
	close(free)
	s.done(first.ID())
	s.done(second.ID())
	checkHistory(t, s.history(6), 6)
}

// What was accepted and not followed up, because the daemon that took it died between its two records, another one takes up.
func TestAnOperationWithoutAJobIsGivenOne(t *testing.T) {
	t.Parallel()
	n := startNATS(t, t.TempDir(), -1)
	s := newService(t, "--nats", n.ClientURL(), "--attempts", "1")
	conn, err := nats.Connect(n.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), "skimfs-publishd")
	if err != nil {
		t.Fatal(err)
	}
	const id = "3000000000000000000000000g"
	record := fmt.Sprintf(`{"id":%q,"request":{"kind":"convert","source":"docker://127.0.0.1:1/a/b:1"},"job":"%s","submitter":"x","here":true,"created":%q}`, id, id, time.Now().Add(-time.Minute).UTC().Format(time.RFC3339))
	if _, err := kv.Put(t.Context(), "op."+id, []byte(record)); err != nil {
		t.Fatal(err)
	}
	if o := s.done(id); o.Metadata.State != publishd.Failed || o.Error.Reason != publishd.RegistryRests {
		t.Errorf("%s: %+v", o.Metadata.State, o.Error)
	}
	if all, err := s.List(t.Context(), url.Values{}); err != nil || len(all) != 1 {
		t.Errorf("%d operations: %v", len(all), err)
	}
}
