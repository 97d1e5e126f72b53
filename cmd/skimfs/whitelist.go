package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/mountd"
	"github.com/skimfs/skimfs/publish"
)

func whitelistSign() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sign DIR",
		Short: "Sign the whitelist anew with the master key",
		Long: `Sign the whitelist anew, for 30 days from now. It lists the signing key at hand beside those it had; what it revokes stays revoked. With
options it changes who may publish and what is refused. Keys are named by their fingerprints, see "repo whitelist show".

DIR needs to hold no more than the files manifest and whitelist, so that the master key can stay on a machine without network: copy the two
there, sign, and copy whitelist back.` + exitRepoText,
		Example: `  skimfs repo whitelist sign /srv/images
  skimfs repo whitelist sign /srv/images --keys /media/usb/keys --drop-key 5f0c22aa
  skimfs repo whitelist sign /srv/images --minimum-revision 12`,
		Args: cobra.ExactArgs(1),
	}
	keys := publisherKeys(cmd)
	days := cmd.Flags().Int("days", 30, "how long it counts, 1 to 366")
	add := cmd.Flags().StringArray("add-key", nil, "file with the public half of a further key that may publish")
	drop := cmd.Flags().StringArray("drop-key", nil, "a key that may publish no longer")
	revoke := cmd.Flags().StringArray("revoke-key", nil, "a key that may publish no longer, and whose revisions are refused")
	roots := cmd.Flags().StringArray("revoke-root", nil, "sha256 digest of a root catalog that is refused")
	minimum := cmd.Flags().Uint64("minimum-revision", 0, "refuse revisions below it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *days < 1 || *days > 366 {
			return usage(cmd, fmt.Errorf("repo whitelist sign: --days %d, want 1 to 366", *days))
		}
		c := publish.WhitelistChange{Life: time.Duration(*days) * 24 * time.Hour, DropKeys: *drop, RevokeKeys: *revoke, MinimumRevision: *minimum}
		for _, path := range *add {
			text, err := mountd.ReadKeyFile(path)
			if err != nil {
				return repoError(&publish.KeyError{Path: path, Err: err})
			}
			c.AddKeys = append(c.AddKeys, text)
		}
		for _, text := range *roots {
			d, err := index.ParseDigest(text)
			if err != nil {
				return usage(cmd, err)
			}
			c.RevokeRoots = append(c.RevokeRoots, d)
		}
		r, err := openRepo(cmd, args[0], *keys)
		if err != nil {
			return err
		}
		if err := r.SignWhitelist(cmd.Context(), c); err != nil {
			return repoError(err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "whitelist of %s signed, until %s\n", r.Name(), r.Whitelist().Expires.Format(time.RFC3339))
		return nil
	}
	return cmd
}

// whitelistJSON is what "repo whitelist show --json" prints.
type whitelistJSON struct {
	Name            string    `json:"name"`
	Signed          time.Time `json:"signed"`
	Expires         time.Time `json:"expires"`
	Keys            []string  `json:"keys"` // fingerprints
	RevokedKeys     []string  `json:"revoked_keys"`
	RevokedRoots    []string  `json:"revoked_roots"`
	MinimumRevision uint64    `json:"minimum_revision"`
}

func whitelistShow() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show DIR",
		Short:   "Show the whitelist",
		Long:    "Show which keys may publish, until when, and what is revoked. Keys are shown by the fingerprints that people compare." + exitRepoText,
		Example: "  skimfs repo whitelist show /srv/images",
		Args:    cobra.ExactArgs(1),
	}
	keys := publisherKeys(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := openRepo(cmd, args[0], *keys)
		if err != nil {
			return err
		}
		w := r.Whitelist()
		j := whitelistJSON{w.Name, w.Time, w.Expires, []string{}, []string{}, []string{}, w.MinimumRevision}
		for _, k := range w.Keys {
			j.Keys = append(j.Keys, index.KeyID(k))
		}
		for _, k := range w.RevokedKeys {
			j.RevokedKeys = append(j.RevokedKeys, index.KeyID(k))
		}
		for _, d := range w.RevokedRoots {
			j.RevokedRoots = append(j.RevokedRoots, d.String())
		}
		out := cmd.OutOrStdout()
		if *asJSON {
			return writeJSON(out, j)
		}
		fmt.Fprintf(out, "repository %s\nsigned     %s\nexpires    %s\n", j.Name, j.Signed.Format(time.RFC3339), j.Expires.Format(time.RFC3339))
		for _, k := range j.Keys {
			fmt.Fprintf(out, "key        %s\n", k)
		}
		for _, k := range j.RevokedKeys {
			fmt.Fprintf(out, "revoked    key %s\n", k)
		}
		for _, d := range j.RevokedRoots {
			fmt.Fprintf(out, "revoked    root %v\n", d)
		}
		if j.MinimumRevision > 0 {
			fmt.Fprintf(out, "revoked    revisions below %d\n", j.MinimumRevision)
		}
		return nil
	}
	return cmd
}

func repoRotateKey() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate-key DIR",
		Short: "Give the repository a new signing key",
		Long: `Make a new NAME.key. The whitelist, signed with the master key, lists it beside the old one, and a new revision with the same content is
signed by it. Other publishers go on with the old key until "repo whitelist sign --drop-key" ends that. With --revoke all other keys are
revoked at once, and whatever they signed is refused: for a key that somebody else may have.

The old secret key is kept beside the new one under another name; delete it when nobody needs it.` + exitRepoText,
		Example: "  skimfs repo rotate-key /srv/images\n  skimfs repo rotate-key /srv/images --revoke",
		Args:    cobra.ExactArgs(1),
	}
	keys := publisherKeys(cmd)
	revoke := cmd.Flags().Bool("revoke", false, "revoke all other keys")
	asJSON := cmd.Flags().Bool("json", false, "print the result as JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := openRepo(cmd, args[0], *keys)
		if err != nil {
			return err
		}
		done, err := r.RotateKey(cmd.Context(), *revoke)
		if err != nil {
			return repoError(err)
		}
		out := cmd.OutOrStdout()
		if *asJSON {
			return writeJSON(out, done)
		}
		fmt.Fprintf(out, "new key    %s signed revision %d of %s\n", done.New, done.Revision, done.Name)
		for _, k := range done.Valid {
			fmt.Fprintf(out, "valid      %s\n", k)
		}
		for _, k := range done.Revoked {
			fmt.Fprintf(out, "revoked    %s\n", k)
		}
		if done.Saved != "" {
			fmt.Fprintf(out, "old key    %s (delete it when no publisher needs it)\n", done.Saved)
		}
		return nil
	}
	return cmd
}
