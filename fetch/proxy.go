package fetch

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// direct is how a proxy list names the way without a proxy.
const direct = "DIRECT"

// Proxy is one entry of a proxy list: an HTTP proxy, or DIRECT.
type Proxy struct{ url *url.URL } // nil: DIRECT

// Direct reports whether p means no proxy.
func (p *Proxy) Direct() bool { return p.url == nil }

// String returns the proxy's URL without credentials, or "DIRECT".
func (p *Proxy) String() string {
	if p.url == nil {
		return direct
	}
	return shown(p.url)
}

// ProxyGroup is a set of proxies that share the load: a client stays with one of them while that one works.
type ProxyGroup []*Proxy

// ParseProxies reads a list in the syntax of CernVM-FS: "http://a:3128|http://b:3128;http://c:3128;DIRECT". Members of
// a group are separated by "|", groups by ";". Spaces around names and empty names are ignored, as is a name that
// was listed before; a name without a scheme means http. An empty list is one group with DIRECT.
func ParseProxies(list string) ([]ProxyGroup, error) {
	if strings.TrimSpace(list) == "" {
		return []ProxyGroup{{{}}}, nil
	}
	seen := make(map[string]bool)
	var groups []ProxyGroup
	for names := range strings.SplitSeq(list, ";") {
		var group ProxyGroup
		for name := range strings.SplitSeq(names, "|") {
			if name = strings.TrimSpace(name); name == "" {
				continue
			}
			p, err := parseProxy(name)
			if err != nil {
				return nil, fmt.Errorf("proxy %q: %w", hidden(name), err)
			}
			key := direct
			if !p.Direct() {
				key = p.url.String()
			}
			if !seen[key] {
				seen[key] = true
				group = append(group, p)
			}
		}
		if len(group) > 0 {
			groups = append(groups, group)
		}
	}
	if len(groups) == 0 {
		return nil, fmt.Errorf("proxy list %q names no proxy", list)
	}
	return groups, nil
}

// hostRunes are those of DNS names and of IP addresses (without zone), with a port.
const hostRunes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:[]"

func parseProxy(name string) (*Proxy, error) {
	if strings.EqualFold(name, direct) {
		return &Proxy{}, nil
	}
	if strings.EqualFold(name, "auto") {
		return nil, errors.New("automatic discovery is not supported, list the proxies")
	}
	if !strings.Contains(name, "://") {
		name = "http://" + name
	}
	u, err := parseURL(name)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("scheme %q is not supported, use http or https", u.Scheme)
	case u.Hostname() == "":
		return nil, errors.New("no host name")
	case strings.ContainsFunc(u.Host, func(r rune) bool { return !strings.ContainsRune(hostRunes, r) }):
		return nil, fmt.Errorf("character in host name %q that no host name has", u.Hostname())
	case u.Port() == "":
		return nil, errors.New("no port, squid's is 3128")
	case err != nil || port == 0:
		return nil, fmt.Errorf("port %q is outside 1..65535", u.Port())
	case u.Path != "" && u.Path != "/", u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		return nil, errors.New("only scheme, host and port are expected")
	}
	return &Proxy{&url.URL{Scheme: u.Scheme, User: u.User, Host: strings.ToLower(u.Host)}}, nil
}

// proxyChain is the state of a proxy list: which one is in use, which ones failed ("burned"). Client.mu guards it.
type proxyChain struct {
	all    []*Proxy
	group  []int // of all[i]
	burned []bool
	cur    int
	since  time.Time     // first burn after the last reset; zero while all is well
	reset  time.Duration // after which a burned proxy is trusted again; ≤ 0: never
	rand   func(n int) int
}

func newProxyChain(groups []ProxyGroup, reset time.Duration, rand func(int) int) *proxyChain {
	ch := &proxyChain{reset: reset, rand: rand}
	for g, members := range groups {
		for _, p := range members {
			ch.all = append(ch.all, p)
			ch.group = append(ch.group, g)
		}
	}
	ch.burned = make([]bool, len(ch.all))
	ch.restart()
	return ch
}

// restart forgets all burns and goes to a random member of the first group.
func (ch *proxyChain) restart() {
	clear(ch.burned)
	ch.since = time.Time{}
	ch.cur = ch.pick(0, func(int) bool { return true })
}

// refresh resets the chain if it is time and reports whether the current proxy changed. One in the first group stays.
func (ch *proxyChain) refresh(now time.Time) bool {
	if ch.since.IsZero() || ch.reset <= 0 || now.Sub(ch.since) < ch.reset {
		return false
	}
	if old := ch.cur; ch.group[old] > 0 {
		ch.restart()
		return ch.cur != old
	}
	clear(ch.burned)
	ch.since = time.Time{}
	return false
}

// burn marks proxy i as failed and, if it is the current one, goes to the next. It reports whether the current one changed.
// When all have failed they all count as good again, from the first group on.
func (ch *proxyChain) burn(i int, now time.Time) bool {
	ch.burned[i] = true
	if ch.since.IsZero() {
		ch.since = now
	}
	if i != ch.cur || len(ch.all) == 1 {
		return false
	}
	next := ch.pick(ch.group[i], func(j int) bool { return !ch.burned[j] })
	if next < 0 {
		clear(ch.burned)
		ch.burned[i] = true
		next = ch.pick(0, func(j int) bool { return j != i })
	}
	ch.cur = next
	return true
}

// pick returns a random member that satisfies ok of the first group that has one, beginning at group from and going
// round, or -1.
func (ch *proxyChain) pick(from int, ok func(i int) bool) int {
	groups := ch.group[len(ch.group)-1] + 1
	for k := range groups {
		g, n, found := (from+k)%groups, 0, -1
		for i := range ch.all {
			if ch.group[i] == g && ok(i) {
				if n++; ch.rand(n) == 0 { // each of n with probability 1/n
					found = i
				}
			}
		}
		if found >= 0 {
			return found
		}
	}
	return -1
}

// next returns a proxy for a request that may use those that satisfy free: the current one, else a good one, else any; or -1.
func (ch *proxyChain) next(free func(i int) bool) int {
	if free(ch.cur) {
		return ch.cur
	}
	from := ch.group[ch.cur]
	if i := ch.pick(from, func(i int) bool { return free(i) && !ch.burned[i] }); i >= 0 {
		return i
	}
	return ch.pick(from, free)
}
