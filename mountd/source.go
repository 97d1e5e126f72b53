package mountd

import (
	"net/url"
	"strings"

	"github.com/skimfs/skimfs/index"
)

// Source is what can be mounted, parsed: URL[#PATH] or NAME[/PATH].
type Source struct {
	Name string // of the repository; "" with a URL, whose manifest gives it
	URL  string // of the repository's first server; "" with a name
	Path string // in the repository, without slashes at its ends; "" for all of it
}

// ParseSource reads URL[#PATH] or NAME[/PATH]. The path is taken as it is, without unescaping.
func ParseSource(s string) (Source, error) {
	if strings.Contains(s, "://") {
		raw, path, _ := strings.Cut(s, "#")
		u, err := url.Parse(raw)
		switch {
		case err != nil, u.Host == "":
			return Source{}, problem(Usage, "source %q is not a URL", s)
		case u.Scheme != "http" && u.Scheme != "https":
			return Source{}, problem(Usage, "source %q: scheme %q, want http or https", s, u.Scheme)
		case u.User != nil:
			return Source{}, problem(Usage, "source URL with credentials: they would show in the list of mounts")
		case u.RawQuery != "" || u.ForceQuery:
			return Source{}, problem(Usage, "source %q has a query, want URL[#PATH]", s)
		}
		return Source{URL: strings.TrimRight(raw, "/"), Path: cleanPath(path)}, nil
	}
	name, path, _ := strings.Cut(s, "/")
	if err := index.ValidName(name); err != nil {
		return Source{}, problem(Usage, "source %q is neither URL[#PATH] nor NAME[/PATH]: %w", s, err)
	}
	return Source{Name: name, Path: cleanPath(path)}, nil
}

// String returns the source as it is written.
func (s Source) String() string {
	base, sep := s.Name, "/"
	if s.URL != "" {
		base, sep = s.URL, "#"
	}
	if s.Path == "" {
		return base
	}
	return base + sep + s.Path
}

// cleanPath drops empty and dot components; what ".." means is the resolver's to say.
func cleanPath(path string) string {
	var out []string
	for part := range strings.SplitSeq(path, "/") {
		if part != "" && part != "." {
			out = append(out, part)
		}
	}
	return strings.Join(out, "/")
}
