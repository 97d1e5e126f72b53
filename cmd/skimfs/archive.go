package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/skimfs/skimfs/mountd"
)

func cacheExportCommand() *cobra.Command {
	var output, rate string
	cmd := &cobra.Command{
		Use: "export SOURCE [PATH…]", Short: "Write an image, or parts of it, into one file for nodes without network",
		Long: `Write all of SOURCE, or what lies below each PATH, into one file, with the signed manifest that vouches for it. What this node lacks is fetched.
The file is a tar of plain content: compress it as you like. On another node "skimfs cache import" brings it into the cache, after which SOURCE mounts
there without any network; unpacked (tar -xf), it is a lower cache.`,
		Example: `  skimfs cache export --output python.tar images.example.org/docker.io/library/python:3.12
  skimfs cache export images.example.org/docker.io/library/python:3.12 | ssh node7 skimfs cache import`,
		Args: cobra.MinimumNArgs(1),
	}
	lists := optionFlag(cmd)
	cmd.Flags().StringVar(&output, "output", "-", "`file` to write; it appears when it is whole")
	cmd.Flags().StringVar(&rate, "rate", "", "at most so many bytes of content a second, a `size` as in 10MB (default: no limit)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := parseOptions(*lists)
		if err != nil {
			return usage(cmd, err)
		}
		req := mountd.WorkRequest{Source: args[0], Paths: args[1:], Options: o.Options}
		if rate != "" {
			if req.Rate, err = parseSize(rate); err != nil {
				return usage(cmd, err)
			}
		}
		out, done, err := exportTo(cmd, output)
		if err != nil {
			return err
		}
		c, err := connect(cmd.Context(), o)
		if err == nil {
			bar := newByteBar(cmd.ErrOrStderr(), "export")
			err = c.Export(cmd.Context(), req, io.MultiWriter(out, bar), func(total int64) { bar.set(0, total) })
			bar.stop()
		}
		if err = errors.Join(err, done(err == nil)); err != nil {
			return nodeError(err, about{source: args[0]})
		}
		return nil
	}
	return cmd
}

// exportTo opens where an export goes; done makes it appear there, or leaves nothing.
func exportTo(cmd *cobra.Command, path string) (w io.Writer, done func(whole bool) error, err error) {
	if path == "-" {
		if f, ok := cmd.OutOrStdout().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return nil, nil, usage(cmd, errors.New("an export is not for a terminal: name a file with --output"))
		}
		return cmd.OutOrStdout(), func(bool) error { return nil }, nil
	}
	f, err := os.Create(path + ".part")
	if err != nil {
		return nil, nil, err
	}
	return f, func(whole bool) error {
		err := errors.Join(f.Sync(), f.Close())
		if whole && err == nil {
			return os.Rename(f.Name(), path)
		}
		return errors.Join(err, os.Remove(f.Name()))
	}, nil
}

func cacheImportCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "import [FILE]", Short: "Bring what was exported elsewhere into this node's cache",
		Long: `Read FILE, or standard input, as "skimfs cache export" wrote it, into this node's cache. Manifest and whitelist are checked with the repository's
public key, every object against its digest: a file that was damaged, cut short or made by somebody else is refused, with exit status 3 for what
is not whole. Then what was exported mounts without network. Pin it ("skimfs cache pin SOURCE") if other images could crowd it out.`,
		Example: `  skimfs cache import python.tar
  zstd -dc python.tar.zst | skimfs cache import -o pubkey=images.example.org.pub`,
		Args: cobra.MaximumNArgs(1),
	}
	lists := optionFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (default off)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := parseOptions(*lists)
		if err != nil {
			return usage(cmd, err)
		}
		in, size, err := importFrom(cmd, args)
		if err != nil {
			return err
		}
		defer in.Close()
		archive := bufio.NewReader(in)
		if program := compressedBy(archive); program != "" {
			return &statusError{status: exitDamage, hint: "`" + program + " -dc FILE | skimfs cache import`", err: fmt.Errorf("what is to be imported is compressed with %s", program)}
		}
		c, err := connect(cmd.Context(), o)
		if err != nil {
			return nodeError(err, about{})
		}
		bar := newByteBar(cmd.ErrOrStderr(), "import")
		bar.set(0, size)
		r, err := c.Import(cmd.Context(), o.Options, io.TeeReader(archive, bar))
		bar.stop()
		if mountd.KindOf(err) == mountd.Damaged && err != nil {
			return &statusError{status: exitDamage, hint: "export it again, or copy it again; nothing of it counts as accepted", err: err}
		}
		if err != nil {
			return nodeError(err, about{})
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), r)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s, revision %d: %s in %d objects, %d of them new here\n", r.Repository, r.Revision, bytesText(r.Bytes), r.Objects, r.New)
		return err
	}
	return cmd
}

// importFrom opens what is imported; size is 0 if nobody knows.
func importFrom(cmd *cobra.Command, args []string) (in io.ReadCloser, size int64, err error) {
	if len(args) == 0 || args[0] == "-" {
		if f, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return nil, 0, usage(cmd, errors.New("nothing to import: name a file, or pipe one in"))
		}
		return io.NopCloser(cmd.InOrStdin()), 0, nil
	}
	f, err := os.Open(args[0])
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && st.IsDir() {
		err = fmt.Errorf("%s is a directory: an export is one file", args[0])
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// compressedBy names the program that compressed a stream, "" if it is not compressed in a way that is known. It takes nothing from it.
func compressedBy(r *bufio.Reader) string {
	head, _ := r.Peek(5) // a shorter one is no export, which the daemon says
	for _, c := range []struct{ magic, program string }{{"\x28\xb5\x2f\xfd", "zstd"}, {"\x1f\x8b", "gzip"}, {"\xfd7zXZ", "xz"}, {"BZh", "bzip2"}} {
		if bytes.HasPrefix(head, []byte(c.magic)) {
			return c.program
		}
	}
	return ""
}
