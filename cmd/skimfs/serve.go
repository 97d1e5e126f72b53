package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/index"
)

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "serve DIR",
		GroupID: "repo",
		Short:   "Serve a repository over HTTP",
		Long: `Serve a repository over HTTP until it is interrupted. It needs nothing but the files, so any web server can take its place:
packaging/nginx/skimfs.conf is a sample for nginx.

Exit status: 0 done, 1 failed, 2 usage.`,
		Example: "  skimfs serve /srv/images\n  skimfs serve /srv/images --listen :8580 --log",
		Args:    cobra.ExactArgs(1),
	}
	listen := cmd.Flags().String("listen", "127.0.0.1:8580", "address and port")
	log := cmd.Flags().Bool("log", false, "write a line for each request to stderr")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		text, err := os.ReadFile(filepath.Join(args[0], "manifest"))
		if err != nil {
			return &statusError{status: exitFailed, hint: "skimfs repo create makes a repository", err: fmt.Errorf("serving %s: %w", args[0], err)}
		}
		name, err := index.ManifestName(text)
		if err != nil {
			return fmt.Errorf("serving %s: %w", args[0], err)
		}
		root, err := os.OpenRoot(args[0])
		if err != nil {
			return fmt.Errorf("serving: %w", err)
		}
		defer root.Close()
		l, err := net.Listen("tcp", *listen)
		if err != nil {
			return &statusError{status: exitFailed, hint: "choose another address with --listen", err: fmt.Errorf("serving: %w", err)}
		}
		fmt.Fprintf(cmd.OutOrStdout(), "serving %s at http://%s\n", name, l.Addr())
		var h http.Handler = repoHandler{root}
		if *log {
			h = logRequests(h, cmd.ErrOrStderr())
		}
		return serveHTTP(cmd.Context(), l, h)
	}
	return cmd
}

// serveHTTP serves until ctx ends, and then lets requests under way finish.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	failed := make(chan error, 1)
	go func() { failed <- s.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := s.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.Close()
	}
	<-failed
	return err
}

// repoHandler serves the public files of a repository, and nothing else that lies beside them.
type repoHandler struct{ root *os.Root }

func (h repoHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	name := strings.TrimPrefix(path.Clean(r.URL.Path), "/")
	cache, contentType, ok := publicFile(name)
	if !ok || name != strings.TrimPrefix(r.URL.Path, "/") {
		http.NotFound(w, r)
		return
	}
	f, err := h.root.Open(filepath.FromSlash(name))
	if err != nil {
		// A proxy must not remember for long what may be published in a moment.
		w.Header().Set("Cache-Control", "max-age=5")
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Cache-Control", cache)
	w.Header().Set("Content-Type", contentType)
	http.ServeContent(w, r, "", st.ModTime(), f)
}

// publicFile says how a file of a repository is served; ok is false for what is none.
func publicFile(name string) (cache, contentType string, ok bool) {
	const forEver = "public, max-age=31536000, immutable"
	switch parts := strings.Split(name, "/"); {
	case name == "manifest", name == "whitelist":
		return "public, max-age=60", "text/plain; charset=utf-8", true
	case len(parts) == 2 && parts[0] == "revisions" && parts[1] != "" && strings.Trim(parts[1], "0123456789") == "":
		return forEver, "text/plain; charset=utf-8", true
	case len(parts) == 3 && parts[0] == "objects" && len(parts[2]) == 68 && strings.HasSuffix(parts[2], ".zst") && parts[1] == parts[2][:2]:
		return forEver, "application/zstd", true
	}
	return "", "", false
}

// logRequests writes a line for each request: method, path, status, bytes, seconds.
func logRequests(h http.Handler, out io.Writer) http.Handler {
	var mu sync.Mutex // held while a line is written
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		c := &countingWriter{ResponseWriter: w, status: http.StatusOK}
		h.ServeHTTP(c, r)
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(out, "%s %s %s %d %d %.3f\n", r.RemoteAddr, r.Method, r.URL.EscapedPath(), c.status, c.bytes, time.Since(start).Seconds())
	})
}

type countingWriter struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *countingWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// ReadFrom keeps sendfile(2) in use.
func (w *countingWriter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(w.ResponseWriter, r)
	w.bytes += n
	return n, err
}
