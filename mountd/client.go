package mountd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Client talks to the daemon of one cache directory.
type Client struct {
	place place
	home  Home
	start StartConfig
	mode  StartMode
	http  *http.Client
}

// StartMode says when a Client starts a daemon, where the home allows it.
type StartMode int

const (
	// StartDead starts one if the last one died: it had mounts, perhaps.
	StartDead StartMode = iota
	// StartAlways starts one if none answers.
	StartAlways
)

// StartConfig is what a daemon is started with on demand.
type StartConfig struct {
	Quota int64         // bytes; 0: as in Config
	Idle  time.Duration // 0: DefaultIdle
}

// DefaultIdle is how long a daemon started on demand outlives its last mount.
const DefaultIdle = 30 * time.Second

// Connect returns a client of the daemon of a cache directory ("" is the home's), which answers now.
func Connect(ctx context.Context, h Home, cache string, mode StartMode, start StartConfig) (*Client, error) {
	c := newClient(h, newPlace(h, cache), mode, start)
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

func newClient(h Home, p place, mode StartMode, start StartConfig) *Client {
	return &Client{place: p, home: h, start: start, mode: mode, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix(ctx, p.socket()) },
	}}}
}

// ConnectAll returns clients of all daemons of a home that run, that of the home's cache first, after those that died were started again.
func ConnectAll(ctx context.Context, h Home) ([]*Client, error) {
	if _, err := os.Stat(h.Run); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err := h.checkRun(); err != nil {
		return nil, err
	}
	if h.Shared { // the records are root's
		c, err := Connect(ctx, h, "", StartDead, StartConfig{})
		return []*Client{c}, err
	}
	records, err := filepath.Glob(filepath.Join(escapeGlob(h.Run), "mountd-*.json"))
	if err != nil {
		return nil, err
	}
	first := newPlace(h, "").record()
	slices.SortFunc(records, func(a, b string) int {
		switch first {
		case a:
			return -1
		case b:
			return 1
		}
		return strings.Compare(a, b)
	})
	var out []*Client
	for _, path := range records {
		r, err := readRecord(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // it ended just now
		}
		if err != nil {
			return nil, err
		}
		c, err := Connect(ctx, h, r.Cache, StartDead, StartConfig{Idle: r.Idle})
		if KindOf(err) == NoDaemon && h.OnDemand {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

func readRecord(path string) (daemonRecord, error) {
	var r daemonRecord
	b, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("record of a daemon %q: %w", path, err)
	}
	return r, nil
}

func dialUnix(ctx context.Context, path string) (conn net.Conn, err error) {
	err = shortPath(path, func(short string) (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", short)
		return err
	})
	return conn, err
}

// answers reports whether a daemon accepts connections.
func (c *Client) answers(ctx context.Context) (bool, error) {
	conn, err := dialUnix(ctx, c.place.socket())
	switch {
	case errors.Is(err, fs.ErrPermission):
		return false, problem(Permission, "the daemon of cache %q is for root and the members of its socket_group: %w", c.place.cache, err)
	case err != nil:
		return false, nil
	}
	conn.Close()
	return true, nil
}

// ready makes sure that a daemon answers.
func (c *Client) ready(ctx context.Context) error {
	if _, err := os.Lstat(c.place.run); err == nil {
		if err := c.home.checkRun(); err != nil {
			return err
		}
		if ok, err := c.answers(ctx); ok || err != nil {
			return err
		}
	}
	none := problem(NoDaemon, "no skimfs daemon answers for cache %q", c.place.cache)
	if !c.home.OnDemand {
		return none
	}
	start := c.start
	if r, err := readRecord(c.place.record()); err == nil {
		if c.mode == StartDead && start.Idle == 0 {
			start.Idle = r.Idle
		}
	} else if c.mode == StartDead {
		return none
	}
	return c.place.startDaemon(ctx, start)
}

// Cache returns the directory whose daemon this client talks to.
func (c *Client) Cache() string { return c.place.cache }

// do sends a request and decodes its answer into reply, unless that is nil. A daemon that ends meanwhile is replaced by the next.
func (c *Client) do(ctx context.Context, method, path string, body, reply any) error {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if reply == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(reply); err != nil {
		return &Error{Internal, fmt.Errorf("answer of the daemon: %w", err)}
	}
	return nil
}

// sendTries is how often a request is sent to daemons that end before they answer.
const sendTries = 5

func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	for try := 1; ; try++ {
		req, err := http.NewRequestWithContext(ctx, method, "http://skimfs"+path, bytes.NewReader(text))
		if err != nil {
			return nil, err
		}
		resp, err := c.http.Do(req)
		if err == nil && resp.StatusCode == http.StatusOK {
			return resp, nil
		}
		if err == nil {
			err = replyError(resp)
		}
		if ctx.Err() != nil {
			return nil, &Error{Interrupted, ctx.Err()}
		}
		ended := KindOf(err) == Stopping || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNREFUSED) ||
			errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNRESET)
		if !ended || try == sendTries {
			return nil, err
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return nil, err
		}
		if err := c.ready(ctx); err != nil {
			return nil, err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func replyError(resp *http.Response) error {
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxRequest))
	var e errorReply
	if err != nil || json.Unmarshal(b, &e) != nil || e.Kind == "" {
		return problem(Internal, "answer of the daemon: %s: %.200q", resp.Status, b)
	}
	return &Error{e.Kind, errors.New(e.Message)}
}

