package publishd

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/skimfs/skimfs/publish"
)

// OpenAPI is the description of the API.
//
//go:embed openapi.json
var OpenAPI []byte

const (
	maxBody = 2 << 20          // bytes of a request
	maxWait = 60 * time.Second // of one long poll
	maxSSE  = 256              // clients that listen to events
)

type api struct {
	*Daemon
	tokens    []Token
	listeners chan struct{}
}

// Handler returns the API: docs/publishd.md. Over a unix socket the caller is who the kernel says, see ConnContext; else one of the tokens.
func (d *Daemon) Handler(tokens []Token) http.Handler {
	a := &api{Daemon: d, tokens: tokens, listeners: make(chan struct{}, maxSSE)}
	mux := http.NewServeMux()
	for _, route := range []struct {
		pattern string
		need    Scope
		h       func(http.ResponseWriter, *http.Request, Caller) error
	}{
		{"POST /v1/images:convert", ScopeSubmit, a.submitting(Convert)},
		{"POST /v1/images:build", ScopeSubmit, a.submitting(Build)},
		{"POST /v1/images:convertMany", ScopeSubmit, a.submitting(ConvertMany)},
		{"POST /v1/images:prefetch", ScopeSubmit, a.submitting(Prefetch)},
		{"GET /v1/images:resolve", ScopeRead, a.resolveRef},
		{"GET /v1/operations", ScopeRead, a.list},
		{"GET /v1/operations:find", ScopeRead, a.find},
		{"GET /v1/operations/{id}", ScopeRead, a.get},
		{"POST /v1/operations/{id}", ScopeRead, a.verb},
		{"DELETE /v1/operations/{id}", ScopeSubmit, a.forget},
		{"GET /v1/operations/{id}/log", ScopeRead, a.getLog},
		{"GET /v1/operations/{id}/events", ScopeRead, a.events},
		{"GET /v1/events", ScopeRead, a.events},
		{"GET /metrics", ScopeRead, func(w http.ResponseWriter, _ *http.Request, _ Caller) error {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4")
			a.WriteMetrics(w)
			return nil
		}},
	} {
		mux.HandleFunc(route.pattern, func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if p := recover(); p != nil && p != http.ErrAbortHandler { //nolint:errorlint // it is compared so in net/http
					a.log.Error("panic", "while", route.pattern, "value", fmt.Sprint(p), "stack", string(debug.Stack()))
					writeProblem(w, problem(Internal, "panic while answering"))
				}
			}()
			c, err := a.caller(r, route.need)
			if err == nil {
				r.Body = http.MaxBytesReader(w, r.Body, maxBody)
				err = route.h(w, r, c)
			}
			if err != nil {
				writeProblem(w, asProblem(err))
			}
		})
	}
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(OpenAPI) // who left needs no answer
	})
	ok := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }
	mux.HandleFunc("GET /healthz", ok)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if !d.queue.conn.IsConnected() {
			writeProblem(w, problem(ServiceUnavailable, "the queue is not connected"))
			return
		}
		ok(w, r)
	})
	return mux
}

// Serve answers on a listener until ctx ends.
func (d *Daemon) Serve(ctx context.Context, l net.Listener, tokens []Token) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &http.Server{
		Handler: d.Handler(tokens), ConnContext: ConnContext, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn),
		BaseContext: func(net.Listener) context.Context { return base },
	}
	stop := context.AfterFunc(ctx, func() {
		cancel()
		limited, done := context.WithTimeout(context.Background(), 5*time.Second)
		defer done()
		_ = s.Shutdown(limited)
	})
	defer stop()
	defer cancel()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func writeProblem(w http.ResponseWriter, p *Problem) {
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((p.RetryAfter+time.Second-1)/time.Second)))
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // who left needs no answer
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // who left needs no answer
	return nil
}

func writeOperation(w http.ResponseWriter, r *http.Request, status int, o Operation) error {
	tag := fmt.Sprintf(`"%s-%d-%d-%d"`, o.Metadata.Job, o.Metadata.Generation, o.Metadata.Progress.BytesDone, o.Metadata.QueuePosition)
	w.Header().Set("ETag", tag)
	if !o.Done {
		w.Header().Set("Retry-After", "2")
	}
	if status == http.StatusOK && r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return writeJSON(w, status, o)
}

func (a *api) submitting(kind Kind) func(http.ResponseWriter, *http.Request, Caller) error {
	return func(w http.ResponseWriter, r *http.Request, c Caller) error {
		var req Request
		dec := json.NewDecoder(r.Body)
		dec.DisallowUnknownFields()
		if err := dec.Decode(&req); err != nil {
			return problem(InvalidArgument, "request body: %v", err)
		}
		if req.Kind != "" && req.Kind != kind {
			return problem(InvalidArgument, "kind %q at the address of %q", req.Kind, kind)
		}
		req.Kind = kind
		if key := r.Header.Get("Idempotency-Key"); key != "" {
			req.RequestID = key
		}
		if len(req.RequestID) > 256 {
			return problem(InvalidArgument, "request id: %d bytes, at most 256", len(req.RequestID))
		}
		o, err := a.Submit(context.WithoutCancel(r.Context()), req, c)
		if err != nil {
			return err
		}
		w.Header().Set("Location", "/v1/"+o.Name)
		return writeOperation(w, r, http.StatusAccepted, o)
	}
}

