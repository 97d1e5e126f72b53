package main

import (
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/mountd"
)

// garbagePercent is how much garbage the daemon's heap holds beside what lives. That is mostly objects and catalogs, in which the collector has
// nothing to look for: collecting more often than by default costs little, and nodes are short of memory.
const garbagePercent = 25

// largeGarbagePercent is the same when the cache's table takes tens of megabytes itself, for some 10 % fewer cold files a second: a daemon whose
// cache is filled with a million objects is to stay below 150 MB.
const largeGarbagePercent = 10

// spareProcs are goroutines that may run besides one for each CPU. When objects that come in keep all of those busy, an answer to a reader
// would wait in Go's queue for slices of 10 ms; so the kernel shares the CPUs out.
const spareProcs = 2

func mountdCommand() *cobra.Command {
	var cache, quota string
	var idle time.Duration
	var readyFD int
	cmd := &cobra.Command{
		Use:     "mountd",
		GroupID: "node",
		Short:   "Run the daemon that owns the cache and all mounts",
		Long: `Run the daemon in the foreground until SIGINT or SIGTERM; it logs to stderr. There is one for each cache directory. Commands of users
start it by themselves; root's runs as skimfs-mountd.service. What was mounted when it ended is mounted again.`,
		Example: `  skimfs mountd
  skimfs mountd --cache /scratch/skimfs --quota 100GB`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&cache, "cache", "", "cache `directory`, or ram:SIZE (default root: /var/cache/skimfs)")
	cmd.Flags().StringVar(&quota, "quota", "", "limit of the cache on disk, a `size` (default: as set before, else 20 GB, at most 70 % of what is free)")
	cmd.Flags().DurationVar(&idle, "idle", 0, "end after so long without a mount")
	cmd.Flags().IntVar(&readyFD, "ready-fd", 0, "report to this descriptor when ready")
	for _, name := range []string{"idle", "ready-fd"} {
		if err := cmd.Flags().MarkHidden(name); err != nil {
			panic(err)
		}
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		h, err := home()
		if err != nil {
			return nodeError(err, about{})
		}
		large := func() {}
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(garbagePercent)
			large = func() { debug.SetGCPercent(largeGarbagePercent) }
		}
		if os.Getenv("GOMAXPROCS") == "" {
			runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + spareProcs)
		}
		level := &slog.LevelVar{}
		files, err := homeConfig(h)
		if err != nil {
			return configError(err)
		}
		if cache == "" {
			cache = files.options("").cache
		} else if cache, err = parseCache(cache); err != nil {
			return usage(cmd, err)
		}
		hangup := make(chan os.Signal, 1)
		signal.Notify(hangup, syscall.SIGHUP)
		defer signal.Stop(hangup)
		cfg := mountd.Config{
			Home: h, Cache: cache, Idle: idle, Version: version(), Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
			Load: func() (*mountd.Settings, error) { return daemonSettings(h, level) }, Reload: hangup,
			MetricsListen: files.options("").metricsListen, Group: files.options("").group, Memory: files.options("").memory, Large: large,
		}
		if quota != "" {
			if cfg.Quota, err = parseQuota(quota); err != nil {
				return usage(cmd, err)
			}
		}
		if readyFD > 0 {
			err = mountd.RunReporting(cmd.Context(), cfg, readyFD)
		} else {
			err = mountd.Run(cmd.Context(), cfg, nil)
		}
		return nodeError(err, about{})
	}
	return cmd
}