// Mount mounts. The target must come from CheckTarget.
func (c *Client) Mount(ctx context.Context, req MountRequest) (*MountReply, error) {
	reply := &MountReply{}
	return reply, c.do(ctx, http.MethodPost, "/v1/mounts", req, reply)
}

// Unmount removes a mount; with lazy at once, whoever uses it.
func (c *Client) Unmount(ctx context.Context, target string, lazy bool) error {
	q := url.Values{"target": {target}}
	if lazy {
		q.Set("lazy", "true")
	}
	return c.do(ctx, http.MethodDelete, "/v1/mounts?"+q.Encode(), nil, nil)
}

// Refresh makes a mount of a repository show the current revision now, instead of when its TTL is over.
func (c *Client) Refresh(ctx context.Context, target string) (*MountStatus, error) {
	s := &MountStatus{}
	return s, c.do(ctx, http.MethodPost, "/v1/mounts/refresh?"+url.Values{"target": {target}}.Encode(), nil, s)
}

// Reload makes the daemon read its configuration again.
func (c *Client) Reload(ctx context.Context) (*ReloadReply, error) {
	r := &ReloadReply{}
	return r, c.do(ctx, http.MethodPost, "/v1/reload", nil, r)
}

// Release ends a lease: mounts that nobody else needs are detached.
func (c *Client) Release(ctx context.Context, lease string) (*ReleaseReply, error) {
	r := &ReleaseReply{}
	return r, c.do(ctx, http.MethodDelete, "/v1/leases?"+url.Values{"lease": {lease}}.Encode(), nil, r)
}

// WaitGone returns when nothing is mounted at target any more.
func (c *Client) WaitGone(ctx context.Context, target string) error {
	return c.do(ctx, http.MethodGet, "/v1/mounts/wait?"+url.Values{"target": {target}}.Encode(), nil, nil)
}

// Mounts lists the mounts.
func (c *Client) Mounts(ctx context.Context) (list []MountStatus, err error) {
	return list, c.do(ctx, http.MethodGet, "/v1/mounts", nil, &list)
}

// Status tells of the daemon.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	s := &Status{}
	return s, c.do(ctx, http.MethodGet, "/v1/status", nil, s)
}

// SetCacheLimit changes how many bytes the cache may take on disk, now and for later daemons.
func (c *Client) SetCacheLimit(ctx context.Context, limit int64) (*CacheStatus, error) {
	s := &CacheStatus{}
	return s, c.do(ctx, http.MethodPut, "/v1/cache", CacheRequest{limit}, s)
}

