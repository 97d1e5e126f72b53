package testkit

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Squid is a caching HTTP proxy with an empty cache in memory.
type Squid struct {
	URL  string // http://127.0.0.1:PORT
	Addr string // 127.0.0.1:PORT

	t       testing.TB
	process *process
	log     *accessLog
}

// StartSquid runs a squid until the end of the test. What it keeps is limited to 4 MiB an object,
// squid's own default; extra holds more lines for its configuration.
func StartSquid(t testing.TB, extra ...string) *Squid {
	t.Helper()
	return StartSquidAt(t, loopback(freePort(t)), extra...)
}

// StartSquidAt is StartSquid at an address and port.
func StartSquidAt(t testing.TB, addr string, extra ...string) *Squid {
	t.Helper()
	return startSquid(t, addr, func(dir, log, addr string) string {
		return fmt.Sprintf(squidConf, dir, log, addr, strings.Join(extra, "\n"))
	})
}

// StartSquidAs is StartSquid with a configuration of the caller's, who is told the directory for squid's files, the access log and the address
// to listen at. What the log needs is SquidTestLines.
func StartSquidAs(t testing.TB, conf func(dir, log, addr string) string) *Squid {
	t.Helper()
	return startSquid(t, loopback(freePort(t)), conf)
}

func startSquid(t testing.TB, addr string, conf func(dir, log, addr string) string) *Squid {
	t.Helper()
	program := Program(t, "squid")
	dir := serverDir(t, "squid")
	log, path := filepath.Join(dir, "access.log"), filepath.Join(dir, "squid.conf")
	writeFile(t, path, "%s", conf(dir, log, addr))
	s := &Squid{
		URL: "http://" + addr, Addr: addr, t: t,
		process: &process{
			t: t, name: "squid", path: program, addr: addr, dir: dir,
			// Its own service name: instances meet by name in shared memory.
			args: []string{"-N", "-n", "skimfs" + strings.NewReplacer(".", "x", ":", "x").Replace(addr), "-f", path},
		},
	}
	if os.Getuid() == 0 {
		// Started as root it would change its user by itself, and lose the death signal with that.
		s.process.user = give(t, dir, "proxy")
	}
	through := &http.Transport{
		Proxy:             http.ProxyURL(&url.URL{Scheme: "http", Host: addr}),
		DisableKeepAlives: true,
	}
	s.log = &accessLog{path: log, mark: func(word string) (*http.Response, error) {
		return (&http.Client{Transport: through}).Get("http://mark.invalid/" + word)
	}}
	t.Cleanup(s.process.stop)
	s.process.start()
	return s
}

// Log returns all requests answered so far. Result tells hits from misses.
func (s *Squid) Log() Requests {
	s.t.Helper()
	return s.log.read(s.t)
}

// Stop ends the proxy; clients find the port closed.
func (s *Squid) Stop() { s.process.stop() }

// Start runs it again, on the same port, after Stop. Its cache is empty then.
func (s *Squid) Start() {
	s.t.Helper()
	os.Remove(filepath.Join(s.process.dir, "squid.pid")) // it was killed and could not
	s.process.start()
}

// Hit says whether the proxy answered from its cache.
func (r Request) Hit() bool { return strings.Contains(r.Result, "HIT") }

// give makes a user the owner of a directory and returns the credential to run as that user.
func give(t testing.TB, dir, name string) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(uidErr, gidErr, os.Chown(dir, int(uid), int(gid))); err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// SquidTestLines are what a squid under test needs, before all other lines: files in dir, and a log that [Squid.Log] reads.
func SquidTestLines(dir, log string) string {
	return fmt.Sprintf(`visible_hostname skimfs.test
pid_filename %[1]s/squid.pid
coredump_dir %[1]s
cache_log %[1]s/cache.log
logformat testkit {"time":%%ts.%%03tu,"method":"%%rm","uri":"%%ru","status":%%>Hs,"bytes":%%<st,"result":"%%Ss"}
access_log stdio:%[2]s testkit
buffered_logs off
logfile_rotate 0
pinger_enable off
netdb_filename none
hosts_file none
memory_cache_shared off
acl mark dstdomain mark.invalid
http_access deny mark
`, dir, log)
}

const squidConf = `http_port %[3]s
visible_hostname skimfs.test
pid_filename %[1]s/squid.pid
coredump_dir %[1]s
cache_log %[1]s/cache.log
logformat testkit {"time":%%ts.%%03tu,"method":"%%rm","uri":"%%ru","status":%%>Hs,"bytes":%%<st,"result":"%%Ss"}
access_log stdio:%[2]s testkit
buffered_logs off
logfile_rotate 0
pinger_enable off
netdb_filename none
hosts_file none
shutdown_lifetime 0 seconds
memory_cache_shared off
cache_mem 256 MB
maximum_object_size 4 MB
maximum_object_size_in_memory 4 MB
collapsed_forwarding on
acl mark dstdomain mark.invalid
http_access deny mark
http_access allow localhost
http_access deny all
%[4]s
`
