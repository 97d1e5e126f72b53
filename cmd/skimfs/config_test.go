package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skimfs/skimfs/mountd"
)

// The annotated sample is a configuration: as it is, and with each line that is commented out.
func TestM30TheSampleConfiguration(t *testing.T) {
	text, err := os.ReadFile("../../packaging/skimfs.conf")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	pub := filepath.Join(dir, "k.pub")
	b, err := os.ReadFile(published(t).pub())
	if err != nil {
		t.Fatal(err)
	}
	writeTest(t, pub, string(b))
	ids := filepath.Join(dir, "id.map")
	writeTest(t, ids, "0 1000 # root\n* 65534\n")
	var on []string
	for line := range strings.SplitSeq(string(text), "\n") {
		if rest, ok := strings.CutPrefix(line, "#"); ok && (strings.HasPrefix(rest, "[") || strings.Contains(rest, " = ") && !strings.HasPrefix(rest, " ")) {
			line = rest
		}
		line = strings.NewReplacer("/etc/skimfs/keys/images.example.org.pub", pub, "/etc/skimfs/uid.map", ids, "/etc/skimfs/gid.map", ids).Replace(line)
		on = append(on, line)
	}
	for name, s := range map[string]string{"as it is": string(text), "all on": strings.Join(on, "\n")} {
		c := &config{all: map[string]setting{}, repositories: map[string]map[string]setting{}}
		if err := c.parse("skimfs.conf", s, false); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if name == "as it is" {
			if len(c.all)+len(c.repositories) != 0 {
				t.Errorf("as it is it says %+v", c)
			}
			continue
		}
		for _, row := range options {
			_, general := c.all[row.name]
			_, own := c.repositories["images.example.org"][row.name]
			if (general || own) == slices.Contains(commandOnly, row.name) {
				t.Errorf("key %q: for all %v, in a section %v", row.name, general, own)
			}
		}
	}
}

func TestM30ConfigurationInLayers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "conf.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	main, second, third := filepath.Join(dir, "skimfs.conf"), filepath.Join(dir, "conf.d/10-a.conf"), filepath.Join(dir, "conf.d/20-b.conf")
	writeTest(t, main, "proxy = \"http://one\"\ndeadline = 7\nallow_other = true\n[repository.\"a.example.org\"]\nproxy = \"http://own\"\n")
	writeTest(t, second, "proxy = \"http://two\"\ntimeout = \"3s\"\n")
	writeTest(t, third, "timeout = \"4s\"\n[repository.\"a.example.org\"]\nserver = [\"http://x\", \"http://y\"]\n")
	writeTest(t, filepath.Join(dir, "conf.d/notes.txt"), "this is no configuration")
	c, err := loadConfig([]string{main, filepath.Join(dir, "none.conf"), filepath.Join(dir, "conf.d")}, false)
	if err != nil {
		t.Fatal(err)
	}
	if o := c.options(""); o.Proxy != "http://two" || o.Timeout != 4*time.Second || o.Deadline != 7*time.Second || !o.AllowOther || o.Servers != nil {
		t.Errorf("for all: %+v", o)
	}
	if o := c.options("a.example.org"); o.Proxy != "http://own" || len(o.Servers) != 2 || o.Timeout != 4*time.Second {
		t.Errorf("for the repository: %+v", o)
	}
	shown := map[string]setting{}
	for _, s := range c.show("a.example.org", mountd.Home{Cache: "/c", Keys: []string{"/k1", "/k2"}}) {
		shown[s.Key] = s
	}
	if shown["proxy"].From != main || shown["timeout"].From != third || shown["server"].From != third || shown["max_ttl"].From != "default" {
		t.Errorf("they come from %v", shown)
	}
	if shown["cache"].Value != "/c" || shown["keys"].Value != "/k1;/k2" {
		t.Errorf("places shown: %+v, %+v", shown["cache"], shown["keys"])
	}
	for name, row := range map[string][2]string{
		"a near miss":                {"proxxy = \"x\"", `did you mean "proxy"?`},
		"in a section":               {"[repository.\"a.example.org\"]\ntimout = 3", `did you mean "timeout"?`},
		"a repository's key for all": {"server = \"http://x\"", "is of one repository"},
		"the daemon's in a section":  {"[repository.\"a.example.org\"]\nquota = \"3GB\"", "is the daemon's"},
		"a name without quotes":      {"[repository.images.example.org]\nproxy = \"http://x\"", "with quotes"},
		"a command's":                {"remount = true", "is for commands"},
		"text for yes or no":         {"allow_other = \"yes\"", "takes true or false"},
		"yes or no for text":         {"proxy = true", "takes a value like LIST"},
		"a value without sense":      {"deadline = \"soon\"", "is no time"},
		"no TOML":                    {"a\nb", "line 1"},
	} {
		c := &config{all: map[string]setting{}, repositories: map[string]map[string]setting{}}
		if err := c.parse("F", row[0], false); err == nil || !strings.Contains(err.Error(), row[1]) {
			t.Errorf("%s: %v, want %q", name, err, row[1])
		}
	}
	user := &config{all: map[string]setting{}, repositories: map[string]map[string]setting{}}
	if err := user.parse("/etc/skimfs/skimfs.conf", "cache = \"/c\"\nproxy = \"http://p\"\n", true); err != nil || len(user.all) != 1 || user.all["proxy"].Value != "http://p" {
		t.Errorf("of the site's file a user's daemon takes %+v, %v", user.all, err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("proxy = \"http://a\"\n[repository.\"a.example.org\"]\nserver = [\"http://x\"]\n")
	f.Add("repository = 3\ndeadline = 1e9\nallow_other = true")
	f.Fuzz(func(_ *testing.T, text string) {
		if strings.Contains(text, "pubkey") || strings.Contains(text, "_map") {
			return // reads files
		}
		c := &config{all: map[string]setting{}, repositories: map[string]map[string]setting{}}
		if c.parse("F", text, false) == nil {
			_ = c.options("a.example.org")
		}
	})
}

// countingProxy is a forwarding proxy that counts.
func countingProxy(t *testing.T) (address string, count *atomic.Int64) {
	t.Helper()
	count = &atomic.Int64{}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL = r.In.URL; r.Out.Host = r.In.Host }}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		count.Add(1)
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host, count
}

