package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/mountd"
)

func bytesText(n int64) string { return humanize.Bytes(uint64(max(0, n))) }

// workCommand is a command that works on the content of SOURCE.
func workCommand(action, short, long, example string, done func(p mountd.WorkProgress) string) *cobra.Command {
	var asJSON bool
	var rate string
	cmd := &cobra.Command{Use: action + " SOURCE [PATH…]", Short: short, Long: long, Example: example, Args: cobra.MinimumNArgs(1)}
	name := action
	if action == "stat" {
		name = mountd.Count
	}
	lists := optionFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (default off)")
	var lower bool
	if name == mountd.Prefetch {
		cmd.Flags().BoolVar(&lower, "lower", false, "bring all of it to the lower cache (-o cache_lower=DIR), too (default off)")
	}
	fetches := name == mountd.Prefetch || name == mountd.Pin
	if fetches {
		cmd.Flags().StringVar(&rate, "rate", "", "at most so many bytes of content a second, a `size` as in 10MB (default: no limit)")
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := parseOptions(*lists)
		if err != nil {
			return usage(cmd, err)
		}
		req := mountd.WorkRequest{Action: name, Source: args[0], Paths: args[1:], Options: o.Options, Lower: lower}
		if rate != "" {
			if req.Rate, err = parseSize(rate); err != nil {
				return usage(cmd, err)
			}
		}
		a := about{source: args[0]}
		c, err := connect(cmd.Context(), o)
		if err != nil {
			return nodeError(err, a)
		}
		bar := newByteBar(cmd.ErrOrStderr(), action)
		p, err := c.Work(cmd.Context(), req, bar.work)
		bar.stop()
		if err != nil {
			return nodeError(err, a)
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), p)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", args[0], done(p))
		return err
	}
	return cmd
}

func fetchedText(p mountd.WorkProgress) string {
	return fmt.Sprintf("%s in %d objects, %s in %d of them fetched", bytesText(p.Bytes), p.Objects, bytesText(p.FetchedBytes), p.Fetched)
}

func prefetchCommand() *cobra.Command {
	cmd := workCommand(mountd.Prefetch, "Bring an image, or parts of it, to this node",
		`Bring all of SOURCE, or only what lies below each PATH, into this node's cache. SOURCE is URL[#PATH] or NAME[/PATH] as for mount. What is
cached already is not fetched again. Nothing is kept longer than other content: see "skimfs cache pin".`,
		`  skimfs prefetch images.example.org/docker.io/library/python:3.12
  skimfs prefetch --rate 20MB images.example.org/docker.io/library/python:3.12 /usr/lib
  skimfs prefetch --lower -o cache_lower=/lustre/skimfs images.example.org/docker.io/library/python:3.12`, func(p mountd.WorkProgress) string {
			if p.Stored > 0 {
				return fetchedText(p) + fmt.Sprintf(", %d stored in the lower cache", p.Stored)
			}
			return fetchedText(p)
		})
	cmd.GroupID = "node"
	return cmd
}

func cacheWorkCommands() []*cobra.Command {
	return []*cobra.Command{
		workCommand(mountd.Pin, "Bring an image, or parts of it, and keep it until it is unpinned",
			`Bring all of SOURCE, or what lies below each PATH, into this node's cache and keep it there until "skimfs cache unpin", over restarts too, in
the revision that is current now. Pins take at most three quarters of the cache's limit. Protect a job with it: content of an open file can leave
the cache otherwise, and reading it without a server is then an input/output error.`,
			`  skimfs cache pin images.example.org/docker.io/library/python:3.12
  skimfs cache pin images.example.org/docker.io/library/python:3.12 /usr/bin /usr/lib`, func(p mountd.WorkProgress) string { return "pinned, " + fetchedText(p) }),
		workCommand(mountd.Unpin, "Let go what was pinned",
			"Let go what was pinned under SOURCE: with PATHs the pin of exactly these, else all pins of SOURCE. It stays cached until there is need for room.",
			`  skimfs cache unpin images.example.org/docker.io/library/python:3.12
  skimfs cache unpin images.example.org/docker.io/library/python:3.12 /usr/bin /usr/lib`, func(mountd.WorkProgress) string { return "unpinned" }),
		workCommand(mountd.Evict, "Drop an image, or parts of it, from the cache",
			`Drop what SOURCE, or what lies below each PATH, consists of, catalogs included. Other images lose what they share with it. Pinned content stays.
What is read later is fetched again.`,
			`  skimfs cache evict images.example.org/docker.io/library/python:3.12
  skimfs cache evict images.example.org/docker.io/library/python:3.12 /usr/share`, func(p mountd.WorkProgress) string {
				return fmt.Sprintf("%d objects evicted; what is pinned (`skimfs cache list`) or in use as a catalog stays", p.Evicted)
			}),
		workCommand("stat", "Tell how much of an image this node has",
			`Tell how much of SOURCE, or of what lies below each PATH, this node has. Catalogs that are missing are fetched to know. For mounted images
"skimfs cache list" tells it without looking at each object.`,
			`  skimfs cache stat images.example.org/docker.io/library/python:3.12
  skimfs cache stat --json images.example.org/docker.io/library/python:3.12 /usr/lib`, func(p mountd.WorkProgress) string {
				return fmt.Sprintf("%s of %s, %d of %d objects", bytesText(p.CachedBytes), bytesText(p.Bytes), p.CachedObjects, p.Objects)
			}),
		cacheListCommand(), cacheTrimCommand(), cacheVerifyCommand(), cacheExportCommand(), cacheImportCommand(),
	}
}

