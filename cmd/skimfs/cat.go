package main

import (
	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/mountd"
)

func catCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cat SOURCE PATH",
		GroupID: "node",
		Short:   "Print a file of a repository without mounting it",
		Long: `Print the file PATH of SOURCE, which is URL[#PATH] or NAME[/PATH] as for mount. The content is verified and goes through the same
cache as that of a mount. Symlinks are followed.`,
		Example: `  skimfs cat images.example.org/docker.io/library/debian:12 /etc/os-release
  skimfs cat http://images.example.org docker.io/library/debian:12/etc/passwd`,
		Args: cobra.ExactArgs(2),
	}
	lists := optionFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return readFile(cmd, *lists, args[0], func(c *mountd.Client, o mountd.Options) error {
			return c.Cat(cmd.Context(), args[0], args[1], o, cmd.OutOrStdout())
		})
	}
	return cmd
}
