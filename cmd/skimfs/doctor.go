package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/mountd"
)

// doctorFindings runs the checks of `skimfs doctor` with what the configuration says.
func doctorFindings(ctx context.Context, h mountd.Home, source string, lists []string) ([]mountd.Finding, error) {
	o, err := parseOptions(lists)
	if err != nil {
		return nil, err
	}
	c, err := homeConfig(h)
	if err != nil {
		return nil, configError(err)
	}
	name := ""
	if src, err := mountd.ParseSource(source); err == nil {
		name = src.Name
	}
	cfg := mountd.DoctorConfig{Home: h, Keys: c.options("").keys, Cache: o.cache, Source: source, Options: c.options(name).Options}
	if cfg.Cache == "" {
		cfg.Cache, cfg.Quota = c.options("").cache, c.options("").quota
	}
	if o.Proxy != "" {
		cfg.Options.Proxy = o.Proxy
	}
	if len(o.Servers) > 0 {
		cfg.Options.Servers = o.Servers
	}
	if o.PublicKey != "" {
		cfg.Options.PublicKey = o.PublicKey
	}
	if o.Lower != "" {
		cfg.Options.Lower = o.Lower
	}
	return mountd.Doctor(ctx, cfg), nil
}

func doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "doctor [SOURCE]",
		GroupID: "node",
		Short:   "Look for what keeps mounts from working, with a remedy each",
		Long: `Check the FUSE device, the mount helper, apptainer, directories, the cache's partition and the lower cache; with SOURCE also each proxy and server, the
key, the whitelist and the clock. It touches no mount and needs no daemon, so it works when something hangs, and ends within seconds.

Exit status:
  0 nothing is wrong (there may be warnings), 1 something is, 2 wrong call`,
		Example: `  skimfs doctor
  skimfs doctor images.example.org -o proxy='http://squid:3128'`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (default off)")
	lists := optionFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		h, err := home()
		if err != nil {
			return nodeError(err, about{})
		}
		found, err := doctorFindings(cmd.Context(), h, strings.Join(args, ""), *lists)
		if err != nil {
			return usage(cmd, err)
		}
		bad := 0
		for _, f := range found {
			if f.Level == "error" {
				bad++
			}
		}
		if asJSON {
			err = printJSON(cmd.OutOrStdout(), found)
		} else {
			printFindings(cmd.OutOrStdout(), found)
		}
		if err == nil && bad > 0 {
			err = &statusError{status: exitFailed, hint: "the remedies are listed above", err: fmt.Errorf("%d of %d checks found something wrong", bad, len(found))}
		}
		return err
	}
	return cmd
}

func printFindings(w io.Writer, found []mountd.Finding) {
	for _, f := range found {
		fmt.Fprintf(w, "%-8s %-12s %s\n", f.Level, f.Check, f.Text)
		if f.Remedy != "" {
			fmt.Fprintf(w, "%-8s %-12s → %s\n", "", "", f.Remedy)
		}
	}
}

func fuserCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "fuser TARGET",
		GroupID: "node",
		Short:   "List the processes that use a mount, live or dead",
		Long: `List the processes with their working directory, root, program, an open file or a mapped file on the mount at TARGET, in containers too, and
those that are still in one that was detached from there: after a crash of the daemon, or by a lazy unmount. It reads /proc, needs no daemon and touches
no mount, so it hangs with none. A user sees his own processes, root all.`,
		Example: `  skimfs fuser /mnt
  skimfs fuser --json /mnt | jq '.[].pid'`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON (default off)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		target, err := mountd.ResolveTarget(args[0])
		if err != nil {
			return nodeError(err, about{})
		}
		h, err := home()
		if err != nil {
			return nodeError(err, about{})
		}
		users, err := mountd.MountUsers(h, target)
		if err != nil {
			return nodeError(err, about{})
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), users)
		}
		for _, u := range users {
			detached := ""
			if u.Left {
				detached = " (of a mount that was detached)"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%7d %-16s %s%s\n", u.PID, u.Command, strings.Join(u.Uses, " "), detached)
		}
		return nil
	}
	return cmd
}

// probeTime bounds what a probe of one mount may take.
const probeTime = 5 * time.Second

func probeCommand() *cobra.Command {
	var limit time.Duration
	cmd := &cobra.Command{
		Use:     "probe [TARGET…]",
		GroupID: "node",
		Short:   "Check that mounts answer, in bounded time",
		Long: `Look at the top directory of each mount (all mounts of this home's daemons without TARGET), in a process of its own each and side by side. One
that does not answer in time is told of and left behind: the command itself never hangs.

Exit status:
  0 all answer, 1 one doesn't, 2 wrong call`,
		Example: `  skimfs probe
  skimfs probe --timeout 2s /mnt`,
	}
	cmd.Flags().DurationVar(&limit, "timeout", probeTime, "`time` for a mount to answer")
	cmd.RunE = func(cmd *cobra.Command, targets []string) error {
		if len(targets) == 0 {
			ctx, cancel := context.WithTimeout(cmd.Context(), limit)
			defer cancel()
			list, err := allMounts(ctx)
			if err != nil {
				return nodeError(err, about{})
			}
			targets = list
		}
		answers := make([]chan error, len(targets))
		for i, target := range targets {
			answers[i] = make(chan error, 1)
			go func() { answers[i] <- probeTarget(target, limit) }()
		}
		bad := 0
		for i, target := range targets {
			err := <-answers[i]
			if err != nil {
				bad++
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %v\n", target, err)
				continue
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: ok\n", target)
		}
		if bad > 0 {
			return &statusError{status: exitFailed, hint: "`skimfs status` and `skimfs doctor` find out why", err: fmt.Errorf("%d of %d mounts don't answer or aren't there", bad, len(targets))}
		}
		return nil
	}
	return cmd
}

func allMounts(ctx context.Context) (targets []string, err error) {
	h, err := home()
	if err != nil {
		return nil, err
	}
	clients, err := mountd.ConnectAll(ctx, h)
	if err != nil {
		return nil, err
	}
	for _, c := range clients {
		list, err := c.Mounts(ctx)
		if err != nil {
			return nil, err
		}
		for _, m := range list {
			targets = append(targets, m.Target)
		}
	}
	return targets, nil
}

// probeTarget is probe for a path as a user writes it; where that leads is found out in the same time.
func probeTarget(path string, limit time.Duration) error {
	type found struct {
		target string
		err    error
	}
	end, where := time.Now().Add(limit), make(chan found, 1)
	go func() {
		target, err := mountd.ResolveTarget(path)
		where <- found{target, err}
	}()
	select {
	case f := <-where:
		if f.err != nil {
			return f.err
		}
		return probe(f.target, limit, time.Until(end))
	case <-time.After(limit):
		return fmt.Errorf("no answer within %v", limit)
	}
}

// mountsEscape writes a path as /proc/self/mounts does.
var mountsEscape = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)

