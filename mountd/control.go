package mountd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	"github.com/skimfs/skimfs/cachedb"
	"github.com/skimfs/skimfs/internal/peer"
)

// MountRequest asks for a mount.
type MountRequest struct {
	Source    string        `json:"source"`
	Target    string        `json:"target"` // absolute, without symlinks: see CheckTarget
	Options   Options       `json:"options"`
	Quota     int64         `json:"quota,omitempty"`      // bytes; refused unless the cache has this limit
	Lease     string        `json:"lease,omitempty"`      // the mount lasts as long as its leases, or until it is unmounted
	LeaseTime time.Duration `json:"lease_time,omitempty"` // in ns: DefaultLease
	Remount   bool          `json:"remount,omitempty"`    // change the options of what is mounted, and look for a new revision
	Device    bool          `json:"device,omitempty"`     // a FUSE device, mounted already, comes along as a descriptor; the reply's target is its name
}

// MountReply tells of a mount made, or found.
type MountReply struct {
	MountStatus
	Already bool   `json:"already"`           // it was mounted before
	Warning string `json:"warning,omitempty"` // why what is mounted isn't the newest, or what is wrong with the trust in it
}

// maxRequest bounds the body of a request, in bytes, but of importPattern's.
const (
	maxRequest    = 1 << 20
	importPattern = "POST /v1/cache/import"
)

// errorReply is the body of every answer that isn't a success.
type errorReply struct {
	Kind    Kind   `json:"kind"`
	Message string `json:"message"`
}

// httpStatus of each kind; all others are 500.
var httpStatus = map[Kind]int{
	Usage: http.StatusBadRequest, Target: http.StatusBadRequest, Permission: http.StatusForbidden, NoKey: http.StatusForbidden,
	WrongKey: http.StatusForbidden, Expired: http.StatusForbidden, Revoked: http.StatusForbidden, Rollback: http.StatusForbidden, NotFound: http.StatusNotFound, NotMounted: http.StatusNotFound, Busy: http.StatusConflict,
	Conflict: http.StatusConflict, Unreachable: http.StatusBadGateway, Damaged: http.StatusBadGateway, Stopping: http.StatusServiceUnavailable,
}

type (
	peerKey struct{} // of the caller
	connKey struct{} // of the connection
)

// server returns the control API's server.
func (d *Daemon) server() *http.Server {
	mux := http.NewServeMux()
	for pattern, h := range map[string]func(http.ResponseWriter, *http.Request) (any, error){
		"POST /v1/mounts": d.postMount, "DELETE /v1/mounts": d.deleteMount, "GET /v1/mounts": d.getMounts, "GET /v1/mounts/wait": d.waitMount,
		"POST /v1/mounts/refresh": d.refreshMount, "POST /v1/reload": d.postReload, "DELETE /v1/leases": d.deleteLease,
		"GET /v1/status": d.getStatus, "GET /v1/ls": d.getList, "GET /v1/stat": d.getStat, "GET /v1/cat": d.getContent,
		"PUT /v1/cache": d.putCache, "GET /v1/cache": d.getCache, "POST /v1/cache/work": d.postWork, "POST /v1/cache/trim": d.postTrim,
		"POST /v1/cache/export": d.postExport, "POST /v1/cache/import": d.postImport,
		"POST /v1/cache/verify": d.postVerify, "GET /metrics": d.getMetrics,
	} {
		mux.Handle(pattern, d.handler(pattern, h))
	}
	return &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			ctx = context.WithValue(ctx, connKey{}, c)
			p, err := peer.Of(c)
			if err != nil {
				d.log.Error("reading a caller's credentials", "err", err)
				p.UID = -1
			}
			return context.WithValue(ctx, peerKey{}, p)
		},
	}
}

