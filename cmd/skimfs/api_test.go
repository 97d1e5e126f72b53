package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestTheApiPageListsEachRequest holds docs/api.md equal to the table of handlers.
func TestTheApiPageListsEachRequest(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "api.md"))
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(filepath.Join("..", "..", "mountd", "control.go"))
	if err != nil {
		t.Fatal(err)
	}
	list := func(text, pattern string) (out []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			out = append(out, m[1])
		}
		slices.Sort(out)
		return out
	}
	want := list(string(source), `"([A-Z]+ /[a-z0-9/]+)": d\.`)
	got := list(string(page), "(?m)^\\| `([A-Z]+ /[a-z0-9/]+)")
	if len(want) < 10 || !slices.Equal(got, want) {
		t.Errorf("docs/api.md lists %q, the daemon answers %q", got, want)
	}
}

// talkCommands are those of cvmfs_talk 2.12.
var talkCommands = []string{
	"tracebuffer flush", "cache instance", "cache size", "cache limit get", "cache limit set", "cache list", "cache list pinned", "cache list catalogs", "cleanup", "cleanup rate",
	"evict", "pin", "mountpoint", "device id", "remount", "remount sync", "chroot", "detach nested catalogs", "revision", "max ttl info", "max ttl set", "nameserver get",
	"nameserver set", "host info", "host probe", "host probe geo", "host switch", "host set", "proxy info", "proxy rebalance", "proxy group switch", "proxy set",
	"proxy fallback", "external host …", "external proxy …", "timeout info", "timeout set", "open catalogs", "internal affairs", "latency", "reset error counters", "pid",
	"pid cachemgr", "pid watchdog", "parameters", "hotpatch history", "vfs inodes", "vfs entries", "version", "tear down to read-only", "send mount fd",
}

// cvmfsOptions are the client's of CernVM-FS 2.12, without CVMFS_, and cvmfsXattrs its attributes.
var (
	cvmfsOptions = strings.Fields(`USER MOUNT_DIR REPOSITORIES STRICT_MOUNT DEFAULT_DOMAIN RELOAD_SOCKETS CHECK_PERMISSIONS MOUNT_RW SUID SYSTEMD_NOKILL OOM_SCORE_ADJ CPU_AFFINITY NFILES
		FUSE3_MAX_THREADS FUSE3_IDLE_THREADS LIBRARY_PATH ROOT_HASH REPOSITORY_TAG REPOSITORY_DATE AUTO_UPDATE MAX_TTL ALT_ROOT_PATH INITIAL_GENERATION NOTIFICATION_SERVER
		KCACHE_TIMEOUT CACHE_SYMLINKS FUSE_NOTIFY_INVALIDATION STATFS_CACHE_TIMEOUT MEMCACHE_SIZE CATALOG_WATERMARK CLAIM_OWNERSHIP UID_MAP GID_MAP WORLD_READABLE ENFORCE_ACLS
		HIDE_MAGIC_XATTRS MAGIC_XATTRS_VISIBILITY XATTR_PROTECTED_XATTRS XATTR_PRIVILEGED_GIDS CACHE_BASE CACHE_DIR WORKSPACE QUOTA_LIMIT SHARED_CACHE ALIEN_CACHE SERVER_CACHE_MODE
		CACHE_PRIMARY CACHE_x_SIZE CACHE_x_UPPER CACHE_x_LOWER CACHE_x_LOWER_READONLY CACHE_x_LOCATOR STREAMING_CACHE SERVER_URL HTTP_PROXY FALLBACK_PROXY PROXY_SHARD PROXY_TEMPLATE
		PROXY_RESET_AFTER HOST_RESET_AFTER TIMEOUT TIMEOUT_DIRECT LOW_SPEED_LIMIT MAX_RETRIES BACKOFF_INIT BACKOFF_MAX FOLLOW_REDIRECTS FAILOVER_INDEFINITELY USE_GEOAPI MAX_SERVERS
		USE_CDN CLIENT_PROFILE PAC_URLS IPV4_ONLY DNS_TIMEOUT DNS_RETRIES DNS_MIN_TTL DNS_MAX_TTL DNS_SERVER DNS_ROAMING IPFAMILY_PREFER MAX_IPADDR_PER_PROXY EXTERNAL_URL
		PUBLIC_KEY KEYS_DIR BLACKLIST AUTHZ_HELPER AUTHZ_SEARCH_PATH USE_SSL_SYSTEM_CA X509_CERT_DIR X509_CERT_BUNDLE CONFIG_REPOSITORY CONFIG_REPO_REQUIRED SYSLOG_LEVEL
		SYSLOG_FACILITY SYSLOG_PREFIX USYSLOG DEBUGLOG TRACEFILE TRACEBUFFER TRACEBUFFER_THRESHOLD INSTRUMENT_FUSE TELEMETRY_SEND TELEMETRY_RATE INFLUX_HOST HTTP_TRACING
		HTTP_TRACING_HEADERS SEND_INFO_HEADER TALK_SOCKET TALK_OWNER NFS_SOURCE NFS_SHARED NFS_INTERLEAVED_INODES`)
	cvmfsXattrs = strings.Fields(`fqrn host host_list external_host external_timeout proxy proxy_list proxy_list_external timeout timeout_direct revision root_hash tag expires pid uptime
		version nclg ncleanup24 ndiropen nopen ndownload hitrate nioerr timestamp_last_ioerr rx speed usedfd maxfd useddirp inode_max pubkeys repo_counters repo_metainfo
		catalog_counters logbuffer hash lhash chunk_list chunks compression direct_io external_file external_url rawlink authz`)
)

