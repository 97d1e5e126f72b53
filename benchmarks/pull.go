package main

import (
	"path/filepath"

	"github.com/skimfs/skimfs/internal/testkit"
)

// pull copies the whole image from a registry and unpacks it: what most do today. Its mount is
// the copy and the unpacking; work then runs on the plain directory, which the kernel still holds
// in its caches.
type pull struct{ source string }

// newPull fills a registry with the image and puts it at the end of the link.
func newPull(s *scope, layout string, l link) *pull {
	registry := testkit.StartRegistry(s)
	registry.Push(layout, "bench/image:1")
	return &pull{"docker://" + l.to(s, registry.Addr) + "/bench/image:1"}
}

func (p *pull) name() string        { return "full pull" }
func (p *pull) states() []state     { return []state{cold} }
func (p *pull) enter(*scope, state) {}
func (p *pull) usage(*scope) usage  { return usage{} }

func (p *pull) mount(s *scope) string {
	dir := s.TempDir()
	layout, bundle := filepath.Join(dir, "layout"), filepath.Join(dir, "bundle")
	run(s, "skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", p.source, "oci:"+layout+":latest")
	run(s, "umoci", "unpack", "--image", layout+":latest", bundle)
	return filepath.Join(bundle, "rootfs")
}
