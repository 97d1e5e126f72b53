package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/mountd"
)

func releaseCommand() *cobra.Command {
	var lease string
	cmd := &cobra.Command{
		Use:     "release --lease NAME",
		GroupID: "node",
		Short:   "End a lease, and the mounts that only it needed",
		Long: `End a lease that mounts were made with (` + "`skimfs mount --lease NAME`" + `). A mount with other leases, or one that somebody made without a lease,
stays; others are detached at once, and end when their last user leaves. A lease that nobody holds is no error.`,
		Example: "  skimfs release --lease $SLURM_JOB_ID",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().StringVar(&lease, "lease", "", "the lease's `name` (required)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if lease == "" {
			return usage(cmd, errors.New("release: --lease is missing"))
		}
		h, err := home()
		if err != nil {
			return nodeError(err, about{})
		}
		clients, err := mountd.ConnectAll(cmd.Context(), h)
		if err != nil {
			return nodeError(err, about{})
		}
		for _, c := range clients {
			r, err := c.Release(cmd.Context(), lease)
			if err != nil {
				return nodeError(err, about{})
			}
			for _, target := range r.Unmounted {
				fmt.Fprintf(cmd.OutOrStdout(), "unmounted %s\n", target)
			}
			for _, target := range r.Kept {
				fmt.Fprintf(cmd.OutOrStdout(), "kept      %s: others need it\n", target)
			}
		}
		return nil
	}
	return cmd
}
