package mountd

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/fetch"
)

// magicPrefix begins the names of the attributes of a mounted directory that tell of the mount.
const magicPrefix = "user.skimfs."

// magicXattrs are the attributes of the mounted directory, as CernVM-FS's of like names; docs/operate.md lists them. They answer from memory.
var magicXattrs = map[string]func(m *mount) (value string, ok bool){
	"repository": func(m *mount) (string, bool) { return m.record.Repository, true },
	"source":     func(m *mount) (string, bool) { return fetch.WithoutCredentials(m.record.Source), true },
	"revision":   func(m *mount) (string, bool) { return strconv.FormatUint(m.shown.Load().revision, 10), true },
	"root":       func(m *mount) (string, bool) { return m.shown.Load().root.Digest.String(), true },
	"image":      func(m *mount) (string, bool) { return m.record.Image.Digest.String(), !m.record.Image.Digest.IsZero() },
	"expires":    (*mount).expires,
	"pid":        func(*mount) (string, bool) { return strconv.Itoa(os.Getpid()), true },
	"version":    func(m *mount) (string, bool) { return m.version, true },
	"uptime":     func(m *mount) (string, bool) { return strconv.Itoa(int(time.Since(m.daemonBegun).Minutes())), true },
	"host":       func(m *mount) (string, bool) { return m.chunks.origin().client.Stats().Server, true },
	"host_list": func(m *mount) (string, bool) {
		return fetch.WithoutCredentials(strings.Join(m.chunks.origin().servers, ";")), true
	},
	"proxy": func(m *mount) (string, bool) { return m.chunks.origin().client.Stats().Proxy, true },
	"proxy_list": func(m *mount) (string, bool) {
		o := m.options()
		if list := strings.Trim(o.Proxy+";"+o.Fallback, ";"); list != "" {
			return fetch.WithoutCredentials(list), true
		}
		return "DIRECT", true
	},
	"ndownload": func(m *mount) (string, bool) { return strconv.FormatInt(m.chunks.objects.Load(), 10), true },
	"rx":        func(m *mount) (string, bool) { return strconv.FormatInt(m.chunks.bytes.Load()>>10, 10), true },
	"hitrate": func(m *mount) (string, bool) {
		hits, misses := m.chunks.hits.Load(), m.chunks.misses.Load()
		if hits+misses == 0 {
			return "n/a", true
		}
		return fmt.Sprintf("%.2f", 100*ratio(hits, misses)), true
	},
	"timestamp_last_ioerr": func(m *mount) (string, bool) { return strconv.FormatInt(m.chunks.lastError.Load(), 10), true },
	"timeout":              func(m *mount) (string, bool) { return seconds(cmp.Or(m.options().Timeout, fetch.DefaultTimeout)), true },
	"timeout_direct": func(m *mount) (string, bool) {
		return seconds(cmp.Or(m.options().Direct, fetch.DefaultTimeoutDirect)), true
	},
	"tag": func(m *mount) (string, bool) {
		src, err := ParseSource(m.record.Source)
		return src.Path, err == nil && src.Path != ""
	},
	"usedfd": func(*mount) (string, bool) {
		fds, err := os.ReadDir("/proc/self/fd")
		return strconv.Itoa(len(fds)), err == nil
	},
	"maxfd": func(*mount) (string, bool) {
		var limit unix.Rlimit
		err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
		return strconv.FormatUint(limit.Cur, 10), err == nil
	},
	"nioerr": func(m *mount) (string, bool) { return strconv.FormatInt(m.chunks.errors.Load(), 10), true },
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }

// expires is in how many minutes the mount looks for a new revision, at the latest.
func (m *mount) expires() (string, bool) {
	if !m.follows() {
		return "never (fixed root catalog)", true
	}
	now := m.shown.Load()
	left := m.options().ttl(now.ttl) - time.Since(now.checked)
	return strconv.Itoa(int(max(left, 0).Minutes())), true
}

// magic answers extended attributes of the mounted directory.
func (m *mount) magic(name string) ([]byte, bool) {
	name, ok := strings.CutPrefix(name, magicPrefix)
	if !ok {
		return nil, false
	}
	f := magicXattrs[name]
	if f == nil {
		return nil, false
	}
	value, ok := f(m)
	return []byte(value), ok
}

// magicNames are those that a listing shows: of a repository's root, as CernVM-FS does. The root of an image is a container's, which is to
// see what the image has and nothing else.
func (m *mount) magicNames() (names []string) {
	if !m.record.Image.Digest.IsZero() {
		return nil
	}
	for name := range magicXattrs {
		if _, ok := magicXattrs[name](m); ok {
			names = append(names, magicPrefix+name)
		}
	}
	slices.Sort(names)
	return names
}
