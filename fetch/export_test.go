package fetch

import "net/http"

// WrapTransports puts wrap around the connections of every proxy of c.
func WrapTransports(c *Client, wrap func(http.RoundTripper) http.RoundTripper) {
	for _, m := range c.proxies.all {
		m.tripper = wrap(m.tripper)
	}
}
