package testkit

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Fault is a way in which a [Faulty] goes wrong.
type Fault string

// The faults. What only spoils an answer spoils that of every path.
const (
	Sound        Fault = "sound"
	Refuse       Fault = "refuses connections"
	Silent       Fault = "accepts, stays silent"
	Stall        Fault = "sends headers, then nothing"
	Trickle      Fault = "trickles 500 B/s"
	Truncate     Fault = "hangs up half way"
	Garbage      Fault = "appends garbage"
	FlipOnce     Fault = "flips a bit, once a path"
	FlipKept     Fault = "flips a bit in what it keeps" // but not for who asks with no-cache: a poisoned cache
	FlipAlways   Fault = "flips a bit, always"
	BadRequest   Fault = "400"
	Forbidden    Fault = "403"
	NotFound     Fault = "404"
	TooMany      Fault = "429"
	ServerError  Fault = "500"
	BadGateway   Fault = "502"
	RedirectLoop Fault = "redirects in a loop"
	Portal       Fault = "captive portal: 200 with HTML"
	LengthAbove  Fault = "announces more than it sends"
	LengthBelow  Fault = "announces less than there is"
	Encoded      Fault = "gzip without being asked"
)

// Faults are all but Sound.
var Faults = []Fault{
	Refuse, Silent, Stall, Trickle, Truncate, Garbage, FlipOnce, FlipKept, FlipAlways, BadRequest, Forbidden, NotFound, TooMany, ServerError, BadGateway,
	RedirectLoop, Portal, LengthAbove, LengthBelow, Encoded,
}

// Faulty is an HTTP server in front of a sound one, a proxy for who asks it for a whole URL, that goes wrong as it is told.
type Faulty struct {
	URL  string // http://127.0.0.1:PORT
	Addr string // 127.0.0.1:PORT

	t       testing.TB
	backend string // host:port
	server  http.Server
	onward  http.Transport
	running sync.WaitGroup
	dials   atomic.Int64

	mu       sync.Mutex // guards what follows
	fault    Fault
	listener net.Listener // nil while it refuses
	conns    map[net.Conn]bool
	asked    map[string]int // requests by path, since the fault was set
}

// NewFaulty serves what the server at backend (host:port) does until the end of the test, and stands in as a proxy for any server. It is sound
// at first.
func NewFaulty(t testing.TB, backend string) *Faulty {
	t.Helper()
	return NewFaultyAt(t, loopback(0), backend)
}

// NewFaultyAt is NewFaulty at an IPv4 address and port, 0 for any.
func NewFaultyAt(t testing.TB, addr, backend string) *Faulty {
	t.Helper()
	f := &Faulty{t: t, backend: backend, fault: Sound, conns: map[net.Conn]bool{}, asked: map[string]int{}}
	f.onward.DisableCompression = true
	f.server.Handler, f.server.ConnState = http.HandlerFunc(f.serve), f.track
	f.Addr = holdPort(t, netip.MustParseAddrPort(addr))
	f.URL = "http://" + f.Addr
	t.Cleanup(func() {
		f.server.Close()
		f.running.Wait()
		f.onward.CloseIdleConnections()
	})
	f.listen()
	return f
}

// holdPort binds a port until the end of the test without listening: nobody else gets it while a server is away.
func holdPort(t testing.TB, addr netip.AddrPort) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(addr.Addr(), uint16(bound.(*unix.SockaddrInet4).Port)).String()
}

// listen serves on the port that is held.
func (f *Faulty) listen() {
	f.t.Helper()
	cfg := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); e != nil {
			return e
		}
		return err
	}}
	l, err := cfg.Listen(context.Background(), "tcp", f.Addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	f.listener = l
	f.mu.Unlock()
	f.running.Go(func() { f.server.Serve(l) }) // it ends when l is closed
}

// track counts connections and knows those that are open.
func (f *Faulty) track(c net.Conn, state http.ConnState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch state {
	case http.StateNew:
		f.dials.Add(1)
		f.conns[c] = true
	case http.StateClosed, http.StateHijacked:
		delete(f.conns, c)
	}
}

