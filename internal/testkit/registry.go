package testkit

import (
	"path/filepath"
	"testing"
)

// Registry is a container registry, empty at first, over plain HTTP.
type Registry struct {
	Addr string // 127.0.0.1:PORT

	t       testing.TB
	process *process
}

// StartRegistry runs Debian's docker-registry until the end of the test.
func StartRegistry(t testing.TB) *Registry {
	t.Helper()
	program := Program(t, "docker-registry")
	dir, addr := serverDir(t, "registry"), loopback(freePort(t))
	conf := filepath.Join(dir, "config.yml")
	writeFile(t, conf, registryConf, dir, addr)
	r := &Registry{
		Addr: addr, t: t,
		process: &process{t: t, name: "docker-registry", path: program, addr: addr, dir: dir, args: []string{"serve", conf}},
	}
	t.Cleanup(r.process.stop)
	r.process.start()
	return r
}

// Push puts the image "latest" of an OCI layout under a name such as "library/debian:12" and returns its reference,
// 127.0.0.1:PORT/library/debian:12.
func (r *Registry) Push(layout, name string) string {
	r.t.Helper()
	ref := r.Addr + "/" + name
	Run(r.t, "skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "oci:"+layout+":latest", "docker://"+ref)
	return ref
}

// Stop ends the registry; clients find the port closed.
func (r *Registry) Stop() { r.process.stop() }

// Start runs it again, on the same port and with what it held, after Stop.
func (r *Registry) Start() {
	r.t.Helper()
	r.process.start()
}

const registryConf = `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %[1]s/data}
  delete: {enabled: true}
http: {addr: %[2]s}
`
