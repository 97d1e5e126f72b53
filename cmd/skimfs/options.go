package main

import (
	"fmt"
	"path/filepath"
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
	{"proxy", "LIST", "DIRECT", "proxies: | balances in a group, ; begins the next group; DIRECT only if listed", false, func(o *mountOptions, v string) error {
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
	{"cache", "DIR", "the home's", "cache directory: each has a daemon of its own", false, func(o *mountOptions, v string) (err error) {
		o.cache, err = filepath.Abs(v)
		return err
	}},
	{"quota", "SIZE", "20 GB, at most 70 % of what is free", "limit of the cache on disk, as in 500MB or 20G", false, func(o *mountOptions, v string) (err error) {
		o.quota, err = parseSize(v)
		return err
	}},
	{"allow_other", "", "root: on, user: off", "let other users in (a user needs user_allow_other in /etc/fuse.conf)", false, func(o *mountOptions, _ string) error {
		o.AllowOther = true
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
	{"idle", "TIME", "30s", "how long a daemon started for this command outlives its last mount", true, func(o *mountOptions, v string) (err error) {
		o.idle, err = parseTime(v)
		return err
	}},
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

func parseSize(v string) (int64, error) {
	n, err := humanize.ParseBytes(v)
	if err != nil || n == 0 || n > 1<<62 {
		return 0, fmt.Errorf("%q is no size, as in 500MB or 20G", v)
	}
	return int64(n), nil
}

func parseID(v string) (*uint32, error) {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n == 1<<32-1 {
		return nil, fmt.Errorf("%q is no number of a user or group", v)
	}
	id := uint32(n)
	return &id, nil
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
