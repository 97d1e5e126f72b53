package publishd_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publishd"
)

// TestBuildsFromAnImageInTheLocalRegistry: buildah, for real, over plain HTTP from loopback, and what it made can be read in the repository.
func TestBuildsFromAnImageInTheLocalRegistry(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t)
	testkit.Program(t, "buildah")
	base := testkit.StartRegistry(t).Push(layout(t), "library/base:1")
	dir := tree(t, "brought along")
	write(t, filepath.Join(dir, "Containerfile"), "ARG BASE\nFROM $BASE\nCOPY file /srv/added\nENV GREETING=hello\n")
	s := newService(t)
	o := s.done(s.submit(publishd.Request{Kind: publishd.Build, Source: dir, As: "local/built:1", Args: map[string]string{"BASE": base}}).ID())
	if o.Metadata.State != publishd.Succeeded {
		log, _ := os.ReadFile(filepath.Join(s.home, "publishd.log"))
		t.Fatalf("%+v\n%s", o, log)
	}
	if got, errs, _ := s.cat("local/built:1", "/srv/added"); got != "brought along" {
		t.Errorf("/srv/added holds %q, %s", got, errs)
	}
	if got, errs, _ := s.cat("local/built:1", "/.singularity.d/env/10-docker2singularity.sh"); !strings.Contains(got, "GREETING") {
		t.Errorf("the environment lacks what the Containerfile sets:\n%s%s", got, errs)
	}
}

// TestABuildThatFailsSaysSo, and is not tried again: the same Containerfile would fail the same way.
func TestABuildThatFailsSaysSo(t *testing.T) {
	t.Parallel()
	testkit.NeedRoot(t)
	testkit.Program(t, "buildah")
	dir := tree(t, "")
	write(t, filepath.Join(dir, "Containerfile"), "FROM scratch\nCOPY missing /\n")
	s := newService(t)
	o := s.done(s.submit(publishd.Request{Kind: publishd.Build, Source: dir, As: "local/built:1"}).ID())
	if o.Metadata.State != publishd.Failed || o.Error == nil || !strings.Contains(o.Error.Detail, "buildah") {
		t.Errorf("%+v", o)
	}
}

// builder is a user who has further users in a namespace of his, as /etc/subuid gives them.
const builder = 20044

// withBuilder is what publishd sees in place of the machine's lists of users.
func withBuilder(t *testing.T) map[string]string {
	t.Helper()
	testkit.NeedRoot(t)
	testkit.Program(t, "buildah")
	testkit.Program(t, "newuidmap")
	dir := t.TempDir()
	letIn(t, dir)
	binds := map[string]string{}
	for path, line := range map[string]string{"/etc/passwd": "builder:x:20044:20044::/nonexistent:/bin/sh", "/etc/group": "builder:x:20044:", "/etc/subuid": "builder:200000:65536", "/etc/subgid": "builder:200000:65536"} {
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		binds[path] = filepath.Join(dir, filepath.Base(path))
		write(t, binds[path], string(old)+line+"\n")
	}
	return binds
}

// buildContext is a directory of the builder's, whose Containerfile runs a program of this machine on top of an image of a registry, and copies a file
// for another user.
func buildContext(t *testing.T) string {
	t.Helper()
	base := testkit.StartRegistry(t).Push(layout(t), "library/base:1")
	dir := tree(t, "brought along")
	letIn(t, dir)
	lib := filepath.Join(dir, "lib")
	if err := os.Mkdir(lib, 0o755); err != nil {
		t.Fatal(err)
	}
	touch := testkit.Program(t, "touch")
	loader := ""
	for _, word := range strings.Fields(testkit.Run(t, "ldd", touch) + " " + touch) {
		if strings.HasPrefix(word, "/") {
			testkit.Run(t, "cp", "-L", word, lib)
		}
		if strings.HasPrefix(filepath.Base(word), "ld-") {
			loader = "/lib.test/" + filepath.Base(word)
		}
	}
	write(t, filepath.Join(dir, "Containerfile"), "FROM "+base+"\nCOPY lib /lib.test\nCOPY --chown=1234:1234 file /srv/added\n"+
		`RUN ["`+loader+`", "--library-path", "/lib.test", "/lib.test/touch", "/srv/made"]`+"\n")
	if err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, builder, builder))
	}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// checkBuilt checks what is in the repository, and that nothing is left besides.
func (s *service) checkBuilt() {
	s.t.Helper()
	for file, want := range map[string]string{"/srv/added": "brought along", "/srv/made": ""} {
		out, errs, status := s.cat("local/built:1", file)
		if status != 0 || out != want {
			s.t.Errorf("%s: %q, status %d\n%s", file, out, status, errs)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(s.home, "state", "publishd", "spool", "*")); len(left) > 0 {
		s.t.Errorf("it left %q", left)
	}
}

// TestAUserBuildsWithoutTheServicesRights: the service is root's, buildah runs as the user in a namespace of his, and the service then reads a
// copy that was made with his rights.
func TestAUserBuildsWithoutTheServicesRights(t *testing.T) {
	t.Parallel()
	binds := withBuilder(t)
	dir := buildContext(t)
	s := newService(t)
	s.stop()
	s.binds = binds
	s.start()
	s.open()
	out, status := s.as(builder, nil, "submit", "--build", dir, "local/built:1", "--wait", "--timeout", "60s")
	id, _, _ := strings.Cut(out, " ")
	log := s.ok("op", "logs", "local/built:1")
	if status != 0 {
		t.Fatalf("status %d\n%s\n%s", status, out, log)
	}
	s.checkBuilt()
	if !strings.Contains(log, "stage copy") {
		t.Errorf("operation %s read what he had built with the service's own rights:\n%s", id, log)
	}
}

// TestAnOrdinaryUsersServiceBuilds: all of it is one user's, who has no rights but a namespace. What a build leaves there, when it is killed, is
// removed at the next start.
func TestAnOrdinaryUsersServiceBuilds(t *testing.T) {
	t.Parallel()
	binds := withBuilder(t)
	dir := buildContext(t)
	s := newService(t)
	s.stop()
	s.program()
	own := func(path string, uid int) {
		if err := filepath.WalkDir(path, func(path string, _ os.DirEntry, err error) error { return errors.Join(err, os.Lchown(path, uid, uid)) }); err != nil {
			t.Fatal(err)
		}
	}
	left := filepath.Join(s.home, "state", "publishd", "spool", "left", "sub")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(left, "file"), "x")
	own(s.home, builder)
	own(left, 200001)
	s.binds, s.user, s.env = binds, builder, []string{"HOME=" + s.home}
	s.start()
	if _, err := os.Stat(left); err == nil {
		t.Errorf("what a killed build left is there\n%s", s.log())
	}
	out, status := s.as(builder, nil, "submit", "--build", dir, "local/built:1", "--wait", "--timeout", "60s")
	if status != 0 {
		t.Fatalf("status %d\n%s\n%s", status, out, s.ok("op", "logs", "local/built:1"))
	}
	s.checkBuilt()
}

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
