package fetch

import (
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

// member is a proxy of a group as requests use it: an entry of the list, or one address of an entry whose name has several.
type member struct {
	*Proxy
	group     int
	addr      string // to connect to; "": whatever the name leads to when a connection is made
	name      *name  // nil: an address, or DIRECT
	transport *http.Transport
	tripper   http.RoundTripper              // the same, or what tests put around it
	paths     []atomic.Pointer[pathCounters] // by server

	// Client.mu guards the rest.
	burned bool      // it failed
	since  time.Time // when it burned
	whole  time.Time // when an answer last came whole
	pace   pace
}

// String returns the URL without credentials, with the address if the name has several; or "DIRECT".
func (m *member) String() string {
	if m.addr == "" {
		return m.Proxy.String()
	}
	u := *m.url
	u.Host = net.JoinHostPort(m.addr, u.Port())
	return shown(&u)
}

// members makes one member of each proxy.
func members(groups []ProxyGroup) []*member {
	var all []*member
	for g, group := range groups {
		for _, p := range group {
			all = append(all, &member{Proxy: p, group: g, name: newName(p)})
		}
	}
	return all
}

// proxyChain is the state of a proxy list: which one is in use, which ones failed ("burned"). Client.mu guards it.
type proxyChain struct {
	all   []*member // by group, never empty; replaced when a name's addresses change
	cur   *member
	reset time.Duration // after which a burned proxy is probed; ≤ 0: never
	rand  func(n int) int

	tails  []tail // by group
	turns  uint64 // requests begun
	credit int    // for second requests, in parts of secondCost
}

func newProxyChain(all []*member, reset time.Duration, rand func(int) int) *proxyChain {
	ch := &proxyChain{all: all, reset: reset, rand: rand, tails: make([]tail, all[len(all)-1].group+1)}
	ch.restart()
	return ch
}

func good(m *member) bool { return !m.burned }

// restart forgets all burns and goes to a random member of the first group.
func (ch *proxyChain) restart() {
	for _, m := range ch.all {
		m.burned = false
	}
	ch.cur = ch.pick(0, good)
}

// burn marks m as failed and, if it is the current one, goes to the next. When all have failed they all count as good again, from the first
// group on.
func (ch *proxyChain) burn(m *member, now time.Time) {
	if len(ch.all) == 1 {
		return
	}
	m.burned, m.since = true, now
	if m != ch.cur {
		return
	}
	if ch.cur = ch.pick(m.group, good); ch.cur != nil {
		return
	}
	for _, other := range ch.all {
		other.burned = other == m
	}
	ch.cur = ch.pick(0, good)
}

// due returns the burned members whose time to be probed has come.
func (ch *proxyChain) due(now time.Time) (due []*member) {
	for _, m := range ch.all {
		if m.burned && ch.reset > 0 && now.Sub(m.since) >= ch.reset {
			due = append(due, m)
		}
	}
	return due
}

// heal trusts m again, and goes back to its group if that one is before the current one's.
func (ch *proxyChain) heal(m *member) {
	m.burned = false
	m.pace = pace{}
	if m.group < ch.cur.group {
		ch.cur = ch.pick(m.group, good)
	}
}

// replace has members instead of those of p. If the current one is of p, the choice is made anew among all of its group.
func (ch *proxyChain) replace(p *Proxy, with []*member) {
	at := slices.IndexFunc(ch.all, func(m *member) bool { return m.Proxy == p })
	rest := slices.DeleteFunc(slices.Clone(ch.all), func(m *member) bool { return m.Proxy == p })
	ch.all = slices.Insert(rest, at, with...)
	if ch.cur.Proxy != p {
		return
	}
	if ch.cur = ch.pick(ch.cur.group, good); ch.cur == nil {
		ch.restart()
	}
}

// pick returns a random member that satisfies ok of the first group that has one, beginning at group from and going
// round, or nil. Slow ones are picked if there are no others in the group.
func (ch *proxyChain) pick(from int, ok func(m *member) bool) *member {
	for k := range ch.tails {
		g, n := (from+k)%len(ch.tails), 0
		var found *member
		for _, m := range ch.all {
			if m.group != g || !ok(m) || found != nil && m.pace.slow && !found.pace.slow {
				continue
			}
			if found != nil && found.pace.slow && !m.pace.slow {
				n = 0
			}
			if n++; ch.rand(n) == 0 { // each of n with probability 1/n
				found = m
			}
		}
		if found != nil {
			return found
		}
	}
	return nil
}

// next returns a proxy for a request that may use those that satisfy free: the current one, else a good one, else any; or nil.
func (ch *proxyChain) next(free func(m *member) bool) *member {
	if free(ch.cur) {
		return ch.cur
	}
	if m := ch.pick(ch.cur.group, func(m *member) bool { return free(m) && good(m) }); m != nil {
		return m
	}
	return ch.pick(ch.cur.group, free)
}