// handler wraps h: it lets in the daemon's own user, root and members, keeps the daemon alive meanwhile, turns errors into answers and a panic
// into an error. h's value, unless it is nil, becomes the answer's JSON.
func (d *Daemon) handler(pattern string, h func(http.ResponseWriter, *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun := time.Now()
		value, err := func() (value any, err error) {
			defer func() {
				if p := recover(); p != nil {
					metricPanics.Inc()
					d.log.Error("panic", "while", pattern, "value", fmt.Sprint(p), "stack", string(debug.Stack()))
					err = problem(Internal, "panic while answering %s: %v", pattern, p)
				}
			}()
			member, err := d.admit(r.Context(), pattern)
			if err != nil {
				return nil, err
			}
			if member {
				r = r.WithContext(asMember(r.Context()))
			}
			release, ok := d.active.hold()
			if !ok {
				return nil, problem(Stopping, "the daemon is about to end")
			}
			defer release()
			if pattern != importPattern {
				r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
			}
			return h(w, r)
		}()
		countRequest(pattern, err)
		caller, _ := r.Context().Value(peerKey{}).(peer.Credentials)
		d.log.Debug("control request", "request", pattern, "uid", caller.UID, "seconds", time.Since(begun).Seconds(), "err", err)
		if err != nil {
			writeError(w, err)
			return
		}
		if value != nil {
			writeJSON(w, http.StatusOK, value)
		}
	})
}

func writeError(w http.ResponseWriter, err error) {
	kind := KindOf(err)
	status := httpStatus[kind]
	if status == 0 {
		status = http.StatusInternalServerError
	}
	writeJSON(w, status, errorReply{kind, err.Error()})
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	b, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // a caller that left needs no answer
}

func readJSON(r *http.Request, value any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(value); err != nil {
		return problem(Usage, "request body: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return problem(Usage, "request body: more than one value")
	}
	return nil
}

func (d *Daemon) postMount(_ http.ResponseWriter, r *http.Request) (any, error) {
	var req MountRequest
	if err := readJSON(r, &req); err != nil {
		return nil, err
	}
	var device *os.File
	if c, ok := r.Context().Value(connKey{}).(*descriptorConn); ok && req.Device {
		if device = c.take(); device != nil {
			defer device.Close()
		}
	}
	return d.mount(r.Context(), req, device)
}

func (d *Daemon) deleteMount(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := r.URL.Query()
	if err := d.unmount(r.Context(), q.Get("target"), q.Get("lazy") == "true"); err != nil {
		return nil, err
	}
	return struct{}{}, nil
}

func (d *Daemon) getMounts(http.ResponseWriter, *http.Request) (any, error) {
	return d.mountStatuses(), nil
}

// waitMount answers when nothing of ours is mounted at the target any more.
func (d *Daemon) waitMount(_ http.ResponseWriter, r *http.Request) (any, error) {
	target := r.URL.Query().Get("target")
	for waited := false; ; waited = true {
		d.mu.Lock()
		m := d.mounts[target]
		d.mu.Unlock()
		switch {
		case m == nil && waited:
			return struct{}{}, nil
		case m == nil:
			return nil, problem(NotMounted, "nothing is mounted at %q", target)
		}
		select {
		case <-m.gone:
		case <-r.Context().Done():
			return nil, r.Context().Err()
		case <-d.ctx.Done():
			return nil, problem(Stopping, "the daemon is about to end")
		}
	}
}

// refreshMount answers when the mount shows the repository's current revision.
func (d *Daemon) refreshMount(_ http.ResponseWriter, r *http.Request) (any, error) {
	return d.refresh(r.Context(), r.URL.Query().Get("target"))
}

func (d *Daemon) getStatus(http.ResponseWriter, *http.Request) (any, error) { return d.status(), nil }

// CacheRequest changes the cache.
type CacheRequest struct {
	Limit int64 `json:"limit"` // bytes on disk; 0: the default for the partition
}

func (d *Daemon) putCache(_ http.ResponseWriter, r *http.Request) (any, error) {
	var req CacheRequest
	if err := readJSON(r, &req); err != nil {
		return nil, err
	}
	if req.Limit < 0 {
		return nil, problem(Usage, "cache limit %d is negative", req.Limit)
	}
	if err := d.awaitPins(r.Context()); err != nil {
		return nil, err
	}
	if err := d.db.SetLimit(req.Limit); errors.Is(err, cachedb.ErrPinned) {
		return nil, &Error{Conflict, err}
	} else if err != nil {
		d.log.Error("recording the cache limit", "err", err)
	}
	return d.cacheStatus(), nil
}

func (d *Daemon) getMetrics(w http.ResponseWriter, _ *http.Request) (any, error) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	d.writeMetrics(w)
	return nil, nil
}
