package fetch

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// server is one mirror of the repository.
type server struct {
	base *url.URL // without credentials
	auth string   // value of the Authorization header, if any
}

func (s *server) String() string { return shown(s.base) }

// file returns the URL of a file of the repository.
func (s *server) file(path string) *url.URL {
	if s.base.RawPath != "" {
		return s.base.JoinPath(path)
	}
	u := *s.base
	u.Path += "/" + path
	return &u
}

func parseServer(raw string) (*server, error) {
	u, err := parseURL(strings.TrimSpace(raw))
	if err != nil {
		return nil, fmt.Errorf("server %q: %w", hidden(raw), err)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		err = fmt.Errorf("scheme %q is not supported, use http or https", u.Scheme)
	case u.Hostname() == "":
		err = errors.New("no host name")
	case u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		err = errors.New("query and fragment are not allowed")
	}
	if err != nil {
		return nil, fmt.Errorf("server %q: %w", hidden(raw), err)
	}
	s := &server{base: u}
	if u.User != nil {
		password, _ := u.User.Password()
		s.auth = "Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password))
		u.User = nil
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
	return s, nil
}

// stratum is the ordered mirrors and which one is in use. Client.mu guards it.
type stratum struct {
	all   []*server
	cur   int
	since time.Time     // when the first one was left
	reset time.Duration // after which it is tried again; ≤ 0: never
}

func newStratum(servers []string, reset time.Duration) (*stratum, error) {
	st := &stratum{reset: reset}
	seen := make(map[string]bool)
	for _, raw := range servers {
		s, err := parseServer(raw)
		if err != nil {
			return nil, err
		}
		if !seen[s.base.String()] {
			seen[s.base.String()] = true
			st.all = append(st.all, s)
		}
	}
	if len(st.all) == 0 {
		return nil, errors.New("no server given")
	}
	return st, nil
}

// refresh goes back to the first server if it is time and reports whether it did.
func (st *stratum) refresh(now time.Time) bool {
	if st.cur == 0 || st.reset <= 0 || now.Sub(st.since) < st.reset {
		return false
	}
	st.cur = 0
	return true
}

// leave goes to the server after i if i is the current one and reports whether it did.
func (st *stratum) leave(i int, now time.Time) bool {
	if i != st.cur || len(st.all) == 1 {
		return false
	}
	if i == 0 {
		st.since = now
	}
	st.cur = (i + 1) % len(st.all)
	return true
}

// next returns the current server if free, else the next free one in order; or -1.
func (st *stratum) next(free func(i int) bool) int {
	for k := range st.all {
		if i := (st.cur + k) % len(st.all); free(i) {
			return i
		}
	}
	return -1
}
