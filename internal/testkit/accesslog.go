package testkit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Request is one line of a server's access log.
type Request struct {
	Time         float64 `json:"time"` // seconds since 1970, at the end of the answer
	Method       string  `json:"method"`
	URI          string  `json:"uri"` // at the origin the path, at the proxy the whole URL
	Status       int     `json:"status"`
	Bytes        int64   `json:"bytes"`         // sent, header included
	Result       string  `json:"result"`        // of the proxy's cache: TCP_MISS, TCP_MEM_HIT, …
	CacheControl string  `json:"cache_control"` // as asked
	Via          string  `json:"via"`           // set if a proxy asked
	UserAgent    string  `json:"user_agent"`
}

// Class says what is asked for: "objects", "manifest", "whitelist", "revisions", or "other".
func (r Request) Class() string {
	path := r.URI
	if u, err := url.Parse(r.URI); err == nil {
		path = u.Path
	}
	for part := range strings.SplitSeq(path, "/") {
		switch part {
		case "objects", "manifest", "whitelist", "revisions":
			return part
		}
	}
	return "other"
}

// Requests is an access log or a part of it, in the order of the answers.
type Requests []Request

// Class returns the requests of one class; see [Request.Class].
func (rs Requests) Class(name string) Requests {
	return rs.Where(func(r Request) bool { return r.Class() == name })
}

// Where returns the requests that keep is true for.
func (rs Requests) Where(keep func(Request) bool) Requests {
	var kept Requests
	for _, r := range rs {
		if keep(r) {
			kept = append(kept, r)
		}
	}
	return kept
}

// Count returns the number of requests.
func (rs Requests) Count() int { return len(rs) }

// Bytes returns the bytes that the server sent, headers included.
func (rs Requests) Bytes() int64 {
	var n int64
	for _, r := range rs {
		n += r.Bytes
	}
	return n
}

// Since returns the requests past the first n: n is the Count of an earlier log.
func (rs Requests) Since(n int) Requests { return rs[min(n, len(rs)):] }

// accessLog reads a log with one JSON object a line.
type accessLog struct {
	path  string
	marks atomic.Int64
	// mark sends a request that the log will show and whose URI holds the given word.
	mark func(word string) (*http.Response, error)
}

const markWord = "testkit-mark-"

// read returns the log up to now. A server logs in the order in which it ends its answers, so once
// a request sent now is there, all answers that anybody has received are there too.
func (l *accessLog) read(t testing.TB) Requests {
	t.Helper()
	word := fmt.Sprintf("%s%d-%d", markWord, os.Getpid(), l.marks.Add(1))
	if resp, err := l.mark(word); err == nil { // a stopped server has written all it will
		resp.Body.Close()
		l.await(t, word)
	}
	requests, _ := l.parse(t, "")
	return requests
}

func (l *accessLog) await(t testing.TB, word string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if _, seen := l.parse(t, word); seen {
			return
		}
	}
	t.Fatalf("%s: a request does not appear in the log", l.path)
}

// parse returns the requests, and whether the mark is among them. Left out are marks and what squid
// notes of a connection without a request, as our wait for its start makes one.
func (l *accessLog) parse(t testing.TB, word string) (requests Requests, seen bool) {
	t.Helper()
	data, err := os.ReadFile(l.path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	// A line still being written has no end.
	data = data[:bytes.LastIndexByte(data, '\n')+1]
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r Request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatalf("%s: %v in %q", l.path, err, lines.Text())
		}
		if strings.Contains(r.URI, markWord) {
			seen = seen || word != "" && strings.HasSuffix(r.URI, word)
			continue
		}
		if r.URI == "error:transaction-end-before-headers" {
			continue
		}
		requests = append(requests, r)
	}
	return requests, seen
}
