package main

import (
	"context"
	"fmt"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/mountd"
)

func cacheCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cache",
		GroupID: "node",
		Short:   "Look after the cache",
		Long:    "Look after the cache of this node. Its daemon does the work, and is started for it where that is allowed.",
		Example: `  skimfs cache limit
  skimfs cache limit set 50GB`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var dir string
	limit := &cobra.Command{
		Use:   "limit",
		Short: "Show how much disk the cache may use",
		Long:  "Show how much the cache may take on the disk, and how much it takes.",
		Example: `  skimfs cache limit
  skimfs cache limit --cache /scratch/skimfs`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := connectCache(cmd.Context(), dir)
			if err != nil {
				return nodeError(err, about{})
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return nodeError(err, about{})
			}
			return printLimit(cmd, s.Cache)
		},
	}
	set := &cobra.Command{
		Use:   "set SIZE",
		Short: "Change how much disk the cache may use",
		Long: `Change how much the cache may take on the disk, now and for later daemons. What is too much leaves within seconds, the
least recently used first. Pins may take three quarters of the limit: a size that is too small for them is refused.`,
		Example: `  skimfs cache limit set 50GB
  skimfs cache limit set 2G --cache /scratch/skimfs`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			size, err := parseQuota(args[0])
			if err != nil {
				return usage(cmd, err)
			}
			c, err := connectCache(cmd.Context(), dir)
			if err != nil {
				return nodeError(err, about{})
			}
			s, err := c.SetCacheLimit(cmd.Context(), size)
			if err != nil {
				return nodeError(err, about{limit: true})
			}
			return printLimit(cmd, *s)
		},
	}
	limit.PersistentFlags().StringVar(&dir, "cache", "", "cache `directory`, or ram:SIZE (default: the home's)")
	limit.AddCommand(set)
	cmd.AddCommand(limit)
	cmd.AddCommand(cacheWorkCommands()...)
	return cmd
}

func connectCache(ctx context.Context, dir string) (*mountd.Client, error) {
	var o mountOptions
	if dir != "" {
		var err error
		if o.cache, err = parseCache(dir); err != nil {
			return nil, err
		}
	}
	return connect(ctx, o)
}

func printLimit(cmd *cobra.Command, s mountd.CacheStatus) error {
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: limit %s, used %s\n", s.Dir, humanize.Bytes(uint64(s.Limit)), humanize.Bytes(uint64(s.Bytes)))
	return err
}
