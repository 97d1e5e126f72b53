package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
)

// TestPackages makes both packages as `make deb rpm` does, and installs and removes each in a Debian of its own: the base of the demo's image,
// which mmdebstrap made.
func TestPackages(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t)
	for _, tool := range []string{"lintian", "rpm", "jq", "groff"} {
		testkit.Program(t, tool)
	}
	dir := t.TempDir()
	sh := func(t *testing.T, script string, args ...string) string {
		t.Helper()
		cmd := exec.Command("sh", append([]string{"-euc", script, "sh", dir}, args...)...)
		cmd.Dir = filepath.Join("..", "..")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return string(out)
	}
	sh(t, `OUT="$1" scripts/package rpm deb`)
	for _, list := range []string{`dpkg-deb -c "$1"/*.deb`, `rpm -qlp "$1"/*.rpm`} {
		out := sh(t, list)
		for _, want := range []string{
			"/usr/bin/skimfs", "/usr/sbin/mount.skimfs", "/usr/lib/systemd/system/skimfs-mountd.service", "/usr/lib/systemd/system/skimfs-publishd.service", "/usr/lib/systemd/system/skimfs@.service", "/usr/share/skimfs/bee/skimfs_bee.py", "/etc/skimfs/skimfs.conf",
			"/usr/share/man/man1/skimfs-mount.1.gz", "/usr/share/man/man8/mount.skimfs.8.gz", "/usr/share/bash-completion/completions/skimfs", "/usr/libexec/skimfs/condor-probe", "/examples/slurm/prolog.sh",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("%s lists no %s", list, want)
			}
		}
	}
	t.Run("lintian", func(t *testing.T) {
		t.Parallel()
		// lintian runs man for each page, which takes longer than all its other checks; groff reads them all at once.
		if out := sh(t, `lintian --allow-root --dont-check-part documentation/manual --fail-on error "$1"/*.deb`); strings.Contains(out, "E: ") {
			t.Errorf("lintian: %s", out)
		}
		if out := sh(t, `dpkg-deb --fsys-tarfile "$1"/*.deb | tar -xO --wildcards './usr/share/man/man1/*' './usr/share/man/man8/mount.skimfs*' | zcat | groff -Kutf8 -man -Tutf8 -ww -z`); out != "" {
			t.Errorf("groff: %s", out)
		}
	})
	for name, script := range map[string]string{
		"deb": `inside dpkg --log=/dev/null -i /package.deb
			check
			inside dpkg --log=/dev/null -r skimfs
			[ -e "$root/etc/skimfs/skimfs.conf" ]
			inside dpkg --log=/dev/null -P skimfs`,
		"rpm": `rpm --root "$root" --dbpath /var/lib/rpm --nodeps -i "$root/package.rpm"
			check
			rpm --root "$root" --dbpath /var/lib/rpm -e skimfs`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := sh(t, `root="$1/$3"; mkdir "$root"
				layout=$2; blob() { echo "$layout/blobs/$(jq -r "$2" "$1" | tr : /)"; }
				tar -C "$root" -xf "$(blob "$(blob "$layout/index.json" '.manifests[0].digest')" '.layers[0].digest')" --exclude=./dev --exclude=dev
				mkdir -p "$root/dev"; mknod -m 666 "$root/dev/null" c 1 3
				cp "$1"/*."$3" "$root/package.$3"
				inside() { chroot "$root" "$@"; }
				check() {
					inside skimfs version
					[ "$(readlink "$root/usr/sbin/mount.skimfs")" = /usr/bin/skimfs ]
					inside mount.skimfs --help | grep -q "^mount.skimfs SOURCE TARGET"
					inside skimfs config check
				}
				`+script+`
				[ ! -e "$root/usr/bin/skimfs" ] && [ ! -e "$root/etc/skimfs/skimfs.conf" ] && echo gone`, testkit.DemoImage(t), name)
			if !strings.Contains(out, "skimfs 0.1.0 ") || !strings.HasSuffix(out, "gone\n") {
				t.Errorf("installing and removing: %s", out)
			}
		})
	}
}
