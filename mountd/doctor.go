package mountd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/fetch"
	"github.com/skimfs/skimfs/index"
)

// Finding is what Doctor found out about one thing. Field names in JSON are stable.
type Finding struct {
	Check  string `json:"check"`            // a word of a small closed set
	Level  string `json:"level"`            // "ok", "warning" or "error"
	Text   string `json:"text"`             // what was seen
	Remedy string `json:"remedy,omitempty"` // one line, unless the level is "ok"
}

// DoctorConfig says what Doctor looks at.
type DoctorConfig struct {
	Home    Home
	Keys    []string // directories with NAME.pub, before the home's
	Cache   string   // directory; the home's
	Source  string   // a repository whose servers are asked; "" for none
	Options Options  // proxies, servers and key of that repository

	Quota int64 // bytes on disk that the configuration gives the cache; 0: the default, which fits

	// For tests; the system's where empty.
	Statfs func(path string, st *unix.Statfs_t) error
	Root   string        // before /dev/fuse, /etc/fuse.conf and the paths of programs
	Now    time.Time     // this node's time
	Wait   time.Duration // for each way to a server; 5 s
}

const (
	doctorWait   = 5 * time.Second
	smallestDisk = 2 << 30            // bytes below which a cache is of little use
	clockSkew    = time.Minute        // above it the clock is told of
	expiryWarn   = 7 * 24 * time.Hour // of a whitelist
)

type doctor struct {
	DoctorConfig
	found []Finding
}

// Doctor looks for what keeps mounts from working. It opens no file below a mount of skimfs, asks no daemon, and ends in bounded time: the ways to the
// servers are tried side by side, each for Wait.
func Doctor(ctx context.Context, cfg DoctorConfig) []Finding {
	if cfg.Now.IsZero() {
		cfg.Now = time.Now()
	}
	if cfg.Wait <= 0 {
		cfg.Wait = doctorWait
	}
	if cfg.Cache == "" {
		cfg.Cache = cfg.Home.Cache
	}
	if cfg.Statfs == nil {
		cfg.Statfs = unix.Statfs
	}
	d := &doctor{DoctorConfig: cfg}
	d.device()
	d.helper()
	d.apptainer()
	d.namespaces()
	d.bounded("permissions", d.Home.Run+" or "+d.Home.State, (*doctor).directories)
	d.bounded("cache", d.Cache, func(d *doctor) { d.partition(ctx) })
	d.lower(ctx)
	d.bounded("daemon", d.Cache, func(d *doctor) { d.daemon(ctx) })
	d.bounded("key", "the key directories", (*doctor).keys)
	d.bounded("servers", "the key directories", func(d *doctor) { d.servers(ctx) })
	return d.found
}

// bounded runs checks that may have to wait for the filesystem of where.
func (d *doctor) bounded(check, where string, look func(*doctor)) {
	part := &doctor{DoctorConfig: d.DoctorConfig}
	done := make(chan struct{})
	go func() { defer close(done); look(part) }()
	limit := 4 * d.Wait // what asks servers ends within less
	select {
	case <-done:
		d.found = append(d.found, part.found...)
	case <-time.After(limit):
		d.err(check, "name directories on a disk of this node; what hangs is a network filesystem in /proc/mounts", "the filesystem of %s does not answer within %v", where, limit)
	}
}

func bytesText(n int64) string { return humanize.Bytes(uint64(max(0, n))) }

func (d *doctor) ok(check, format string, args ...any) {
	d.found = append(d.found, Finding{check, "ok", fmt.Sprintf(format, args...), ""})
}

func (d *doctor) warn(check, remedy, format string, args ...any) {
	d.found = append(d.found, Finding{check, "warning", fmt.Sprintf(format, args...), remedy})
}

func (d *doctor) err(check, remedy, format string, args ...any) {
	d.found = append(d.found, Finding{check, "error", fmt.Sprintf(format, args...), remedy})
}

