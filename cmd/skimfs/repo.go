package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/publish"
)

const exitRepoText = `
Exit status: 0 done, 1 failed, 2 usage, 3 damage found.`

func repoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "repo",
		GroupID: "repo",
		Short:   "Look after a repository: create, list, verify, clean",
		Long:    "Commands for the publisher's copy of a repository, a directory of static files." + exitRepoText,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(repoCreate(), repoList(), repoInfo(), repoVerify(), repoRemove(), repoGC(), repoMirror(), repoHistory(), repoRollback(), repoRotateKey(), repoWhitelist())
	return cmd
}

// publisherKeys is the flag --keys: where a publisher's keys are.
func publisherKeys(cmd *cobra.Command) *string {
	return cmd.Flags().String("keys", "", "directory of keys (default $SKIMFS_HOME/etc/keys, for root /etc/skimfs/keys, else ~/.config/skimfs/keys)")
}

func keysDir(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if home := os.Getenv("SKIMFS_HOME"); home != "" {
		return filepath.Join(home, "etc", "keys"), nil
	}
	if os.Geteuid() == 0 {
		return "/etc/skimfs/keys", nil
	}
	config, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("finding the keys: %w", err)
	}
	return filepath.Join(config, "skimfs", "keys"), nil
}

func repoConfig(cmd *cobra.Command, dir, keys string) (publish.Config, error) {
	keys, err := keysDir(keys)
	return publish.Config{Dir: dir, Keys: keys, Log: slog.New(plainLog{cmd.ErrOrStderr()})}, err
}

func openRepo(cmd *cobra.Command, dir, keys string) (*publish.Repo, error) {
	c, err := repoConfig(cmd, dir, keys)
	if err != nil {
		return nil, err
	}
	r, err := publish.Open(c)
	return r, repoError(err)
}

// repoError adds advice to errors of the publisher.
func repoError(err error) error {
	var (
		key       *publish.KeyError
		whitelist *publish.WhitelistError
		name      *publish.NameError
		gone      *publish.RevisionError
		platform  *publish.PlatformError
		limit     *publish.LimitError
	)
	hint := ""
	var mirror *publish.MirrorError
	var keyID *publish.KeyIDError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &keyID):
		hint = "skimfs repo whitelist show lists the fingerprints; 4 digits or more name one"
	case errors.Is(err, publish.ErrCurrentRefused):
		hint = "publish first, or `skimfs repo rotate-key` where a key is to go"
	case errors.As(err, &mirror):
		hint = "publish at its origin; `skimfs repo mirror` brings it here"
	case errors.As(err, &key):
		hint = "name the directory of the repository's keys with --keys"
	case errors.As(err, &whitelist):
		hint = "skimfs repo whitelist sign " + whitelist.Dir + ", where the master key is"
	case errors.As(err, &name):
		hint = "skimfs repo ls lists the names"
		if n := name.Nearest(); n != "" {
			hint = "did you mean " + n + "?"
		}
	case errors.As(err, &gone):
		hint = "skimfs repo history lists the revisions"
	case errors.As(err, &platform):
		hint = "choose one with --platform, or all"
	case errors.As(err, &limit):
		hint = "raise the ceiling with --max-" + limit.What + " if the image is trusted"
	case errors.Is(err, publish.ErrName):
		hint = "an example: docker.io/library/debian:12"
	case errors.Is(err, os.ErrNotExist) && strings.Contains(err.Error(), "holds none"):
		hint = "skimfs repo create makes one"
	case errors.Is(err, publish.ErrExists):
		hint = "skimfs repo info shows it"
	}
	return &statusError{status: exitFailed, hint: hint, err: err}
}

func repoCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create DIR --name NAME",
		Short: "Make an empty signed repository and its keys",
		Long: `Make an empty signed repository in DIR and its keys. NAME is the repository's name, like a host's: images.example.org.
Keys are never overwritten: a name that has some already keeps them.

Clients need NAME.pub. NAME.key signs what is published. NAME.masterkey signs the whitelist, which says that NAME.key may do so;
it lies in a folder of its own and is best kept offline.` + exitRepoText,
		Example: `  skimfs repo create /srv/images --name images.example.org
  skimfs repo create ./repo --name test.example.org --keys ./keys`,
		Args: cobra.ExactArgs(1),
	}
	name := cmd.Flags().String("name", "", "name of the repository, as in images.example.org (required)")
	keys := publisherKeys(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *name == "" {
			return usage(cmd, errors.New("repo create: --name is missing"))
		}
		if err := index.ValidName(*name); err != nil {
			return usage(cmd, err)
		}
		c, err := repoConfig(cmd, args[0], *keys)
		if err != nil {
			return err
		}
		_, reused, err := publish.Create(cmd.Context(), c, *name)
		if err != nil {
			return repoError(err)
		}
		k := publish.Keys{Dir: c.Keys}
		out := cmd.OutOrStdout()
		fmt.Fprintf(out, "repository %s in %s\n", *name, args[0])
		if reused {
			fmt.Fprintf(out, "keys       reused: those of %s in %s\n", *name, c.Keys)
		}
		fmt.Fprintf(out, "public key %s (for clients)\nmaster key %s (move it offline; whitelists are signed with it)\n", k.PublicPath(*name), k.MasterPath(*name))
		return nil
	}
	return cmd
}

