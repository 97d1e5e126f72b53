package publishd_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publishd"
)

func (s *service) http() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", s.socket())
	}}}
}

// conforms checks a value against a schema of the document, as far as the document goes: types, required and unknown keys, enums.
func conforms(doc map[string]any, schema map[string]any, v any, at string) error {
	if r, ok := schema["$ref"].(string); ok {
		schema = doc["components"].(map[string]any)["schemas"].(map[string]any)[filepath.Base(r)].(map[string]any)
	}
	switch schema["type"] {
	case "object":
		o, ok := v.(map[string]any)
		if !ok {
			return fmt.Errorf("%s: %T, want an object", at, v)
		}
		known, _ := schema["properties"].(map[string]any)
		for _, r := range asList(schema["required"]) {
			if _, ok := o[r.(string)]; !ok {
				return fmt.Errorf("%s: %v is missing", at, r)
			}
		}
		for k, x := range o {
			sub, ok := known[k].(map[string]any)
			if more, any := schema["additionalProperties"].(map[string]any); !ok && any {
				sub, ok = more, true
			}
			if !ok {
				if schema["additionalProperties"] == false {
					return fmt.Errorf("%s: unknown key %q", at, k)
				}
				continue
			}
			if err := conforms(doc, sub, x, at+"."+k); err != nil {
				return err
			}
		}
	case "array":
		for i, x := range asList(v) {
			if err := conforms(doc, schema["items"].(map[string]any), x, fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
	case "string":
		s, ok := v.(string)
		if enum := asList(schema["enum"]); !ok || enum != nil && !slices.Contains(enum, any(s)) {
			return fmt.Errorf("%s: %v is not of %v", at, v, schema)
		}
	case "integer":
		if f, ok := v.(float64); !ok || f != float64(int64(f)) {
			return fmt.Errorf("%s: %v is no integer", at, v)
		}
	case "boolean":
		if _, ok := v.(bool); !ok {
			return fmt.Errorf("%s: %v is no boolean", at, v)
		}
	}
	return nil
}

func asList(v any) []any { l, _ := v.([]any); return l }

// The OpenAPI document and the server say the same: each path of the one is answered by the other, in its form.
func TestServerAnswersAsTheDocumentSays(t *testing.T) {
	t.Parallel()
	s := newService(t)
	var doc map[string]any
	decode(t, string(publishd.OpenAPI), &doc)
	o := s.submit(publishd.Request{Source: "dir:" + tree(t, "x"), As: "local/x:1"})
	s.done(o.ID())
	bodies := map[string]string{"/v1/images:convert": `{"source":"dir:` + tree(t, "y") + `","as":"local/y:1"}`, "/v1/images:build": `{"source":"relative","as":"local/z:1"}`, "/v1/images:convertMany": `{"source":"nonsense"}`, "/v1/images:prefetch": `{"source":"nowhere"}`}
	c := s.http()
	for path, methods := range doc["paths"].(map[string]any) {
		for method, about := range methods.(map[string]any) {
			if method == "parameters" || strings.HasSuffix(path, "events") {
				continue
			}
			target := strings.ReplaceAll(path, "{id}", o.ID())
			if method == "delete" { // what goes is another one's
				gone := s.submit(publishd.Request{Source: "dir:" + tree(t, "gone"), As: "local/gone:1"})
				target = strings.ReplaceAll(path, "{id}", s.done(gone.ID()).ID())
			}
			if strings.HasSuffix(path, ":find") || strings.HasSuffix(path, ":resolve") {
				target += "?ref=" + url.QueryEscape(map[bool]string{true: "local/x:1", false: "127.0.0.1:1/a/b:1"}[strings.HasSuffix(path, ":find")])
			}
			req, err := http.NewRequestWithContext(t.Context(), strings.ToUpper(method), "http://publishd"+target, strings.NewReader(bodies[path]))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			_, err = b.ReadFrom(resp.Body)
			if err := errors.Join(err, resp.Body.Close()); err != nil {
				t.Fatal(err)
			}
			responses := about.(map[string]any)["responses"].(map[string]any)
			r, ok := responses[fmt.Sprint(resp.StatusCode)].(map[string]any)
			if !ok {
				if r = responses["default"].(map[string]any); resp.StatusCode < 400 {
					t.Errorf("%s %s: status %d is not in the document", method, path, resp.StatusCode)
				}
			}
			media, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
			content, ok := r["content"].(map[string]any)[media].(map[string]any)
			if !ok {
				t.Errorf("%s %s: status %d with content type %q, the document has %v", method, path, resp.StatusCode, media, r["content"])
				continue
			}
			if media == "text/plain" {
				continue
			}
			var v any
			decode(t, b.String(), &v)
			if err := conforms(doc, content["schema"].(map[string]any), v, method+" "+path); err != nil {
				t.Errorf("%v\n%s", err, b.String())
			}
		}
	}
	var reasons []any
	for _, r := range publishd.Reasons {
		reasons = append(reasons, string(r))
	}
	enum := doc["components"].(map[string]any)["schemas"].(map[string]any)["Problem"].(map[string]any)["properties"].(map[string]any)["reason"].(map[string]any)["enum"]
	if got, want := fmt.Sprint(enum), fmt.Sprint(reasons); got != want {
		t.Errorf("reasons in the document: %s\nin the code: %s", got, want)
	}
}

func TestExitStatusTellsScriptsWhatToDo(t *testing.T) {
	t.Parallel()
	s := newService(t, "--jobs", "1")
	registry := testkit.StartRegistry(t)
	g := newGate(t, registry.Addr)
	release := make(chan struct{})
	registry.Push(layout(t), "held/image:1")
	config := configOf(t, registry.Addr, "held/image", "1") // is read to resolve
	g.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/held/") && strings.Contains(r.URL.Path, "/blobs/") && !strings.HasSuffix(r.URL.Path, config) {
			<-release
		}
		return false
	})
	ref := g.ref("held/image:1")
	row := func(want int, args ...string) string {
		t.Helper()
		out, errs, got := s.run(args...)
		if got != want {
			t.Errorf("skimfs %q: status %d, want %d\n%s%s", args, got, want, out, errs)
		}
		if want != 0 && strings.Count(errs, "\n") != 2 {
			t.Errorf("skimfs %q: want a line and a hint:\n%s", args, errs)
		}
		return strings.TrimSpace(out)
	}
	id := row(0, "submit", ref)
	row(75, "op", "status", ref)
	row(124, "wait", ref, "--timeout", "1s")
	// A signal to wait is not the conversion's end.
	waiting := testkit.Command(t, s.home, "wait", ref)
	var said strings.Builder
	waiting.Stderr = &said
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	s.await("wait to ask", func() bool {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", waiting.Process.Pid))
		return slices.ContainsFunc(fds, func(fd string) bool {
			to, _ := os.Readlink(fd)
			return strings.HasPrefix(to, "socket:")
		})
	})
	_ = waiting.Process.Signal(os.Interrupt)
	if _ = waiting.Wait(); waiting.ProcessState.ExitCode() != 130 || !strings.Contains(said.String(), "the work goes on") {
		t.Errorf("wait that is interrupted: status %d, %q", waiting.ProcessState.ExitCode(), said.String())
	}
	row(2, "submit", "docker://UPPER/x:1")
	row(1, "wait", "docker.io/library/never:1")
	if got := row(0, "resolve", ref); !strings.Contains(got, "@sha256:") {
		t.Errorf("resolve prints %q", got)
	}
	following := testkit.Command(t, s.home, "op", "events", ref)
	var events bytes.Buffer
	following.Stdout = &events
	if err := following.Start(); err != nil {
		t.Fatal(err)
	}
	close(release)
	row(0, "wait", id, "--timeout", "60s")
	row(0, "op", "status", ref)
	if err := following.Wait(); err != nil {
		t.Errorf("op events of an operation that ended: %v", err)
	}
	for _, out := range []string{strings.TrimSpace(events.String()), row(0, "op", "events", ref)} {
		lines := strings.Split(out, "\n")
		if last := lines[len(lines)-1]; !strings.Contains(last, `"done":true`) || strings.Count(out, `"done":true`) != 1 || strings.Contains(out, `"max_attempts":0`) {
			t.Errorf("op events prints\n%s", out)
		}
	}
	row(0, "submit", "dir:/does/not/exist", "local/no:1")
	row(1, "wait", "local/no:1", "--timeout", "60s")
	// As a shell script has it.
	if out, errs, status := s.run("op", "list", "--json"); status != 0 || strings.Count(out, "\n") != 2 {
		t.Errorf("op list: status %d\n%s%s", status, out, errs)
	}
	s.stop()
	row(69, "op", "list")
}