// daemon looks for somebody at the socket where none is started on demand. It says nothing to him.
func (d *doctor) daemon(ctx context.Context) {
	if d.Home.OnDemand {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, d.Wait)
	defer cancel()
	p := newPlace(d.Home, d.Cache)
	conn, err := dialUnix(ctx, p.socket())
	if err != nil {
		d.err("daemon", "`systemctl start skimfs-mountd`, or `skimfs mountd` by hand; root's is not started by a mount", "no daemon for cache %q answers: %v", p.cache, err)
		return
	}
	conn.Close()
	d.ok("daemon", "one listens at %s", p.socket())
}

func (d *doctor) device() {
	f, err := os.OpenFile(d.Root+"/dev/fuse", os.O_RDWR, 0)
	switch {
	case err == nil:
		f.Close()
		d.ok("device", "/dev/fuse can be opened")
	case errors.Is(err, fs.ErrPermission):
		d.err("device", "`chmod 666 /dev/fuse`, as udev does on every distribution", "%v", err)
	default:
		d.err("device", "`modprobe fuse`; in a container `--device /dev/fuse`", "%v", err)
	}
}

// helper looks for what a user needs to mount; root needs nothing.
func (d *doctor) helper() {
	if os.Geteuid() == 0 && d.Root == "" {
		d.ok("helper", "root mounts without fusermount3")
		return
	}
	for _, dir := range []string{"/usr/bin", "/bin", "/usr/local/bin"} {
		st, err := os.Stat(d.Root + dir + "/fusermount3")
		if err != nil {
			continue
		}
		if st.Mode()&fs.ModeSetuid == 0 {
			d.err("helper", "`chmod u+s "+dir+"/fusermount3`, or mount in a user namespace (`unshare -Urm`)", "%s/fusermount3 is not setuid root", dir)
			return
		}
		d.ok("helper", "%s/fusermount3 is there", dir)
		return
	}
	d.err("helper", "`apt-get install fuse3` (or dnf), or mount in a user namespace (`unshare -Urm`)", "no fusermount3")
}

func (d *doctor) allowOther() bool {
	b, err := os.ReadFile(d.Root + "/etc/fuse.conf")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if strings.TrimSpace(line) == "user_allow_other" {
			return true
		}
	}
	return false
}

// apptainer looks for the combination that fails: its setuid starter is root for a moment, and the kernel lets nobody but the mounter in.
func (d *doctor) apptainer() {
	if d.allowOther() {
		d.ok("allow-other", "/etc/fuse.conf has user_allow_other")
		return
	}
	for _, starter := range []string{"/usr/libexec/apptainer/bin/starter-suid", "/usr/local/libexec/apptainer/bin/starter-suid", "/usr/libexec/singularity/bin/starter-suid", "/usr/lib/x86_64-linux-gnu/singularity/bin/starter-suid"} {
		if st, err := os.Stat(d.Root + starter); err == nil && st.Mode()&fs.ModeSetuid != 0 {
			d.warn("allow-other", "`apptainer exec --userns`, or put user_allow_other into /etc/fuse.conf and mount with -o allow_other", "%s is setuid and can't enter users' mounts", starter)
			return
		}
	}
	d.ok("allow-other", "/etc/fuse.conf has no user_allow_other; mounts of users are for themselves")
}

// namespaces looks at the kernel's list of mounts for what keeps programs out of those of skimfs.
func (d *doctor) namespaces() {
	b, err := os.ReadFile(d.Root + "/proc/self/mountinfo")
	if err != nil {
		return
	}
	shared, out := true, false
	for line := range strings.Lines(string(b)) {
		left, right, _ := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if len(l) < 6 || len(r) < 3 {
			continue
		}
		if l[4] == "/" {
			shared = strings.Contains(left, " shared:")
		}
		options := "," + r[2] + ","
		mine := strings.Contains(options, fmt.Sprintf(",user_id=%d,", os.Geteuid()))
		if r[0] == "fuse.skimfs" && mine && !strings.Contains(options, ",allow_other,") && !strings.Contains(options, fmt.Sprintf(",group_id=%d,", os.Getegid())) {
			out = true
			d.warn("groups", "go back to the group that it was mounted with (`newgrp`, `sg`), or mount with -o allow_other", "%s was mounted with another group than %d: the kernel wants the mounter's", unescape(l[4]), os.Getegid())
		}
	}
	if !out {
		d.ok("groups", "no mount was made with another group")
	}
	if _, err := os.Stat(d.Root + "/usr/bin/podman"); err == nil && !shared && (os.Geteuid() != 0 || d.Root != "") {
		d.warn("propagation", "mount before podman's first container, or `podman system migrate` after mounting, or `mount --make-rshared /`", "/ is not shared: users' containers of podman see no mounts that are made later")
		return
	}
	d.ok("propagation", "mounts reach the namespaces that should see them")
}