// O01: proxies, servers and limits change while files are in use.
func TestReloadChangesAMountInUse(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	first, firstCount := countingProxy(t)
	second, secondCount := countingProxy(t)
	file := filepath.Join(n.home, "etc", "skimfs.conf")
	section := "[repository.\"" + testName + "\"]\nserver = \"" + s.URL + "\"\n"
	writeTest(t, file, "proxy = \"http://"+first+"\"\nquota = \"2GB\"\n"+section)
	target := n.mount(testName+"/"+testImage, "-o", "deadline=9s")
	open, err := os.Open(filepath.Join(target, "etc"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if firstCount.Load() == 0 || n.status().Cache.Limit != 2e9 {
		t.Fatalf("the configuration doesn't count: %d requests, limit %d", firstCount.Load(), n.status().Cache.Limit)
	}
	if got := n.ok("config", "show", testName); !strings.Contains(got, "http://"+first) || !strings.Contains(got, "# "+file) || !strings.Contains(got, "# default") {
		t.Errorf("config show: %q", got)
	}
	var shown []setting
	if err := json.Unmarshal([]byte(n.ok("config", "show", "--json")), &shown); err != nil || len(shown) < 10 {
		t.Errorf("config show --json: %v, %v", shown, err)
	}
	n.ok("config", "check")

	writeTest(t, file, "proxy = \"http://"+second+"\"\nquota = \"3GB\"\nuid = 7\nlog_level = \"debug\"\nmetrics_listen = \"127.0.0.1:1\"\n"+section)
	got := n.ok("reload")
	if !strings.Contains(got, "kept    daemon: metrics_listen counts from the daemon's next start on\n") {
		t.Errorf("reload prints %q", got)
	}
	if !strings.Contains(got, "changed "+target) || !strings.Contains(got, "kept    "+target+": uid can't be changed") {
		t.Errorf("reload prints %q", got)
	}
	before := firstCount.Load()
	if got := n.read(filepath.Join(target, "etc/motd")); got != "skim\n" {
		t.Errorf("motd is %q", got)
	}
	if firstCount.Load() != before || secondCount.Load() == 0 {
		t.Errorf("after the reload %d more requests by the first proxy, %d by the second: want 0 and some", firstCount.Load()-before, secondCount.Load())
	}
	if st := n.status(); st.Cache.Limit != 3e9 {
		t.Errorf("the limit is %d, want 3 GB", st.Cache.Limit)
	}

	writeTest(t, file, "proxxy = 1\n")
	if r := n.run("reload"); r.status != exitFailed || !strings.Contains(r.stderr, `did you mean "proxy"?`) || !strings.Contains(r.stderr, "hint: ") {
		t.Errorf("a mistake: status %d, %q", r.status, r.stderr)
	}
	if got := n.read(filepath.Join(target, "usr/lib/a")); got != "lib a" {
		t.Errorf("after a mistake lib/a is %q", got)
	}
	writeTest(t, file, "proxy = \"http://"+first+"\"\n"+section)
	if err := syscall.Kill(pidOf(t, n), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	n.await("SIGHUP to count", func() bool {
		for _, o := range n.status().Origins {
			if o.InUse && strings.Contains(o.Proxy, first) {
				return true
			}
		}
		return false
	})
}

// pidOf returns the daemon's, by its record: the configuration may be one that no command takes.
func pidOf(t *testing.T, n *node) int {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(n.home, "run", "*.json"))
	if err != nil || len(records) != 1 {
		t.Fatalf("records %q, %v", records, err)
	}
	var r struct{ PID int }
	b, err := os.ReadFile(records[0])
	if err != nil || json.Unmarshal(b, &r) != nil || r.PID < 2 {
		t.Fatalf("record %q, %v", b, err)
	}
	return r.PID
}

// SIGHUP brings new keys, another log level and other times to a mount in use, and tells in the log what it can't change.
func TestReloadChangesKeysLimitsAndTheLog(t *testing.T) {
	t.Parallel()
	r := newLiveRepo(t)
	r.publish("docker.io/library/app:1", "one")
	n := r.node()
	key, moved := filepath.Join(n.home, "etc", "keys", testName+".pub"), filepath.Join(n.home, "elsewhere")
	if err := os.Mkdir(moved, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(key, filepath.Join(moved, testName+".pub")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(n.home, "etc", "skimfs.conf")
	const section = "[repository.\"" + testName + "\"]\nserver = \"%s\"\nmax_ttl = \"%s\"\ntimeout_direct = \"%s\"\n%s"
	writeTest(t, file, fmt.Sprintf("log_level = \"error\"\n"+section, r.url, "1h", "9s", ""))
	target := n.target("m")
	oneHint(t, n.run("mount", testName, target), exitMountFailed, "no public key", "")
	writeTest(t, file, fmt.Sprintf("log_level = \"error\"\nkeys = [\""+moved+"\"]\n"+section, r.url, "1h", "9s", ""))
	n.ok("reload")
	n.ok("mount", testName, target)
	if strings.Contains(n.log(), "level=INFO") || strings.Contains(n.log(), "level=DEBUG") {
		t.Errorf("with log_level = error the log has\n%s", n.log())
	}
	r.publish("docker.io/library/app:1", "two")
	version := func() string {
		return n.sh(`exec cat "$1"`, filepath.Join(target, "docker.io/library/app:1/etc/version")).stdout
	}
	if got := version(); got != "one\n" {
		t.Errorf("version %q shows within an hour's TTL", got)
	}
	writeTest(t, file, fmt.Sprintf("log_level = \"debug\"\nkeys = [\""+moved+"\"]\n"+section, r.url, "300ms", "4s", "sqfs_alias = true\n"))
	if err := syscall.Kill(pidOf(t, n), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	n.await("SIGHUP to count", func() bool {
		return n.sh(`getfattr --only-values -n user.skimfs.timeout_direct "$1"`, target).stdout == "4"
	})
	n.await("the shorter TTL", func() bool { return version() == "two\n" })
	n.status()
	for _, want := range []string{`msg="not changed by the reload" target=` + target + ` options=[sqfs_alias]`, `level=DEBUG msg="control request" request="GET /v1/status" uid=0`} {
		if !strings.Contains(n.log(), want) {
			t.Errorf("the log doesn't say %s\n%s", want, n.log())
		}
	}
}

// M04: mounts are nosuid, unless root's configuration lets a repository's programs have the rights of their owners.
func TestM04SuidIsForTheConfigurationToAllow(t *testing.T) {
	t.Parallel()
	r := newLiveRepo(t)
	dir := t.TempDir()
	b, err := os.ReadFile("/usr/bin/id")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "id")
	if err := errors.Join(os.WriteFile(program, b, 0o755), os.Chmod(program, 0o755|os.ModeSetuid)); err != nil {
		t.Fatal(err)
	}
	r.skimfs("publish", "--repo", r.dir, "--keys", r.keys, "dir:"+dir, "local/id:1")
	n := r.node()
	file := filepath.Join(n.home, "etc", "skimfs.conf")
	section := "[repository.\"" + testName + "\"]\nserver = \"" + r.url + "\"\n"
	if r := n.sh(`chmod 755 "$1" "$1/mnt" 2>/dev/null || mkdir "$1/mnt"`, n.home); r.status != 0 {
		t.Fatal(r.stderr)
	}
	for i, row := range []struct{ config, user, shown string }{{section, "65534", "ro,nosuid,nodev,"}, {section + "suid = true\n", "0", "ro,nodev,"}} {
		writeTest(t, file, row.config)
		n.ok("reload")
		target := n.target("m" + strconv.Itoa(i))
		n.ok("mount", testName+"/local/id:1", target)
		if got := n.sh(`exec setpriv --reuid 65534 --regid 65534 --clear-groups "$1/id" -u`, target); got.stdout != row.user+"\n" {
			t.Errorf("a set-user-ID program of root's is user %q (%s), want %s", got.stdout, got.stderr, row.user)
		}
		if got := n.sh(`grep " $1 fuse.skimfs $2" /proc/mounts`, target, row.shown); got.status != 0 {
			t.Errorf("it is not mounted %s", row.shown)
		}
	}
	for _, list := range []string{"suid", "ro,suid"} {
		if got := n.run("mount", testName, n.target("bad"), "-o", list); got.status != exitMountUsage || !strings.Contains(got.stderr, `"suid" belongs in the configuration file`) {
			t.Errorf("-o %s: status %d, %q", list, got.status, got.stderr)
		}
	}
	_, err = n.client().Mount(t.Context(), mountd.MountRequest{Source: testName, Target: n.target("bad"), Options: mountd.Options{Suid: true}})
	if mountd.KindOf(err) != mountd.Permission {
		t.Errorf("asked for over the socket: %v", err)
	}
	writeTest(t, file, "suid = true\n"+section)
	if got := n.run("config", "check"); got.status != exitFailed || !strings.Contains(got.stderr, `key "suid" is of one repository`) {
		t.Errorf("for all repositories: status %d, %q", got.status, got.stderr)
	}
}

func TestN14IDMaps(t *testing.T) {
	for name, text := range map[string]string{"two fields": "1 2 3", "no number": "a 1", "a number twice": "1 2\n1 3", "two stars": "* 1\n* 2", "beyond all users": "1 4294967295"} {
		if m, err := mountd.ParseIDMap(text); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	ids := filepath.Join(n.home, "ids")
	writeTest(t, ids, "# of the image, here\n0 4321\n* 99\n")
	target := n.mount(s.image(), "-o", "uid_map="+ids+",gid=5,world_readable")
	if got := n.sh(`stat -c '%u %g' "$1/etc/motd"`, target).stdout; got != "4321 5\n" {
		t.Errorf("owners are %q", got)
	}
}

func FuzzParseIDMap(f *testing.F) {
	f.Add("0 1000\n* 65534 # rest\n\n5 6")
	f.Fuzz(func(t *testing.T, text string) {
		if m, err := mountd.ParseIDMap(text); err == nil && m == nil {
			t.Error("neither map nor error")
		}
	})
}
