package fetch

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
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

// ParseProxyLists reads a list of proxies and one of fallback proxies, whose groups come after all others. If there is a fallback, DIRECT is in
// neither (row W03).
func ParseProxyLists(list, fallback string) ([]ProxyGroup, error) {
	if strings.TrimSpace(fallback) == "" {
		return ParseProxies(list)
	}
	groups, err := ParseProxies(list + ";" + fallback)
	if err != nil {
		return nil, err
	}
	for i, g := range groups {
		groups[i] = slices.DeleteFunc(g, (*Proxy).Direct)
	}
	groups = slices.DeleteFunc(groups, func(g ProxyGroup) bool { return len(g) == 0 })
	if len(groups) == 0 {
		return nil, errors.New("the lists of proxies and of fallback proxies name none but DIRECT")
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
