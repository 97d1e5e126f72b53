package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/mountd"
	"github.com/skimfs/skimfs/publishd"
)

// publishdSocket is where publishd is met: beside mountd's sockets; the system's, which all users may ask, in a directory of its own.
func publishdSocket() (string, error) {
	h, err := home()
	if err != nil {
		return "", err
	}
	if os.Getenv("SKIMFS_HOME") != "" {
		return filepath.Join(h.Run, "publishd.sock"), nil
	}
	const system = "/run/skimfs-publishd/publishd.sock"
	if os.Geteuid() == 0 {
		return system, nil
	}
	own := filepath.Join(h.Run, "publishd.sock")
	if _, err := os.Stat(own); err != nil {
		if _, err := os.Stat(system); err == nil {
			return system, nil
		}
	}
	return own, nil
}

// publishdState is where publishd keeps queue and logs; the system's lies apart from the mounts' daemon's, whose state nobody may enter.
func publishdState(h mountd.Home) string {
	if os.Getenv("SKIMFS_HOME") == "" && os.Geteuid() == 0 {
		return "/var/lib/skimfs-publishd"
	}
	return filepath.Join(h.State, "publishd")
}

func publishdCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "publishd --repo DIR",
		GroupID: "repo",
		Short:   "Convert images in the background",
		Long: `Run the service that converts images in the background, in the foreground until SIGINT or SIGTERM; it logs to stderr. ` + "`skimfs submit`" + ` hands
work in and returns at once, ` + "`skimfs wait`" + ` and ` + "`skimfs op`" + ` ask how it stands. What was submitted survives a crash of the service.

Conversions run in processes of their own at lower CPU and disk priority. The socket is found as the daemon's of the mounts is; --listen
adds an address: loopback needs tokens, another one TLS too.

Exit status: 0 done, 1 failed, 2 usage.`,
		Example: `  skimfs publishd --repo /srv/images
  skimfs publishd --repo /srv/images --jobs 8 --listen 127.0.0.1:8321 --tokens /etc/skimfs/publishd.tokens`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	var cfg publishd.Config
	var socket, listen, tokens, cert, key, rate, memory, reserve string
	f.StringVar(&cfg.Repo, "repo", "", "`directory` of the repository (required)")
	keys := publisherKeys(cmd)
	f.StringVar(&cfg.State, "state", "", "`directory` of queue and logs (default for root /var/lib/skimfs-publishd, else publishd in the state directory of the mounts' daemon)")
	f.StringVar(&socket, "socket", "", "`path` of the socket")
	f.StringVar(&listen, "listen", "", "further `address` to listen on, host:port")
	f.StringVar(&tokens, "tokens", "", "`file` of tokens that --listen lets in, see `skimfs publishd token`")
	f.StringVar(&cert, "tls-cert", "", "`file` with the certificate for --listen")
	f.StringVar(&key, "tls-key", "", "`file` with its key")
	f.StringVar(&cfg.NATS, "nats", "", "`URL` of a NATS JetStream cluster that holds the queue, for several publishd (default: a queue of its own)")
	f.BoolVar(&cfg.Sync, "sync", false, "write each record through to the disk before answering, not within a second")
	f.IntVar(&cfg.Jobs, "jobs", 0, "jobs at a time (default half the CPUs, at most 4)")
	f.IntVar(&cfg.PerRegistry, "per-registry", 4, "jobs at a time that read one registry")
	f.IntVar(&cfg.MaxQueue, "max-queue", 100_000, "jobs that may be queued")
	f.IntVar(&cfg.MaxAttempts, "attempts", 6, "attempts at a job")
	f.DurationVar(&cfg.Backoff, "backoff", 2*time.Second, "wait before the second attempt; it doubles up to 10m")
	f.DurationVar(&cfg.Stall, "stall", 10*time.Minute, "an attempt ends after so long without progress")
	f.DurationVar(&cfg.Timeout, "registry-timeout", time.Minute, "for a registry's answer")
	f.DurationVar(&cfg.Aging, "aging", 10*time.Minute, "a queued job's priority goes up by one each")
	f.DurationVar(&cfg.Retain, "retain", 30*24*time.Hour, "how long ended operations are remembered")
	f.StringVar(&rate, "rate", "", "`size` per second read from registries, all jobs together")
	f.IntVar(&cfg.Requests, "requests", 0, "requests per second to one registry, all jobs together")
	f.StringVar(&memory, "memory", "2GiB", "`size` of memory for each process of a job; a conversion wants 256MiB")
	f.StringVar(&reserve, "reserve", "1GiB", "`size` that stays free on the repository's disk")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if cfg.Repo == "" {
			return usage(cmd, errors.New("publishd: --repo is missing"))
		}
		for _, size := range []struct {
			text string
			to   *int64
		}{{rate, &cfg.Rate}, {memory, &cfg.Memory}, {reserve, &cfg.Reserve}} {
			if size.text != "" {
				n, err := parseSize(size.text)
				if err != nil {
					return usage(cmd, err)
				}
				*size.to = n
			}
		}
		r, err := openRepo(cmd, cfg.Repo, *keys)
		if err != nil {
			return err
		}
		_ = r.Name()
		if cfg.Repo, err = filepath.Abs(cfg.Repo); err != nil {
			return err
		}
		if cfg.Keys, err = keysDir(*keys); err != nil {
			return err
		}
		if cfg.Keys, err = filepath.Abs(cfg.Keys); err != nil {
			return err
		}
		h, err := home()
		if err != nil {
			return err
		}
		if cfg.State == "" {
			cfg.State = publishdState(h)
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		cfg.Worker = []string{self, "publishd-worker"}
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
		listeners, allowed, err := publishdListeners(socket, listen, tokens, cert, key)
		if err != nil {
			return err
		}
		return runPublishd(cmd.Context(), cfg, listeners, allowed)
	}
	cmd.AddCommand(publishdTokenCommand())
	return cmd
}