func cacheListCommand() *cobra.Command {
	var asJSON bool
	var dir string
	cmd := &cobra.Command{
		Use: "list", Short: "List pins, and how much of the mounted images this node has",
		Long: `List what is pinned, and how many bytes are cached of the images that are mounted and of the 64 that were last. The numbers of images are
counted in the background, every ten seconds if anything changed, images that are mounted no more one at a time: asking costs nothing.`,
		Example: `  skimfs cache list
  skimfs cache list --json | jq '.images[] | .cached_bytes / .bytes'`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&dir, "cache", "", "cache `directory`, or ram:SIZE (default: the home's)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (default off)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := connectCache(cmd.Context(), dir)
		if err != nil {
			return nodeError(err, about{})
		}
		s, err := c.CacheReport(cmd.Context())
		if err != nil {
			return nodeError(err, about{})
		}
		w := cmd.OutOrStdout()
		if asJSON {
			return printJSON(w, s)
		}
		fmt.Fprintf(w, "cache    %s: %s of %s, %d objects, %s pinned\n", s.Dir, bytesText(s.CacheStatus.Bytes), bytesText(s.Limit), s.Objects, bytesText(s.PinnedBytes))
		for _, p := range s.Pins {
			fmt.Fprintf(w, "pin      %s: %s in %d objects\n", strings.Join(append([]string{p.Source}, p.Paths...), " "), bytesText(p.Bytes), p.Objects)
		}
		for _, i := range s.Images {
			where := "not mounted"
			if i.Target != "" {
				where = "on " + i.Target
			}
			fmt.Fprintf(w, "image    %s %s: %s of %s\n", i.Source, where, bytesText(i.CachedBytes), bytesText(i.Bytes))
		}
		return nil
	}
	return cmd
}

func cacheTrimCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "trim SIZE", Short: "Evict until the cache takes at most SIZE",
		Long: "Evict, the least recently used first, until the cache takes at most SIZE on the disk or only pinned content is left: all else with 0. The limit stays as it is.",
		Example: `  skimfs cache trim 5GB
  skimfs cache trim 500MB --cache /scratch/skimfs`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&dir, "cache", "", "cache `directory`, or ram:SIZE (default: the home's)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		size := int64(1) // to the daemon 0 is no size
		if args[0] != "0" {
			var err error
			if size, err = parseSize(args[0]); err != nil {
				return usage(cmd, err)
			}
		}
		c, err := connectCache(cmd.Context(), dir)
		if err != nil {
			return nodeError(err, about{})
		}
		s, err := c.TrimCache(cmd.Context(), size)
		if err != nil {
			return nodeError(err, about{})
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s freed, used %s\n", s.Dir, bytesText(s.Freed), bytesText(s.Bytes))
		return err
	}
	return cmd
}

var errCacheDamaged = errors.New("the cache is damaged")

func cacheVerifyCommand() *cobra.Command {
	var asJSON, repair bool
	var dir string
	cmd := &cobra.Command{
		Use: "verify", Short: "Read the whole cache and compare it with its digests",
		Long: `Read every object of the cache from the disk and compare it with its digest; check the state records, the index, and the list of files. A damaged
object is never served, verified or not: this finds it before it is needed. The exit status is 3 if damage was found, repaired or not.`,
		Example: `  skimfs cache verify
  skimfs cache verify --repair`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&dir, "cache", "", "cache `directory`, or ram:SIZE (default: the home's)")
	cmd.Flags().BoolVar(&repair, "repair", false, "drop what is damaged, so that it is fetched again (default off)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (default off)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := connectCache(cmd.Context(), dir)
		if err != nil {
			return nodeError(err, about{})
		}
		s, err := c.VerifyCache(cmd.Context(), repair)
		if err != nil {
			return nodeError(err, about{})
		}
		w := cmd.OutOrStdout()
		left := 0
		for _, d := range s.Damage {
			if !d.Repaired {
				left++
			}
		}
		if asJSON {
			err = printJSON(w, s)
		} else {
			for _, d := range s.Damage {
				fmt.Fprintf(w, "damaged  %s: %s\n", d.What, d.Reason)
			}
			_, err = fmt.Fprintf(w, "%d objects, %s, %d damaged, %d repaired\n", s.Objects, bytesText(s.Bytes), len(s.Damage), len(s.Damage)-left)
		}
		if err != nil || len(s.Damage) == 0 {
			return err
		}
		hint := "what was damaged is fetched again when it is read; check the disk"
		if left > 0 && !repair {
			hint = "`skimfs cache verify --repair` drops what is damaged"
		} else if left > 0 {
			hint = "the index is rebuilt from the objects when the daemon starts anew"
		}
		return &statusError{status: exitDamage, hint: hint, err: fmt.Errorf("%w: %d faults", errCacheDamaged, len(s.Damage))}
	}
	return cmd
}
