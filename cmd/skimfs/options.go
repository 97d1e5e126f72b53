package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/skimfs/skimfs/mountd"
)

// mountOptions is what -o says.
type mountOptions struct {
	mountd.Options
	cache string
	quota int64
	idle  time.Duration

	remount       bool
	logLevel      slog.Level
	metricsListen string
	group         uint32
	memory        *int64 // of the tier in memory
	keys          []string
}

// option is a row of the table of -o options.
type option struct {
	name   string
	value  string // what stands after "=" in the help; "" for an option without a value
	def    string
	help   string
	hidden bool
	set    func(o *mountOptions, value string) error
}

// options is the one table that parsing and help are made from.
var options = []option{
	{"pubkey", "FILE", "NAME.pub in the key directory", "the repository's master public key", false, func(o *mountOptions, v string) (err error) {
		o.PublicKey, err = mountd.ReadKeyFile(v)
		return err
	}},
	{"proxy", "LIST", "DIRECT", "proxies: | balances in a group, ; begins the next group; DIRECT only if listed; auto: what http_proxy says", false, func(o *mountOptions, v string) error {
		if strings.EqualFold(strings.TrimSpace(v), "auto") {
			v = environmentProxy()
		}
		o.Proxy = v
		return nil
	}},
	{"server", "URL[;URL…]", "http://NAME", "servers of a repository given by name; further mirrors of one given by URL", false, func(o *mountOptions, v string) error {
		for _, u := range strings.Split(v, ";") {
			if u = strings.TrimSpace(u); u != "" {
				o.Servers = append(o.Servers, u)
			}
		}
		return nil
	}},
	{"cache", "DIR|ram:SIZE", "the home's", "cache directory, or a cache in memory: each has a daemon of its own", false, func(o *mountOptions, v string) (err error) {
		o.cache, err = parseCache(v)
		return err
	}},
	{"cache_lower", "DIR", "none", "lower cache on a shared filesystem: files of objects, looked at before the servers and filled if that is allowed", false, func(o *mountOptions, v string) (err error) {
		o.Lower, err = filepath.Abs(v)
		return err
	}},
	{"quota", "SIZE", "20 GB, at most 70 % of what is free", "limit of the cache on disk, as in 500MB or 20G", false, func(o *mountOptions, v string) (err error) {
		o.quota, err = parseQuota(v)
		return err
	}},
	{"allow_other", "", "root: on, user: off", "let other users in (a user needs user_allow_other in /etc/fuse.conf)", false, func(o *mountOptions, _ string) error {
		o.AllowOther = true
		return nil
	}},
	{"follow_client", "", "off", "read requests on the CPU of who makes them: for virtual machines and programs that read one file after the other", false, func(o *mountOptions, _ string) error {
		o.FollowClient = true
		return nil
	}},
	{"uid", "N", "root: the image's, user: own", "owner of all files", false, func(o *mountOptions, v string) (err error) {
		o.UID, err = parseID(v)
		return err
	}},
	{"gid", "N", "root: the image's, user: own", "group of all files", false, func(o *mountOptions, v string) (err error) {
		o.GID, err = parseID(v)
		return err
	}},
	{"ro", "", "always on", "read-only", false, func(*mountOptions, string) error { return nil }},
	{"fallback_proxy", "LIST", "none", "more proxies, tried after all of proxy; with them DIRECT is used from neither list", false, func(o *mountOptions, v string) error {
		o.Fallback = v
		return nil
	}},
	{"probe", "yes|no", "no", "the servers in the order of their measured round trip instead of as listed", false, func(o *mountOptions, v string) (err error) {
		o.Probe, err = parseYes(v)
		return err
	}},
	{"proxy_shard", "yes|no", "no", "each object has a proxy of its own in the group, so that the group's squids keep more together", false, func(o *mountOptions, v string) (err error) {
		o.Shard, err = parseYes(v)
		return err
	}},
	{"auth", "FILE", "none", "credentials by server: lines HOST bearer TOKEN, or HOST basic USER:PASSWORD; mode 0600", false, func(o *mountOptions, v string) (err error) {
		o.Auth, err = filepath.Abs(v)
		return err
	}},
	{"ca", "FILE", "the system's", "certificates (PEM) to trust besides the system's", false, func(o *mountOptions, v string) (err error) {
		o.CA, err = filepath.Abs(v)
		return err
	}},
	{"user_agent", "TEXT", "none", "said to servers and proxies beside this program's name, for their logs: a job's number, say", false, func(o *mountOptions, v string) error {
		o.Agent = v
		return nil
	}},
	{"hang", "yes|no", "no", "a read waits for ever, killable, instead of failing at the deadline", false, func(o *mountOptions, v string) (err error) {
		o.Hang, err = parseYes(v)
		return err
	}},
	{"deadline", "TIME", "30s", "for one read: then it is an input/output error", false, func(o *mountOptions, v string) (err error) {
		o.Deadline, err = parseTime(v)
		return err
	}},
	{"timeout", "TIME", "5s", "for a connection and the first byte through a proxy", false, func(o *mountOptions, v string) (err error) {
		o.Timeout, err = parseTime(v)
		return err
	}},
	{"timeout_direct", "TIME", "10s", "the same without a proxy", false, func(o *mountOptions, v string) (err error) {
		o.Direct, err = parseTime(v)
		return err
	}},
	{"max_ttl", "TIME", "what the manifest says", "of a repository: a new revision shows within this time", false, func(o *mountOptions, v string) (err error) {
		o.MaxTTL, err = parseTime(v)
		return err
	}},
	{"revision", "N", "the current one, and those that follow", "show this revision of the repository for ever", false, func(o *mountOptions, v string) (err error) {
		if o.Revision, err = strconv.ParseUint(v, 10, 64); err != nil || o.Revision == 0 {
			return fmt.Errorf("%q is no number of a revision", v)
		}
		return nil
	}},
	{"date", "DATE", "now", "show the revision of this day or time for ever, as in 2026-11-28 or 2026-11-28T13:00:00Z", false, func(o *mountOptions, v string) (err error) {
		o.Date, err = parseDate(v)
		return err
	}},
	{"sqfs_alias", "", "off", "of a repository: show each image as NAME.sqfs, too", false, func(o *mountOptions, _ string) error {
		o.SqfsAlias = true
		return nil
	}},
	{"world_readable", "", "off", "let everybody read everything: 0555 for directories, 0444 for files is added to modes", false, func(o *mountOptions, _ string) error {
		o.WorldReadable = true
		return nil
	}},
	{"suid", "", "off", "file only, of one repository, root's daemon: set-user-ID bits and file capabilities of its images count", false, func(o *mountOptions, _ string) error {
		o.Suid = true
		return nil
	}},
	{"uid_map", "FILE", "none", "lines `FROM TO` change owners, `* TO` those not listed", false, func(o *mountOptions, v string) (err error) {
		o.UIDMap, err = readIDMap(v)
		return err
	}},
	{"gid_map", "FILE", "none", "the same for groups", false, func(o *mountOptions, v string) (err error) {
		o.GIDMap, err = readIDMap(v)
		return err
	}},
	{"keys", "DIR[;DIR…]", "none", "file only: directories with NAME.pub, looked at before the usual ones", false, func(o *mountOptions, v string) error {
		for _, dir := range strings.Split(v, ";") {
			if dir = strings.TrimSpace(dir); !filepath.IsAbs(dir) {
				return fmt.Errorf("%q is no absolute path", dir)
			}
			o.keys = append(o.keys, dir)
		}
		return nil
	}},
	{"metrics_listen", "HOST:PORT", "none", "file only: where /metrics is answered over TCP, to anyone; from the daemon's start on", false, func(o *mountOptions, v string) error {
		if _, port, err := net.SplitHostPort(v); err != nil || port == "" {
			return fmt.Errorf("%q is no HOST:PORT, as in 127.0.0.1:9477", v)
		}
		o.metricsListen = v
		return nil
	}},
	{"socket_group", "GROUP", "none", "file only: name or number of the group whose members may mount with root's daemon; from its start on", false, func(o *mountOptions, v string) (err error) {
		o.group, err = parseGroup(v)
		return err
	}},
	{"cache_mem", "SIZE|0", "16MiB", "file only: decompressed objects kept in memory above a cache on disk; from the daemon's start on", false, func(o *mountOptions, v string) error {
		var n int64
		if v != "0" {
			var err error
			if n, err = parseSize(v); err != nil {
				return err
			}
		}
		o.memory = &n
		return nil
	}},
	{"log_level", "LEVEL", "info", "file only: debug, info, warn or error", false, func(o *mountOptions, v string) (err error) {
		o.logLevel, err = parseLevel(v)
		return err
	}},
	{"remount", "", "off", "change options of what is mounted, and look for a new revision now", false, func(o *mountOptions, _ string) error {
		o.remount = true
		return nil
	}},
	{"idle", "TIME", "30s", "how long a daemon started for this command outlives its last mount", true, func(o *mountOptions, v string) (err error) {
		o.idle, err = parseTime(v)
		return err
	}},
}

