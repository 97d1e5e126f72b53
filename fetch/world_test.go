package fetch_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"github.com/skimfs/skimfs/fetch"
	"github.com/skimfs/skimfs/index"
)

// object is something to fetch: its plain content and what a server has of it.
type object struct {
	plain, wire []byte
	digest      index.Digest
}

func newObject(t testing.TB, size int) object {
	t.Helper()
	enc, err := index.NewObjectEncoder()
	if err != nil {
		t.Fatal(err)
	}
	plain := make([]byte, size)
	r := rand.New(rand.NewSource(int64(size)))
	for i := range plain {
		plain[i] = "abcdefghijklmnop"[r.Intn(16)] // compresses to about a half
	}
	return object{plain, enc.Encode(nil, plain), index.DigestOf(plain)}
}

// answer is how a server or proxy answers one request; body is what a sound server would send.
type answer func(w http.ResponseWriter, r *http.Request, body []byte)

// node is a server or proxy that gives its answers in order, the last one for ever, and remembers the requests.
type node struct {
	*httptest.Server
	mu       sync.Mutex
	answers  []answer
	requests []*http.Request
}

func newNode(t testing.TB, body []byte, answers ...answer) *node {
	t.Helper()
	return newNodeAt(t, "127.0.0.1:0", body, answers...)
}

func newNodeAt(t testing.TB, addr string, body []byte, answers ...answer) *node {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{answers: answers}
	n.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.mu.Lock()
		a := n.answers[0]
		if len(n.answers) > 1 {
			n.answers = n.answers[1:]
		}
		n.requests = append(n.requests, r)
		n.mu.Unlock()
		a(w, r, body)
	}))
	n.Listener.Close()
	n.Listener = l
	n.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	n.Start()
	t.Cleanup(func() {
		n.CloseClientConnections()
		n.Close()
	})
	return n
}

// count returns how many requests came.
func (n *node) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.requests)
}

// answer has it give other answers from now on.
func (n *node) answer(answers ...answer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers = answers
}

// header returns the values of a header field, request by request.
func (n *node) header(name string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var values []string
	for _, r := range n.requests {
		values = append(values, r.Header.Get(name))
	}
	return values
}

func right(w http.ResponseWriter, _ *http.Request, body []byte) { _, _ = w.Write(body) }

func flipped(w http.ResponseWriter, _ *http.Request, body []byte) {
	b := bytes.Clone(body)
	b[len(b)/2] ^= 1
	_, _ = w.Write(b)
}

func cutOff(w http.ResponseWriter, _ *http.Request, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body[:len(body)/2])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func short(w http.ResponseWriter, _ *http.Request, body []byte) { _, _ = w.Write(body[:len(body)/2]) }

func appended(w http.ResponseWriter, _ *http.Request, body []byte) {
	_, _ = w.Write(append(bytes.Clone(body), "garbage"...))
}

func announcedTooLong(w http.ResponseWriter, _ *http.Request, _ []byte) {
	w.Header().Set("Content-Length", "100000000000")
	w.WriteHeader(http.StatusOK)
}

func endless(w http.ResponseWriter, r *http.Request, _ []byte) {
	for r.Context().Err() == nil {
		if _, err := w.Write(make([]byte, 64<<10)); err != nil {
			return
		}
	}
}

func inPieces(w http.ResponseWriter, _ *http.Request, body []byte) {
	for piece := range slices.Chunk(body, 10_000) {
		_, _ = w.Write(piece)
		w.(http.Flusher).Flush()
	}
}

func captivePortal(w http.ResponseWriter, _ *http.Request, _ []byte) {
	w.Header().Set("Content-Type", "text/html")
	_, _ = io.WriteString(w, "<html><body>Please log in to the hotel's network.</body></html>")
}

func gzipped(w http.ResponseWriter, _ *http.Request, body []byte) {
	w.Header().Set("Content-Encoding", "gzip")
	_, _ = w.Write(body)
}

func hangUp(http.ResponseWriter, *http.Request, []byte) { panic(http.ErrAbortHandler) }

func silent(_ http.ResponseWriter, r *http.Request, _ []byte) { <-r.Context().Done() }

// trickle sends the headers at once and then a byte every 20 ms.
func trickle(w http.ResponseWriter, r *http.Request, body []byte) {
	for _, b := range body {
		if _, err := w.Write([]byte{b}); err != nil {
			return
		}
		w.(http.Flusher).Flush()
		select {
		case <-time.After(20 * time.Millisecond):
		case <-r.Context().Done():
			return
		}
	}
}

// late waits before it does what a does.
func late(d time.Duration, a answer) answer {
	return func(w http.ResponseWriter, r *http.Request, body []byte) {
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
		a(w, r, body)
	}
}

func status(code int, headers ...string) answer {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
	}
}

// forward does what a proxy does.
func forward(w http.ResponseWriter, r *http.Request, _ []byte) {
	out := r.Clone(r.Context())
	out.RequestURI = ""
	resp, err := direct.RoundTrip(out)
	if err != nil {
		w.Header().Set("X-Squid-Error", "ERR_CONNECT_FAIL 111")
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	defer resp.Body.Close()
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}

var direct = &http.Transport{DisableKeepAlives: true}

// deadURL is an address where nobody listens.
func deadURL(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// newClient returns a client with short pauses.
func newClient(t testing.TB, cfg fetch.Config) *fetch.Client {
	t.Helper()
	if cfg.BackoffInit == 0 {
		cfg.BackoffInit = time.Millisecond
	}
	c, err := fetch.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// newOrigin is a sound server that keeps no memory of requests.
func newOrigin(t testing.TB, body []byte) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		right(w, r, body)
	}))
	t.Cleanup(s.Close)
	return s
}

func newSet() *metrics.Set { return metrics.NewSet() }

func timeout(t testing.TB, d time.Duration) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(t.Context(), d)
}