// publishdListeners opens the socket, and the further address if one is given.
func publishdListeners(socket, listen, tokenFile, cert, key string) (out []net.Listener, tokens []publishd.Token, err error) {
	if tokenFile != "" {
		f, err := os.Open(tokenFile)
		if err != nil {
			return nil, nil, err
		}
		tokens, err = publishd.ParseTokens(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, nil, err
		}
	}
	if socket == "" {
		if socket, err = publishdSocket(); err != nil {
			return nil, nil, err
		}
	}
	mode, dirMode := os.FileMode(0o600), os.FileMode(0o700)
	if strings.HasPrefix(socket, "/run/skimfs-publishd/") {
		mode, dirMode = 0o666, 0o755
	}
	if err := os.MkdirAll(filepath.Dir(socket), dirMode); err != nil {
		return nil, nil, err
	}
	if c, err := net.DialTimeout("unix", socket, time.Second); err == nil {
		c.Close()
		return nil, nil, fmt.Errorf("another publishd answers at %s", socket)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, err
	}
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", socket)
	unix.Umask(old)
	if err != nil {
		return nil, nil, err
	}
	out = append(out, l)
	if err := os.Chmod(socket, mode); err != nil {
		return nil, nil, err
	}
	if listen == "" {
		return out, tokens, nil
	}
	t, err := publishdTCP(listen, tokens, cert, key)
	return append(out, t), tokens, err
}

func publishdTCP(listen string, tokens []publishd.Token, cert, key string) (net.Listener, error) {
	if len(tokens) == 0 {
		return nil, &statusError{status: exitUsage, hint: "`skimfs publishd token NAME --scope submit` makes one", err: errors.New("publishd: --listen needs --tokens")}
	}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, &statusError{status: exitUsage, err: err}
	}
	if cert == "" {
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, &statusError{status: exitUsage, hint: "give --tls-cert and --tls-key, or listen on 127.0.0.1", err: fmt.Errorf("publishd: --listen %s without TLS would show tokens to the network", listen)}
		}
		return net.Listen("tcp", listen)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	return tls.Listen("tcp", listen, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}})
}

func runPublishd(ctx context.Context, cfg publishd.Config, listeners []net.Listener, tokens []publishd.Token) error {
	d, err := publishd.Open(ctx, cfg)
	if errors.Is(err, publishd.ErrQueue) && cfg.NATS != "" {
		return &statusError{status: exitFailed, hint: "--nats wants the URL of a NATS server with JetStream, and the right to use it; without --nats the queue is publishd's own", err: err}
	}
	if err != nil {
		return err
	}
	defer d.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { d.Run(ctx); return nil })
	for _, l := range listeners {
		cfg.Log.Info("listening", "address", l.Addr().String())
		g.Go(func() error { return d.Serve(ctx, l, tokens) })
	}
	if _, err := sd.SdNotify(false, sd.SdNotifyReady); err != nil {
		cfg.Log.Warn("telling systemd", "err", err)
	}
	return g.Wait()
}

func publishdTokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token NAME",
		Short: "Make a token for --listen",
		Long: `Make a secret token and print it to stderr, once; the line for the file of --tokens goes to stdout and holds only a digest of it.
Scopes: read looks, submit also submits and changes what is its own, admin changes what is anybody's.`,
		Example: `  skimfs publishd token bee --scope submit >>/etc/skimfs/publishd.tokens`,
		Args:    cobra.ExactArgs(1),
	}
	scope := cmd.Flags().String("scope", "submit", "read, submit or admin")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		secret, line, err := publishd.NewToken(args[0], publishd.Scope(*scope))
		if err != nil {
			return usage(cmd, err)
		}
		fmt.Fprintln(cmd.ErrOrStderr(), secret)
		fmt.Fprintln(cmd.OutOrStdout(), line)
		return nil
	}
	return cmd
}

// publishdWorkerCommand is what publishd starts for each job.
func publishdWorkerCommand() *cobra.Command {
	return &cobra.Command{Use: "publishd-worker", Short: "Do one job of publishd", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		os.Exit(publishd.RunWorker(cmd.Context(), os.Stdin, os.Stdout, os.Stderr))
		return nil
	}}
}
