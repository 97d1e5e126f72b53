package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/term"

	"github.com/skimfs/skimfs/fetch"
	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/mountd"
	"github.com/skimfs/skimfs/publish"
)

func repoMirror() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mirror URL DIR [IMAGE…]",
		Short: "Copy a repository from a server, or bring a copy up to date",
		Long: `Copy the current revision of the repository at URL into DIR, which any web server can serve as a mirror (a Stratum 1). What is missing is
copied, several objects at once, each checked against its digest; manifest and whitelist are checked with the repository's public key.
The manifest is replaced last, when all that it needs is on disk. An interrupted run leaves the mirror as it was; the next one goes
on where it ended. Run it from a timer.

With IMAGE only some images are copied: names as ` + "`skimfs repo ls`" + ` shows them, in which * and ? stand for anything but a slash. Such a mirror
answers 404 for the others, and nodes go on to their next server.

Nothing is deleted unless --gc is given: then what no mirrored revision within the retention time needs goes.` + exitRepoText,
		Example: `  skimfs repo mirror http://stratum0.example.org/images /srv/mirror
  skimfs repo mirror http://stratum0.example.org/images /srv/mirror --gc --json
  skimfs repo mirror http://stratum0.example.org/images /srv/mirror 'docker.io/library/*'`,
		Args: cobra.MinimumNArgs(2),
	}
	keys := publisherKeys(cmd)
	pubkey := cmd.Flags().String("pubkey", "", "file with the repository's public key (default NAME.pub in the directory of keys)")
	proxy := cmd.Flags().String("proxy", "DIRECT", "proxies, as in the mount option of that name")
	auth := cmd.Flags().String("auth", "", "file with credentials by server, as in the mount option of that name")
	ca := cmd.Flags().String("ca", "", "file with certificates to trust besides the system's")
	jobs := cmd.Flags().Int("jobs", 16, "objects under way at once")
	check := cmd.Flags().Bool("check", false, "read what is there already, and copy anew what is damaged")
	gc := cmd.Flags().Bool("gc", false, "delete what no mirrored revision within the retention time needs")
	grace := cmd.Flags().Duration("grace", publish.DefaultGrace, "with --gc: age below which an object stays in any case")
	asJSON := cmd.Flags().Bool("json", false, "print the result as JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if u, err := url.Parse(args[0]); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return usage(cmd, fmt.Errorf("repo mirror: %q is no http or https URL", args[0]))
		}
		if *jobs < 1 || *jobs > 512 {
			return usage(cmd, errors.New("repo mirror: --jobs is 1 to 512"))
		}
		rc, err := repoConfig(cmd, args[1], *keys)
		if err != nil {
			return err
		}
		origin := fetch.Config{Servers: args[:1], Proxies: *proxy, CAFile: *ca, Connections: *jobs, UserAgent: "skimfs-mirror/" + version(), Log: rc.Log}
		if *auth != "" {
			if origin.Auth, err = fetch.ReadCredentials(*auth); err != nil {
				return usage(cmd, err)
			}
		}
		client, err := fetch.New(origin)
		if err != nil {
			return usage(cmd, err)
		}
		defer client.Close()
		c := publish.MirrorConfig{
			Dir: args[1], Images: args[2:], Jobs: *jobs, Check: *check, GC: *gc, Grace: *grace, Progress: &publish.MirrorProgress{},
			Key: func(name string) (note.Verifier, error) { return mirrorKey(*pubkey, rc.Keys, name) },
		}
		stop := showMirror(cmd.Context(), cmd.ErrOrStderr(), c.Progress)
		report, err := publish.Mirror(cmd.Context(), client, c, rc)
		stop()
		if err != nil {
			return mirrorError(err)
		}
		if *asJSON {
			return writeJSON(cmd.OutOrStdout(), report)
		}
		printMirror(cmd.OutOrStdout(), args[1], report)
		return nil
	}
	return cmd
}

