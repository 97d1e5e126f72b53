package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCommand writes the man pages, made from the same table as the help. It is for packages and `make install`.
func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write a man page for each command",
		Long:   "Write the man pages into the directory DIR, which is made if it does not exist: skimfs.1, one for each command, and mount.skimfs.8.",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("man pages: %w", err)
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true // pages of the same program are the same bytes
			header := &doc.GenManHeader{Section: "1", Source: "skimfs", Manual: "skimfs"}
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return fmt.Errorf("man pages in %s: %w", args[0], err)
			}
			var page bytes.Buffer
			if err := doc.GenMan(helperPage(), &doc.GenManHeader{Title: "MOUNT.SKIMFS", Section: "8", Source: "skimfs", Manual: "skimfs"}, &page); err != nil {
				return fmt.Errorf("man page of %s: %w", helperName, err)
			}
			for name, text := range map[string]string{helperName: page.String(), remountName: ".so man8/" + helperName + ".8\n"} {
				if err := os.WriteFile(filepath.Join(args[0], name+".8"), []byte(text), 0o644); err != nil {
					return fmt.Errorf("man pages: %w", err)
				}
			}
			return nil
		},
	}
}

// helperPage describes mount.skimfs in the form that man pages are made from.
func helperPage() *cobra.Command {
	cmd := &cobra.Command{
		Use:   helperName + " SOURCE TARGET",
		Short: "mount an image or a whole repository, for mount(8) and fstab(5)",
		Long: `mount(8) runs this program for the type skimfs: ` + "`mount -t skimfs SOURCE TARGET -o OPTIONS`" + `. Arguments come in any order. SOURCE is URL[#PATH] or
NAME[/PATH]. As root the daemon must run (skimfs-mountd.service); a user's is started on demand. TARGET may be an open FUSE device, /dev/fd/N.
The same mount again is no error; -o remount changes options that can change in use, and looks for a new revision.
Options of mount(8), systemd and fstab that mean nothing here are accepted.

Options for -o (default):
` + optionsHelp() + exitStatusHelp(mountCommand()),
		Example: `  mount -t skimfs images.example.org/docker.io/library/debian:12 /mnt
  images.example.org /skimfs/images.example.org skimfs noauto,x-systemd.automount,_netdev,x-systemd.requires=skimfs-mountd.service 0 0`,
		Run:               func(*cobra.Command, []string) {},
		DisableAutoGenTag: true,
	}
	cmd.Flags().BoolP("dry-run", "f", false, "check everything and mount nothing")
	cmd.Flags().BoolP("sloppy", "s", false, "unknown options don't matter")
	cmd.Flags().BoolP("verbose", "v", false, "say what was done")
	cmd.Flags().StringArrayP("options", "o", nil, "`k=v,…`, listed above")
	return cmd
}
