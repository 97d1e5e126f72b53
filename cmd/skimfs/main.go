// Command skimfs mounts container images lazily, publishes them and looks after both.
//
// Each command has a file of its own; main.go holds the table of commands and the exit status, hint.go turns errors into advice.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	_ "github.com/skimfs/skimfs/cmd/skimfs/early" // mounts under the name of fusermount3
	"github.com/skimfs/skimfs/fusefs"
)

// Exit status of all commands but the mount forms.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitDamage = 3

	exitInterrupted = 130 // by a signal, as shells say it
)

// Exit status of mount and umount, as mount(8) has it.
const (
	exitMountUsage     = 1
	exitMountSystem    = 2
	exitMountBug       = 4
	exitMountInterrupt = 8
	exitMountFailed    = 32
)

// statusError carries an exit status, and perhaps a hint, to main.
type statusError struct {
	status int
	hint   string
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

func main() {
	if filepath.Base(os.Args[0]) == fusefs.HelperName {
		os.Exit(fusefs.Fusermount(os.Args[1:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if name := filepath.Base(os.Args[0]); name == helperName || name == remountName {
		os.Exit(runHelper(ctx, os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(run(ctx, filepath.Base(os.Args[0]), os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit status.
func run(ctx context.Context, name string, args []string, stdout, stderr io.Writer) int {
	root := rootCommand(name)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	status, hint := exitFailed, hintFor(err)
	var se *statusError
	if errors.As(err, &se) {
		status = se.status
		if se.hint != "" {
			hint = se.hint
		}
	}
	if status == exitFailed && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		status, err = exitInterrupted, errors.New("interrupted")
	}
	fmt.Fprintf(stderr, "skimfs: %v\n", err)
	if hint == "" && status == usageStatus(cmd) {
		hint = "see `" + cmd.CommandPath() + " --help`"
	}
	if hint != "" {
		fmt.Fprintf(stderr, "hint: %s\n", hint)
	}
	return status
}

// rootCommand is the table of commands.
func rootCommand(name string) *cobra.Command {
	root := &cobra.Command{
		Use:   "skimfs",
		Short: "Mount container images and fetch only the files that are read",
		Long: `skimfs mounts a container image as a directory and fetches only the files that are read.
Images are published once into a repository of static files; nodes mount them over HTTP through caching proxies.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, err) })
	root.AddGroup(&cobra.Group{ID: "node", Title: "On a node:"}, &cobra.Group{ID: "repo", Title: "At the publisher:"})
	for _, c := range commands() {
		root.AddCommand(c)
	}
	wrapArgs(root)
	cobra.AddTemplateFunc("exitStatus", exitStatusHelp)
	root.SetUsageTemplate(root.UsageTemplate() + "{{exitStatus .}}")
	return root
}

// commands lists all commands; each is built in the file of its name.
func commands() []*cobra.Command {
	return []*cobra.Command{
		repoCommand(), publishCommand(), serveCommand(),
		publishdCommand(), submitCommand(), waitCommand(), opCommand(), resolveCommand(), publishdWorkerCommand(),
		mountCommand(), umountCommand(), releaseCommand(), statusCommand(), lsCommand(), catCommand(), statCommand(), cacheCommand(), prefetchCommand(), configCommand(), reloadCommand(), probeCommand(), doctorCommand(), fuserCommand(), bugreportCommand(), mountdCommand(),
		versionCommand(), manCommand(),
	}
}

// wrapArgs gives every command's complaint about its arguments the status for usage errors.
func wrapArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usage(cmd, err)
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		wrapArgs(c)
	}
}

// usage marks err as a mistake in how cmd was called.
func usage(cmd *cobra.Command, err error) error {
	return &statusError{status: usageStatus(cmd), err: err}
}

// exitStatusHelp is the last paragraph of the help of each command that doesn't tell its exit status itself.
func exitStatusHelp(cmd *cobra.Command) string {
	if strings.Contains(cmd.Long, "Exit status:") {
		return ""
	}
	if cmd.Annotations[mountForm] != "" {
		return "\nExit status (as of mount(8)):\n  0 done, 1 wrong call or not permitted, 2 system error, 4 internal error, 8 interrupted, 32 failed\n"
	}
	return "\nExit status:\n  0 done, 1 failed, 2 wrong call, 3 damage found\n"
}

// mountForm is the annotation of commands that use mount(8)'s exit status.
const mountForm = "mount-form"

func usageStatus(cmd *cobra.Command) int {
	if cmd.Annotations[mountForm] != "" {
		return exitMountUsage
	}
	return exitUsage
}