// others are options that mount(8), systemd and fstab leave in the list: they say nothing to us, or what holds anyway. Those of the kernel
// come back with a remount.
var others = map[string]bool{
	"_netdev": true, "nofail": true, "fail": true, "auto": true, "noauto": true, "user": true, "nouser": true, "users": true, "nousers": true, "owner": true, "noowner": true,
	"group": true, "nogroup": true, "defaults": true, "rw": true, "nosuid": true, "nodev": true, "suid": true, "dev": true, "exec": true, "async": true,
	"atime": true, "noatime": true, "relatime": true, "norelatime": true, "strictatime": true, "lazytime": true, "nolazytime": true, "diratime": true, "nodiratime": true,
	"iversion": true, "noiversion": true, "loud": true, "silent": true, "comment": true, "user_id": true, "group_id": true, "default_permissions": true,
	"max_read": true, "blksize": true, "fsname": true, "subtype": true, "rootmode": true, "fd": true, "helper": true, "uhelper": true,
}

// implyNoexec are options that let users mount: mount(8) adds noexec for them, which a container image can't mean.
var implyNoexec = []string{"user", "users", "owner", "group"}

// parseFstab is parseOptions for lists that come from mount(8). With sloppy, unknown options don't matter.
func parseFstab(lists []string, sloppy bool) (mountOptions, error) {
	var kept []string
	given := map[string]bool{}
	for _, list := range lists {
		for _, item := range splitList(list) {
			name, _, _ := strings.Cut(strings.TrimSpace(item), "=")
			given[name] = true
			_, ours := findOption(name)
			switch {
			case others[name], strings.HasPrefix(name, "x-"), strings.HasPrefix(name, "X-"):
				continue
			case ours, name == "noexec":
			case sloppy:
				continue
			}
			kept = append(kept, item)
		}
	}
	if slices.ContainsFunc(implyNoexec, func(name string) bool { return given[name] }) || sloppy {
		kept = slices.DeleteFunc(kept, func(item string) bool { return strings.TrimSpace(item) == "noexec" })
	}
	for i, item := range kept {
		kept[i] = strings.ReplaceAll(item, ",", `\,`)
	}
	return parseOptions(kept)
}

