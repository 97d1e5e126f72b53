package fetch

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

var (
	errSilent   = errors.New("no answer in time")
	errSlow     = errors.New("transfer below the lowest accepted speed")
	errTooLong  = errors.New("answer is longer than allowed")
	errEncoded  = errors.New("answer is encoded though that was not asked for")
	errRedirect = errors.New("redirect refused")
)

// Error says what a request failed on in the end, where, and after how many tries.
type Error struct {
	Op       string // the HTTP method
	URL      string // of the last try, without credentials
	Proxy    string // of the last try, without credentials, or "DIRECT"
	Status   int    // HTTP status of the last answer, 0 without one
	Attempts int    // HTTP requests made
	Err      error  // the cause
	kind     kind
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", e.Op, e.URL)
	if e.Proxy != "" && e.Proxy != direct {
		fmt.Fprintf(&b, " through %s", e.Proxy)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	if e.Attempts > 1 {
		fmt.Fprintf(&b, " (attempt %d)", e.Attempts)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Temporary reports whether the same request may well succeed later with nothing repaired: the network was down or
// slow, a server was busy, the deadline was short. Missing or wrong content and refusals are not temporary.
func (e *Error) Temporary() bool {
	switch e.kind {
	case kindDNS, kindConnect, kindTimeout, kindSlow, kindTransfer, kindBusy, kindResource, kindDeadline:
		return true
	case kindStatus:
		return e.Status >= http.StatusInternalServerError
	}
	return false
}

// Answered reports whether there was an answer, of content that is missing or wrong: not silence, not a refusal.
func (e *Error) Answered() bool { return e.kind == kindMissing || e.kind == kindContent }

// statusError is an answer whose status ends the attempt.
type statusError struct{ code int }

func (e *statusError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("status %d %s", e.code, http.StatusText(e.code)))
}

// shown returns u's text without credentials, query and fragment.
func shown(u *url.URL) string {
	v := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}
	return v.String()
}

// hidden returns raw, a URL that may not even parse, without what may be credentials.
func hidden(raw string) string {
	at := strings.LastIndexByte(raw, '@')
	if at < 0 {
		return raw
	}
	scheme, _, ok := strings.Cut(raw[:at], "://")
	if !ok {
		return "…" + raw[at:]
	}
	return hidden(scheme) + "://…" + raw[at:]
}

// WithoutCredentials returns a URL or a list of them, separated by ";" and "|", without user names and passwords: fit to be shown.
func WithoutCredentials(list string) string {
	var b strings.Builder
	for list != "" {
		n := strings.IndexAny(list, ";|")
		if n < 0 {
			return b.String() + hidden(list)
		}
		b.WriteString(hidden(list[:n]) + list[n:n+1])
		list = list[n+1:]
	}
	return b.String()
}

// parseURL is url.Parse with an error that doesn't repeat raw.
func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	var ue *url.Error
	if errors.As(err, &ue) {
		return nil, errors.New("not a URL")
	}
	return u, err
}
