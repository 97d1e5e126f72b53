package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/publishd"
)

// Exit status of the commands that talk to publishd, besides 0, 1 and 2; as sysexits.h and timeout(1) have them.
const (
	exitUnavailable = 69  // publishd does not answer
	exitTemporary   = 75  // not finished, or try again later
	exitAuth        = 77  // not allowed
	exitTimeout     = 124 // wait was not long enough
)

const publishdStatus = "Exit status: 0 done, 1 failed, 2 usage, 69 publishd does not answer, 75 not finished or try again later, 77 not allowed, 124 timed out, 130 interrupted."

// publishdFlags are of every command that talks to publishd.
type publishdFlags struct {
	address *string
	asJSON  *bool
	timeout *time.Duration
}

func addPublishdFlags(cmd *cobra.Command) publishdFlags {
	return publishdFlags{
		cmd.Flags().String("publishd", "", "`address` of publishd, a socket or URL (default $SKIMFS_PUBLISHD, else the local socket)"),
		cmd.Flags().Bool("json", false, "print JSON"),
		cmd.Flags().Duration("timeout", 0, "give up after so long (status 124)"),
	}
}

// client runs f with a client, within the time that was given.
func (f publishdFlags) client(cmd *cobra.Command, do func(ctx context.Context, c *publishd.Client) error) error {
	ctx := cmd.Context()
	if *f.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *f.timeout)
		defer cancel()
	}
	address := *f.address
	if address == "" {
		address = os.Getenv("SKIMFS_PUBLISHD")
	}
	if address == "" {
		var err error
		if address, err = publishdSocket(); err != nil {
			return err
		}
	}
	var token string
	if path := os.Getenv("SKIMFS_PUBLISHD_TOKEN_FILE"); path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		token = strings.TrimSpace(string(b))
	}
	c, err := publishd.NewClient(address, token)
	if err != nil {
		return usage(cmd, err)
	}
	return publishdError(do(ctx, c), address)
}

// publishdError gives err its exit status and hint.
func publishdError(err error, address string) error {
	var se *statusError
	if err == nil || errors.As(err, &se) {
		return err
	}
	se = &statusError{status: exitFailed, err: err}
	var p *publishd.Problem
	if errors.As(err, &p) && p.Temporary {
		se.status, se.hint = exitTemporary, "try again later"
	}
	switch publishd.ReasonOf(err) {
	case publishd.InvalidArgument:
		se.status = exitUsage
	case publishd.Unauthenticated, publishd.PermissionDenied:
		se.status, se.hint = exitAuth, "a token's file is named by SKIMFS_PUBLISHD_TOKEN_FILE; who submitted may cancel"
	case publishd.QueueFull, publishd.ServiceUnavailable:
		se.status, se.hint = exitTemporary, "try again later"
	case publishd.NotFound:
		se.hint = "`skimfs op list` shows what was submitted"
	}
	switch {
	case errors.Is(err, publishd.ErrUnreachable):
		se.status, se.hint = exitUnavailable, "is `skimfs publishd` running? it was looked for at "+address
	case errors.Is(err, context.DeadlineExceeded):
		se.status, se.err, se.hint = exitTimeout, errors.New("timed out"), "the work goes on; `skimfs wait` again, or `skimfs op status`"
	}
	return se
}

func submitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "submit SOURCE [AS]",
		GroupID: "repo",
		Short:   "Have publishd convert an image",
		Long: `Hand an image to publishd, which converts it in the background, and print the operation's id at once. SOURCE is what
` + "`skimfs publish`" + ` takes; without a kind it is a reference at a registry. With --build it is a directory with a Containerfile, with --recipe a
YAML file with a list of images:

  version: 1
  input:
    - docker.io/library/debian:12
    - registry.example.org/tools/gcc:13.*

` + publishdStatus,
		Example: `  skimfs submit debian:12
  skimfs submit debian:12 && skimfs wait debian:12 --timeout 1h && sbatch job.sh
  skimfs submit --build ./tools local/tools:1
  skimfs submit --recipe wishes.yaml --priority 2`,
		Args: cobra.RangeArgs(1, 2),
	}
	p := addPublishdFlags(cmd)
	f := cmd.Flags()
	priority := f.Int("priority", publishd.DefaultPriority, "0 (last) to 9 (first)")
	platform := f.String("platform", "", "os/arch[/variant]")
	bare := f.Bool("bare", false, "add nothing to the image")
	build := f.Bool("build", false, "SOURCE is a directory to build from")
	file := f.StringP("file", "f", "", "--build: the Containerfile")
	buildArgs := f.StringToString("build-arg", nil, "--build: `NAME=VALUE`")
	recipe := f.Bool("recipe", false, "SOURCE is a recipe of many images")
	prefetch := f.Bool("prefetch", false, "SOURCE is a published image to warm this node's cache with")
	labels := f.StringToString("label", nil, "`NAME=VALUE` to find the operation by")
	id := f.String("idempotency-key", "", "the same `key` again gives the same operation")
	deadline := f.String("deadline", "", "`duration` for all attempts together")
	wait := f.Bool("wait", false, "wait until it is done")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r := publishd.Request{Kind: publishd.Convert, Source: args[0], Platform: *platform, Bare: *bare, File: *file, Args: *buildArgs, Labels: *labels, RequestID: *id, Deadline: *deadline, Priority: priority}
		if len(args) == 2 {
			r.As = args[1]
		}
		var err error
		switch {
		case *build:
			r.Kind = publishd.Build
			r.Source, err = filepath.Abs(r.Source)
		case *recipe:
			r.Kind = publishd.ConvertMany
			var b []byte
			b, err = os.ReadFile(r.Source)
			r.Source = string(b)
		case *prefetch:
			r.Kind = publishd.Prefetch
		default:
			r.Source, err = absoluteSource(r.Source)
		}
		if err != nil {
			return err
		}
		return p.client(cmd, func(ctx context.Context, c *publishd.Client) error {
			o, err := c.Submit(ctx, r)
			if err != nil {
				return err
			}
			if !*wait {
				if *p.asJSON {
					return printLine(cmd.OutOrStdout(), o)
				}
				fmt.Fprintln(cmd.OutOrStdout(), o.ID())
				return nil
			}
			return awaitOperation(ctx, cmd, c, p, o)
		})
	}
	return cmd
}

// absoluteSource makes the path in a local source absolute: publishd has another working directory.
func absoluteSource(s string) (string, error) {
	for _, kind := range []string{"dir:", "oci:", "oci-archive:", "docker-archive:"} {
		if rest, ok := strings.CutPrefix(s, kind); ok {
			abs, err := filepath.Abs(rest)
			return kind + abs, err
		}
	}
	return s, nil
}

func waitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "wait OP|REF",
		GroupID: "repo",
		Short:   "Wait until publishd has converted an image",
		Long: `Wait until an operation is done: the one with this id, or the newest for this reference or name. It goes on through restarts of publishd.

` + publishdStatus,
		Example: `  skimfs wait debian:12 --timeout 30m
  skimfs wait $(skimfs submit debian:12)`,
		Args: cobra.ExactArgs(1),
	}
	p := addPublishdFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return p.client(cmd, func(ctx context.Context, c *publishd.Client) error {
			o, err := operation(ctx, c, args[0])
			if errors.Is(ctx.Err(), context.Canceled) {
				return waitInterrupted(args[0])
			}
			if err != nil {
				return err
			}
			return awaitOperation(ctx, cmd, c, p, o)
		})
	}
	return cmd
}

// waitInterrupted says what a signal to wait does not end.
func waitInterrupted(what string) error {
	return &statusError{status: exitInterrupted, hint: "the work goes on; `skimfs wait " + what + "` again, or `skimfs op cancel " + what + "`", err: errors.New("interrupted")}
}

// operation finds an operation by id or reference.
func operation(ctx context.Context, c *publishd.Client, what string) (publishd.Operation, error) {
	o, err := c.Get(ctx, strings.TrimPrefix(what, "operations/"))
	if publishd.ReasonOf(err) == publishd.NotFound {
		return c.Find(ctx, what)
	}
	return o, err
}

