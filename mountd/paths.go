package mountd

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Home says where the files of a user's, or of the system's, daemons are.
type Home struct {
	Config   []string // configuration files, and directories of them; the later ones count more
	Keys     []string // directories with NAME.pub, the first that has one wins
	Cache    string   // the default cache directory
	Run      string   // sockets, and what is known of running daemons; 0700
	State    string   // logs
	OnDemand bool     // a command that needs a daemon may start it
	Shared   bool     // the daemon is root's: this user speaks to it as a member of its group
}

// systemConfig is the site's. Users' daemons read it, too: where proxies and servers are holds for all.
var systemConfig = []string{"/etc/skimfs/skimfs.conf", "/etc/skimfs/conf.d"}

// jobVariables name the batch job that a process belongs to: Slurm, PBS, LSF, Flux, Cobalt, Grid Engine.
var jobVariables = []string{"SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID", "COBALT_JOBID", "JOB_ID"}

// FindHome returns the home for a user id and environment. With SKIMFS_HOME all is below that directory, or, if that is "system", the
// system's daemon is meant. The system's is root's.
// A user has one for each batch job, in $TMPDIR or else /var/tmp, which should be local to the node.
func FindHome(uid int, getenv func(string) string) (Home, error) {
	if dir := getenv("SKIMFS_HOME"); dir == "system" {
		h := systemHome()
		h.Shared = uid != 0
		return h, nil
	} else if dir != "" {
		if !filepath.IsAbs(dir) {
			return Home{}, fmt.Errorf("SKIMFS_HOME is %q, want an absolute path", dir)
		}
		dir = filepath.Clean(dir)
		return Home{
			Config: []string{filepath.Join(dir, "etc", "skimfs.conf"), filepath.Join(dir, "etc", "conf.d")},
			Keys:   []string{filepath.Join(dir, "etc", "keys")}, Cache: filepath.Join(dir, "cache"), Run: filepath.Join(dir, "run"),
			State: filepath.Join(dir, "state"), OnDemand: true,
		}, nil
	}
	if uid == 0 {
		return systemHome(), nil
	}
	tmp := getenv("TMPDIR")
	if !filepath.IsAbs(tmp) {
		tmp = "/var/tmp"
	}
	base := filepath.Join(tmp, "skimfs-"+strconv.Itoa(uid))
	if job := batchJob(getenv); job != "" {
		base += "-job-" + job
	}
	h := Home{Config: slices.Clone(systemConfig), Cache: filepath.Join(base, "cache"), Run: filepath.Join(base, "run"), State: filepath.Join(base, "state"), OnDemand: true}
	config := getenv("XDG_CONFIG_HOME")
	if home := getenv("HOME"); !filepath.IsAbs(config) && home != "" {
		config = filepath.Join(home, ".config")
	}
	if filepath.IsAbs(config) {
		h.Keys = append(h.Keys, filepath.Join(config, "skimfs", "keys"))
		h.Config = append(h.Config, filepath.Join(config, "skimfs", "skimfs.conf"), filepath.Join(config, "skimfs", "conf.d"))
	}
	h.Keys = append(h.Keys, "/etc/skimfs/keys")
	return h, nil
}

// systemHome is root's.
func systemHome() Home {
	return Home{Config: slices.Clone(systemConfig), Keys: []string{"/etc/skimfs/keys"}, Cache: "/var/cache/skimfs", Run: "/run/skimfs", State: "/var/lib/skimfs"}
}

// checkRun checks before anything is said that the directory of sockets belongs to who should answer there.
func (h Home) checkRun() error {
	if h.Shared {
		return checkOwnedBy("socket", h.Run, 0, 0o022)
	}
	return checkOwned("socket", h.Run, 0o066) // a group's members may pass, and see nothing
}

// batchJob returns the batch job's identifier in a form that a file name can have, or "".
func batchJob(getenv func(string) string) string {
	for _, name := range jobVariables {
		job := strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-' || r == '_' {
				return r
			}
			return '_'
		}, getenv(name))
		if job != "" && len(job) <= 64 {
			return job
		}
	}
	return ""
}

// networkTypes are filesystems (statfs f_type) on which a cache would be slow, unsafe to lock, or shared with other nodes.
var networkTypes = map[int64]string{
	0x6969: "NFS", 0x517b: "SMB", 0xfe534d42: "SMB", 0xff534d42: "CIFS", 0x0bd00bd0: "Lustre", 0x47504653: "GPFS", 0x19830326: "BeeGFS",
	0x00c36400: "Ceph", 0xaad7aaea: "PanFS", 0x5346414f: "AFS", 0x6b414653: "AFS", 0x01021997: "9P", 0x73757245: "Coda",
	0x7461636f: "OCFS2", 0x01161970: "GFS2", 0x20030528: "PVFS2",
}

