package fetch

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"
)

// server is one mirror of the repository.
type server struct {
	base *url.URL // without credentials
	auth string   // value of the Authorization header, if any

	number int // in the configuration

	// Client.mu guards the rest.
	whole  time.Time // when an answer last came whole
	rest   time.Time // not to be asked before
	status int       // of the answer that said so
}

// resting is nil if s may be asked, else the fault of its last answer, with what is left of the wait.
func (s *server) resting(now time.Time) *fault {
	left := s.rest.Sub(now)
	if left <= 0 {
		return nil
	}
	err := fmt.Errorf("%w, not to be asked for another %v", &statusError{s.status}, left.Round(time.Millisecond))
	return &fault{side: sideHost, kind: kindBusy, again: true, status: s.status, err: err, after: left}
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
	all   []*server // in order of preference; replaced when the order changes
	cur   *server
	since time.Time     // when the first one was left, or the order measured
	reset time.Duration // after which those before the current one are probed; ≤ 0: never
	sort  bool          // by measured time, and again after each reset
}

func newStratum(servers []string, reset time.Duration, sort bool) (*stratum, error) {
	st := &stratum{reset: reset, sort: sort}
	seen := make(map[string]bool)
	for _, raw := range servers {
		s, err := parseServer(raw)
		if err != nil {
			return nil, err
		}
		if !seen[s.base.String()] {
			seen[s.base.String()] = true
			s.number = len(st.all)
			st.all = append(st.all, s)
		}
	}
	if len(st.all) == 0 {
		return nil, errors.New("no server given")
	}
	st.cur = st.all[0]
	return st, nil
}

// due returns the servers to probe now: those before the current one, or all if they are to be sorted.
func (st *stratum) due(now time.Time) []*server {
	switch {
	case len(st.all) == 1, st.reset <= 0 && !st.since.IsZero(), now.Sub(st.since) < st.reset:
		return nil
	case st.sort:
		return st.all
	}
	return st.all[:slices.Index(st.all, st.cur)]
}

// order puts the servers in the order of how long each took; those that took no time, since they did not answer, come last.
func (st *stratum) order(took []time.Duration) {
	by := make(map[*server]time.Duration)
	for i, s := range st.all {
		by[s] = took[i]
		if took[i] == 0 {
			by[s] = math.MaxInt64
		}
	}
	st.all = slices.SortedStableFunc(slices.Values(st.all), func(a, b *server) int { return cmp.Compare(by[a], by[b]) })
}

// leave goes to the server after s if s is the current one and reports whether it did.
func (st *stratum) leave(s *server, now time.Time) bool {
	if s != st.cur || len(st.all) == 1 {
		return false
	}
	i := slices.Index(st.all, s)
	if i == 0 {
		st.since = now
	}
	st.cur = st.all[(i+1)%len(st.all)]
	return true
}

// next returns the current server if free, else the next free one in order; or nil.
func (st *stratum) next(free func(s *server) bool) *server {
	at := slices.Index(st.all, st.cur)
	for k := range st.all {
		if s := st.all[(at+k)%len(st.all)]; free(s) {
			return s
		}
	}
	return nil
}
