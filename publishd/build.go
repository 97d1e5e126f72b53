package publishd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/publish"
)

// credential gives a command the caller's rights; nil if they are ours.
func (w *worker) credential() (*syscall.Credential, error) {
	r := w.Local
	if r == nil {
		return nil, problem(PermissionDenied, "local sources are taken over the local socket only")
	}
	if r.UID == os.Geteuid() {
		return nil, nil
	}
	if os.Geteuid() != 0 {
		return nil, problem(PermissionDenied, "this service reads files of user %d only", os.Geteuid())
	}
	return &syscall.Credential{Uid: uint32(r.UID), Gid: uint32(r.GID), Groups: r.Groups}, nil
}

// command prepares a program that ends with this process and has the caller's rights.
func (w *worker) command(ctx context.Context, c *syscall.Credential, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c}
	cmd.Stderr = w.stderr
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"}
	for _, name := range []string{"HOME", "TMPDIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		if v := os.Getenv(name); v != "" && c == nil {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	return cmd
}

// asCaller returns a source that can be read with our rights and holds what the caller may read: his own if he is us, else a copy that
// a program with his rights made.
func (w *worker) asCaller(ctx context.Context, source string) (string, error) {
	c, err := w.credential()
	if err != nil || c == nil {
		return source, err
	}
	w.report("copy")
	src, err := publish.ParseSource(source)
	if err != nil {
		return "", err
	}
	copied := filepath.Join(w.Spool, "source.tar")
	f, err := os.OpenFile(copied, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var said bytes.Buffer
	var cmd *exec.Cmd
	// Not "cat FILE" alone: a device has no end, and a pipe may have no beginning.
	const catFile = `[ -f "$1" ] || { echo "no file of that name, or not a plain one" >&2; exit 1; }; exec cat -- "$1"`
	switch src.Kind() {
	case "dir":
		cmd = w.command(ctx, c, "tar", "--create", "--format=pax", "--xattrs", "--acls", "--numeric-owner", "--sparse", "-C", src.Path(), ".")
	case "oci":
		cmd = w.command(ctx, c, "tar", "--create", "-C", src.Path(), ".")
	default:
		cmd = w.command(ctx, c, "sh", "-c", catFile, "sh", src.Path())
	}
	out := &roomy{File: f, reserve: w.Reserve, copied: &w.copied}
	cmd.Stdout, cmd.Stderr = out, io.MultiWriter(w.stderr, &said)
	if err := cmd.Run(); err != nil {
		switch {
		case ctx.Err() != nil:
			return "", ctx.Err()
		case out.err != nil:
			return "", out.err
		}
		return "", problem(PermissionDenied, "reading %s with the rights of user %d: %s", source, c.Uid, strings.TrimSpace(firstLine(said.String())))
	}
	tag := ""
	if rest := strings.TrimPrefix(source, src.Kind()+":"+src.Path()); strings.HasPrefix(rest, ":") {
		tag = rest
	}
	switch src.Kind() {
	case "dir":
		return w.layoutOf(copied)
	case "oci":
		return "oci-archive:" + copied + tag, nil
	}
	return src.Kind() + ":" + copied + tag, nil
}

// roomy writes to a file as long as its disk has room.
type roomy struct {
	*os.File
	reserve int64         // bytes that stay free
	copied  *atomic.Int64 // bytes
	looked  int64         // bytes that were copied when room was looked for last
	err     error         // why it ended
}

func (r *roomy) Write(p []byte) (int, error) {
	const often = 16 << 20
	if r.copied.Load()-r.looked >= often || r.looked == 0 {
		r.looked = max(1, r.copied.Load())
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(r.Fd()), &st); err == nil && int64(st.Bavail)*int64(st.Bsize) < r.reserve+often {
			r.err = problem(NoSpace, "the copy would leave less than %d bytes free", r.reserve).temporary()
			return 0, r.err
		}
	}
	n, err := r.File.Write(p)
	r.copied.Add(int64(n))
	r.err = err
	return n, err
}

// layoutOf wraps a tar archive into an OCI layout of one layer.
func (w *worker) layoutOf(archive string) (string, error) {
	dir := filepath.Join(w.Spool, "layout")
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o700); err != nil {
		return "", err
	}
	layer, size, err := fileDigest(archive)
	if err != nil {
		return "", err
	}
	if err := os.Rename(archive, filepath.Join(blobs, strings.TrimPrefix(layer, "sha256:"))); err != nil {
		return "", err
	}
	p := publish.HostPlatform()
	put := func(v any) (map[string]any, error) {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		d := digestOf(b)
		return map[string]any{"digest": d, "size": len(b)}, os.WriteFile(filepath.Join(blobs, strings.TrimPrefix(d, "sha256:")), b, 0o600)
	}
	config, err := put(map[string]any{"os": p.OS, "architecture": p.Arch, "rootfs": map[string]any{"type": "layers", "diff_ids": []string{layer}}})
	if err != nil {
		return "", err
	}
	config["mediaType"] = "application/vnd.oci.image.config.v1+json"
	manifest, err := put(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config,
		"layers": []any{map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": size}},
	})
	if err != nil {
		return "", err
	}
	manifest["mediaType"] = "application/vnd.oci.image.manifest.v1+json"
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{manifest}})
	if err != nil {
		return "", err
	}
	return "oci:" + dir, errors.Join(os.WriteFile(filepath.Join(dir, "index.json"), index, 0o600), os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600))
}

