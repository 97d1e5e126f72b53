package fusefs_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/skimfs/skimfs/fusefs"
	"github.com/skimfs/skimfs/index"
)

// TestMain lets the test binary play the mount helper, and prepares it.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == fusefs.HelperName {
		os.Exit(fusefs.Fusermount(os.Args[1:]))
	}
	if target := os.Getenv(serveVariable); target != "" {
		os.Exit(serve(target))
	}
	os.Exit(run(m))
}

// toolPath is the PATH of subprocesses; that of the process itself leads to the mount helper only.
var toolPath = os.Getenv("PATH")

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "fusefs-helper-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := fusefs.PrepareHelper(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// serveVariable makes the test binary mount a small image on the directory it names, as another user or elsewhere, until its
// input ends.
const serveVariable = "FUSEFS_TEST_SERVE"

func serve(target string) int {
	fail := func(err error) int {
		fmt.Println("serving:", err)
		return 1
	}
	if err := fusefs.PrepareHelper(target + ".helper"); err != nil {
		return fail(err)
	}
	s := newStore()
	root := newDir(0o755)
	secret := &index.Inode{Attr: attr(index.ModeRegular | 0o600)}
	content := []byte("secret\n")
	secret.Size, secret.Chunks = int64(len(content)), []index.Digest{index.DigestOf(content)}
	s.objects[secret.Chunks[0]] = content
	root.Children["secret"] = &index.Entry{Inode: secret}
	ref, err := index.BuildImage(root, index.ImageInfo{}, nil, s.put)
	if err != nil {
		return fail(err)
	}
	cat, err := s.load(context.Background(), ref.Catalog)
	if err != nil {
		return fail(err)
	}
	tree, err := index.NewTree(cat)
	if err != nil {
		return fail(err)
	}
	owner := fusefs.Owner{UID: id(uint32(os.Getuid())), GID: id(uint32(os.Getgid()))}
	core, err := fusefs.New(fusefs.Config{Tree: tree, Chunks: s, Owner: owner})
	if err != nil {
		return fail(err)
	}
	defer core.Close()
	m, err := fusefs.Mount(core, target, fusefs.Options{Source: "a,b"})
	if err != nil {
		return fail(err)
	}
	fmt.Println("mounted")
	io.Copy(io.Discard, os.Stdin)
	if err := fusefs.Unmount(target, false); err != nil {
		return fail(err)
	}
	m.Wait()
	fmt.Println("unmounted")
	return 0
}

func id(n uint32) *uint32 { return &n }
