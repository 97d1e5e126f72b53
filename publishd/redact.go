package publishd

import (
	"io"
	"regexp"
)

var secrets = regexp.MustCompile(`(?i)(://)[^/\s@"']+:[^/\s@"']*@|(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{6,}|(\b(?:password|passwd|token|secret|access_key|identitytoken|x-amz-signature|sig)["']?\s*[=:]\s*["']?)[^\s"'&,}]+`)

// redact takes out what looks like a credential.
func redact(s string) string { return secrets.ReplaceAllString(s, "${1}${2}${3}[redacted]") }

// redacting writes lines without credentials.
type redacting struct {
	w    io.Writer
	rest []byte
}

func (r *redacting) Write(p []byte) (int, error) {
	r.rest = append(r.rest, p...)
	for {
		i := -1
		for k, c := range r.rest {
			if c == '\n' {
				i = k
				break
			}
		}
		if i < 0 && len(r.rest) < 64<<10 {
			return len(p), nil
		}
		if i < 0 {
			i = len(r.rest) - 1
		}
		if _, err := io.WriteString(r.w, redact(string(r.rest[:i+1]))); err != nil {
			return 0, err
		}
		r.rest = append([]byte(nil), r.rest[i+1:]...)
	}
}