func (d *doctor) directories() {
	for what, dir := range map[string]string{"socket": d.Home.Run, "state": d.Home.State, "cache": d.Cache} {
		others := uint32(0o077)
		switch what {
		case "cache":
			others = 0o022
		case "socket":
			others = 0o066
		}
		_, err := os.Lstat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the daemon makes it
		}
		if err = checkOwned(what, dir, others); err == nil {
			err = checkParent(what, realPath(dir))
		}
		if err != nil {
			d.err("permissions", fmt.Sprintf("`chown %d %s; chmod 700 %s`", os.Geteuid(), dir, dir), "%v", err)
		}
	}
	for _, dir := range d.keyDirs() {
		st, err := os.Stat(dir)
		if err == nil && st.Mode()&0o022 != 0 {
			d.err("permissions", "`chmod go-w "+dir+"`", "others may write keys to %s (mode %#o): they choose whom this node trusts", dir, st.Mode().Perm())
		}
	}
	for _, f := range d.found {
		if f.Check == "permissions" {
			return
		}
	}
	d.ok("permissions", "directories of socket, state, cache and keys are as they should be")
}

// keys looks whether this node trusts anybody, unless a repository is asked about, whose key is looked for then.
func (d *doctor) keys() {
	if d.Source != "" || d.Options.PublicKey != "" {
		return
	}
	dirs := d.keyDirs()
	for _, dir := range dirs {
		if list, err := filepath.Glob(filepath.Join(dir, "*.pub")); err == nil && len(list) > 0 {
			d.ok("key", "%s has keys of %s", dir, english.Plural(len(list), "repository", "repositories"))
			return
		}
	}
	d.warn("key", "copy the publisher's NAME.pub there, or name it with `-o pubkey=FILE`", "no public key in %s: nothing can be mounted without", strings.Join(dirs, ", "))
}

func (d *doctor) keyDirs() []string { return slices.Concat(d.Keys, d.Home.Keys) }

