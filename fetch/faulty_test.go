package fetch_test

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

// everyThird spoils each third answer.
type everyThird struct {
	http.RoundTripper
	n     atomic.Int64
	spoil func(*http.Response) (*http.Response, error)
}

func (e *everyThird) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := e.RoundTripper.RoundTrip(r)
	if err != nil || e.n.Add(1)%3 != 0 {
		return resp, err
	}
	return e.spoil(resp)
}

// spoiled ends after left bytes as a lost connection does, or flips a bit of each read.
type spoiled struct {
	body io.ReadCloser
	left int
	flip bool
}

func (s *spoiled) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := s.body.Read(p[:min(len(p), s.left)])
	s.left -= n
	if s.flip && n > 0 {
		p[n/2] ^= 0x10
	}
	return n, err
}

func (s *spoiled) Close() error { return s.body.Close() }

// logBook keeps log lines.
type logBook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logBook) count(text string) int { return strings.Count(l.String(), text) }

func (l *logBook) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
