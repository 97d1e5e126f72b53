package testkit

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// Server is an nginx that serves a directory as static files.
type Server struct {
	URL  string // http://127.0.0.1:PORT
	Addr string // 127.0.0.1:PORT
	Root string

	t       testing.TB
	process *process
	log     *accessLog
}

// StartNginx serves root until the end of the test. Objects and revisions are said to be
// immutable, as a real origin says it; extra holds more directives for the server block.
func StartNginx(t testing.TB, root string, extra ...string) *Server {
	t.Helper()
	program := Program(t, "nginx")
	dir, addr := serverDir(t, "nginx"), loopback(freePort(t))
	log := filepath.Join(dir, "access.log")
	writeFile(t, filepath.Join(dir, "nginx.conf"), nginxConf, dir, log, addr, root, strings.Join(extra, "\n"))
	s := &Server{
		URL: "http://" + addr, Addr: addr, Root: root, t: t,
		process: &process{
			t: t, name: "nginx", path: program, addr: addr, dir: dir,
			args: []string{"-p", dir, "-e", filepath.Join(dir, "error.log"), "-c", filepath.Join(dir, "nginx.conf")},
		},
	}
	s.log = &accessLog{path: log, mark: func(word string) (*http.Response, error) {
		return (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(s.URL + "/" + word)
	}}
	t.Cleanup(s.process.stop)
	s.process.start()
	return s
}

// Log returns all requests answered so far.
func (s *Server) Log() Requests {
	s.t.Helper()
	return s.log.read(s.t)
}

// Stop ends the server; clients find the port closed.
func (s *Server) Stop() { s.process.stop() }

// Start serves again, on the same port, after Stop.
func (s *Server) Start() {
	s.t.Helper()
	s.process.start()
}

// One worker, in the same process: it reads what the test may read, and logs in order.
const nginxConf = `daemon off;
master_process off;
pid %[1]s/nginx.pid;
events { worker_connections 1024; }
http {
	log_format testkit escape=json '{"time":$msec,"method":"$request_method","uri":"$request_uri","status":$status,'
		'"bytes":$bytes_sent,"cache_control":"$http_cache_control","via":"$http_via","user_agent":"$http_user_agent"}';
	access_log %[2]s testkit;
	default_type application/octet-stream;
	sendfile on;
	tcp_nodelay on;
	keepalive_requests 1000000;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server {
		listen %[3]s backlog=511;
		root "%[4]s";
		location ~ ^/(objects|revisions)/ {
			add_header Cache-Control "public, max-age=31536000, immutable";
		}
		location /testkit-mark- { return 204; }
		%[5]s
	}
}
`
