package testkit

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// DelayProxy forwards TCP connections over a link with a round-trip time and a bandwidth. The
// link is shared: all connections together get the bandwidth, each way.
type DelayProxy struct {
	URL  string // http://127.0.0.1:PORT
	Addr string // 127.0.0.1:PORT

	backend  string
	oneWay   time.Duration
	up, down link
	listener net.Listener
	ctx      context.Context
	running  sync.WaitGroup
}

// NewDelayProxy forwards to backend (host:port) until the end of the test. A new connection costs
// one round trip before its first byte leaves, as a TCP handshake does. mbit is in 10^6 bits/s; 0
// is no limit.
func NewDelayProxy(t testing.TB, backend string, rtt time.Duration, mbit float64) *DelayProxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &DelayProxy{
		Addr: listener.Addr().String(), backend: backend, oneWay: rtt / 2, listener: listener, ctx: ctx,
	}
	p.URL = "http://" + p.Addr
	p.up.rate, p.down.rate = mbit*1e6/8, mbit*1e6/8
	p.running.Go(p.serve)
	t.Cleanup(func() {
		cancel()
		listener.Close()
		p.running.Wait()
	})
	return p
}

// Bytes returns what has passed to the backend and back from it.
func (p *DelayProxy) Bytes() (up, down int64) { return p.up.bytes.Load(), p.down.bytes.Load() }

func (p *DelayProxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() { p.forward(client) })
	}
}

func (p *DelayProxy) forward(client net.Conn) {
	defer client.Close()
	accepted := time.Now()
	server, err := (&net.Dialer{}).DialContext(p.ctx, "tcp", p.backend)
	if err != nil {
		return
	}
	defer server.Close()
	stop := context.AfterFunc(p.ctx, func() { client.Close(); server.Close() })
	defer stop()
	var both sync.WaitGroup
	// The handshake took two ways that the client, accepted at once, has not waited for.
	both.Go(func() { p.carry(server, client, &p.up, accepted.Add(2*p.oneWay)) })
	both.Go(func() { p.carry(client, server, &p.down, accepted) })
	both.Wait()
}

// parcel is data on its way.
type parcel struct {
	data []byte
	due  time.Time
}

// inFlight bounds the parcels on their way in one direction of a connection: 16 MiB, which fills
// 1 Gbit/s for 130 ms.
const inFlight, parcelSize = 512, 32 << 10

// carry moves one direction of a connection until its source ends, then ends dst's side. Nothing leaves before open.
func (p *DelayProxy) carry(dst, src net.Conn, l *link, open time.Time) {
	way := make(chan parcel, inFlight)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(way)
		for {
			data := make([]byte, parcelSize)
			n, err := src.Read(data)
			if n > 0 {
				sent := l.send(n, open)
				select {
				case way <- parcel{data[:n], sent.Add(p.oneWay)}:
				case <-p.ctx.Done():
					return
				}
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					dst.Close() // a reset is passed on, not turned into a clean end
				}
				return
			}
		}
	})
	for parcel := range way {
		if !p.sleepUntil(parcel.due) {
			break
		}
		if _, err := dst.Write(parcel.data); err != nil {
			src.Close()
			break
		}
	}
	for range way { // let the reader end
	}
	reader.Wait()
	if half, ok := dst.(*net.TCPConn); ok {
		half.CloseWrite()
	}
}

func (p *DelayProxy) sleepUntil(due time.Time) bool {
	wait := time.Until(due)
	if wait <= 0 {
		return p.ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.ctx.Done():
		return false
	}
}

// link is one direction of the wire.
type link struct {
	rate  float64 // bytes a second, 0 for no limit
	bytes atomic.Int64

	mu   sync.Mutex // guards free
	free time.Time  // when the wire has carried all it was given
}

// send queues n bytes, not before open, and returns when the last of them has left.
func (l *link) send(n int, open time.Time) time.Time {
	l.bytes.Add(int64(n))
	start := time.Now()
	if start.Before(open) {
		start = open
	}
	if l.rate == 0 {
		return start
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free.After(start) {
		start = l.free
	}
	l.free = start.Add(time.Duration(float64(n) / l.rate * 1e9))
	return l.free
}