// mirrorKey returns the public key of a repository.
func mirrorKey(file, dir, name string) (note.Verifier, error) {
	if file == "" {
		file = filepath.Join(dir, name+".pub")
	}
	text, err := mountd.ReadKeyFile(file)
	if err != nil {
		return nil, &publish.KeyError{Path: file, Err: err}
	}
	v, err := index.ParseVerifier(text)
	if err != nil {
		return nil, &publish.KeyError{Path: file, Err: err}
	}
	if v.Name() != name {
		return nil, &publish.KeyError{Path: file, Err: fmt.Errorf("is of repository %s, the manifest of %s: %w", v.Name(), name, index.ErrSignature)}
	}
	return v, nil
}

// mirrorError adds advice to errors of a mirror's run.
func mirrorError(err error) error {
	hint := ""
	var key *publish.KeyError
	var transfer *fetch.Error
	switch {
	case errors.As(err, &key):
		hint = "name the repository's public key with --pubkey FILE"
	case errors.Is(err, publish.ErrNotMirror):
		hint = "name another directory, one that is empty or a mirror of this repository"
	case errors.Is(err, publish.ErrOlder):
		hint = "the server lags behind, or somebody replays what is old: name another server"
	case errors.Is(err, index.ErrExpired):
		hint = "the publisher must renew the whitelist (`skimfs repo whitelist sign`); also check this machine's clock"
	case errors.Is(err, index.ErrRevoked), errors.Is(err, index.ErrSignature):
		hint = "compare the public key with the publisher's"
	case errors.As(err, &transfer) && transfer.Temporary():
		hint = "check address, network and --proxy, and run it again: it goes on where it ended"
	case errors.As(err, &transfer):
		hint = "the server lacks something, or gives something wrong: `skimfs repo verify` there tells; then run this again"
	default:
		return repoError(err)
	}
	return &statusError{status: exitFailed, hint: hint, err: err}
}

func printMirror(w io.Writer, dir string, r publish.MirrorReport) {
	state := "as before"
	if r.Changed {
		state = "new here"
	}
	fmt.Fprintf(w, "mirrored %s to %s: revision %d (%s), %d images", r.Name, dir, r.Revision, state, r.Images)
	if r.Skipped > 0 {
		fmt.Fprintf(w, " (%d not asked for)", r.Skipped)
	}
	fmt.Fprintf(w, "\n  objects   %d looked at, %d copied, %s compressed, in %.2f s\n", r.Objects, r.New, size(r.Bytes), r.Seconds)
	if d := r.Deleted; d != nil {
		fmt.Fprintf(w, "  deleted   %d objects (%s), %d revisions; %d objects stay\n", d.Objects, size(d.Bytes), d.Revisions, d.Kept)
	}
}

// showMirror shows a bar on a terminal and now and then a line elsewhere, until the returned function is called.
func showMirror(ctx context.Context, w io.Writer, p *publish.MirrorProgress) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		done.Go(func() { mirrorBar(ctx, f, p) })
	} else {
		done.Go(func() {
			tick := time.NewTicker(10 * time.Second)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					fmt.Fprintf(w, "mirroring: %d of %d objects known so far, %s copied\n", p.Done.Load(), p.Found.Load(), size(p.Bytes.Load()))
				}
			}
		})
	}
	return func() {
		cancel()
		done.Wait()
	}
}

func mirrorBar(ctx context.Context, w io.Writer, p *publish.MirrorProgress) {
	all := mpb.New(mpb.WithOutput(w), mpb.WithAutoRefresh())
	bar := all.AddBar(0, mpb.BarRemoveOnComplete(), mpb.PrependDecorators(decor.Name("objects "), decor.CountersNoUnit("%d / %d")),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return size(p.Bytes.Load()) + " copied" })))
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		bar.SetTotal(p.Found.Load(), false)
		bar.SetCurrent(p.Done.Load())
		select {
		case <-ctx.Done():
			bar.Abort(true)
			all.Wait()
			return
		case <-tick.C:
		}
	}
}
