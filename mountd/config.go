package mountd

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/skimfs/skimfs/fetch"
	"github.com/skimfs/skimfs/index"
)

// Config says what a daemon is. Zero values mean the default given at the field.
type Config struct {
	Home          Home
	Cache         string        // directory; Home.Cache. One daemon owns it
	Quota         int64         // bytes on disk; 0: what was last set for this cache, or else cachedb's default
	Memory        *int64        // bytes of objects kept in memory above a cache on disk; nil: cachedb's default
	Large         func()        // as cachedb.Config's
	Idle          time.Duration // > 0: end after so long without a mount and without a request
	Version       string
	Load          func() (*Settings, error) // reads the configuration, at the start and at a reload; nil: there is none
	Reload        <-chan os.Signal          // asks for a reload
	MetricsListen string                    // host:port where /metrics is answered over TCP; "": only on the control socket
	Group         uint32                    // members may use the daemon, within limits; 0: nobody but its own user and root
	Log           *slog.Logger              // silent
}

// Options say how a source is mounted or read. Zero values mean the default given at the field.
type Options struct {
	PublicKey     string        `json:"pubkey,omitempty"`         // text of the master public key; the home's keys
	Proxy         string        `json:"proxy,omitempty"`          // list as fetch.ParseProxies reads it; DIRECT
	Servers       []string      `json:"servers,omitempty"`        // for a name: the repository's URLs, http://NAME; for a URL: its further mirrors
	AllowOther    bool          `json:"allow_other,omitempty"`    // other users may enter; always so for root
	UID           *uint32       `json:"uid,omitempty"`            // owner of all files; root: the image's, a user: himself
	GID           *uint32       `json:"gid,omitempty"`            // the same for groups
	Fallback      string        `json:"fallback_proxy,omitempty"` // more proxies, after all of Proxy; DIRECT is then used from neither
	Probe         bool          `json:"probe,omitempty"`          // the servers in the order of their measured round trip, not as listed
	Shard         bool          `json:"shard,omitempty"`          // spread objects over the members of a group of proxies
	Auth          string        `json:"auth,omitempty"`           // absolute path of a file that fetch.ReadCredentials reads
	CA            string        `json:"ca,omitempty"`             // absolute path of a file of certificates to trust besides the system's
	Agent         string        `json:"agent,omitempty"`          // said to servers and proxies beside this program's name
	Lower         string        `json:"cache_lower,omitempty"`    // absolute path of a lower cache, see cachedb.Lower
	Hang          bool          `json:"hang,omitempty"`           // a read waits for ever, instead of for Deadline
	Deadline      time.Duration `json:"deadline,omitempty"`       // for one read, in ns: 30 s
	Timeout       time.Duration `json:"timeout,omitempty"`        // for a connection and the first byte through a proxy, in ns: 5 s
	Direct        time.Duration `json:"direct,omitempty"`         // the same without a proxy, in ns: 10 s
	MaxTTL        time.Duration `json:"max_ttl,omitempty"`        // within it a new revision shows, in ns: what the manifest says
	Revision      uint64        `json:"revision,omitempty"`       // show this revision for ever: the current one, and those that follow
	Date          time.Time     `json:"date,omitzero"`            // show the last revision that is no younger, for ever
	UIDMap        *IDMap        `json:"uid_map,omitempty"`        // changes owners; not with UID
	GIDMap        *IDMap        `json:"gid_map,omitempty"`        // changes groups; not with GID
	WorldReadable bool          `json:"world_readable,omitempty"` // everybody may read everything
	SqfsAlias     bool          `json:"sqfs_alias,omitempty"`     // show each image of a repository under its name with .sqfs, too
	FollowClient  bool          `json:"follow_client,omitempty"`  // read requests on the CPU of who makes them
	Suid          bool          `json:"suid,omitempty"`           // set-user-ID bits and file capabilities of images count; by the configuration of root's daemon alone
}

const (
	defaultDeadline = 30 * time.Second
	defaultTTL      = 240 * time.Second
)

// maxAgent is how long Options.Agent may be, in bytes.
const maxAgent = 200

// forever is longer than any mount lives.
const forever = 100 * 365 * 24 * time.Hour

// patience is how long an operation waits for the network.
func (o Options) patience() time.Duration {
	if o.Hang {
		return forever
	}
	return o.deadline()
}

// deadline is how long one go at the network may take.
func (o Options) deadline() time.Duration {
	if o.Deadline > 0 {
		return o.Deadline
	}
	return defaultDeadline
}

// check refuses what no mount could use.
func (o Options) check() error {
	if o.PublicKey != "" {
		if _, err := index.ParseVerifier(o.PublicKey); err != nil {
			return problem(Usage, "pubkey: %w", err)
		}
	}
	if _, err := fetch.ParseProxyLists(o.Proxy, o.Fallback); err != nil {
		return problem(Usage, "proxy: %w", err)
	}
	if strings.ContainsFunc(o.Agent, func(r rune) bool { return r < ' ' || r > '~' || strings.ContainsRune(`()\`, r) }) || len(o.Agent) > maxAgent {
		return problem(Usage, "user_agent: %.40q has characters that no header's comment has, or more than %d", o.Agent, maxAgent)
	}
	if o.Deadline < 0 || o.Timeout < 0 || o.Direct < 0 || o.MaxTTL < 0 {
		return problem(Usage, "deadline, timeout or TTL is negative")
	}
	if o.UID != nil && o.UIDMap != nil || o.GID != nil && o.GIDMap != nil {
		return problem(Usage, "one owner for all files and a map of owners are both given")
	}
	if o.Revision != 0 && !o.Date.IsZero() {
		return problem(Usage, "both a revision and a date are given")
	}
	for name, path := range map[string]string{"auth": o.Auth, "ca": o.CA, "cache_lower": o.Lower} {
		if path != "" && !filepath.IsAbs(path) {
			return problem(Usage, "%s: %q is not an absolute path", name, path)
		}
	}
	for _, s := range o.Servers {
		if src, err := ParseSource(s); err != nil || src.URL == "" || src.Path != "" {
			return problem(Usage, "server %q is not a URL", s)
		}
	}
	return nil
}

// servers lists the base URLs of src under these options.
func (o Options) servers(src Source) []string {
	var list []string
	switch {
	case src.URL != "":
		list = append(list, src.URL)
	case len(o.Servers) == 0:
		list = append(list, "http://"+src.Name)
	}
	for _, s := range o.Servers {
		if s = strings.TrimRight(s, "/"); !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

// same reports whether two mounts with these options would show and fetch the same.
func (o Options) same(p Options) bool { return reflect.DeepEqual(o, p) }
