package publish_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/skimfs/skimfs/publish"
)

// Many publish into one repository at a time, and one whose registry says nothing keeps nobody waiting.
func TestPublishesOfOneRepositoryRunSideBySide(t *testing.T) {
	r := newRepo(t)
	hang := make(chan struct{})
	asked := make(chan struct{}, 10)
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked <- struct{}{}; <-hang }))
	defer silent.Close()
	defer close(hang)
	open := func() *publish.Repo {
		repo, err := publish.Open(r.config())
		if err != nil {
			t.Fatal(err)
		}
		return repo
	}
	slow := make(chan error, 1)
	go func() {
		_, err := open().Publish(t.Context(), source(t, "docker://"+host(silent)+"/a/b:1"), "", publish.Options{RegistryTimeout: time.Minute})
		slow <- err
	}()
	<-asked
	var all sync.WaitGroup
	for i := range 8 {
		dir := filepath.Join(t.TempDir(), "image")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte(fmt.Sprint("content ", i)), 0o644); err != nil {
			t.Fatal(err)
		}
		src, repo := source(t, "dir:"+dir), open()
		all.Go(func() {
			if _, err := repo.Publish(t.Context(), src, fmt.Sprintf("local/n%d:1", i), publish.Options{}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	select {
	case err := <-slow:
		t.Errorf("the publish from a silent registry ended: %v", err)
	default:
	}
	r.open()
	for i := range 8 {
		if got := r.read(fmt.Sprintf("local/n%d:1/file", i)); got != fmt.Sprint("content ", i) {
			t.Errorf("image %d reads %q", i, got)
		}
	}
	r.verified()
	if left, _ := filepath.Glob(filepath.Join(r.dir, ".publish", "writing*")); len(left) > 0 {
		t.Errorf("marks are left over: %q", left)
	}
	if got := r.Manifest().Revision; got != 9 {
		t.Errorf("revision %d, want 9: the first and one for each image", got)
	}
}
