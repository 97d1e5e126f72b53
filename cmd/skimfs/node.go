package main

import (
	"cmp"
	"context"
	"os"
	"os/user"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/mountd"
)

// nodeError gives err the exit status and the hint of a command that talks to the daemon.
func nodeError(err error, a about) error {
	if err == nil {
		return nil
	}
	return &statusError{status: nodeStatus(err), hint: nodeHint(err, a), err: err}
}

// mountFormError is nodeError with mount(8)'s exit status.
func mountFormError(err error, a about) error {
	if err == nil {
		return nil
	}
	return &statusError{status: mountStatus(err), hint: nodeHint(err, a), err: err}
}

func home() (mountd.Home, error) {
	h, err := mountd.FindHome(os.Geteuid(), userEnv)
	if err != nil || !h.Shared {
		return h, err
	}
	c, err := homeConfig(h) // where root's daemon is met hangs on its cache
	if err != nil {
		return h, configError(err)
	}
	h.Cache = cmp.Or(c.options("").cache, h.Cache)
	return h, nil
}

// userEnv is the environment, with the user's home directory as the system has it where that is missing: mount(8) takes it away from users.
func userEnv(name string) string {
	value := os.Getenv(name)
	if name == "HOME" && value == "" {
		if u, err := user.LookupId(strconv.Itoa(os.Geteuid())); err == nil {
			return u.HomeDir
		}
	}
	return value
}

// connect returns a client of the daemon that o means; it is started if none answers and the home allows it.
func connect(ctx context.Context, o mountOptions) (*mountd.Client, error) {
	h, err := home()
	if err != nil {
		return nil, err
	}
	c, err := homeConfig(h)
	if err != nil {
		return nil, configError(err)
	}
	if o.cache == "" {
		o.cache = c.options("").cache
	}
	return mountd.Connect(ctx, h, o.cache, mountd.StartAlways, mountd.StartConfig{Quota: o.quota, Idle: o.idle})
}

// optionFlag gives cmd the flag -o.
func optionFlag(cmd *cobra.Command) *[]string {
	return cmd.Flags().StringArrayP("options", "o", nil, "options `k=v,…` as listed by `skimfs mount --help`")
}

// readFile runs f for a command that reads a file of a source without a mount.
func readFile(cmd *cobra.Command, lists []string, source string, f func(c *mountd.Client, o mountd.Options) error) error {
	o, err := parseOptions(lists)
	if err != nil {
		return usage(cmd, err)
	}
	c, err := connect(cmd.Context(), o)
	if err == nil {
		err = f(c, o.Options)
	}
	return nodeError(err, about{source: source})
}
