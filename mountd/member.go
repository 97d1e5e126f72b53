package mountd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/internal/peer"
)

// Members of Config.Group may use root's daemon without being root. They choose what is mounted and where, as far as that can hurt nobody: repositories by
// the names that root's configuration knows, on directories of their own. Whom to trust, how to get there and what the cache keeps stays root's.

// memberRequests are what members may ask for at all.
var memberRequests = map[string]bool{
	"POST /v1/mounts": true, "DELETE /v1/mounts": true, "GET /v1/mounts": true, "GET /v1/mounts/wait": true, "POST /v1/mounts/refresh": true,
	"DELETE /v1/leases": true, "GET /v1/status": true, "GET /v1/ls": true, "GET /v1/stat": true, "GET /v1/cat": true, "GET /v1/cache": true, "GET /metrics": true,
}

// memberOptions are those, by their names in JSON, that members may give.
var memberOptions = map[string]bool{"hang": true, "deadline": true, "max_ttl": true, "revision": true, "date": true, "sqfs_alias": true}

// admit decides whether a caller may ask for something; member says that he may only as a member.
func (d *Daemon) admit(ctx context.Context, pattern string) (member bool, err error) {
	p, ok := ctx.Value(peerKey{}).(peer.Credentials)
	switch {
	case ok && (p.UID == 0 || p.UID == os.Geteuid()):
		return false, nil
	case !ok || p.UID < 0 || d.cfg.Group == 0 || p.GID != int(d.cfg.Group) && !slices.Contains(p.Groups, d.cfg.Group):
		return false, problem(Permission, "user %d may not use the daemon of user %d", p.UID, os.Geteuid())
	case !memberRequests[pattern]:
		return false, problem(Permission, "%s is for root alone, not for members of group %d", pattern, d.cfg.Group)
	}
	return true, nil
}

type memberKey struct{}

// asMember marks a request as one of a member.
func asMember(ctx context.Context) context.Context { return context.WithValue(ctx, memberKey{}, true) }

// memberOf returns the user for whom a request of a member is made; ok is false for root's own.
func memberOf(ctx context.Context) (uid int, ok bool) {
	if ctx.Value(memberKey{}) == nil {
		return 0, false
	}
	p, ok := ctx.Value(peerKey{}).(peer.Credentials)
	return p.UID, ok
}

// checkMember refuses what a member may not choose.
func (d *Daemon) checkMember(ctx context.Context, src Source, o Options) error {
	if _, ok := memberOf(ctx); !ok {
		return nil
	}
	if src.URL != "" {
		return problem(Permission, "members of the daemon's group mount repositories by NAME, from the servers in root's configuration")
	}
	if _, err := findKey(d.keyDirs(), src.Name, ""); err != nil {
		return err // and no server is asked
	}
	v := reflect.ValueOf(o)
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		if !v.Field(i).IsZero() && !memberOptions[name] {
			return problem(Permission, "option %q is root's to set, in the configuration", name)
		}
	}
	return nil
}

// mayChange refuses a member what isn't his.
func (m *mount) mayChange(ctx context.Context) error {
	if uid, ok := memberOf(ctx); ok && m.record.Member != uid {
		return problem(Permission, "the mount at %q is not user %d's", m.record.Target, uid)
	}
	return nil
}

// memberTarget opens a member's target: a directory of his own, with no symlink on the way, since he could have it lead elsewhere by now.
func memberTarget(target string, uid int) (*os.File, error) {
	f, err := openPath(target)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil && int(st.Uid) != uid {
		err = problem(Permission, "target %q belongs to user %d, not to %d", target, st.Uid, uid)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func openPath(path string) (*os.File, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return nil, problem(Target, "target %q: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// unmountPath returns a path by which the mount at target is unmounted, and what to close afterwards. A member's leads through the
// directory above it, opened as memberTarget does: what is above that may have become a symlink.
func (m *mount) unmountPath() (path string, done func(), err error) {
	if m.record.Member == 0 {
		return m.record.Target, func() {}, nil
	}
	dir, name := filepath.Split(m.record.Target)
	f, err := openPath(filepath.Clean(dir))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), name), func() { f.Close() }, nil
}
