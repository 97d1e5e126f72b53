package fetch

import (
	"context"
	"net"
	"net/http"
)

// SetLookup has c find the addresses of names by other means.
func SetLookup(c *Client, lookup func(ctx context.Context, host string) ([]net.IPAddr, error)) {
	c.lookup = lookup
}

// WrapTransports puts wrap around the connections of every proxy of c.
func WrapTransports(c *Client, wrap func(http.RoundTripper) http.RoundTripper) {
	for _, m := range c.proxies.all {
		m.tripper = wrap(m.tripper)
	}
}
