package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
)

// TestPackages makes both packages as `make deb rpm` does, and installs and removes Debian's in a root of its own.
func TestPackages(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t)
	for _, tool := range []string{"lintian", "rpm", "mmdebstrap"} {
		testkit.Program(t, tool)
	}
	dir := t.TempDir()
	sh := func(script string) string {
		t.Helper()
		cmd := exec.Command("sh", "-euc", script, "sh", dir)
		cmd.Dir = filepath.Join("..", "..")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return string(out)
	}
	sh(`OUT="$1" scripts/package deb; OUT="$1" scripts/package rpm`)
	if out := sh(`lintian --allow-root --fail-on error "$1"/*.deb`); strings.Contains(out, "E: ") {
		t.Errorf("lintian: %s", out)
	}
	for _, list := range []string{`dpkg-deb -c "$1"/*.deb`, `rpm -qlp "$1"/*.rpm`} {
		out := sh(list)
		for _, want := range []string{
			"/usr/bin/skimfs", "/usr/sbin/mount.skimfs", "/usr/lib/systemd/system/skimfs-mountd.service", "/usr/lib/systemd/system/skimfs@.service", "/etc/skimfs/skimfs.conf",
			"/usr/share/man/man1/skimfs-mount.1.gz", "/usr/share/bash-completion/completions/skimfs",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("%s lists no %s", list, want)
			}
		}
	}
	// A root with nothing but what dpkg and the maintainer scripts need.
	out := sh(`root="$1/root"; mkdir -p "$root/var/lib/dpkg/info" "$root/var/lib/dpkg/updates" "$root/tmp"; : >"$root/var/lib/dpkg/status"; : >"$root/var/lib/dpkg/available"
		for dir in bin sbin lib lib64; do [ -e "/$dir" ] && { mkdir -p "$root/usr/$dir"; ln -s "usr/$dir" "$root/$dir"; }; done
		for f in /bin/sh /bin/rm /usr/bin/test; do cp -L "$f" "$root/usr/bin/"; for lib in $(ldd "$f" | grep -o '/[^ ]*'); do mkdir -p "$root$(dirname "$lib")"; cp -L "$lib" "$root$lib"; done; done
		dpkg --root="$root" --force-depends --log=/dev/null -i "$1"/*.deb
		chroot "$root" /usr/bin/skimfs version
		[ "$(readlink "$root/usr/sbin/mount.skimfs")" = /usr/bin/skimfs ]
		dpkg --root="$root" --log=/dev/null -r skimfs
		[ ! -e "$root/usr/bin/skimfs" ] && [ -e "$root/etc/skimfs/skimfs.conf" ]
		dpkg --root="$root" --log=/dev/null -P skimfs
		[ ! -e "$root/etc/skimfs/skimfs.conf" ] && echo gone`)
	if !strings.Contains(out, "\nskimfs 0.1.0 ") || !strings.HasSuffix(out, "gone\n") {
		t.Errorf("installing and removing: %s", out)
	}
}