// List lists a directory below a source, or tells of a single file.
func (c *Client) List(ctx context.Context, source, path string, o Options) (*ListReply, error) {
	l := &ListReply{}
	return l, c.do(ctx, http.MethodGet, "/v1/ls?"+fileQuery(source, path, o).Encode(), nil, l)
}

// Stat tells of a file below a source.
func (c *Client) Stat(ctx context.Context, source, path string, follow bool, o Options) (*FileInfo, error) {
	q := fileQuery(source, path, o)
	if follow {
		q.Set("follow", "true")
	}
	info := &FileInfo{}
	return info, c.do(ctx, http.MethodGet, "/v1/stat?"+q.Encode(), nil, info)
}

// Cat writes a file's content to w.
func (c *Client) Cat(ctx context.Context, source, path string, o Options, w io.Writer) error {
	resp, err := c.send(ctx, http.MethodGet, "/v1/cat?"+fileQuery(source, path, o).Encode(), nil)
	if err != nil {
		return err
	}
	return copyAnswer(w, resp)
}

// copyAnswer writes an answer to w; the error that it ends with may be in its trailer.
func copyAnswer(w io.Writer, resp *http.Response) error {
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return err
	}
	var e errorReply
	if text := resp.Trailer.Get(ErrorTrailer); text != "" {
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			return problem(Internal, "trailer of the daemon: %q: %w", text, err)
		}
		return &Error{e.Kind, errors.New(e.Message)}
	}
	return nil
}

// Metrics writes the daemon's metrics to w.
func (c *Client) Metrics(ctx context.Context, w io.Writer) error {
	resp, err := c.send(ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}

func fileQuery(source, path string, o Options) url.Values {
	q := url.Values{"source": {source}, "path": {path}}
	if b, err := json.Marshal(o); err == nil && string(b) != "{}" {
		q.Set("options", string(b))
	}
	return q
}

func decodeOptions(text string, o *Options) error {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(o); err != nil {
		return problem(Usage, "options: %w", err)
	}
	return nil
}

// trailerText is an error as one line of ASCII JSON.
func trailerText(err error) string {
	b, _ := json.Marshal(errorReply{KindOf(err), err.Error()})
	var out strings.Builder
	for _, r := range string(b) {
		if r < 0x80 {
			out.WriteRune(r)
		} else if r < 0x10000 {
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.String()
}

// Work does work on a source's content. Each line of progress goes to tell; the last one is returned.
func (c *Client) Work(ctx context.Context, req WorkRequest, tell func(WorkProgress)) (p WorkProgress, err error) {
	resp, err := c.send(ctx, http.MethodPost, "/v1/cache/work", req)
	if err != nil {
		return p, err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); !p.Done; tell(p) {
		p = WorkProgress{}
		if err := dec.Decode(&p); err != nil {
			if ctx.Err() != nil {
				return p, &Error{Interrupted, ctx.Err()}
			}
			return p, &Error{Internal, fmt.Errorf("answer of the daemon: %w", err)}
		}
	}
	if p.Error != "" {
		return p, &Error{p.Kind, errors.New(p.Error)}
	}
	return p, nil
}

// CacheReport tells of the cache, its pins and how much of the mounted images it has.
func (c *Client) CacheReport(ctx context.Context) (*CacheReport, error) {
	s := &CacheReport{}
	return s, c.do(ctx, http.MethodGet, "/v1/cache", nil, s)
}

// TrimCache evicts until at most so many bytes are on disk.
func (c *Client) TrimCache(ctx context.Context, bytes int64) (*TrimReply, error) {
	s := &TrimReply{}
	return s, c.do(ctx, http.MethodPost, "/v1/cache/trim", TrimRequest{bytes}, s)
}

// VerifyCache checks the whole cache.
func (c *Client) VerifyCache(ctx context.Context, repair bool) (*VerifyReply, error) {
	s := &VerifyReply{}
	return s, c.do(ctx, http.MethodPost, "/v1/cache/verify", VerifyRequest{repair}, s)
}
