package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/mountd"
)

func mountCommand() *cobra.Command {
	var foreground bool
	cmd := &cobra.Command{
		Use:     "mount SOURCE TARGET",
		GroupID: "node",
		Short:   "Mount an image or a whole repository",
		Long: `Mount an image, or a whole repository, on the directory TARGET. SOURCE is URL[#PATH] or NAME[/PATH]: a repository by
its address or by its name, and a directory in it. Content is fetched when it is read. The command returns when the mount
answers. Mounting the same source on the same target again is no error.

Options for -o (default):
` + optionsHelp(),
		Example: `  skimfs mount http://images.example.org#docker.io/library/debian:12 /mnt
  skimfs mount images.example.org/docker.io/library/python:3.12 ~/py -o 'proxy=http://squid:3128;DIRECT'`,
		Args:        cobra.ExactArgs(2),
		Annotations: map[string]string{mountForm: "yes"},
	}
	lists := cmd.Flags().StringArrayP("options", "o", nil, "mount options `k=v,…`, listed above")
	var lease string
	var leaseTime time.Duration
	cmd.Flags().StringVar(&lease, "lease", "", "the mount lasts until this lease, and all others on it, are released; a `name` such as a job's number")
	cmd.Flags().DurationVar(&leaseTime, "lease-time", mountd.DefaultLease, "after this time a lease that nobody released or renewed is over")
	cmd.Flags().BoolVarP(&foreground, "foreground", "f", false, "stay until it is unmounted; unmount on SIGINT and SIGTERM")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := parseOptions(*lists)
		if err != nil {
			return usage(cmd, err)
		}
		a := about{source: args[0], target: args[1]}
		if _, err := mountd.ParseSource(args[0]); err != nil {
			return usage(cmd, err)
		}
		reply, target, err := mount(cmd.Context(), args[0], args[1], o, false, lease, leaseTime)
		if err != nil {
			return err
		}
		if reply.Already && !o.remount {
			fmt.Fprintf(cmd.ErrOrStderr(), "skimfs: %s is mounted on %s already\n", reply.Source, target)
		}
		switch {
		case reply.Offline:
			fmt.Fprintf(cmd.ErrOrStderr(), "skimfs: no server answers: revision %d, accepted before, is mounted; what isn't cached can't be read (`skimfs doctor %s` asks each way)\n", reply.Revision, args[0])
		case reply.Warning != "":
			fmt.Fprintf(cmd.ErrOrStderr(), "skimfs: warning: %s: revision %d, accepted before, is mounted\n", reply.Warning, reply.Revision)
		}
		if foreground {
			c, err := connect(cmd.Context(), o)
			if err != nil {
				return mountFormError(err, a)
			}
			if target != reply.Target { // a descriptor: the mount is its maker's
				return mountFormError(waitGone(cmd.Context(), c, reply.Target), a)
			}
			return mountFormError(stay(cmd.Context(), c, target), a)
		}
		return nil
	}
	return cmd
}

// unmountTime bounds the unmount at the end of a mount in the foreground.
const unmountTime = 10 * time.Second

// waitGone returns when target is unmounted, or at a signal.
func waitGone(ctx context.Context, c *mountd.Client, target string) error {
	err := c.WaitGone(ctx, target)
	if ctx.Err() != nil || mountd.KindOf(err) == mountd.NotMounted {
		return nil
	}
	return err
}

// stay returns when target is unmounted. A signal unmounts it.
func stay(ctx context.Context, c *mountd.Client, target string) error {
	if err := waitGone(ctx, c, target); ctx.Err() == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmountTime)
	defer cancel()
	err := c.Unmount(ctx, target, false)
	switch mountd.KindOf(err) {
	case mountd.NotMounted:
		return nil
	case mountd.Busy:
		return c.Unmount(ctx, target, true)
	}
	return err
}