func TestSameRequestIDGivesTheSameOperation(t *testing.T) {
	t.Parallel()
	s := newService(t)
	r := publishd.Request{Kind: publishd.Convert, Source: "dir:" + tree(t, "x"), As: "local/x:1", RequestID: "workflow/task"}
	first, second := s.submit(r), s.submit(r)
	if first.Name != second.Name {
		t.Errorf("%s and %s for one request id", first.Name, second.Name)
	}
	s.kill()
	s.start()
	if third := s.submit(r); third.Name != first.Name {
		t.Errorf("%s and %s for one request id across a restart", first.Name, third.Name)
	}
	r.As = "local/y:1"
	if _, err := s.Submit(t.Context(), r); publishd.ReasonOf(err) != publishd.IdempotencyClash {
		t.Errorf("another request with the same id: %v", err)
	}
}

// Over TCP a token is needed, its scope holds, and files of this machine are nobody's.
func TestTokensAndTheirScopes(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "tokens")
	secrets := map[publishd.Scope]string{}
	var text string
	for _, scope := range []publishd.Scope{publishd.ScopeRead, publishd.ScopeSubmit, publishd.ScopeAdmin} {
		secret, line, err := publishd.NewToken("t-"+string(scope), scope)
		if err != nil {
			t.Fatal(err)
		}
		secrets[scope] = secret
		text += line + "\n"
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	s := newService(t, "--listen", address, "--tokens", file)
	client := func(token string) *publishd.Client {
		c, err := publishd.NewClient("http://"+address, token)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	remote := publishd.Request{Kind: publishd.Convert, Source: "127.0.0.1:1/a/b:1"}
	local := s.submit(publishd.Request{Source: "dir:" + tree(t, "x"), As: "local/x:1"})
	rows := []struct {
		claim, token string
		do           func(c *publishd.Client) error
		want         publishd.Reason
	}{
		{"no token", "", func(c *publishd.Client) error { _, err := c.Get(t.Context(), local.ID()); return err }, publishd.Unauthenticated},
		{"a wrong token", "skimfs_0", func(c *publishd.Client) error { _, err := c.Get(t.Context(), local.ID()); return err }, publishd.Unauthenticated},
		{"reading with read", secrets[publishd.ScopeRead], func(c *publishd.Client) error { _, err := c.Get(t.Context(), local.ID()); return err }, ""},
		{"submitting with read", secrets[publishd.ScopeRead], func(c *publishd.Client) error { _, err := c.Submit(t.Context(), remote); return err }, publishd.PermissionDenied},
		{"cancelling with read", secrets[publishd.ScopeRead], func(c *publishd.Client) error { _, err := c.Cancel(t.Context(), local.ID()); return err }, publishd.PermissionDenied},
		{"submitting with submit", secrets[publishd.ScopeSubmit], func(c *publishd.Client) error { _, err := c.Submit(t.Context(), remote); return err }, ""},
		{"cancelling another's with submit", secrets[publishd.ScopeSubmit], func(c *publishd.Client) error { _, err := c.Cancel(t.Context(), local.ID()); return err }, publishd.PermissionDenied},
		{"a directory with admin", secrets[publishd.ScopeAdmin], func(c *publishd.Client) error {
			_, err := c.Submit(t.Context(), publishd.Request{Kind: publishd.Convert, Source: "dir:/etc", As: "local/etc:1"})
			return err
		}, publishd.PermissionDenied},
		{"a build with admin", secrets[publishd.ScopeAdmin], func(c *publishd.Client) error {
			_, err := c.Submit(t.Context(), publishd.Request{Kind: publishd.Build, Source: "/etc", As: "local/etc:1"})
			return err
		}, publishd.PermissionDenied},
		{"cancelling another's with admin", secrets[publishd.ScopeAdmin], func(c *publishd.Client) error { _, err := c.Cancel(t.Context(), local.ID()); return err }, ""},
	}
	for _, row := range rows {
		if err := row.do(client(row.token)); publishd.ReasonOf(err) != row.want {
			t.Errorf("%s: %v, want reason %q", row.claim, err, row.want)
		}
	}
	for scope, secret := range secrets {
		if strings.Contains(s.log(), secret) {
			t.Errorf("the token of %s is in the log", scope)
		}
	}
	_, errs, status := s.run("publishd", "--repo", s.repo, "--keys", s.keys, "--listen", "0.0.0.0:1", "--tokens", file, "--socket", filepath.Join(s.home, "other.sock"))
	if status != 2 || !strings.Contains(errs, "TLS") {
		t.Errorf("--listen for the network without TLS: status %d, %s", status, errs)
	}
}

// As a browser has it: the header Last-Event-ID, a stream of lines.
func TestEventsGoOnAfterTheLastOne(t *testing.T) {
	t.Parallel()
	s := newService(t)
	o := s.done(s.submit(publishd.Request{Source: "dir:" + tree(t, "x"), As: "local/x:1"}).ID())
	stream := func(path, last string) (ids []string) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://publishd"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Last-Event-ID", last)
		resp, err := s.http().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || got != "text/event-stream" {
			t.Fatalf("%s: %s, %s", path, resp.Status, got)
		}
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
				ids = append(ids, id)
			}
			if strings.Contains(lines.Text(), `"state":"SUCCEEDED"`) {
				return ids
			}
		}
		t.Fatalf("%s: the stream ended", path)
		return nil
	}
	all := stream("/v1/events", "1.0")
	if len(all) < 2 {
		t.Fatalf("events %q", all)
	}
	for _, path := range []string{"/v1/events", "/v1/" + o.Name + "/events"} {
		if got := stream(path, all[0]); !slices.Equal(got, all[1:]) {
			t.Errorf("%s after %s: %q, want %q", path, all[0], got, all[1:])
		}
	}
}