// parseOptions reads the lists given with -o. A comma in a value is written "\,".
func parseOptions(lists []string) (mountOptions, error) {
	var o mountOptions
	seen := map[string]bool{}
	for _, list := range lists {
		for _, item := range splitList(list) {
			name, value, has := strings.Cut(strings.TrimSpace(item), "=")
			if name == "" {
				continue
			}
			row, ok := findOption(name)
			switch {
			case !ok:
				return o, unknownOption(name)
			case slices.Contains(fileOnly, name):
				return o, fmt.Errorf("option %q belongs in the configuration file", name)
			case seen[name]:
				return o, fmt.Errorf("option %q is given twice", name)
			case row.value == "" && has:
				return o, fmt.Errorf("option %q takes no value", name)
			case row.value != "" && value == "":
				return o, fmt.Errorf("option %q needs a value: %s=%s", name, name, row.value)
			}
			seen[name] = true
			if err := row.set(&o, value); err != nil {
				return o, fmt.Errorf("option %q: %w", name, err)
			}
		}
	}
	return o, nil
}

// splitList splits at commas that no backslash protects.
func splitList(s string) []string {
	var out []string
	var item strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == ',':
			item.WriteByte(',')
			i++
		case s[i] == ',':
			out = append(out, item.String())
			item.Reset()
		default:
			item.WriteByte(s[i])
		}
	}
	return append(out, item.String())
}

func findOption(name string) (option, bool) {
	for _, o := range options {
		if o.name == name {
			return o, true
		}
	}
	return option{}, false
}

