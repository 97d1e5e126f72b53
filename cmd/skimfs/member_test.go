package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// memberScript runs the system's daemon, with places of its own in a mount namespace that ends with the script, and then $6. In it, root runs `as UID GID GROUP…`
// for a user, and `skimfs`; /srv/users/1 and /srv/users/2 are directories of users 1001 and 1002.
const memberScript = `exec unshare -m --propagation private sh -euc '
	for dir in /run /var/cache /var/lib /srv; do mount -t tmpfs -o mode=755 none "$dir"; done
	mkdir /srv/up /srv/work /srv/users; mount -t overlay overlay -o lowerdir=/etc,upperdir=/srv/up,workdir=/srv/work /etc
	mkdir -p /etc/skimfs/keys; cp "$2" /etc/skimfs/keys/
	printf "socket_group = \"4711\"\n[repository.\"%s\"]\nserver = [\"%s\"]\n" "$4" "$3" >/etc/skimfs/skimfs.conf
	for n in 1 2; do mkdir -p /srv/users/$n/m /srv/users/$n/n; chown -R 100$n /srv/users/$n; done
	skimfs() { "$SKIMFS" "$@"; }
	as() { uid=$1 gid=$2 groups=$3; shift 3; setpriv --reuid "$uid" --regid "$gid" --groups "$groups" env SKIMFS_HOME=system "$@"; }
	started=0
	start() { "$SKIMFS" mountd 2>>/srv/log & daemon=$!; started=$((started + 1))
		while [ "$(grep -c "daemon ready" /srv/log)" -lt "$started" ]; do kill -0 "$daemon" || { cat /srv/log >&2; exit 9; }; sleep 0.02; done; }
	SKIMFS=$1; SOURCE=$4/$5; start
	trap "kill \$daemon; wait \$daemon" EXIT
	eval "$6"' sh "$@"`

// system runs a script with the system's daemon, whose group 4711 may use it.
func system(t *testing.T, w *world, s *server, script string) result {
	t.Helper()
	testkit.NeedRoot(t)
	testkit.NeedFUSE(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.Command("sh", "-c", memberScript, "sh", testkit.Build(t), w.pub(), s.URL, testName, testImage, script)
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "SKIMFS_HOME=") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	return runCommand(ctx, t, cmd)
}

func TestMembersOfTheSocketGroupMount(t *testing.T) {
	t.Parallel()
	w := published(t)
	s := serveWorld(t, w)
	r := system(t, w, s, `
		as 1001 100 4711 "$SKIMFS" mount "$SOURCE" /srv/users/1/m -o deadline=9
		as 1002 4711 100 "$SKIMFS" mount "$SOURCE" /srv/users/2/m --lease job
		skimfs mount "$SOURCE" /mnt
		as 1001 100 100 cat /srv/users/1/m/etc/motd
		as 1001 100 4711 "$SKIMFS" status --json | grep -c "\"target\":"
		kill -9 $daemon; wait $daemon || start
		cat /srv/users/1/m/etc/motd
		as 1002 100 4711 "$SKIMFS" release --lease job
		as 1001 100 4711 "$SKIMFS" umount /srv/users/1/m
		grep -c " /srv/.* fuse.skimfs\| /mnt fuse.skimfs" /proc/mounts
		umount /mnt`)
	if want := "skim\n3\nskim\nunmounted /srv/users/2/m\n1\n"; r.status != 0 || r.stdout != want {
		t.Errorf("status %d, %q, want %q\n%s", r.status, r.stdout, want, r.stderr)
	}
}

