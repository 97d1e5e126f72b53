package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/skimfs/skimfs/publish"
)

func publishCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "publish --repo DIR SOURCE [AS]",
		GroupID: "repo",
		Short:   "Add an image to a repository",
		Long: `Convert an image and make a new revision of the repository with it. SOURCE is one of

  docker://REF               a registry; credentials come from docker's config, localhost is asked over plain HTTP
  oci:DIR[:TAG]              an OCI layout
  oci-archive:FILE[:TAG]     an OCI layout in a tar file, read in place
  docker-archive:FILE[:REF]  what docker save writes, read in place
  dir:PATH                   a directory

AS is the image's name in the repository, registry/repository:tag. Without it, that is the canonical reference of a docker:// source
(docker.io/library/debian:12), the first tag in a docker-archive, and local/NAME:TAG for the others, where NAME is the last part of
the path and TAG the image's tag or "latest".

Mount points and .singularity.d are added where the image has none, unless --bare is given. Layers that were published before are not
read again. A publish may be interrupted at any time: the repository stays valid, and the next one goes on.

Exit status: 0 done, 1 failed, 2 usage.`,
		Example: `  skimfs publish --repo /srv/images docker://debian:12
  skimfs publish --repo /srv/images --platform all docker://python:3.12
  skimfs publish --repo /srv/images oci:./layout:v1 local/tools:v1`,
		Args: cobra.RangeArgs(1, 2),
	}
	repo := cmd.Flags().String("repo", "", "directory of the repository (required)")
	keys := publisherKeys(cmd)
	platform := cmd.Flags().String("platform", "", "os/arch[/variant], or all for every platform; another machine's is named TAG@os-arch, unless AS says otherwise (default linux on this machine's architecture)")
	bare := cmd.Flags().Bool("bare", false, "add nothing to the image")
	asJSON := cmd.Flags().Bool("json", false, "print the result as JSON, one line for each image")
	maxBytes := cmd.Flags().Int64("max-bytes", 1<<40, "ceiling on the plain bytes of a layer")
	maxEntries := cmd.Flags().Int64("max-entries", 8<<20, "ceiling on the entries of a layer, and of the image")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *repo == "" {
			return usage(cmd, errors.New("publish: --repo is missing"))
		}
		src, err := publish.ParseSource(args[0])
		if err != nil {
			return usage(cmd, err)
		}
		as := ""
		if len(args) == 2 {
			as = args[1]
			if err := publish.CheckName(as); err != nil {
				return &statusError{status: exitUsage, hint: "an example: docker.io/library/debian:12", err: err}
			}
		}
		opt := publish.Options{Bare: *bare, All: *platform == "all", Progress: &publish.Progress{}, Limits: publish.Limits{Bytes: *maxBytes, Entries: *maxEntries}}
		if *platform != "" && !opt.All {
			if opt.Platform, err = publish.ParsePlatform(*platform); err != nil {
				return usage(cmd, err)
			}
		}
		r, err := openRepo(cmd, *repo, *keys)
		if err != nil {
			return err
		}
		stop := showProgress(cmd.Context(), cmd.ErrOrStderr(), opt.Progress)
		results, err := r.Publish(cmd.Context(), src, as, opt)
		stop()
		if err != nil {
			return repoError(err)
		}
		for _, res := range results {
			if *asJSON {
				if err := json.NewEncoder(cmd.OutOrStdout()).Encode(res); err != nil {
					return err
				}
				continue
			}
			printResult(cmd.OutOrStdout(), res)
		}
		return nil
	}
	return cmd
}

func printResult(w io.Writer, r publish.Result) {
	fmt.Fprintf(w, "published %s: %d layers (%d read), %d files, %s\n", r.Name, r.Layers, r.LayersRead, r.Files, size(r.Bytes))
	fmt.Fprintf(w, "  image     /%s (slot %d)\n", r.Flat, r.Slot)
	fmt.Fprintf(w, "  objects   %d, %s compressed, %d new; %d catalogs\n", r.Objects, size(r.Compressed), r.NewObjects, r.Catalogs)
	if r.Changed {
		fmt.Fprintf(w, "  revision  %d in %.2f s\n", r.Revision, r.Seconds)
	} else {
		fmt.Fprintf(w, "  revision  %d as before, in %.2f s\n", r.Revision, r.Seconds)
	}
}

// showProgress shows bars on a terminal and now and then a line elsewhere, until the returned function is called.
func showProgress(ctx context.Context, w io.Writer, p *publish.Progress) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		done.Go(func() { bars(ctx, f, p) })
	} else {
		done.Go(func() { lines(ctx, w, p) })
	}
	return func() {
		cancel()
		done.Wait()
	}
}

func lines(ctx context.Context, w io.Writer, p *publish.Progress) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			fmt.Fprintf(w, "publishing: %d of %d layers, %s of %s read, %d files\n", p.LayersDone.Load(), p.Layers.Load(), size(p.BlobBytes.Load()), size(p.BlobTotal.Load()), p.Files.Load())
		}
	}
}

func bars(ctx context.Context, w io.Writer, p *publish.Progress) {
	all := mpb.New(mpb.WithOutput(w), mpb.WithAutoRefresh())
	read := all.AddBar(0, mpb.BarRemoveOnComplete(), mpb.PrependDecorators(decor.Name("read   "), decor.CountersKibiByte("% .1f / % .1f")),
		mpb.AppendDecorators(decor.AverageSpeed(decor.SizeB1024(0), "% .1f")))
	layers := all.AddBar(0, mpb.BarRemoveOnComplete(), mpb.PrependDecorators(decor.Name("layers "), decor.CountersNoUnit("%d / %d")),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			return fmt.Sprintf("%d files, %s", p.Files.Load(), size(p.Bytes.Load()))
		})))
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		read.SetTotal(p.BlobTotal.Load(), false)
		read.SetCurrent(p.BlobBytes.Load())
		layers.SetTotal(p.Layers.Load(), false)
		layers.SetCurrent(p.LayersDone.Load())
		select {
		case <-ctx.Done():
			read.Abort(true)
			layers.Abort(true)
			all.Wait()
			return
		case <-tick.C:
		}
	}
}

// plainLog writes log records as lines for people.
type plainLog struct{ w io.Writer }

func (plainLog) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h plainLog) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	if r.Level >= slog.LevelWarn {
		b.WriteString("warning: ")
	}
	b.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, ", %s %v", a.Key, a.Value)
		return true
	})
	_, err := fmt.Fprintf(h.w, "skimfs: %s\n", b.String())
	return err
}

func (h plainLog) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h plainLog) WithGroup(string) slog.Handler      { return h }
