package testkit

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// WithConfig returns the layout, tagged "latest", of an image with the layers of another one and a config of its own, whose
// "config" object is given: Env, Entrypoint, Cmd and the like.
func WithConfig(t testing.TB, layout, tag string, config map[string]any) string {
	t.Helper()
	var m struct {
		Config descriptor
		Layers []descriptor
	}
	if err := json.Unmarshal([]byte(manifest(t, layout, tag)), &m); err != nil {
		t.Fatal(err)
	}
	blob := func(d descriptor) string { return filepath.Join("blobs", strings.Replace(d.Digest, ":", "/", 1)) }
	var c map[string]any
	text, err := os.ReadFile(filepath.Join(layout, blob(m.Config)))
	if err := errors.Join(err, json.Unmarshal(text, &c)); err != nil {
		t.Fatal(err)
	}
	c["config"] = config
	l := newLayout(t)
	for _, d := range m.Layers {
		// A layer may be there twice.
		if err := os.Symlink(filepath.Join(layout, blob(d)), filepath.Join(l.dir, blob(d))); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	l.index(l.manifest(l.json(m.Config.MediaType, c), "latest", m.Layers...))
	return l.dir
}
