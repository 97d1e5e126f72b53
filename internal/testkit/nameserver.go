package testkit

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// NameServer is a DNS server that knows the names it is told, for as long as a second.
type NameServer struct {
	ResolvConf string // path of a file to bind over /etc/resolv.conf, in a mount namespace of its own

	conn    net.PacketConn
	running sync.WaitGroup
	closed  chan struct{}

	mu     sync.Mutex // guards what follows
	names  map[string][]netip.Addr
	delay  time.Duration
	silent bool
	asked  int
}

// StartNameServer answers at port 53 of a loopback address of its own until the end of the test. It needs root.
func StartNameServer(t testing.TB) *NameServer {
	t.Helper()
	s := &NameServer{names: map[string][]netip.Addr{}, closed: make(chan struct{})}
	var addr string
	for {
		var err error
		addr = fmt.Sprintf("127.53.%d.%d", rand.N(256), 1+rand.N(254))
		if s.conn, err = net.ListenPacket("udp", addr+":53"); err == nil {
			break
		} else if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		close(s.closed)
		s.conn.Close()
		s.running.Wait()
	})
	s.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(s.ResolvConf, []byte("nameserver "+addr+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.running.Go(s.serve)
	return s
}

// Set has a name, without a dot at its end, lead to IPv4 addresses from now on; with none it doesn't exist.
func (s *NameServer) Set(name string, addrs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[name+"."] = nil
	for _, a := range addrs {
		s.names[name+"."] = append(s.names[name+"."], netip.MustParseAddr(a))
	}
}

// Answer has it answer after a delay, or not at all, from now on.
func (s *NameServer) Answer(delay time.Duration, silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay, s.silent = delay, silent
}

// Asked returns how many questions came.
func (s *NameServer) Asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *NameServer) serve() {
	buf := make([]byte, 1500)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var question dnsmessage.Message
		if question.Unpack(buf[:n]) != nil || len(question.Questions) != 1 {
			continue
		}
		s.mu.Lock()
		s.asked++
		answer, delay, silent := s.answer(question), s.delay, s.silent
		s.mu.Unlock()
		if silent {
			continue
		}
		s.running.Go(func() {
			timer := time.NewTimer(delay)
			defer timer.Stop()
			select {
			case <-timer.C:
				s.conn.WriteTo(answer, from) // who asked asks again if it is lost
			case <-s.closed:
			}
		})
	}
}

// answer makes the answer to a question. The caller holds mu.
func (s *NameServer) answer(m dnsmessage.Message) []byte {
	q := m.Questions[0]
	addrs, known := s.names[q.Name.String()]
	m.Response, m.Authoritative, m.RecursionAvailable, m.Additionals = true, true, true, nil
	if !known || addrs == nil {
		m.RCode = dnsmessage.RCodeNameError
	}
	if q.Type == dnsmessage.TypeA {
		for _, a := range addrs {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: a.As4()},
			})
		}
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}