// What a member may not, and who is none may nothing.
func TestWhatMembersOfTheSocketGroupMayNot(t *testing.T) {
	t.Parallel()
	w := published(t)
	s := serveWorld(t, w)
	const member, stranger = `as 1001 100 4711 "$SKIMFS" `, `as 1001 100 100 "$SKIMFS" `
	rows := []struct{ attack, command, want string }{
		{"be no member", stranger + `mount "$SOURCE" /srv/users/1/m`, "ermission"},
		{"be no member and look", stranger + `status`, "ermission"},
		{"mount over the system", member + `mount "$SOURCE" /usr`, "belongs to user 0"},
		{"mount over another user", member + `mount "$SOURCE" /srv/users/2/n`, "belongs to user 1002"},
		{"mount through a symlink", `ln -s /usr /srv/users/1/link; ` + member + `mount "$SOURCE" /srv/users/1/link`, "belongs to user 0"},
		{"mount with his key", member + `mount "$SOURCE" /srv/users/1/m -o pubkey=/etc/skimfs/keys/` + testName + `.pub`, `"pubkey" is root's`},
		{"mount from his server", member + `mount "$SOURCE" /srv/users/1/m -o server=http://127.0.0.1:1`, `"servers" is root's`},
		{"mount from a URL", member + `mount ` + s.image() + ` /srv/users/1/m`, "by NAME"},
		{"mount what root trusts nobody for", member + `mount other.example.org/a/b:1 /srv/users/1/m`, "no public key"},
		{"go by his proxy", member + `mount "$SOURCE" /srv/users/1/m -o proxy=http://127.0.0.1:1`, `"proxy" is root's`},
		{"have root read a file", member + `mount "$SOURCE" /srv/users/1/m -o auth=/etc/shadow`, `"auth" is root's`},
		{"own what he sees", member + `mount "$SOURCE" /srv/users/1/m -o uid=1001`, `"uid" is root's`},
		{"read what modes forbid", member + `mount "$SOURCE" /srv/users/1/m -o world_readable`, `"world_readable" is root's`},
		{"set a cache path", member + `mount "$SOURCE" /srv/users/1/m -o cache=/srv/users/1/n`, "no skimfs daemon answers"},
		{"set the limit", member + `cache limit set 1GB`, "for root alone"},
		{"evict", member + `cache evict "$SOURCE"`, "for root alone"},
		{"trim", member + `cache trim 1MB`, "for root alone"},
		{"pin", member + `cache pin "$SOURCE"`, "for root alone"},
		{"reload", member + `reload`, "for root alone"},
		{"unmount root's", member + `umount /mnt`, "is not user 1001's"},
		{"unmount another member's", member + `umount --lazy /srv/users/2/m`, "is not user 1001's"},
		{"cat by another server", member + `cat ` + s.image() + ` /etc/motd`, "by NAME"},
		{"end another's lease", member + `release --lease job; false`, ""},
	}
	var script strings.Builder
	script.WriteString("skimfs mount \"$SOURCE\" /mnt\nas 1002 100 4711 \"$SKIMFS\" mount \"$SOURCE\" /srv/users/2/m --lease job\n")
	for i, row := range rows {
		fmt.Fprintf(&script, "echo \"== %d\"; if { %s; } 2>&1; then echo DONE; fi\n", i, row.command)
	}
	// The target becomes a symlink after a crash: it is not followed.
	script.WriteString(`echo "== after"
		as 1001 100 4711 "$SKIMFS" mount "$SOURCE" /srv/users/1/m
		kill -9 $daemon; wait $daemon || true
		umount -l /srv/users/1/m; rmdir /srv/users/1/m; ln -s /srv/users/2/n /srv/users/1/m
		start; grep -c " /srv/users/2/n " /proc/mounts || true
		grep -c " /srv/.* fuse.skimfs\| /mnt fuse.skimfs" /proc/mounts`)
	r := system(t, w, s, script.String())
	parts := strings.Split(r.stdout, "== ")
	if r.status != 0 || len(parts) != len(rows)+2 {
		t.Fatalf("status %d, %d parts\n%s\n%s", r.status, len(parts), r.stdout, r.stderr)
	}
	for i, row := range rows {
		if got := parts[i+1]; strings.Contains(got, "DONE") || !strings.Contains(got, row.want) {
			t.Errorf("a member tries to %s: %q, want %q", row.attack, got, row.want)
		}
	}
	if want := "after\n0\n2\n"; parts[len(rows)+1] != want {
		t.Errorf("with a symlink in the target's place: %q, want %q", parts[len(rows)+1], want)
	}
}
