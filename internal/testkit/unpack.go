package testkit

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Unpack has umoci unpack the image of an OCI layout and returns the root directory. umoci 0.4.7
// knows no zstd: skopeo makes a twin with gzip layers for it.
func Unpack(t testing.TB, layout, tag string) string {
	t.Helper()
	if strings.Contains(manifest(t, layout, tag), "+zstd") {
		twin := filepath.Join(t.TempDir(), "gzip")
		Run(t, "skopeo", "--insecure-policy", "copy", "--quiet", "--dest-compress-format", "gzip", "--dest-compress-level", "1",
			"oci:"+layout+":"+tag, "oci:"+twin+":"+tag)
		layout = twin
	}
	// An image may hold what RemoveAll can't enter without being root, but then umoci couldn't make it.
	bundle := filepath.Join(t.TempDir(), "bundle")
	args := []string{"unpack", "--image", layout + ":" + tag}
	if os.Getuid() != 0 {
		args = append(args, "--rootless")
	}
	Run(t, "umoci", append(args, bundle)...)
	return filepath.Join(bundle, "rootfs")
}

// manifest returns the JSON text of a tagged manifest.
func manifest(t testing.TB, layout, tag string) string {
	t.Helper()
	var index struct{ Manifests []descriptor }
	data, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err == nil {
		err = json.Unmarshal(data, &index)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range index.Manifests {
		if m.Annotations["org.opencontainers.image.ref.name"] == tag {
			data, err := os.ReadFile(filepath.Join(layout, "blobs", strings.Replace(m.Digest, ":", "/", 1)))
			if err != nil {
				t.Fatal(err)
			}
			return string(data)
		}
	}
	t.Fatalf("%s: no image is tagged %q", layout, tag)
	return ""
}
