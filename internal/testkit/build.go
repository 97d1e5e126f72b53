package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// moduleRoot returns the directory with go.mod.
func moduleRoot(t testing.TB) string {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Dir(filepath.Dir(filepath.Dir(file)))
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return root
}

// Build compiles cmd/skimfs, once a test binary, and returns its path. It is static, as `make build` has
// it; a test binary with the race detector gets a skimfs with that instead.
func Build(t testing.TB) string {
	t.Helper()
	path, err := builtSkimfs(moduleRoot(t))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var build struct {
	once sync.Once
	path string
	err  error
}

func builtSkimfs(root string) (string, error) {
	build.once.Do(func() { build.path, build.err = compile(root) })
	return build.path, build.err
}

// compile leaves the program in a directory named by this process. Nothing runs at the end of a
// test binary that could remove it: the next one removes the directories of those that ended.
func compile(root string) (string, error) {
	all := filepath.Join(os.TempDir(), fmt.Sprintf("skimfs-test-%d", os.Getuid()))
	dir := filepath.Join(all, strconv.Itoa(os.Getpid()))
	if old, err := os.ReadDir(all); err == nil {
		for _, entry := range old {
			if pid, err := strconv.Atoi(entry.Name()); err == nil && unix.Kill(pid, 0) == unix.ESRCH {
				os.RemoveAll(filepath.Join(all, entry.Name()))
			}
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "skimfs")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path)
	cmd.Env = os.Environ()
	if raceEnabled {
		cmd.Args = append(cmd.Args, "-race")
	} else {
		cmd.Env = append(cmd.Env, "CGO_ENABLED=0")
	}
	cmd.Args = append(cmd.Args, "./cmd/skimfs")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build ./cmd/skimfs: %w\n%s", err, out)
	}
	return path, nil
}
