package fetch

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// maxRedirects is how often a server may point elsewhere in one try.
const maxRedirects = 4

// redirected returns the URL that resp points to from the URL of the request, or why it isn't followed.
func redirected(from *url.URL, resp *http.Response, hops int) (*url.URL, error) {
	refused := func(why string) error {
		return fmt.Errorf("%w: %w: %s", errRedirect, &statusError{resp.StatusCode}, why)
	}
	to := resp.Header.Get("Location")
	switch {
	case to == "":
		return nil, refused("it says not where to")
	case hops >= maxRedirects:
		return nil, refused(fmt.Sprintf("the %dth in a row", hops+1))
	}
	u, err := from.Parse(to)
	switch {
	case err != nil:
		return nil, refused("it leads to no URL")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return nil, refused(fmt.Sprintf("it leads to scheme %q", u.Scheme))
	case from.Scheme == "https" && u.Scheme != "https":
		return nil, refused("it leads away from https")
	}
	u.User, u.Fragment = nil, ""
	return u, nil
}

// isRedirect reports whether the status says that the content is elsewhere.
func isRedirect(code int) bool {
	switch code {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// hostOf names u's server: scheme, host and port.
func hostOf(u *url.URL) string { return u.Scheme + "://" + strings.ToLower(u.Host) }