func (a *api) get(w http.ResponseWriter, r *http.Request, _ Caller) error {
	o, err := a.Get(r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeOperation(w, r, http.StatusOK, o)
}

func (a *api) find(w http.ResponseWriter, r *http.Request, _ Caller) error {
	o, err := a.Find(r.URL.Query().Get("ref"))
	if err != nil {
		return err
	}
	return writeOperation(w, r, http.StatusOK, o)
}

// Page is a part of a list.
type Page struct {
	Operations []Operation `json:"operations"`
	Next       string      `json:"next_page_token,omitempty"`
}

func (a *api) list(w http.ResponseWriter, r *http.Request, _ Caller) error {
	q := r.URL.Query()
	f := Filter{Submitter: q.Get("submitter"), Label: q.Get("label"), Parent: q.Get("parent"), Kind: Kind(q.Get("kind"))}
	for _, s := range q["state"] {
		f.States = append(f.States, State(strings.ToUpper(s)))
	}
	size := 100
	if text := q.Get("page_size"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return problem(InvalidArgument, "page_size %q: want 1 to 1000", text)
		}
		size = min(n, 1000)
	}
	ops, next := a.List(f, size, q.Get("page_token"))
	if ops == nil {
		ops = []Operation{}
	}
	return writeJSON(w, http.StatusOK, Page{ops, next})
}

// own refuses to change what is somebody else's.
func (a *api) own(id string, c Caller) error {
	o, err := a.Get(id)
	if err == nil && !c.Admin && o.Metadata.Submitter != c.Name {
		err = problem(PermissionDenied, "operation %s belongs to %s", id, o.Metadata.Submitter)
	}
	return err
}

func (a *api) verb(w http.ResponseWriter, r *http.Request, _ Caller) error {
	id, verb, _ := strings.Cut(r.PathValue("id"), ":")
	lasting := context.WithoutCancel(r.Context())
	if verb != "wait" {
		c, err := a.caller(r, ScopeSubmit) // more than reading
		if err != nil {
			return err
		}
		if err := a.own(id, c); err != nil {
			return err
		}
	}
	var o Operation
	var err error
	switch verb {
	case "wait":
		limit := maxWait
		if text := r.URL.Query().Get("timeout"); text != "" {
			if limit, err = time.ParseDuration(text); err != nil || limit < 0 {
				return problem(InvalidArgument, "timeout %q: want a duration, as in 30s", text)
			}
		}
		o, err = a.Wait(r.Context(), id, min(limit, maxWait))
	case "cancel":
		o, err = a.Cancel(lasting, id)
	case "retry":
		o, err = a.Retry(lasting, id)
	default:
		return problem(InvalidArgument, "verb %q: want wait, cancel or retry", verb)
	}
	if err != nil {
		return err
	}
	status := http.StatusOK
	if verb == "retry" {
		status = http.StatusAccepted
	}
	return writeOperation(w, r, status, o)
}

// Wait returns an operation once it is done, or as it stands after a time.
func (d *Daemon) Wait(ctx context.Context, id string, limit time.Duration) (Operation, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_ = d.queue.until(limited, func() bool { return d.queue.ops[id] == nil || d.queue.done(id) })
	return d.Get(id)
}

func (a *api) forget(w http.ResponseWriter, r *http.Request, c Caller) error {
	id := r.PathValue("id")
	if err := a.own(id, c); err != nil {
		return err
	}
	if err := a.Forget(context.WithoutCancel(r.Context()), id); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct{}{})
}

func (a *api) getLog(w http.ResponseWriter, r *http.Request, c Caller) error {
	id := r.PathValue("id")
	if err := a.own(id, c); err != nil {
		return err
	}
	f, err := a.Log(id)
	if err != nil {
		return err
	}
	defer f.Close()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.Copy(w, f) // who left needs no answer
	return nil
}

// Resolution says what a reference means now.
type Resolution struct {
	Reference string `json:"reference"`
	Digest    string `json:"digest"`
	Pinned    string `json:"pinned"` // the source to submit for exactly this image
	As        string `json:"as"`
	Bytes     int64  `json:"bytes"`
	Layers    int    `json:"layers"`
}

func (a *api) resolveRef(w http.ResponseWriter, r *http.Request, c Caller) error {
	req := Request{Kind: Convert, Source: r.URL.Query().Get("ref"), Platform: r.URL.Query().Get("platform")}
	j, err := a.check(&req, Caller{Here: c.Here})
	if err != nil {
		return err
	}
	j.Request = req
	ctx, cancel := context.WithTimeout(r.Context(), a.cfg.Timeout)
	defer cancel()
	got, err := a.ask(ctx, &j)
	if err != nil {
		return explain(err)
	}
	src, err := publish.ParseSource(req.Source)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, Resolution{
		Reference: strings.TrimPrefix(src.Canonical(), "docker://"), Digest: got.Manifest.String(), Pinned: pin(req.Source, got.Manifest.String()), As: j.As, Bytes: got.Bytes, Layers: got.Layers,
	})
}
