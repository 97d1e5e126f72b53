package fetch

import "net/http"

// WrapTransports puts wrap around the connections of every proxy of c.
func WrapTransports(c *Client, wrap func(http.RoundTripper) http.RoundTripper) {
	for i, t := range c.trippers {
		c.trippers[i] = wrap(t)
	}
}