func unknownOption(name string) error {
	if name == "noexec" {
		return errors.New("option \"noexec\": programs in images are there to be run")
	}
	if name == "rw" {
		return fmt.Errorf("option %q: an image can't be written to", name)
	}
	best, least := "", 3
	for _, o := range options {
		if d := distance(name, o.name); !o.hidden && d < least {
			best, least = o.name, d
		}
	}
	if best != "" {
		return fmt.Errorf("unknown option %q: did you mean %q?", name, best)
	}
	var names []string
	for _, o := range options {
		if !o.hidden {
			names = append(names, o.name)
		}
	}
	return fmt.Errorf("unknown option %q: there are %s", name, strings.Join(names, ", "))
}

// distance is how many letters must be put in, taken out or replaced to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// optionsHelp lists the table for --help.
func optionsHelp() string {
	var b strings.Builder
	for _, o := range options {
		if o.hidden {
			continue
		}
		name := o.name
		if o.value != "" {
			name += "=" + o.value
		}
		fmt.Fprintf(&b, "  %-18s %s (%s)\n", name, o.help, o.def)
	}
	return strings.TrimRight(b.String(), "\n")
}

// smallestRAM is the least that a cache in memory works with: some chunks, and some catalogs.
const smallestRAM = 64 << 20

// parseCache reads the name of a cache: a directory, or ram: and a size.
func parseCache(v string) (string, error) {
	text, ok := strings.CutPrefix(v, "ram:")
	if !ok {
		return filepath.Abs(v)
	}
	limit, err := parseSize(text)
	if err == nil && limit < smallestRAM {
		err = fmt.Errorf("%q is too small for a cache in memory: at least %s", text, bytesText(smallestRAM))
	}
	return mountd.RAMCache(limit), err
}

func parseYes(v string) (bool, error) {
	switch strings.ToLower(v) {
	case "yes", "on", "true", "1":
		return true, nil
	case "no", "off", "false", "0":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither yes nor no", v)
}

// environmentProxy is the proxy that the environment names, or DIRECT. As elsewhere HTTP_PROXY doesn't count: a web server sets it from
// what a client sends.
func environmentProxy() string {
	if p := strings.TrimSpace(os.Getenv("http_proxy")); p != "" {
		return p
	}
	return "DIRECT"
}

func parseSize(v string) (int64, error) {
	n, err := humanize.ParseBytes(v)
	if err != nil || n == 0 || n > 1<<62 {
		return 0, fmt.Errorf("%q is no size, as in 500MB or 20G", v)
	}
	return int64(n), nil
}

// smallestQuota is what a cache can work with: a pack of small objects, its index.
const smallestQuota = 1_000_000

// parseQuota reads the limit of a cache. A number alone is refused, since CernVM-FS counts in MB.
func parseQuota(v string) (int64, error) {
	n, err := parseSize(v)
	if _, bare := strconv.ParseUint(v, 10, 64); err == nil && bare == nil {
		return 0, fmt.Errorf("%q has no unit: %sMB?", v, v)
	}
	if err == nil && n < smallestQuota {
		return 0, fmt.Errorf("%q is too small for a cache: 1MB at least, and some GB to be of use", v)
	}
	return n, err
}

func parseID(v string) (*uint32, error) {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n == 1<<32-1 {
		return nil, fmt.Errorf("%q is no number of a user or group", v)
	}
	id := uint32(n)
	return &id, nil
}

// parseGroup reads a group's name, or its number for one that no file lists.
func parseGroup(v string) (uint32, error) {
	if g, err := user.LookupGroup(v); err == nil {
		v = g.Gid
	}
	id, err := parseID(v)
	if err != nil || *id == 0 {
		return 0, fmt.Errorf("%q is no group; give the number of one that isn't in /etc/group", v)
	}
	return *id, nil
}

// parseTime reads a time such as 30s or 2m; a bare number counts seconds.
func parseTime(v string) (time.Duration, error) {
	if n, err := strconv.ParseUint(v, 10, 31); err == nil && n > 0 {
		return time.Duration(n) * time.Second, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is no time, as in 30s or 2m", v)
	}
	return d, nil
}

// parseDate reads a day, which counts to its end, or a time; without a zone it is UTC.
func parseDate(v string) (time.Time, error) {
	if day, err := time.Parse(time.DateOnly, v); err == nil {
		return day.AddDate(0, 0, 1).Add(-time.Second), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04"} {
		if t, err := time.Parse(layout, v); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no date, as in 2026-11-28 or 2026-11-28T13:00:00Z", v)
}

// readIDMap reads a file with lines FROM TO, as CernVM-FS has them.
func readIDMap(path string) (*mountd.IDMap, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m, err := mountd.ParseIDMap(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}
