package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/mountd"
)

// helperName is the name under which mount(8) runs this program for file systems of type skimfs.
const helperName = "mount.skimfs"

// remountName is the helper's name for what is mounted already, by the type that the kernel shows.
const remountName = "mount.fuse.skimfs"

const helperUsage = "mount.skimfs SOURCE TARGET [-sfnv] [-N namespace] [-t type] [-o options]"

// helperCall is a call by mount(8).
type helperCall struct {
	source, target string
	lists          []string // of options
	dry            bool     // check everything and mount nothing
	sloppy         bool     // unknown options don't matter
	verbose        bool
}

// parseHelper reads arguments in any order, single letters alone or together, as mount(8) passes them.
func parseHelper(args []string) (helperCall, error) {
	var c helperCall
	var names []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if len(arg) < 2 || arg[0] != '-' {
			names = append(names, arg)
			continue
		}
		for j := 1; j < len(arg); j++ {
			switch letter := arg[j]; letter {
			case 'f':
				c.dry = true
			case 's':
				c.sloppy = true
			case 'v':
				c.verbose = true
			case 'n', 'r', 'w': // no mtab; ro and rw are said by -o, too
			case 'o', 't', 'N':
				value := arg[j+1:]
				if value == "" {
					if i++; i == len(args) {
						return c, fmt.Errorf("-%c needs a value", letter)
					}
					value = args[i]
				}
				switch letter {
				case 'o':
					c.lists = append(c.lists, value)
				case 't':
					if value != "skimfs" && value != "fuse.skimfs" {
						return c, fmt.Errorf("type %q is not skimfs", value)
					}
				case 'N':
					return c, fmt.Errorf("-N %s: the daemon mounts in its own namespace; `nsenter` runs a daemon in another", value)
				}
				j = len(arg)
			default:
				return c, fmt.Errorf("unknown flag -%c", letter)
			}
		}
	}
	if len(names) != 2 {
		return c, fmt.Errorf("%d arguments, want SOURCE and TARGET", len(names))
	}
	c.source, c.target = helperSource(names[0]), names[1]
	return c, nil
}

// helperSource undoes what mount(8) and autofs make of a source: a path that ends in it, or ":NAME".
func helperSource(source string) string {
	source = strings.TrimPrefix(source, ":")
	if !strings.HasPrefix(source, "/") || strings.Contains(source, "://") {
		return source
	}
	if dir, err := os.Getwd(); err == nil {
		if rest, ok := strings.CutPrefix(source, strings.TrimSuffix(dir, "/")+"/"); ok {
			if name, _, _ := strings.Cut(rest, "/"); index.ValidName(name) == nil {
				return rest
			}
		}
	}
	return filepath.Base(source)
}

// runHelper is mount.skimfs: it returns mount(8)'s exit status.
func runHelper(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := helper(ctx, args, stdout, stderr)
	if err == nil {
		return exitDone
	}
	status, hint := exitMountUsage, "the call is: "+helperUsage
	var se *statusError
	if errors.As(err, &se) {
		status, hint = se.status, se.hint
	}
	fmt.Fprintf(stderr, "%s: %v\n", helperName, err)
	if hint != "" {
		fmt.Fprintf(stderr, "hint: %s\n", hint)
	}
	return status
}

func helper(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 1 && (args[0] == "-h" || args[0] == "--help") {
		fmt.Fprintf(stdout, "%s\n\nFor mount(8) and /etc/fstab; `skimfs mount --help` lists the options. -f checks everything and mounts nothing.%s",
			helperUsage, exitStatusHelp(mountCommand()))
		return nil
	}
	c, err := parseHelper(args)
	if err != nil {
		return err
	}
	o, err := parseFstab(c.lists, c.sloppy)
	if err != nil {
		return &statusError{status: exitMountUsage, hint: "`skimfs mount --help` lists the options", err: err}
	}
	if _, err := mountd.ParseSource(c.source); err != nil {
		return &statusError{status: exitMountUsage, hint: "a source is NAME[/PATH] or URL[#PATH]", err: err}
	}
	reply, target, err := mount(ctx, c.source, c.target, o, c.dry, "", 0)
	if err != nil {
		return err
	}
	if c.verbose {
		switch {
		case c.dry:
			fmt.Fprintf(stdout, "%s: would mount %s on %s\n", helperName, c.source, target)
		case reply.Already:
			fmt.Fprintf(stdout, "%s: %s is mounted on %s already\n", helperName, c.source, target)
		default:
			fmt.Fprintf(stdout, "%s: mounted %s on %s, revision %d\n", helperName, c.source, target, reply.Revision)
		}
	}
	return nil
}

// mount checks the target and asks the daemon, or with dry only checks.
func mount(ctx context.Context, source, name string, o mountOptions, dry bool, lease string, leaseTime time.Duration) (*mountd.MountReply, string, error) {
	a := about{source: source, target: name}
	device, err := mountd.TargetDevice(name)
	if err != nil {
		return nil, "", mountFormError(err, a)
	}
	if device != nil {
		defer device.Close()
		reply, err := mountDevice(ctx, source, device, o, dry, lease)
		return reply, name, mountFormError(err, a)
	}
	target, err := mountd.CheckTarget(name)
	if err != nil {
		return nil, "", mountFormError(err, a)
	}
	if dry {
		h, err := home()
		if err == nil {
			err = mountd.CheckHidden(h, o.cache, target)
		}
		return nil, target, mountFormError(err, a)
	}
	c, err := connect(ctx, o)
	if err != nil {
		return nil, target, mountFormError(err, a)
	}
	reply, err := c.Mount(ctx, mountd.MountRequest{Source: source, Target: target, Options: o.Options, Quota: o.quota, Remount: o.remount, Lease: lease, LeaseTime: leaseTime})
	return reply, target, mountFormError(err, a)
}

// mountDevice asks the daemon to serve what somebody else has mounted, or with dry does nothing.
func mountDevice(ctx context.Context, source string, device *os.File, o mountOptions, dry bool, lease string) (*mountd.MountReply, error) {
	if dry {
		return nil, nil
	}
	c, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	return c.MountDevice(ctx, mountd.MountRequest{Source: source, Options: o.Options, Quota: o.quota, Remount: o.remount, Lease: lease}, device)
}
