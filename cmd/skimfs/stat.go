package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/mountd"
)

func statCommand() *cobra.Command {
	var asJSON, follow bool
	cmd := &cobra.Command{
		Use:     "stat SOURCE PATH",
		GroupID: "node",
		Short:   "Tell of a file of a repository without mounting it",
		Long: `Tell of the file PATH of SOURCE, which is URL[#PATH] or NAME[/PATH] as for mount: its attributes, the digest of its content, and how many of
its objects this node has.`,
		Example: `  skimfs stat images.example.org/docker.io/library/debian:12 /bin/bash
  skimfs stat --json http://images.example.org docker.io/library/debian:12`,
		Args: cobra.ExactArgs(2),
	}
	lists := optionFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (default off)")
	cmd.Flags().BoolVarP(&follow, "dereference", "L", false, "follow a symlink (default off)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return readFile(cmd, *lists, args[0], func(c *mountd.Client, o mountd.Options) error {
			f, err := c.Stat(cmd.Context(), args[0], args[1], follow, o)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if asJSON {
				return printJSON(w, f)
			}
			printEntry(w, *f, true)
			fmt.Fprintf(w, "inode %d\n", f.Inode)
			if f.Digest != "" {
				fmt.Fprintf(w, "digest %s\n", f.Digest)
			}
			if f.Chunks > 0 {
				fmt.Fprintf(w, "objects %d, %d of them cached\n", f.Chunks, f.Cached)
			}
			return nil
		})
	}
	return cmd
}