// probe lets another process look, and leaves it behind if it hangs: one that waits for a mount may not end when it is killed.
func probe(target string, limit, left time.Duration) error {
	cmd := exec.Command("/bin/sh", "-c", `cd "$1" && [ "$(stat -f -c %T .)" != "" ] && ls -A . >/dev/null && grep -qF " $2 fuse.skimfs " /proc/self/mounts`, "sh", target, mountsEscape.Replace(target))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.WaitDelay = 100 * time.Millisecond
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			return nil
		}
		if text, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n"); text != "" {
			return errors.New(text[strings.LastIndex(text, ": ")+1:])
		}
		return errors.New("nothing of skimfs is mounted there")
	case <-time.After(left):
		_ = cmd.Process.Kill() // it ends when the kernel lets it
		return fmt.Errorf("no answer within %v", limit)
	}
}

func bugreportCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:     "bugreport [SOURCE]",
		GroupID: "node",
		Short:   "Collect what a developer needs to know into one archive",
		Long: `Write a .tar.gz with version, findings of doctor, status and metrics of the daemons, the kernel's list of mounts, memory, and the end of the
logs. Each part is bounded in time and size, none touches a mount. Nothing of images' content and no key is in it.`,
		Example: `  skimfs bugreport
  skimfs bugreport --output /tmp/report.tar.gz images.example.org`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVar(&out, "output", "", "`file` to write (default skimfs-bugreport-TIME.tar.gz in this directory)")
	lists := optionFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if out == "" {
			out = "skimfs-bugreport-" + time.Now().UTC().Format("20060102T150405") + ".tar.gz"
		}
		h, err := home()
		if err != nil {
			return nodeError(err, about{})
		}
		f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		zw := gzip.NewWriter(f)
		tw := tar.NewWriter(zw)
		for _, p := range reportParts(cmd.Context(), h, strings.Join(args, ""), *lists) {
			if err := tw.WriteHeader(&tar.Header{Name: "skimfs-bugreport/" + p.name, Mode: 0o600, Size: int64(len(p.text)), ModTime: time.Now()}); err != nil {
				return err
			}
			if _, err := tw.Write(p.text); err != nil {
				return err
			}
		}
		if err := errors.Join(tw.Close(), zw.Close(), f.Sync()); err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), out)
		return err
	}
	return cmd
}

type reportPart struct {
	name string
	text []byte
}

const (
	partTime  = 10 * time.Second // for each part that asks somebody
	partBytes = 1 << 20          // of each log, from its end
)

func reportParts(ctx context.Context, h mountd.Home, source string, lists []string) (parts []reportPart) {
	add := func(name string, f func(ctx context.Context, w io.Writer) error) {
		ctx, cancel := context.WithTimeout(ctx, partTime)
		defer cancel()
		var b bytes.Buffer
		if err := f(ctx, &b); err != nil {
			fmt.Fprintf(&b, "\n%v\n", err)
		}
		parts = append(parts, reportPart{name, b.Bytes()})
	}
	add("version", func(_ context.Context, w io.Writer) error {
		_, err := fmt.Fprintln(w, version())
		return err
	})
	add("doctor", func(ctx context.Context, w io.Writer) error {
		found, err := doctorFindings(ctx, h, source, lists)
		printFindings(w, found)
		return err
	})
	add("status.json", func(ctx context.Context, w io.Writer) error {
		clients, err := mountd.ConnectAll(ctx, h)
		for i, c := range clients {
			s, err := c.Status(ctx)
			if err != nil {
				return err
			}
			if err := printJSON(w, s); err != nil {
				return err
			}
			add(fmt.Sprintf("metrics-%d", i), c.Metrics)
		}
		return err
	})
	for _, path := range []string{"/proc/self/mountinfo", "/proc/meminfo", "/proc/version", "/proc/filesystems", "/etc/os-release", "/etc/fuse.conf"} {
		add(strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "-"), func(_ context.Context, w io.Writer) error { return tail(w, path) })
	}
	logs, _ := filepath.Glob(filepath.Join(h.State, "*.log")) // the pattern is good unless the home's name has brackets: then no log
	for _, path := range logs {
		add("log-"+filepath.Base(path), func(_ context.Context, w io.Writer) error { return tail(w, path) })
	}
	return parts
}

// tail copies the end of a file.
func tail(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > partBytes {
		if _, err := f.Seek(-partBytes, io.SeekEnd); err != nil {
			return err
		}
	}
	_, err = io.Copy(w, io.LimitReader(f, partBytes))
	return err
}