func repoList() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls DIR",
		Short:   "List the images of a repository and their sizes",
		Long:    "List the images of a repository: plain size, files, and the size of their objects that no other image shares." + exitRepoText,
		Example: "  skimfs repo ls /srv/images\n  skimfs repo ls /srv/images --json",
		Args:    cobra.ExactArgs(1),
	}
	keys := publisherKeys(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := openRepo(cmd, args[0], *keys)
		if err != nil {
			return err
		}
		images, err := r.Images(cmd.Context())
		if err != nil {
			return repoError(err)
		}
		if *asJSON {
			return writeJSON(cmd.OutOrStdout(), images)
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "NAME\tFILES\tSIZE\tUNSHARED\tIMAGE")
		for _, i := range images {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", i.Name, i.Files, size(i.Bytes), size(i.Unshared), i.Flat)
		}
		return w.Flush()
	}
	return cmd
}

func repoInfo() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "info DIR [NAME]",
		Short:   "Show a repository, or one of its images",
		Long:    "Show a repository's revision, keys and totals, or with NAME what is known of one image." + exitRepoText,
		Example: "  skimfs repo info /srv/images\n  skimfs repo info /srv/images docker.io/library/debian:12",
		Args:    cobra.RangeArgs(1, 2),
	}
	keys := publisherKeys(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := openRepo(cmd, args[0], *keys)
		if err != nil {
			return err
		}
		if len(args) == 2 {
			return imageInfo(cmd, r, args[1], *asJSON)
		}
		info, err := r.Info(cmd.Context())
		if err != nil {
			return repoError(err)
		}
		if *asJSON {
			return writeJSON(cmd.OutOrStdout(), info)
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
		fmt.Fprintf(w, "repository\t%s\nrevision\t%d of %s\nroot\t%v\nimages\t%d under %d names\nobjects\t%d, %s compressed\nplain\t%s in all images\nwhitelist\tuntil %s\n",
			info.Name, info.Revision, info.Time.Format(time.RFC3339), info.Root, info.Images, info.Names, info.Objects, size(info.Compressed), size(info.Bytes), info.WhitelistExpires.Format(time.RFC3339))
		return w.Flush()
	}
	return cmd
}

func imageInfo(cmd *cobra.Command, r *publish.Repo, name string, asJSON bool) error {
	i, err := r.Image(cmd.Context(), name)
	if err != nil {
		return repoError(err)
	}
	if asJSON {
		return writeJSON(cmd.OutOrStdout(), i)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "name\t%s\nimage\t%s\nslot\t%d\nroot\t%v\nmanifest\t%v\nconfig\t%v\nplatform\t%s\nconverter\t%s\nentries\t%d\nfiles\t%d\nplain\t%s\nobjects\t%d, %s compressed, %s of it unshared\n",
		i.Name, i.Flat, i.Slot, i.Root, i.Manifest, i.ConfigDigest, i.Platform, i.Converter, i.Entries, i.Files, size(i.Bytes), i.Objects, size(i.Compressed), size(i.Unshared))
	return w.Flush()
}

func repoVerify() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "verify DIR",
		Short:   "Check that every object is there and right",
		Long:    "Read every catalog and every object that the current revision needs and check its digest. Each bad object is named." + exitRepoText,
		Example: "  skimfs repo verify /srv/images\n  skimfs repo verify /srv/images --json",
		Args:    cobra.ExactArgs(1),
	}
	keys := publisherKeys(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := openRepo(cmd, args[0], *keys)
		if err != nil {
			return err
		}
		report, err := r.Verify(cmd.Context())
		if err != nil {
			return repoError(err)
		}
		if *asJSON {
			if err := writeJSON(cmd.OutOrStdout(), report); err != nil {
				return err
			}
		} else {
			for _, d := range report.Damage {
				fmt.Fprintf(cmd.OutOrStdout(), "bad %s: %s (%s)\n", d.Object, d.Reason, d.Needed)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d images, %d catalogs and %d objects checked, %s compressed\n", report.Images, report.Catalogs, report.Objects, size(report.Compressed))
		}
		if n := len(report.Damage); n > 0 {
			return &statusError{status: exitDamage, hint: "copy the named files from a mirror, or publish the images again", err: fmt.Errorf("verifying %s: %d objects are bad", args[0], n)}
		}
		return nil
	}
	return cmd
}