// TestWhatFromCvmfsNamesExists checks that each command and option that docs/from-cvmfs.md names is one of ours.
func TestWhatFromCvmfsNamesExists(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "from-cvmfs.md"))
	if err != nil {
		t.Fatal(err)
	}
	root, n := rootCommand("skimfs"), 0
	for _, m := range regexp.MustCompile("`skimfs ([a-z ]+)").FindAllStringSubmatch(string(page), -1) {
		words := strings.Fields(m[1])
		cmd, rest, err := root.Find(words)
		if err != nil || cmd == root || cmd.HasSubCommands() && len(rest) > 0 {
			t.Errorf("no command `skimfs %s`: %v", m[1], err)
		}
		n++
	}
	metricsPage, err := os.ReadFile(filepath.Join("..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`skimfs_[a-z_]+`).FindAllString(string(page), -1) {
		if !strings.Contains(string(metricsPage), "`"+name+"`") {
			t.Errorf("no metric %s", name)
		}
		n++
	}
	_, talk, _ := strings.Cut(string(page), "## cvmfs_talk")
	talk, rows, _ := strings.Cut(talk, "## Options")
	for _, command := range talkCommands {
		if !strings.Contains(talk, "`"+command+"`") {
			t.Errorf("the page says nothing of cvmfs_talk %s", command)
		}
	}
	for _, m := range regexp.MustCompile(`[,`+"`"+`]([a-z_]+)=`).FindAllStringSubmatch(talk, -1) {
		if _, ok := findOption(m[1]); !ok {
			t.Errorf("no option %q", m[1])
		}
		n++
	}
	rows, rest, _ := strings.Cut(rows, "## At")
	for _, name := range cvmfsOptions {
		if !regexp.MustCompile("[`(]" + name + "[`=]").MatchString(rows) {
			t.Errorf("the page says nothing of CVMFS_%s", name)
		}
	}
	for line := range strings.Lines(rows) {
		_, ours, _ := strings.Cut(line, " | ")
		for _, m := range regexp.MustCompile("`([a-z_]+)( = [^`]*)?`").FindAllStringSubmatch(ours, -1) {
			if _, ok := findOption(m[1]); !ok && !slices.Contains([]string{"http_proxy", "rootonly"}, m[1]) {
				t.Errorf("no option %q", m[1])
			}
			n++
		}
	}
	_, attributes, _ := strings.Cut(rest, "## Attributes")
	attributes, logged, _ := strings.Cut(attributes, "## In the log")
	for _, name := range cvmfsXattrs {
		if !strings.Contains(attributes, "`"+name+"`") {
			t.Errorf("the page says nothing of the attribute %s", name)
		}
	}
	var sources strings.Builder
	for _, pattern := range []string{"mountd", "fetch", "cachedb", "fusefs"} {
		files, err := filepath.Glob(filepath.Join("..", "..", pattern, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			sources.Write(b)
		}
	}
	for line := range strings.Lines(logged) {
		_, ours, _ := strings.Cut(line, " | ")
		for _, m := range regexp.MustCompile("`([a-z][a-z ',:/]+)`").FindAllStringSubmatch(ours, -1) {
			// "proxy switched" is made of two parts.
			if text := strings.TrimPrefix(strings.TrimPrefix(m[1], "proxy"), "server"); !strings.Contains(sources.String(), text+"\"") && !strings.HasPrefix(m[1], "skimfs ") {
				t.Errorf("nothing logs %q", m[1])
			}
			n++
		}
	}
	if n < 100 {
		t.Errorf("only %d names found on the page", n)
	}
}
