package publishd_test

import (
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publishd"
)

// A recipe's images are operations of their own; it ends with the last of them, and fails if one does.
func TestARecipeConvertsListsAndPatterns(t *testing.T) {
	t.Parallel()
	registry := testkit.StartRegistry(t)
	image := layout(t)
	for _, name := range []string{"tools/gcc:13.1", "tools/gcc:13.2", "tools/gcc:14.1", "base/debian:12"} {
		registry.Push(image, name)
	}
	s := newService(t, "--backoff", "10ms")
	recipe := func(lines ...string) string {
		file := filepath.Join(t.TempDir(), "wishes.yaml")
		text := "version: 1\ninput:\n"
		for _, line := range lines {
			text += "  - '" + registry.Addr + "/" + line + "'\n"
		}
		write(t, file, text)
		return file
	}
	children := func(id string) (names []string) {
		all, err := s.List(t.Context(), url.Values{"parent": {id}})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range all {
			names = append(names, strings.TrimPrefix(o.Metadata.As, registry.Addr+"/")+" "+string(o.Metadata.State))
		}
		return names
	}
	var o publishd.Operation
	decode(t, s.ok("submit", "--recipe", recipe("base/debian:12", "tools/gcc:13.*"), "--wait", "--json"), &o)
	if o.Metadata.State != publishd.Succeeded || o.Metadata.Children != 3 || o.Metadata.ChildrenDone != 3 || len(o.Response) != 3 {
		t.Errorf("%+v, %d results", o.Metadata, len(o.Response))
	}
	got := strings.Join(children(o.ID()), ", ")
	if want := "base/debian:12 SUCCEEDED, tools/gcc:13.1 SUCCEEDED, tools/gcc:13.2 SUCCEEDED"; got != want {
		t.Errorf("its images: %s, want %s", got, want)
	}
	out, _, status := s.run("submit", "--recipe", recipe("base/debian:12", "base/none:1"), "--wait", "--json")
	o = publishd.Operation{}
	decode(t, out, &o)
	if status != 1 || o.Error == nil || o.Error.Reason != publishd.ChildrenFailed || len(o.Response) != 0 {
		t.Errorf("with an image that is not there: status %d, %+v", status, o)
	}
	if _, errs, status := s.run("submit", "--recipe", recipe("tools/gcc:15.*"), "--wait"); status != 1 || !strings.Contains(errs, "match") {
		t.Errorf("with a pattern that nothing matches: status %d, %s", status, errs)
	}
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	write(t, bad, "version: 1\nimages: [a]\n")
	if _, errs, status := s.run("submit", "--recipe", bad); status != 2 {
		t.Errorf("an unknown key: status %d, %s", status, errs)
	}
}

// A recipe that failed is tried again where it failed, and there only.
func TestRetryingARecipeRetriesWhatFailed(t *testing.T) {
	t.Parallel()
	registry := testkit.StartRegistry(t)
	registry.Push(layout(t), "a/image:1")
	s := newService(t, "--backoff", "10ms")
	o := s.done(s.submit(publishd.Request{Kind: publishd.ConvertMany, Source: "version: 1\ninput: [" + registry.Addr + "/a/image:1, " + registry.Addr + "/a/later:1]\n"}).ID())
	if o.Metadata.State != publishd.Failed {
		t.Fatalf("%+v", o.Metadata)
	}
	before, err := s.Find(t.Context(), registry.Addr+"/a/image:1")
	if err != nil {
		t.Fatal(err)
	}
	registry.Push(layout(t), "a/later:1")
	s.ok("op", "retry", o.ID())
	if o = s.done(o.ID()); o.Metadata.State != publishd.Succeeded || len(o.Response) != 2 {
		t.Errorf("%+v, %+v", o.Metadata, o.Error)
	}
	if after := s.get(before.ID()); after.Metadata.Job != before.Metadata.Job {
		t.Errorf("what had succeeded ran again as job %s", after.Metadata.Job)
	}
}

// Cancelling a recipe cancels its images, that which runs included.
func TestCancellingARecipeCancelsItsImages(t *testing.T) {
	t.Parallel()
	s, release := holding(t)
	defer release()
	registry := testkit.StartRegistry(t)
	registry.Push(layout(t), "a/image:1")
	registry.Push(layout(t), "a/image:2")
	o := s.submit(publishd.Request{Kind: publishd.ConvertMany, Source: "version: 1\ninput: ['" + registry.Addr + "/a/image:*']\n"})
	s.await("its images", func() bool { return s.get(o.ID()).Metadata.Children == 2 })
	if _, err := s.Cancel(t.Context(), o.ID()); err != nil {
		t.Fatal(err)
	}
	if done := s.done(o.ID()); done.Metadata.State != publishd.Cancelled || done.Metadata.ChildrenDone != 2 {
		t.Errorf("%+v", done.Metadata)
	}
	all, err := s.List(t.Context(), url.Values{"parent": {o.ID()}})
	if err != nil || len(all) != 2 {
		t.Fatalf("%d images: %v", len(all), err)
	}
	for _, c := range all {
		if c.Metadata.State != publishd.Cancelled {
			t.Errorf("%s is %s", c.Metadata.As, c.Metadata.State)
		}
	}
}

// Prefetch has the mounts' daemon of this machine bring an image, all of it.
func TestPrefetchWarmsThisNode(t *testing.T) {
	t.Parallel()
	s := newService(t, "--backoff", "10ms", "--attempts", "2")
	s.done(s.submit(publishd.Request{Source: "dir:" + tree(t, "warm me"), As: "local/x:1"}).ID())
	server := testkit.StartNginx(t, s.repo)
	image := server.URL + "#local/x:1"
	if out, errs, status := s.run("submit", "--prefetch", image, "--wait", "--timeout", "60s"); status != 0 {
		t.Fatalf("status %d\n%s%s", status, out, errs)
	}
	// The server may go: it is all here.
	server.Stop()
	if got := s.ok("cat", image, "/file"); got != "warm me" {
		t.Errorf("/file holds %q", got)
	}
	if _, errs, status := s.run("submit", "--prefetch", strings.Replace(image, "local/x:1", "local/none:1", 1), "--wait", "--timeout", "60s"); status != 1 || !strings.Contains(errs, "prefetch") {
		t.Errorf("of an image that is not there: status %d, %s", status, errs)
	}
}
