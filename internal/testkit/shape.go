package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// DebianTar returns a tar file with the root of Debian 12 and some packages, separated by commas; nobody may write to
// it. The first call on a machine makes it, which takes minutes, root and a Debian mirror.
func DebianTar(t testing.TB, packages string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(moduleRoot(t), "scripts", "image-shape"), packages)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("scripts/image-shape %s: %v", packages, err)
	}
	return strings.TrimSpace(string(out))
}
