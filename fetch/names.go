package fetch

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// A proxy's name with several addresses is several proxies (rows W02, W12). It is looked up when a group that has it comes into use, and again after
// Config.Lookup, sooner while one of its addresses fails. What can't be looked up keeps the addresses it had.
const (
	maxAddresses  = 16              // of a name
	lookupTimeout = 3 * time.Second // as CernVM-FS, at most Config.Timeout
	lookupSooner  = 5 * time.Second
)

// name is a proxy's name as the members share that have it. Client.mu guards asked and asking.
type name struct {
	host   string
	asked  time.Time
	asking bool
	known  chan struct{} // closed after the first answer, or when there was none in time
}

// newName returns nil if p is DIRECT or has an address.
func newName(p *Proxy) *name {
	if p.Direct() || net.ParseIP(p.url.Hostname()) != nil {
		return nil
	}
	return &name{host: p.url.Hostname(), known: make(chan struct{})}
}

// due reports whether m's name is to be looked up.
func (m *member) due(now time.Time, every time.Duration) bool {
	if m.burned {
		every = min(every, lookupSooner)
	}
	return m.name != nil && !m.name.asking && now.Sub(m.name.asked) >= every
}

// lookUp finds the addresses of p's name.
func (c *Client) lookUp(p *Proxy, n *name) {
	ctx, cancel := context.WithTimeout(c.ctx, min(lookupTimeout, c.cfg.Timeout))
	ips, err := c.lookup(ctx, n.host)
	cancel()
	addrs := chosen(ips)
	var was []string
	apply := func(now time.Time) {
		n.asked, n.asking = now, false
		if err == nil {
			was = c.readdress(p, n, addrs)
		}
	}
	select {
	case <-n.known:
		c.change("addresses", nil, apply)
		if err == nil && !slices.Equal(addrs, was) {
			c.cfg.Log.Info("addresses of a proxy changed", "proxy", p.String(), "from", strings.Join(was, " "), "to", strings.Join(addrs, " "))
		}
	default:
		c.mu.Lock() // to have an address at last is no switch
		apply(time.Now())
		c.mu.Unlock()
		if err != nil && c.ctx.Err() == nil {
			c.unknown(p, err)
		}
		close(n.known)
	}
}

// readdress has one member of p for each address, and returns the addresses before. Those that stay are left as they are; if all had failed, new
// ones are probed before they are used. Client.mu is held.
func (c *Client) readdress(p *Proxy, n *name, addrs []string) (was []string) {
	var old []*member
	for _, m := range c.proxies.all {
		if m.Proxy == p {
			old, was = append(old, m), append(was, m.addr)
		}
	}
	if slices.Equal(addrs, was) {
		return was
	}
	burned := !slices.ContainsFunc(old, good)
	members := make([]*member, len(addrs))
	for i, addr := range addrs {
		if k := slices.Index(was, addr); k >= 0 {
			members[i] = old[k]
			continue
		}
		members[i] = &member{Proxy: p, group: old[0].group, addr: addr, name: n, burned: burned, since: old[0].since}
		c.connect(members[i])
	}
	c.proxies.replace(p, members)
	for _, m := range old {
		if !slices.Contains(members, m) {
			m.transport.CloseIdleConnections()
		}
	}
	return was
}

// unknown leaves a proxy whose name leads nowhere.
func (c *Client) unknown(p *Proxy, err error) {
	f := &fault{side: sideProxy, kind: kindDNS, err: err}
	c.count.fault(f)
	c.change(string(f.kind), f, func(now time.Time) {
		for _, m := range c.proxies.all {
			if m.Proxy == p {
				c.proxies.burn(m, now)
			}
		}
	})
}

// chosen returns the addresses to use, in order: the IPv4 ones if there are any. One alone is "": it is looked up for each connection.
func chosen(ips []net.IPAddr) []string {
	var v4, v6 []netip.Addr
	for _, ip := range ips {
		a, ok := netip.AddrFromSlice(ip.IP)
		switch a = a.Unmap(); {
		case !ok:
		case a.Is4():
			v4 = append(v4, a)
		default:
			v6 = append(v6, a.WithZone(ip.Zone))
		}
	}
	if len(v4) == 0 {
		v4 = v6
	}
	slices.SortFunc(v4, netip.Addr.Compare)
	v4 = slices.Compact(v4)
	if len(v4) <= 1 {
		return []string{""}
	}
	var addrs []string
	for _, a := range v4[:min(len(v4), maxAddresses)] {
		addrs = append(addrs, a.String())
	}
	return addrs
}