// partition looks at the filesystem of the cache, of the nearest directory that exists. It is never one of ours: the daemon refuses that.
func (d *doctor) partition(ctx context.Context) {
	if limit, ok := ramLimit(d.Cache); ok {
		d.memory(limit)
		return
	}
	dir := realPath(d.Cache)
	for dir != "/" {
		if _, err := os.Lstat(dir); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	var st unix.Statfs_t
	if err := d.Statfs(dir, &st); err != nil {
		d.err("cache", "name another with `-o cache=DIR`", "%s: %v", dir, err)
		return
	}
	name, network := networkTypes[int64(uint32(st.Type))]
	room := int64(st.Bavail) * st.Bsize
	if !network {
		room += d.cached(ctx)
	}
	switch {
	case network:
		d.err("cache", "name a directory on a disk of this node: `cache =` in skimfs.conf or `-o cache=DIR`", "%s is on a network filesystem (%s)", d.Cache, name)
	case d.Quota > room:
		d.err("cache", "a smaller `quota =` in skimfs.conf, or `cache =` on a larger disk", "%s has room for a cache of %s, the limit is %s", dir, bytesText(room), bytesText(d.Quota))
	case room < smallestDisk:
		d.warn("cache", "name a directory on a larger disk: `cache =` in skimfs.conf or `-o cache=DIR`", "%s has room for a cache of only %s", dir, bytesText(room))
	default:
		d.ok("cache", "%s has room for a cache of %s", dir, bytesText(room))
	}
}

// lower looks at the lower cache. Mounts do without one that can't be had, so that nothing of it is an error.
func (d *doctor) lower(ctx context.Context) {
	dir := d.Options.Lower
	if dir == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, d.Wait)
	defer cancel()
	seen := make(chan error, 1)
	var st unix.Stat_t
	var writes error
	go func() { // its filesystem may hang
		seen <- func() error {
			if err := unix.Stat(dir, &st); err != nil {
				return err
			}
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				return unix.ENOTDIR
			}
			root, err := os.OpenRoot(dir)
			if err != nil {
				return err
			}
			defer root.Close()
			if _, err := root.Stat("notes"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			writes = unix.Access(dir, unix.W_OK)
			return nil
		}()
	}()
	var err error
	select {
	case err = <-seen:
	case <-ctx.Done():
		d.warn("lower", "look after the filesystem: until it answers, content comes from the servers", "%s does not answer within %v", dir, d.Wait)
		return
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		d.warn("lower", "mount the filesystem it is on, or correct `cache_lower =` in skimfs.conf; it is never created", "%s: %v", dir, err)
	case errors.Is(err, fs.ErrPermission):
		d.warn("lower", "`chmod a+rx "+dir+"`, and of what is above it", "%s can't be read: %v", dir, err)
	case err != nil:
		d.warn("lower", "look after the filesystem: until it answers, content comes from the servers", "%s: %v", dir, err)
	default:
		text := "can be read"
		if writes == nil {
			text += " and filled by this node"
		}
		if st.Mode&0o022 != 0 {
			text += "; others may write to it, too, so every object is checked against its digest"
		}
		d.ok("lower", "%s %s", dir, text)
	}
}

// memory looks at what a cache in memory leaves to the node's work.
func (d *doctor) memory(limit int64) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		d.err("cache", "name a directory with `-o cache=DIR`", "the node's memory: %v", err)
		return
	}
	if total := int64(info.Totalram) * int64(info.Unit); limit > total/2 {
		d.warn("cache", "a smaller `cache = \"ram:SIZE\"` in skimfs.conf", "a cache of %s leaves less than half of the node's memory of %s", bytesText(limit), bytesText(total))
		return
	}
	d.ok("cache", "a cache of %s in memory", bytesText(limit))
}

// cached is how much the cache has on disk already, as far as that can be counted in time.
func (d *doctor) cached(ctx context.Context) (bytes int64) {
	ctx, cancel := context.WithTimeout(ctx, d.Wait)
	defer cancel()
	_ = filepath.WalkDir(d.Cache, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // what can't be seen doesn't count
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			bytes += info.Size()
		}
		return ctx.Err()
	})
	return bytes
}

// answer is what a server said by one way.
type answer struct {
	server, proxy string
	manifest      []byte
	date          time.Time
	err           error
}

func (d *doctor) servers(ctx context.Context) {
	if d.Source == "" {
		return
	}
	src, err := ParseSource(d.Source)
	if err != nil {
		d.err("servers", "see `skimfs mount --help`", "%v", err)
		return
	}
	if _, err := fetch.ParseProxyLists(d.Options.Proxy, d.Options.Fallback); err != nil {
		d.err("proxies", "see `skimfs mount --help`", "%v", err)
		return
	}
	var proxies []string
	for _, entry := range strings.FieldsFunc(d.Options.Proxy+";"+d.Options.Fallback, func(r rune) bool { return r == '|' || r == ';' }) {
		entry = strings.TrimSpace(entry)
		if entry != "" && (d.Options.Fallback == "" || !strings.EqualFold(entry, "DIRECT")) {
			proxies = append(proxies, entry)
		}
	}
	if len(proxies) == 0 {
		proxies = []string{"DIRECT"}
	}
	servers := d.Options.servers(src)
	answers := make(chan answer, len(servers)*len(proxies))
	for _, s := range servers {
		for _, p := range proxies {
			go func() { answers <- d.ask(ctx, s, p) }()
		}
	}
	var good *answer
	for range cap(answers) {
		a := <-answers
		if a.err != nil {
			d.err("servers", "is the address right, does a firewall or the proxy's access list stand in the way?", "%s by %s: %v", a.server, a.proxy, a.err)
			continue
		}
		d.ok("servers", "%s answers by %s", a.server, a.proxy)
		if good == nil {
			good = &a
		}
	}
	if good == nil {
		return
	}
	if skew := d.Now.Sub(good.date).Abs(); !good.date.IsZero() && skew > clockSkew {
		d.err("clock", "set the clock: `timedatectl set-ntp true`", "this node's clock differs by %v from that of %s", skew.Round(time.Second), good.server)
	} else {
		d.ok("clock", "as the server's")
	}
	d.trust(ctx, good)
}