// awaitOperation waits until o is done and says how it ended.
func awaitOperation(ctx context.Context, cmd *cobra.Command, c *publishd.Client, p publishdFlags, o publishd.Operation) error {
	for !o.Done {
		next, err := c.Wait(ctx, o.ID(), 30*time.Second)
		switch {
		case errors.Is(ctx.Err(), context.Canceled):
			return waitInterrupted(o.ID())
		case errors.Is(err, context.DeadlineExceeded):
			return tooEarly(ctx, c, o)
		case errors.Is(err, publishd.ErrUnreachable):
			// It is being restarted, perhaps; without a time limit a minute is enough.
			if err := reconnect(ctx, c); err != nil {
				return err
			}
		case err != nil:
			return err
		default:
			o = next
		}
	}
	return showOperation(cmd, p, o)
}

// tooEarly says how an operation stands that did not end in time.
func tooEarly(ctx context.Context, c *publishd.Client, o publishd.Operation) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if now, err := c.Get(ctx, o.ID()); err == nil {
		o = now
	}
	err := fmt.Errorf("timed out: operation %s is %s", o.ID(), o.Metadata.State)
	if p := o.Metadata.Problem; p != nil {
		err = fmt.Errorf("%w: %s: %s", err, p.Reason, p.Detail)
	}
	return &statusError{status: exitTimeout, hint: "the work goes on; `skimfs wait " + o.ID() + "` again, or `skimfs op cancel " + o.ID() + "`", err: err}
}

func reconnect(ctx context.Context, c *publishd.Client) error {
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if _, err = c.List(ctx, url.Values{"state": {"NONE"}}); err == nil || !errors.Is(err, publishd.ErrUnreachable) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	return err
}

// showOperation prints an operation; its exit status says how it stands.
func showOperation(cmd *cobra.Command, p publishdFlags, o publishd.Operation) error {
	if *p.asJSON {
		if err := printLine(cmd.OutOrStdout(), o); err != nil {
			return err
		}
	} else {
		printOperation(cmd.OutOrStdout(), o)
	}
	switch {
	case !o.Done:
		return &statusError{status: exitTemporary, hint: "`skimfs wait " + o.ID() + "` waits for it", err: fmt.Errorf("operation %s is %s", o.ID(), o.Metadata.State)}
	case o.Error != nil:
		hint, ok := reasonHints[o.Error.Reason]
		if !ok {
			hint = "`skimfs op logs ID` says more, `skimfs op retry ID` tries again"
		}
		return &statusError{status: exitFailed, hint: strings.ReplaceAll(hint, "ID`", o.ID()+"`"), err: fmt.Errorf("operation %s: %s: %s", o.ID(), o.Error.Reason, o.Error.Detail)}
	}
	return nil
}

// reasonHints say what to do about an operation that failed; ID` stands for its id.
var reasonHints = map[publishd.Reason]string{
	"IMAGE_NOT_FOUND":         "is the reference, or the path, right? `skimfs resolve` asks the registry; `skimfs op retry ID` once it is there",
	"PLATFORM_NOT_FOUND":      "`--platform` chooses another one",
	"AUTH_REQUIRED":           "publishd has the credentials of its own user's docker configuration; `skimfs op retry ID` once they are there",
	"CORRUPT_LAYER":           "the registry gives other bytes than its manifest names: have the image pushed again, then `skimfs op retry ID`",
	"UNSUPPORTED_MEDIA":       "is it an image? `skimfs op logs ID` says more",
	publishd.RateLimited:      "credentials for the registry raise its limit; `skimfs op retry ID` later",
	publishd.RegistryRests:    "`skimfs op retry ID` once the registry answers",
	publishd.NoSpace:          "free space on the repository's disk, `skimfs repo gc` may, then `skimfs op retry ID`",
	publishd.PermissionDenied: "files are read with the rights of who submits, and some addresses are not asked at all",
	publishd.ChildrenFailed:   "`skimfs op list --parent ID` shows which, `skimfs op retry ID` retries those",
	publishd.BuildFailed:      "`skimfs op logs ID` shows the build",
}

func printLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}

func printOperation(w io.Writer, o publishd.Operation) {
	m := o.Metadata
	fmt.Fprintf(w, "%s  %s  %s\n", o.ID(), m.State, cmp.Or(m.As, m.Source))
	if m.Digest != "" {
		fmt.Fprintf(w, "  digest    %s\n", m.Digest)
	}
	if m.State == publishd.Queued && m.QueuePosition > 0 {
		fmt.Fprintf(w, "  position  %d\n", m.QueuePosition)
	}
	if m.State == publishd.Running {
		fmt.Fprintf(w, "  stage     %s, attempt %d of %d\n", m.Stage, m.Attempt, m.MaxAttempts)
		fmt.Fprintf(w, "  progress  %s of %s, %d files, %d of %d layers\n", size(m.Progress.BytesDone), size(m.Progress.BytesTotal), m.Progress.Files, m.Progress.LayersDone, m.Progress.Layers)
	}
	if m.Problem != nil {
		fmt.Fprintf(w, "  problem   %s: %s\n", m.Problem.Reason, m.Problem.Detail)
	}
	for _, r := range o.Response {
		var image struct {
			Name, Flat string
			Revision   uint64
		}
		if json.Unmarshal(r, &image) == nil && image.Flat != "" {
			fmt.Fprintf(w, "  image     %s in revision %d\n", image.Name, image.Revision)
		}
	}
}

func opCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "op",
		GroupID: "repo",
		Short:   "Look at and change what publishd does",
		Long:    "Look at and change operations of publishd. OP is an operation's id, or a reference or name: its newest operation.\n\n" + publishdStatus,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	one := func(use, short, example string, do func(ctx context.Context, cmd *cobra.Command, c *publishd.Client, p publishdFlags, o publishd.Operation) error) {
		sub := &cobra.Command{Use: use + " OP", Short: short, Long: short + ".\n\n" + publishdStatus, Example: "  skimfs op " + use + " " + example, Args: cobra.ExactArgs(1)}
		p := addPublishdFlags(sub)
		sub.RunE = func(cmd *cobra.Command, args []string) error {
			return p.client(cmd, func(ctx context.Context, c *publishd.Client) error {
				o, err := operation(ctx, c, args[0])
				if err != nil {
					return err
				}
				return do(ctx, cmd, c, p, o)
			})
		}
		cmd.AddCommand(sub)
	}
	one("status", "Say how an operation stands", "debian:12", func(_ context.Context, cmd *cobra.Command, _ *publishd.Client, p publishdFlags, o publishd.Operation) error {
		return showOperation(cmd, p, o)
	})
	one("cancel", "Cancel an operation; the work ends with the last operation that wants it", "debian:12", func(ctx context.Context, cmd *cobra.Command, c *publishd.Client, p publishdFlags, o publishd.Operation) error {
		o, err := c.Cancel(ctx, o.ID())
		return printAfter(cmd, p, o, err)
	})
	one("retry", "Run an operation again that failed or was cancelled", "debian:12", func(ctx context.Context, cmd *cobra.Command, c *publishd.Client, p publishdFlags, o publishd.Operation) error {
		o, err := c.Retry(ctx, o.ID())
		return printAfter(cmd, p, o, err)
	})
	one("forget", "Remove the record of an operation that has ended", "debian:12", func(ctx context.Context, _ *cobra.Command, c *publishd.Client, _ publishdFlags, o publishd.Operation) error {
		return c.Forget(ctx, o.ID())
	})
	one("logs", "Print the log of an operation", "debian:12", func(ctx context.Context, cmd *cobra.Command, c *publishd.Client, _ publishdFlags, o publishd.Operation) error {
		return c.Log(ctx, o.ID(), cmd.OutOrStdout())
	})
	cmd.AddCommand(opListCommand(), opEventsCommand())
	return cmd
}

