package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/mountd"
)

func umountCommand() *cobra.Command {
	var lazy bool
	cmd := &cobra.Command{
		Use:     "umount TARGET",
		GroupID: "node",
		Short:   "Unmount",
		Long: `Unmount what skimfs mounted on the directory TARGET. A mount in use stays; --lazy detaches it at once, and it ends when its last
user leaves.`,
		Example: `  skimfs umount /mnt
  skimfs umount --lazy /mnt`,
		Args:        cobra.ExactArgs(1),
		Annotations: map[string]string{mountForm: "yes"},
	}
	cmd.Flags().BoolVarP(&lazy, "lazy", "l", false, "detach now, whoever uses it (default off)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return mountFormError(unmount(cmd.Context(), args[0], lazy), about{target: args[0], unmount: true})
	}
	return cmd
}

// unmount asks the daemon that has the mount. What no daemon knows is a leftover and is removed directly.
func unmount(ctx context.Context, name string, lazy bool) error {
	target, err := mountd.ResolveTarget(name)
	if err != nil {
		return err
	}
	h, err := home()
	if err != nil {
		return err
	}
	clients, err := mountd.ConnectAll(ctx, h)
	if err != nil {
		return err
	}
	for _, c := range clients {
		err := c.Unmount(ctx, target, lazy)
		if mountd.KindOf(err) != mountd.NotMounted || err == nil {
			return err
		}
	}
	found, err := mountd.UnmountLeftover(target, lazy)
	if err != nil || found {
		return err
	}
	return &mountd.Error{Kind: mountd.NotMounted, Err: fmt.Errorf("nothing of skimfs is mounted on %q", name)}
}
