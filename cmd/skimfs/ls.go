package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/mountd"
)

func lsCommand() *cobra.Command {
	var long bool
	cmd := &cobra.Command{
		Use:     "ls SOURCE [PATH]",
		GroupID: "node",
		Short:   "List a directory of a repository without mounting it",
		Long: `List the directory PATH of SOURCE, which is URL[#PATH] or NAME[/PATH] as for mount; without PATH that of SOURCE itself. Symlinks on the way
are followed.`,
		Example: `  skimfs ls http://images.example.org docker.io/library
  skimfs ls -l images.example.org/docker.io/library/debian:12 /etc`,
		Args: cobra.RangeArgs(1, 2),
	}
	lists := optionFlag(cmd)
	cmd.Flags().BoolVarP(&long, "long", "l", false, "also mode, owner, size, time and link target (default off)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path := ""
		if len(args) > 1 {
			path = args[1]
		}
		return readFile(cmd, *lists, args[0], func(c *mountd.Client, o mountd.Options) error {
			l, err := c.List(cmd.Context(), args[0], path, o)
			if err != nil {
				return err
			}
			for _, f := range l.Entries {
				printEntry(cmd.OutOrStdout(), f, long)
			}
			return nil
		})
	}
	return cmd
}

func printEntry(w io.Writer, f mountd.FileInfo, long bool) {
	name := f.Name
	if f.Raw != nil {
		name = string(f.Raw)
	}
	if !long {
		fmt.Fprintln(w, name)
		return
	}
	if f.Target != "" {
		name += " -> " + f.Target
	}
	fmt.Fprintf(w, "%s %3d %5d %5d %10s %s %s\n", modeText(f.Mode), f.Nlink, f.UID, f.GID, sizeText(f), timeText(f), name)
}

// sizeText is a file's size, or a device's numbers.
func sizeText(f mountd.FileInfo) string {
	switch f.Mode & index.ModeType {
	case index.ModeChar, index.ModeBlock:
		return fmt.Sprintf("%d, %d", f.Major, f.Minor)
	}
	return fmt.Sprint(f.Size)
}

func timeText(f mountd.FileInfo) string {
	return time.Unix(f.Mtime, 0).UTC().Format("2006-01-02 15:04")
}

// modeText is a mode as ls -l shows it.
func modeText(mode uint32) string {
	kinds := map[uint32]byte{
		index.ModeFIFO: 'p', index.ModeChar: 'c', index.ModeDir: 'd', index.ModeBlock: 'b', index.ModeRegular: '-', index.ModeSymlink: 'l',
		index.ModeSocket: 's',
	}
	text := []byte("?rwxrwxrwx")
	if k, ok := kinds[mode&index.ModeType]; ok {
		text[0] = k
	}
	for i := range 9 {
		if mode&(1<<(8-i)) == 0 {
			text[1+i] = '-'
		}
	}
	for _, special := range []struct {
		bit  uint32
		at   int
		char string
	}{{0o4000, 3, "Ss"}, {0o2000, 6, "Ss"}, {0o1000, 9, "Tt"}} {
		if mode&special.bit == 0 {
			continue
		}
		executable := strings.IndexByte("-x", text[special.at])
		text[special.at] = special.char[executable]
	}
	return string(text)
}