// Whoever comes back with the id of the last event he saw misses none and sees none twice.
func TestEventsResumeWhereTheyWere(t *testing.T) {
	t.Parallel()
	s := newService(t, "--jobs", "2")
	stop := errors.New("enough")
	seen := map[string]int{}
	var order []string
	last, final := "", 0
	collect := func(n int) {
		err := s.Events(t.Context(), "", last, func(e publishd.Event) error {
			if e.ID == "" {
				return nil
			}
			last = e.ID
			var o publishd.Operation
			if e.Name == "op.state" {
				if err := json.Unmarshal(e.Data, &o); err != nil {
					return err
				}
				seen[e.ID]++
				order = append(order, o.ID()+" "+string(o.Metadata.State))
				if o.Done {
					final++
				}
			}
			if n--; n == 0 || final == 6 {
				return stop
			}
			return nil
		})
		if !errors.Is(err, stop) {
			t.Fatal(err)
		}
	}
	collect(1) // the empty snapshot
	var ids []string
	for i := range 6 {
		ids = append(ids, s.submit(publishd.Request{Source: "dir:" + tree(t, fmt.Sprint(i)), As: fmt.Sprintf("local/e%d:1", i)}).ID())
	}
	for killed := false; final < 6; {
		if collect(2); final >= 2 && !killed {
			killed = true
			s.kill()
			s.start()
		}
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("event %s came %d times", id, n)
		}
	}
	for _, id := range ids {
		var states []string
		for _, line := range order {
			if of, state, _ := strings.Cut(line, " "); of == id {
				states = append(states, state)
			}
		}
		if got := strings.Join(states, " "); !strings.HasPrefix(got, "QUEUED") || !strings.HasSuffix(got, " SUCCEEDED") || strings.Count(got, "SUCCEEDED") != 1 {
			t.Errorf("%s went %s", id, got)
		}
	}
}