// get asks for a file, past no cache.
func (d *doctor) get(ctx context.Context, server, proxy, name string) ([]byte, time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, d.Wait)
	defer cancel()
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	if proxy != "DIRECT" {
		if !strings.Contains(proxy, "://") {
			proxy = "http://" + proxy
		}
		u, err := url.Parse(proxy)
		if err != nil {
			return nil, time.Time{}, err
		}
		tr.Proxy = http.ProxyURL(u)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(server, "/")+"/"+name, nil)
	if err != nil {
		return nil, time.Time{}, err
	}
	req.Header.Set("Cache-Control", "max-age=0")
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, time.Time{}, fmt.Errorf("%s: %s", name, resp.Status)
	}
	date, _ := http.ParseTime(resp.Header.Get("Date")) // not every server has a clock
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxRequest))
	return b, date, err
}

func (d *doctor) ask(ctx context.Context, server, proxy string) answer {
	a := answer{server: server, proxy: hideUser(proxy)}
	a.manifest, a.date, a.err = d.get(ctx, server, proxy, "manifest")
	return a
}

// hideUser takes a password out of a proxy's address.
func hideUser(proxy string) string {
	if u, err := url.Parse(proxy); err == nil && u.User != nil {
		return u.Redacted()
	}
	return proxy
}

func (d *doctor) trust(ctx context.Context, a *answer) {
	m, err := index.UnverifiedManifest(a.manifest)
	if err != nil {
		d.err("key", "is that a skimfs repository, or a login page in between?", "%s: %v", a.server, err)
		return
	}
	key, err := findKey(d.keyDirs(), m.Name, d.Options.PublicKey)
	if err != nil {
		d.err("key", "put the publisher's "+m.Name+".pub into the key directory", "%v", err)
		return
	}
	var list []byte
	for _, proxy := range append(strings.FieldsFunc(d.Options.Proxy, func(r rune) bool { return r == '|' || r == ';' }), "DIRECT") {
		if hideUser(strings.TrimSpace(proxy)) == a.proxy {
			list, _, err = d.get(ctx, a.server, strings.TrimSpace(proxy), "whitelist")
			break
		}
	}
	if err != nil {
		d.err("whitelist", "the copy on the server is incomplete: ask the publisher", "%s: %v", a.server, err)
		return
	}
	w, err := index.OpenWhitelist(bytes.Clone(list), m.Name, key)
	if err != nil {
		d.err("key", "compare your "+m.Name+".pub with the publisher's", "%v", err)
		return
	}
	if _, err := index.OpenManifest(a.manifest, m.Name, w); err != nil {
		d.err("key", "the publisher must sign with a key of the whitelist", "%v", err)
		return
	}
	d.ok("key", "%s, revision %d, is signed as it should be", m.Name, m.Revision)
	switch left := w.Expires.Sub(d.Now); {
	case left <= 0:
		d.err("whitelist", "the publisher must run `skimfs repo whitelist sign`; also check this node's clock", "the whitelist expired on %s", w.Expires.Format(time.DateOnly))
	case left < expiryWarn:
		d.warn("whitelist", "the publisher must run `skimfs repo whitelist sign`", "the whitelist expires on %s", w.Expires.Format(time.DateOnly))
	default:
		d.ok("whitelist", "valid until %s", w.Expires.Format(time.DateOnly))
	}
}