// cacheDir makes dir, and returns its path without symlinks. It refuses a network filesystem.
func cacheDir(dir string) (string, error) {
	if err := privateParents(dir); err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", fmt.Errorf("cache directory: %w", err)
	}
	// Its state records say what is accepted, and its content is checked by checksums that anyone can compute.
	if err := checkOwned("cache", real, 0o022); err != nil {
		return "", err
	}
	if err := checkParent("cache", real); err != nil {
		return "", err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(real, &st); err != nil {
		return "", fmt.Errorf("cache directory %q: %w", dir, err)
	}
	if name, ok := networkTypes[int64(uint32(st.Type))]; ok {
		return "", fmt.Errorf("cache directory %q is on a network filesystem (%s), want a disk of this node: %w", dir, name, errNetworkFS)
	}
	return real, nil
}

var errNetworkFS = errors.New("not local")

// privateParents makes dir with mode 0700; parents that are missing get it too.
func privateParents(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cache directory: %w", err)
	}
	return nil
}

// realPath is filepath.EvalSymlinks for a path whose last parts need not exist yet.
func realPath(path string) string {
	path = filepath.Clean(path)
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	if dir := filepath.Dir(path); dir != path {
		return filepath.Join(realPath(dir), filepath.Base(path))
	}
	return path
}

// checkRun makes the directory of sockets, or checks that it belongs to this user alone: whoever may write there could play the daemon.
//
// With a group, its members may pass.
func checkRun(dir string, group uint32) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("socket directory: %w", err)
	}
	if err := checkParent("socket", realPath(dir)); err != nil {
		return err
	}
	if group == 0 {
		return checkOwned("socket", dir, 0o077)
	}
	if err := checkOwned("socket", dir, 0o066); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return fmt.Errorf("socket directory: %w", err)
	}
	return nil
}

// checkOwned checks that dir, used for what, is a directory of this user with none of the permissions in others.
func checkOwned(what, dir string, others uint32) error {
	return checkOwnedBy(what, dir, os.Geteuid(), others)
}

func checkOwnedBy(what, dir string, owner int, others uint32) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("%s directory %q: %w", what, dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s directory %q is not a directory: %w", what, dir, fs.ErrPermission)
	case int(st.Uid) != owner:
		return fmt.Errorf("%s directory %q belongs to user %d, not to %d: %w", what, dir, st.Uid, owner, fs.ErrPermission)
	case st.Mode&others != 0:
		return fmt.Errorf("%s directory %q has mode %#o, want %#o: %w", what, dir, st.Mode&0o7777, st.Mode&0o777&^others, fs.ErrPermission)
	}
	return nil
}

// overflowID is how a user namespace shows the owner of what belongs to nobody in it, the system's directories among it.
const overflowID = 65534

// checkParent checks that nobody but root and this user can put another directory in the place of dir.
func checkParent(what, dir string) error {
	parent := filepath.Dir(dir)
	var st unix.Stat_t
	if err := unix.Stat(parent, &st); err != nil {
		return fmt.Errorf("%s directory: %w", what, err)
	}
	switch {
	case st.Uid != 0 && int(st.Uid) != os.Geteuid() && st.Uid != overflowID:
		return fmt.Errorf("%s directory: %q above it belongs to user %d, who could replace it: %w", what, parent, st.Uid, fs.ErrPermission)
	case st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0:
		return fmt.Errorf("%s directory: %q above it has mode %#o, so others could replace it: %w", what, parent, st.Mode&0o7777, fs.ErrPermission)
	}
	return nil
}

// daemonName names the daemon of a cache, for its socket, record and log.
func daemonName(cache string) string {
	sum := sha256.Sum256([]byte(cache))
	return "mountd-" + hex.EncodeToString(sum[:6])
}

// ramPrefix begins the name of a cache in memory; its limit in bytes follows.
const ramPrefix = "ram:"

// RAMCache names the cache in memory of at most limit bytes, where a cache directory is asked for.
func RAMCache(limit int64) string { return ramPrefix + strconv.FormatInt(limit, 10) }

// ramLimit returns the limit of a cache in memory; ok is false if cache is a directory.
func ramLimit(cache string) (limit int64, ok bool) {
	text, ok := strings.CutPrefix(cache, ramPrefix)
	if !ok {
		return 0, false
	}
	limit, err := strconv.ParseInt(text, 10, 64)
	return limit, err == nil && limit > 0
}

// place is where the daemon of one cache directory is met.
type place struct {
	cache, run, state, name string
}

func newPlace(h Home, cache string) place {
	if cache == "" {
		cache = h.Cache
	}
	if _, ok := ramLimit(cache); !ok {
		cache = realPath(cache)
	}
	return place{cache: cache, run: h.Run, state: h.State, name: daemonName(cache)}
}

func (p place) socket() string   { return filepath.Join(p.run, p.name+".sock") }
func (p place) record() string   { return filepath.Join(p.run, p.name+".json") }
func (p place) starting() string { return filepath.Join(p.run, p.name+".lock") }
func (p place) ram() string      { return filepath.Join(p.run, p.name+".ram") } // what a cache in memory has on disk
func (p place) log() string      { return filepath.Join(p.state, p.name+".log") }
func (p place) left() string     { return filepath.Join(p.run, p.name+".left") } // mounts that were detached, see leftMount

// helper is the daemon's private directory for its mount helper.
func (p place) helper() string { return filepath.Join(p.run, p.name+".bin") }

// covers reports whether a mount at target would hide path.
func covers(target, path string) bool {
	return path == target || target == "/" || strings.HasPrefix(path, target+"/")
}
