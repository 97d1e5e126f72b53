package fetch

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"github.com/skimfs/skimfs/index"
)

// maxCredentials is the most a file of credentials may hold, in bytes.
const maxCredentials = 64 << 10

// Credentials are what servers are told, by host ("s1.example.org", or "s1.example.org:8443" for that port alone): the values of the
// Authorization header.
type Credentials map[string]string

// ReadCredentials reads a file of credentials, which nobody but its owner may read.
func ReadCredentials(path string) (Credentials, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("credentials %q: others may read or write it (mode %04o), want 0600", path, info.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxCredentials+1))
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	c, err := ParseCredentials(b)
	if err != nil {
		return nil, fmt.Errorf("credentials %q: %w", path, err)
	}
	return c, nil
}

// ParseCredentials reads lines "HOST[:PORT] bearer TOKEN" and "HOST[:PORT] basic USER:PASSWORD". Empty lines and those that begin with #
// say nothing. Errors don't repeat what may be a secret.
func ParseCredentials(text []byte) (Credentials, error) {
	if len(text) > maxCredentials {
		return nil, fmt.Errorf("more than %d bytes: %w", maxCredentials, index.ErrFormat)
	}
	creds := Credentials{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, maxCredentials+1)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		host, value, err := parseCredential(line)
		if err == nil && creds[host] != "" {
			err = errors.New("a second entry for the same host")
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		creds[host] = value
	}
	return creds, lines.Err()
}

func parseCredential(line string) (host, value string, err error) {
	part := strings.Fields(line)
	if len(part) != 3 {
		return "", "", errors.New("want three words: HOST bearer TOKEN, or HOST basic USER:PASSWORD")
	}
	host = strings.ToLower(part[0])
	if strings.ContainsFunc(host, func(r rune) bool { return !strings.ContainsRune(hostRunes, r) }) {
		return "", "", errors.New("the first word is no host name, write no scheme and no path")
	}
	for _, b := range []byte(part[2]) {
		if b < 0x21 || b == 0x7f {
			return "", "", errors.New("a control character in the secret")
		}
	}
	switch strings.ToLower(part[1]) {
	case "bearer":
		return host, "Bearer " + part[2], nil
	case "basic":
		if !strings.Contains(part[2], ":") {
			return "", "", errors.New("no \":\" between user and password")
		}
		return host, "Basic " + base64.StdEncoding.EncodeToString([]byte(part[2])), nil
	}
	return "", "", errors.New("the second word is neither bearer nor basic")
}

// of returns the value of the Authorization header for u, or "".
func (c Credentials) of(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	host := strings.ToLower(u.Hostname())
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if v := c[host+":"+port]; v != "" {
		return v
	}
	return c[host]
}
