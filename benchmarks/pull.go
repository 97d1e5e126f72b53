package main

import (
	"os"
	"path/filepath"

	"github.com/skimfs/skimfs/internal/testkit"
)

// pull copies the whole image from a registry and unpacks it: what most do today. Its mount is
// the copy and the unpacking; work then runs on the plain directory, which the kernel still holds
// in its caches.
type pull struct {
	source string
	bytes  int64 // of the image as shipped
	taken  int64 // bytes so far
}

// newPull fills a registry with the image and puts it at the end of the link.
func newPull(s *scope, i *image, l link) *pull {
	registry := testkit.StartRegistry(s)
	registry.Push(i.layout, "bench/image:1")
	if i.discard {
		s.check(os.RemoveAll(i.layout))
	}
	return &pull{source: "docker://" + l.to(s, registry.Addr) + "/bench/image:1", bytes: i.packed}
}

func (p *pull) name() string        { return "full pull" }
func (p *pull) states() []state     { return []state{cold} }
func (p *pull) enter(*scope, state) {}
func (p *pull) usage(*scope) usage  { return usage{bytes: p.taken} }

func (p *pull) mount(s *scope) string {
	dir := s.TempDir()
	p.taken += p.bytes
	layout, bundle := filepath.Join(dir, "layout"), filepath.Join(dir, "bundle")
	run(s, "skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", p.source, "oci:"+layout+":latest")
	run(s, "umoci", "unpack", "--image", layout+":latest", bundle)
	return filepath.Join(bundle, "rootfs")
}
