package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serveTree serves a directory with a few files as a repository and returns its URL.
func serveTree(t *testing.T, files ...string) (url string, stop func() error) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("content of "+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serveHTTP(ctx, l, repoHandler{root}) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { stop(); root.Close() })
	return "http://" + l.Addr().String(), stop
}

func TestServeGivesWhatIsPublicAndNothingElse(t *testing.T) {
	object := "objects/ab/ab" + strings.Repeat("0", 62) + ".zst"
	url, stop := serveTree(t, "manifest", "whitelist", "revisions/7", object, ".publish/lock", "objects/ab/ab.zst", "secret", object+".tmp")
	for _, row := range []struct {
		path   string
		status int
		cache  string
	}{
		{"manifest", 200, "public, max-age=60"}, {"whitelist", 200, "public, max-age=60"}, {"revisions/7", 200, "public, max-age=31536000, immutable"},
		{object, 200, "public, max-age=31536000, immutable"},
		{".publish/lock", 404, ""}, {"secret", 404, ""}, {"", 404, ""}, {"objects/", 404, ""}, {"objects/ab/ab.zst", 404, ""}, {object + ".tmp", 404, ""},
		{"objects/../.publish/lock", 404, ""}, {"%2epublish/lock", 404, ""}, {"revisions/../secret", 404, ""}, {"manifest/", 404, ""}, {"./manifest", 404, ""}, {"revisions/x", 404, ""},
		{"objects/cd/cd" + strings.Repeat("0", 62) + ".zst", 404, "max-age=5"},
	} {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Opaque = "//" + req.URL.Host + "/" + row.path
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != row.status || resp.Header.Get("Cache-Control") != row.cache || row.status == 200 && string(body) != "content of "+row.path {
			t.Errorf("%q: %d, cache %q, %q; want %d, %q", row.path, resp.StatusCode, resp.Header.Get("Cache-Control"), body, row.status, row.cache)
		}
	}
	resp, err := http.Post(url+"/manifest", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", resp.StatusCode)
	}
	if err := stop(); err != nil {
		t.Errorf("stopping: %v", err)
	}
}

func TestServeLogsRequests(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "manifest"), []byte("12345"), 0o644); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var log strings.Builder
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serveHTTP(ctx, l, logRequests(repoHandler{root}, &log)) }()
	for _, path := range []string{"/manifest", "/none"} {
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, want := range []string{" GET /manifest 200 5 0.", " GET /none 404 19 0."} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %q in %q", want, log.String())
		}
	}
}

func TestServeFinishesWhatIsUnderWay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	begun := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- serveHTTP(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(begun)
			<-ctx.Done()
			time.Sleep(50 * time.Millisecond) // the server is stopping by now
			fmt.Fprint(w, "whole")
		}))
	}()
	go func() {
		<-begun
		cancel()
	}()
	resp, err := http.Get("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "whole" {
		t.Errorf("%q, %v", body, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