// Set has it go wrong from now on as the fault says, on connections yet to come: those that are open are cut.
func (f *Faulty) Set(fault Fault) {
	f.t.Helper()
	f.mu.Lock()
	f.fault = fault
	clear(f.asked)
	away := f.listener == nil
	if fault == Refuse && !away {
		f.listener.Close()
		f.listener = nil
	}
	for c := range f.conns {
		c.Close()
	}
	f.mu.Unlock()
	if fault != Refuse && away {
		f.listen()
	}
}

// Connections returns how many were accepted.
func (f *Faulty) Connections() int64 { return f.dials.Load() }

// Requests returns how often a path was asked for since Set; "" is all paths together.
func (f *Faulty) Requests(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if path != "" {
		return f.asked[path]
	}
	n := 0
	for _, k := range f.asked {
		n += k
	}
	return n
}

func (f *Faulty) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	fault := f.fault
	f.asked[r.URL.Path]++
	first := f.asked[r.URL.Path] == 1
	f.mu.Unlock()
	switch fault {
	case Silent:
		<-r.Context().Done()
		return
	case RedirectLoop:
		http.Redirect(w, r, r.URL.String(), http.StatusFound)
		return
	case Portal:
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<html><body>Please log in to the hotel's network.</body></html>")
		return
	case BadRequest, Forbidden, NotFound, TooMany, ServerError, BadGateway:
		code, err := strconv.Atoi(string(fault))
		if err != nil {
			panic(err)
		}
		http.Error(w, "<html><body>"+http.StatusText(code)+"</body></html>", code)
		return
	}
	status, body, err := f.sound(r)
	if err != nil {
		w.Header().Set("X-Squid-Error", "ERR_CONNECT_FAIL 111")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fresh := strings.Contains(r.Header.Get("Cache-Control"), "no-cache")
	if len(body) > 0 && (fault == FlipAlways || fault == FlipOnce && first || fault == FlipKept && !fresh) {
		body[len(body)/2] ^= 0x10
	}
	spoiled{w, r, status, body}.send(fault)
}

// sound returns the answer of the server behind.
func (f *Faulty) sound(r *http.Request) (status int, body []byte, err error) {
	out := r.Clone(r.Context())
	out.RequestURI = ""
	if !out.URL.IsAbs() {
		out.URL.Scheme, out.URL.Host, out.Host = "http", f.backend, f.backend
	}
	resp, err := f.onward.RoundTrip(out)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// spoiled is an answer on its way.
type spoiled struct {
	w      http.ResponseWriter
	r      *http.Request
	status int
	body   []byte
}

// send sends the answer with what the fault does to it on the way. Of a write that fails the client knows.
func (s spoiled) send(fault Fault) {
	switch fault {
	case Garbage:
		s.body = append(s.body, "garbage"...)
	case Stall:
		s.part(len(s.body), 0)
		<-s.r.Context().Done()
		return
	case Truncate:
		s.part(len(s.body), len(s.body)/2)
		panic(http.ErrAbortHandler)
	case LengthAbove:
		s.part(len(s.body)+1000, len(s.body))
		<-s.r.Context().Done()
		return
	case LengthBelow:
		s.part(len(s.body)/2, len(s.body)/2)
		return
	case Trickle:
		s.trickle()
		return
	case Encoded:
		s.w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(s.w)
		_, _ = z.Write(s.body)
		_ = z.Close()
		return
	}
	s.part(len(s.body), len(s.body))
}

// part announces a length and sends n bytes of the body.
func (s spoiled) part(length, n int) {
	s.w.Header().Set("Content-Length", strconv.Itoa(length))
	s.w.WriteHeader(s.status)
	_, _ = s.w.Write(s.body[:n])
	s.flush()
}

func (s spoiled) flush() { s.w.(http.Flusher).Flush() }

// trickle sends 50 bytes each 100 ms.
func (s spoiled) trickle() {
	s.part(len(s.body), 0)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for rest := s.body; len(rest) > 0; {
		n := min(50, len(rest))
		if _, err := s.w.Write(rest[:n]); err != nil {
			return
		}
		s.flush()
		rest = rest[n:]
		select {
		case <-tick.C:
		case <-s.r.Context().Done():
			return
		}
	}
}