// plainLoopback has registries on loopback asked over plain HTTP where they know no TLS; all others must show a certificate.
const plainLoopback = `[[registry]]
location = "localhost"
insecure = true

[[registry]]
location = "127.0.0.1"
insecure = true
`

// allowPlainLoopback adds plainLoopback to the machine's registries.conf for a buildah whose home is dir.
func allowPlainLoopback(dir string) error {
	dir = filepath.Join(dir, ".config", "containers", "registries.conf.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "skimfs.conf"), []byte(plainLoopback), 0o644)
}

// ownCredentials is the docker config of the service's own user, empty if there is none.
func ownCredentials() string {
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	file := filepath.Join(home, ".docker", "config.json")
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}

// build makes an image with buildah and returns it as a source. Images that are built from come from where the Containerfile says; ones on
// loopback over plain HTTP.
func (w *worker) build(ctx context.Context) (string, error) {
	w.report("build")
	c, err := w.credential()
	if err != nil {
		return "", err
	}
	buildah, err := exec.LookPath("buildah")
	if err != nil {
		return "", problem("UNSUPPORTED_MEDIA", "this service builds with buildah, which is not installed")
	}
	// Beside it, where he has no rights, the image is copied to.
	dir := filepath.Join(w.Spool, "build")
	if err := allowPlainLoopback(dir); err != nil {
		return "", err
	}
	if c != nil {
		his := func(path string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, int(c.Uid), int(c.Gid)))
		}
		if err := errors.Join(os.Chmod(w.Spool, 0o711), os.Chmod(dir, 0o700), filepath.WalkDir(dir, his)); err != nil {
			return "", err
		}
	}
	file := w.Request.File
	if file != "" && !filepath.IsAbs(file) {
		file = filepath.Join(w.Request.Source, file)
	}
	store := []string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}
	args := append([]string{}, store...)
	args = append(args, "build", "--isolation", "chroot", "--layers=false", "--ulimit", "nofile=1024:1024", "--ulimit", "core=0:0", "--tag", "skimfs-build", "--format", "oci")
	for k, v := range w.Request.Args {
		args = append(args, "--build-arg", k+"="+v)
	}
	if file != "" {
		args = append(args, "--file", file)
	}
	run := func(args ...string) error {
		if args = append([]string{buildah}, args...); w.Memory > 0 {
			// chroot isolation knows no cgroup: the limit holds for each process of the build.
			args = append([]string{"prlimit", fmt.Sprintf("--data=%d", w.Memory), "--"}, args...)
		}
		cmd := w.command(ctx, c, args[0], args[1:]...)
		cmd.Stdout = w.stderr
		cmd.Env = append(cmd.Env, "TMPDIR="+dir, "BUILDAH_ISOLATION=chroot", "XDG_RUNTIME_DIR="+dir, "HOME="+dir)
		if auth := ownCredentials(); c == nil && auth != "" {
			cmd.Env = append(cmd.Env, "REGISTRY_AUTH_FILE="+auth)
		}
		if err := cmd.Run(); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return problem(BuildFailed, "buildah: %v; the log says more", err)
		}
		return nil
	}
	if err := run(append(args, w.Request.Source)...); err != nil {
		return "", err
	}
	out := filepath.Join(dir, "image")
	if err := run(append(store, "push", "--quiet", "skimfs-build", "oci:"+out+":latest")...); err != nil {
		return "", err
	}
	return "oci:" + out + ":latest", nil
}

// prefetch has this node's mountd warm an image.
func (w *worker) prefetch(ctx context.Context) ([]json.RawMessage, error) {
	w.report("prefetch")
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, self, "prefetch", "--", w.Request.Source)
	cmd.Stdout, cmd.Stderr = w.stderr, io.MultiWriter(w.stderr, &said)
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		p := problem(ServiceUnavailable, "prefetch: %s", strings.TrimSpace(firstLine(strings.TrimPrefix(said.String(), "skimfs: ")))).temporary()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 2 {
			p = problem(InvalidArgument, "%s", p.Detail)
		}
		return nil, p
	}
	b, err := json.Marshal(map[string]string{"source": w.Request.Source, "state": "warm"})
	return []json.RawMessage{b}, err
}
