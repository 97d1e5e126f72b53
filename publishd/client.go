package publishd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// ErrUnreachable marks that no daemon answered.
var ErrUnreachable = errors.New("publishd does not answer")

// Client talks to a daemon.
type Client struct {
	base, token string
	http        *http.Client
}

// NewClient returns a client of the daemon at a unix socket (a path) or a URL. It connects with the first request.
func NewClient(address, token string) (*Client, error) {
	if !strings.Contains(address, "://") {
		path := strings.TrimPrefix(address, "unix:")
		return &Client{base: "http://publishd", token: token, http: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "unix", path)
			},
		}}}, nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("address %q: want the path of a socket or a URL", address)
	}
	return &Client{base: strings.TrimRight(address, "/"), token: token, http: &http.Client{Transport: http.DefaultTransport}}, nil
}

func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, in)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	p := &Problem{}
	if json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(p) != nil || p.Reason == "" {
		p = problem(Internal, "%s %s: %s", method, path, resp.Status)
	}
	return nil, p
}

func (c *Client) call(ctx context.Context, method, path string, body, out any) error {
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("%w: %s %s: %w", ErrUnreachable, method, path, err)
	}
	return nil
}

// Submit hands in a request.
func (c *Client) Submit(ctx context.Context, r Request) (o Operation, err error) {
	verb := map[Kind]string{Convert: "convert", Build: "build", ConvertMany: "convertMany", Prefetch: "prefetch"}[r.Kind]
	return o, c.call(ctx, http.MethodPost, "/v1/images:"+verb, r, &o)
}

// Get returns an operation.
func (c *Client) Get(ctx context.Context, id string) (o Operation, err error) {
	return o, c.call(ctx, http.MethodGet, "/v1/operations/"+url.PathEscape(id), nil, &o)
}

// Find returns the newest operation of a reference.
func (c *Client) Find(ctx context.Context, ref string) (o Operation, err error) {
	return o, c.call(ctx, http.MethodGet, "/v1/operations:find?ref="+url.QueryEscape(ref), nil, &o)
}

// Wait returns an operation once it is done, or as it stands after a time of at most a minute.
func (c *Client) Wait(ctx context.Context, id string, limit time.Duration) (o Operation, err error) {
	return o, c.call(ctx, http.MethodPost, "/v1/operations/"+url.PathEscape(id)+":wait?timeout="+limit.String(), nil, &o)
}

// Cancel ends an operation that has not ended.
func (c *Client) Cancel(ctx context.Context, id string) (o Operation, err error) {
	return o, c.call(ctx, http.MethodPost, "/v1/operations/"+url.PathEscape(id)+":cancel", nil, &o)
}

// Retry runs an operation again that failed.
func (c *Client) Retry(ctx context.Context, id string) (o Operation, err error) {
	return o, c.call(ctx, http.MethodPost, "/v1/operations/"+url.PathEscape(id)+":retry", nil, &o)
}

// Forget removes an operation that has ended.
func (c *Client) Forget(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/v1/operations/"+url.PathEscape(id), nil, &struct{}{})
}

// List returns all operations that a query (state, submitter, label, parent, kind) chooses.
func (c *Client) List(ctx context.Context, query url.Values) (all []Operation, err error) {
	query.Set("page_size", "1000")
	for {
		var p Page
		if err := c.call(ctx, http.MethodGet, "/v1/operations?"+query.Encode(), nil, &p); err != nil {
			return nil, err
		}
		all = append(all, p.Operations...)
		if p.Next == "" {
			return all, nil
		}
		query.Set("page_token", p.Next)
	}
}

// Resolve says what a reference means now.
func (c *Client) Resolve(ctx context.Context, ref, platform string) (r Resolution, err error) {
	return r, c.call(ctx, http.MethodGet, "/v1/images:resolve?"+url.Values{"ref": {ref}, "platform": {platform}}.Encode(), nil, &r)
}

// Log copies the log of an operation.
func (c *Client) Log(ctx context.Context, id string, w io.Writer) error {
	resp, err := c.do(ctx, http.MethodGet, "/v1/operations/"+url.PathEscape(id)+"/log", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}

// Event is one of the daemon's.
type Event struct {
	ID   string          `json:"id,omitempty"`
	Name string          `json:"event"` // op.state, op.progress, snapshot
	Data json.RawMessage `json:"data"`
}

// Events calls f for each event after the one called since ("": all that is known first) until ctx ends, f fails or the daemon ends.
// id chooses one operation.
func (c *Client) Events(ctx context.Context, id, since string, f func(Event) error) error {
	path := "/v1/events"
	if id != "" {
		path = "/v1/operations/" + url.PathEscape(id) + "/events"
	}
	resp, err := c.do(ctx, http.MethodGet, path+"?since="+url.QueryEscape(since), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var e Event
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 8<<20)
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "id":
			e.ID = value
		case "event":
			e.Name = value
		case "data":
			e.Data = json.RawMessage(value)
		case "":
			if lines.Text() == "" && e.Data != nil {
				if err := f(e); err != nil {
					return err
				}
			}
			if lines.Text() == "" {
				e = Event{}
			}
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w: the stream ended", ErrUnreachable)
}