func repoRemove() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rm DIR NAME…",
		Short:   "Drop names from a repository",
		Long:    "Drop names, and images that no other name leads to, in a new revision. Their objects go with a later `skimfs repo gc`." + exitRepoText,
		Example: "  skimfs repo rm /srv/images docker.io/library/debian:12",
		Args:    cobra.MinimumNArgs(2),
	}
	keys := publisherKeys(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := openRepo(cmd, args[0], *keys)
		if err != nil {
			return err
		}
		if err := r.Remove(cmd.Context(), args[1:]...); err != nil {
			return repoError(err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "removed %s, revision %d\n", strings.Join(args[1:], ", "), r.Manifest().Revision)
		return nil
	}
	return cmd
}

func repoGC() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "gc DIR",
		Short: "Delete objects that nothing needs any more",
		Long: `Delete objects that no revision within the retention time (30 days unless the manifest says otherwise) needs and that are older than
the grace, and the manifests of older revisions. Images that no name has led to in that time leave the current revision.` + exitRepoText,
		Example: "  skimfs repo gc /srv/images --dry-run\n  skimfs repo gc /srv/images",
		Args:    cobra.ExactArgs(1),
	}
	keys := publisherKeys(cmd)
	dry := cmd.Flags().Bool("dry-run", false, "say what would go, and delete nothing")
	grace := cmd.Flags().Duration("grace", publish.DefaultGrace, "age below which an object stays in any case")
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := openRepo(cmd, args[0], *keys)
		if err != nil {
			return err
		}
		report, err := r.GC(cmd.Context(), *grace, *dry)
		if err != nil {
			return repoError(err)
		}
		if *asJSON {
			return writeJSON(cmd.OutOrStdout(), report)
		}
		verb := "deleted"
		if *dry {
			verb = "would delete"
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s %d objects (%s), %d revisions, %d images; %d objects stay\n", verb, report.Objects, size(report.Bytes), report.Revisions, report.Images, report.Kept)
		return nil
	}
	return cmd
}

func repoHistory() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "history DIR",
		Short:   "List the revisions and what each changed",
		Long:    "List the revisions that are kept, the newest first, and the names that each added, moved or removed." + exitRepoText,
		Example: "  skimfs repo history /srv/images\n  skimfs repo history /srv/images --json",
		Args:    cobra.ExactArgs(1),
	}
	keys := publisherKeys(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := openRepo(cmd, args[0], *keys)
		if err != nil {
			return err
		}
		list, err := r.History(cmd.Context())
		if err != nil {
			return repoError(err)
		}
		if *asJSON {
			return writeJSON(cmd.OutOrStdout(), list)
		}
		for _, s := range list {
			current := ""
			if s.Current {
				current = ", current"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "revision %d of %s%s\n", s.Revision, s.Time.Format(time.RFC3339), current)
			printChanges(cmd.OutOrStdout(), s.Changes)
		}
		return nil
	}
	return cmd
}

func printChanges(w io.Writer, changes []publish.NameChange) {
	for _, c := range changes {
		fmt.Fprintf(w, "  %-7s %s  %s\n", c.What, c.Name, c.Flat)
	}
}

func repoRollback() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollback DIR REVISION",
		Short: "Let all names lead where they led in an old revision",
		Long: `Make a new revision in which all names lead where they led in REVISION. Numbers of revisions never go back, so nodes follow; what runs on
them is not disturbed.` + exitRepoText,
		Example: "  skimfs repo rollback /srv/images 12",
		Args:    cobra.ExactArgs(2),
	}
	keys := publisherKeys(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		n, err := strconv.ParseUint(args[1], 10, 64)
		if err != nil || n == 0 {
			return usage(cmd, fmt.Errorf("%q is no number of a revision", args[1]))
		}
		r, err := openRepo(cmd, args[0], *keys)
		if err != nil {
			return err
		}
		changes, err := r.Rollback(cmd.Context(), n)
		if err != nil {
			return repoError(err)
		}
		printChanges(cmd.OutOrStdout(), changes)
		fmt.Fprintf(cmd.OutOrStdout(), "names are as in revision %d, revision %d\n", n, r.Manifest().Revision)
		return nil
	}
	return cmd
}

func repoWhitelist() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "whitelist",
		Short: "Show or renew the list of keys that may publish",
		Long:  "The whitelist says which keys may sign manifests, and until when. The master key signs it." + exitRepoText,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(whitelistSign(), whitelistShow())
	return cmd
}

func size(n int64) string { return humanize.Bytes(uint64(max(n, 0))) }

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
