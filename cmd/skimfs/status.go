package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/mountd"
)

func statusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "status [TARGET]",
		GroupID: "node",
		Short:   "Show daemons, mounts, caches and what was fetched",
		Long: `Show the running daemon: its mounts, its cache, how much it fetched and by which proxy and server; then the daemons of other cache
directories. With TARGET, the mount there alone, in detail. A daemon that died is started again first, with its mounts. No mount is touched. Without a
daemon the JSON has pid 0.`,
		Example: `  skimfs status
  skimfs status /mnt
  skimfs status --json | jq -r '.mounts[].target'`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (default off)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		h, err := home()
		if err != nil {
			return nodeError(err, about{})
		}
		clients, err := mountd.ConnectAll(cmd.Context(), h)
		if err != nil {
			return nodeError(err, about{})
		}
		list := []*mountd.Status{}
		for _, c := range clients {
			s, err := statusOf(cmd.Context(), c)
			if err != nil {
				return err
			}
			list = append(list, s)
		}
		if len(args) > 0 {
			if list, err = statusAt(list, args[0]); err != nil {
				return nodeError(err, about{target: args[0]})
			}
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), statusJSON(list))
		}
		printStatus(cmd.OutOrStdout(), list)
		if len(args) > 0 {
			printMount(cmd.OutOrStdout(), list[0].Mounts[0])
		}
		return nil
	}
	return cmd
}

// statusTime is for a daemon to tell its status, which it has in memory.
const statusTime = 5 * time.Second

// statusOf asks a daemon, and does not hang with it.
func statusOf(ctx context.Context, c *mountd.Client) (*mountd.Status, error) {
	limited, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	s, err := c.Status(limited)
	if limited.Err() != nil && ctx.Err() == nil {
		return nil, &statusError{
			status: exitFailed, hint: "`skimfs bugreport` collects what is known; ended and started again, a daemon has its mounts back",
			err: fmt.Errorf("the daemon of cache %q does not answer within %v", c.Cache(), statusTime),
		}
	}
	return s, nodeError(err, about{})
}

// statusAt keeps of some daemons' status what is about the mount at target.
func statusAt(list []*mountd.Status, target string) ([]*mountd.Status, error) {
	real, err := mountd.ResolveTarget(target)
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		for _, m := range s.Mounts {
			if m.Target == real {
				s.Mounts = []mountd.MountStatus{m}
				return []*mountd.Status{s}, nil
			}
		}
	}
	return nil, &mountd.Error{Kind: mountd.NotMounted, Err: fmt.Errorf("nothing is mounted at %q", real)}
}

// printMount tells more of a mount than a list does.
func printMount(w io.Writer, m mountd.MountStatus) {
	fmt.Fprintf(w, "revision %d, published %s, shown since %s\n", m.Revision, m.Published.UTC().Format(time.RFC3339), m.Since.UTC().Format(time.RFC3339))
	switch {
	case m.Follows && !m.Checked.IsZero():
		fmt.Fprintf(w, "follows  new revisions; a server said that there is none at %s\n", m.Checked.UTC().Format(time.RFC3339))
	case m.Follows:
		fmt.Fprintln(w, "follows  new revisions; no server was heard since it was mounted")
	default:
		fmt.Fprintln(w, "follows  nothing: it stays at this revision")
	}
	if m.Manifest != "" {
		fmt.Fprintf(w, "image    %s, %s\n", m.Manifest, m.Platform)
	}
	for _, l := range m.Leases {
		fmt.Fprintf(w, "lease    %s until %s\n", l.Name, l.Expires.UTC().Format(time.RFC3339))
	}
}

// allStatus is the JSON of several daemons: the first one, which is the home's unless that doesn't run, and then the others.
type allStatus struct {
	mountd.Status
	Others []*mountd.Status `json:"other_daemons"`
}

func statusJSON(list []*mountd.Status) allStatus {
	out := allStatus{Others: []*mountd.Status{}}
	if len(list) == 0 {
		out.Origins, out.Mounts, out.Fetch.Errors = []mountd.OriginStatus{}, []mountd.MountStatus{}, map[string]int64{}
		return out
	}
	out.Status = *list[0]
	out.Others = append(out.Others, list[1:]...)
	return out
}

func printJSON(w io.Writer, value any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(value)
}

func printStatus(w io.Writer, list []*mountd.Status) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no skimfs daemon is running")
	}
	size := func(n int64) string { return humanize.Bytes(uint64(max(0, n))) }
	for i, s := range list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "daemon   pid %d, version %s, up %v\n", s.PID, s.Version, time.Duration(s.UptimeSeconds)*time.Second)
		c := s.Cache
		fmt.Fprintf(w, "cache    %s: %s of %s, %s, hit ratio %.1f %%\n", c.Dir, size(c.Bytes), size(c.Limit), english.Plural(int(c.Objects), "object", ""), 100*c.HitRatio)
		for _, l := range c.Lower {
			fmt.Fprintf(w, "lower    %s: %d hits, %d misses, %d stored%s\n", l.Dir, l.Hits, l.Misses, l.Stored, lowerTrouble(l))
		}
		fmt.Fprintf(w, "fetched  %s in %s%s\n", size(s.Fetch.Bytes), english.Plural(int(s.Fetch.Requests), "request", ""), errorCounts(s.Fetch.Errors))
		told := map[string]bool{} // mounts with other options may go the same way
		for _, o := range s.Origins {
			if way := fmt.Sprintf("server   %s by %s\n", o.Server, o.Proxy); o.InUse && !told[way] {
				told[way] = true
				fmt.Fprint(w, way)
			}
		}
		for _, m := range s.Mounts {
			fmt.Fprintf(w, "mount    %s on %s: %s\n", m.Source, m.Target, mountLine(m))
		}
	}
}

func lowerTrouble(l mountd.LowerStatus) (text string) {
	for _, c := range []struct {
		n    int64
		what string
	}{{l.Damaged, "damaged"}, {l.Slow, "slow"}, {l.Failed, "failed"}, {l.WriteErrors, "not stored"}, {l.Hung, "hung now"}} {
		if c.n > 0 {
			text += fmt.Sprintf(", %d %s", c.n, c.what)
		}
	}
	return text
}

func mountLine(m mountd.MountStatus) string {
	if m.State != "mounted" {
		return m.State + ": " + m.Error
	}
	line := fmt.Sprintf("%s, revision %d, %s, %s fetched, hit ratio %.1f %%", m.Kind, m.Revision, english.Plural(int(m.FilesFetched), "file", ""),
		humanize.Bytes(uint64(m.BytesFetched)), 100*m.HitRatio)
	if m.Errors > 0 {
		line += ", " + english.Plural(int(m.Errors), "error", "")
	}
	if m.Offline {
		line += ", offline"
	}
	if m.CheckError != "" {
		line += ", no newer revision accepted: " + m.CheckError
	}
	if m.Standing.Offline {
		line += ", no server answers"
		if m.CheckError == "" {
			line += ": " + m.Standing.OfflineWhy
		}
	}
	if m.Standing.Refused != "" {
		line += ", a newer state is refused: " + m.Standing.Refused
	}
	return line
}

func errorCounts(errors map[string]int64) string {
	var n int64
	var kinds []string
	for kind, count := range errors {
		n += count
		kinds = append(kinds, kind)
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", %s (%s)", english.Plural(int(n), "failed try", "failed tries"), strings.Join(kinds, ", "))
}