func printAfter(cmd *cobra.Command, p publishdFlags, o publishd.Operation, err error) error {
	if err != nil {
		return err
	}
	if *p.asJSON {
		return printLine(cmd.OutOrStdout(), o)
	}
	printOperation(cmd.OutOrStdout(), o)
	return nil
}

func opListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List operations",
		Long:    "List operations, oldest first.\n\n" + publishdStatus,
		Example: "  skimfs op list --state running\n  skimfs op list --label workflow=42 --json",
		Args:    cobra.NoArgs,
	}
	p := addPublishdFlags(cmd)
	states := cmd.Flags().StringSlice("state", nil, "only these `states`")
	label := cmd.Flags().String("label", "", "only with this label, `NAME=VALUE`")
	submitter := cmd.Flags().String("submitter", "", "only of this `submitter`")
	parent := cmd.Flags().String("parent", "", "only images of the recipe with this `id`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return p.client(cmd, func(ctx context.Context, c *publishd.Client) error {
			q := url.Values{"state": *states}
			if *label != "" {
				q.Set("label", *label)
			}
			if *submitter != "" {
				q.Set("submitter", *submitter)
			}
			if *parent != "" {
				q.Set("parent", *parent)
			}
			all, err := c.List(ctx, q)
			if err != nil {
				return err
			}
			if *p.asJSON {
				for _, o := range all {
					if err := printLine(cmd.OutOrStdout(), o); err != nil {
						return err
					}
				}
				return nil
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			for _, o := range all {
				why := o.Metadata.Stage
				for _, p := range []*publishd.Problem{o.Error, o.Metadata.Problem} {
					if p != nil {
						why = string(p.Reason)
					}
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", o.ID(), o.Metadata.State, why, cmp.Or(o.Metadata.As, o.Metadata.Source))
			}
			return w.Flush()
		})
	}
	return cmd
}

func opEventsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "events [OP]",
		Short: "Print what happens, as it happens",
		Long: `Print events as lines of JSON. Without --since all operations as they are come first. With OP only what happens to that operation is
printed, up to its end.

` + publishdStatus,
		Example: "  skimfs op events\n  skimfs op events --since 1234.0\n  skimfs op events debian:12",
		Args:    cobra.MaximumNArgs(1),
	}
	p := addPublishdFlags(cmd)
	since := cmd.Flags().String("since", "", "go on after the event of this `id`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return p.client(cmd, func(ctx context.Context, c *publishd.Client) error {
			if len(args) == 0 {
				return c.Events(ctx, "", *since, func(e publishd.Event) error { return printLine(cmd.OutOrStdout(), e) })
			}
			o, err := operation(ctx, c, args[0])
			if err != nil {
				return err
			}
			err = c.Events(ctx, o.ID(), *since, func(e publishd.Event) error {
				if err := printLine(cmd.OutOrStdout(), e); err != nil {
					return err
				}
				var now publishd.Operation
				if err := json.Unmarshal(e.Data, &now); err != nil || !now.Done || now.Metadata.Generation < o.Metadata.Generation {
					return err // the end of an earlier try is not the operation's
				}
				return io.EOF
			})
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		})
	}
	return cmd
}

func resolveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "resolve REF",
		GroupID: "repo",
		Short:   "Say which image a reference means now",
		Long:    "Ask a registry, through publishd, which image a reference means now, and print the source that means it for ever.\n\n" + publishdStatus,
		Example: "  skimfs submit $(skimfs resolve debian:12) docker.io/library/debian:12",
		Args:    cobra.ExactArgs(1),
	}
	p := addPublishdFlags(cmd)
	platform := cmd.Flags().String("platform", "", "os/arch[/variant]")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return p.client(cmd, func(ctx context.Context, c *publishd.Client) error {
			r, err := c.Resolve(ctx, args[0], *platform)
			if err != nil {
				return err
			}
			if *p.asJSON {
				return printLine(cmd.OutOrStdout(), r)
			}
			fmt.Fprintln(cmd.OutOrStdout(), r.Pinned)
			return nil
		})
	}
	return cmd
}
