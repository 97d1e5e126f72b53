package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"github.com/skimfs/skimfs/index"
	"github.com/skimfs/skimfs/mountd"
)

// setting is a key of the configuration with its value and where it came from.
type setting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	From  string `json:"from"` // a file, or "default"
}

// config is what the configuration files say: for all, and for repositories by name.
type config struct {
	all          map[string]setting
	repositories map[string]map[string]setting
}

// Keys of the table that only files, or only commands, may set.
var (
	fileOnly    = []string{"suid", "log_level", "keys", "metrics_listen", "socket_group", "cache_mem"}
	commandOnly = []string{"ro", "remount", "idle"}
	// daemonWide are the keys that a section for a repository can't have.
	daemonWide = []string{"cache", "quota", "log_level", "keys", "metrics_listen", "socket_group", "cache_mem"}
	// ownDaemon are the keys that the site's files set for root's daemon alone: a user's has its own places.
	ownDaemon = []string{"cache", "quota", "log_level", "keys", "metrics_listen", "socket_group", "cache_mem", "uid", "gid", "uid_map", "gid_map", "allow_other", "suid"}
)

// loadConfig reads files, and the *.conf of directories in order of their names. What isn't there is no error. skip names keys of the
// system's files that don't count.
func loadConfig(paths []string, user bool) (*config, error) {
	c := &config{all: map[string]setting{}, repositories: map[string]map[string]setting{}}
	for _, path := range paths {
		files := []string{path}
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			entries, err := os.ReadDir(path)
			if err != nil {
				return nil, fmt.Errorf("configuration: %w", err)
			}
			files = nil
			for _, e := range entries {
				if strings.HasSuffix(e.Name(), ".conf") && !strings.HasPrefix(e.Name(), ".") {
					files = append(files, filepath.Join(path, e.Name()))
				}
			}
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = c.parse(file, string(text), user && strings.HasPrefix(file, "/etc/"))
			}
			if err != nil {
				return nil, fmt.Errorf("configuration: %w", err)
			}
		}
	}
	return c, nil
}

// parse adds what a file says; what it says again counts more.
func (c *config) parse(file, text string, others bool) error {
	var tree map[string]any
	if _, err := toml.Decode(text, &tree); err != nil {
		var bad toml.ParseError
		if errors.As(err, &bad) {
			return fmt.Errorf("%s: line %d: %s", file, bad.Position.Line, bad.Message)
		}
		return fmt.Errorf("%s: %w", file, err)
	}
	for key, value := range tree {
		if key == "repository" {
			continue
		}
		if slices.Contains([]string{"server", "pubkey", "revision", "date", "suid"}, key) {
			return fmt.Errorf("%s: key %q is of one repository: write it below [repository.\"NAME\"]", file, key)
		}
		s, err := parseSetting(file, key, value)
		if err != nil {
			return err
		}
		if !others || !slices.Contains(ownDaemon, key) {
			c.all[key] = s
		}
	}
	sections, ok := tree["repository"].(map[string]any)
	if !ok && tree["repository"] != nil {
		return fmt.Errorf("%s: \"repository\" is no table: write [repository.\"NAME\"]", file)
	}
	for name, value := range sections {
		section, ok := value.(map[string]any)
		if !ok || index.ValidName(name) != nil {
			return fmt.Errorf("%s: [repository.%s] is no section of a repository: write [repository.\"images.example.org\"], with quotes", file, name)
		}
		if c.repositories[name] == nil {
			c.repositories[name] = map[string]setting{}
		}
		for key, value := range section {
			if slices.Contains(daemonWide, key) {
				return fmt.Errorf("%s: key %q is the daemon's: write it above all sections", file, key)
			}
			s, err := parseSetting(file, key, value)
			if err != nil {
				return err
			}
			if !others || !slices.Contains(ownDaemon, key) {
				c.repositories[name][key] = s
			}
		}
	}
	return nil
}

// parseSetting checks a key and its value by the table of options.
func parseSetting(file, key string, value any) (setting, error) {
	row, ok := findOption(key)
	if !ok {
		return setting{}, fmt.Errorf("%s: %w", file, unknownOption(key))
	}
	if slices.Contains(commandOnly, key) {
		return setting{}, fmt.Errorf("%s: key %q is for commands", file, key)
	}
	s := setting{Key: key, From: file}
	switch v := value.(type) {
	case string:
		s.Value = v
	case int64:
		s.Value = strconv.FormatInt(v, 10)
	case bool:
		s.Value = strconv.FormatBool(v)
	case []any:
		var parts []string
		for _, part := range v {
			text, ok := part.(string)
			if !ok {
				return s, fmt.Errorf("%s: key %q: a list holds strings", file, key)
			}
			parts = append(parts, text)
		}
		s.Value = strings.Join(parts, ";")
	default:
		s.Value = fmt.Sprint(v)
	}
	if _, isBool := value.(bool); isBool != (row.value == "") {
		return s, fmt.Errorf("%s: key %q takes %s", file, key, map[bool]string{true: "true or false", false: "a value like " + row.value}[row.value == ""])
	}
	var o mountOptions
	if err := s.apply(&o); err != nil {
		return s, fmt.Errorf("%s: %w", file, err)
	}
	return s, nil
}

// apply sets the option that the setting is about.
func (s setting) apply(o *mountOptions) error {
	row, _ := findOption(s.Key)
	if row.value == "" && s.Value == "false" {
		return nil
	}
	if err := row.set(o, s.Value); err != nil {
		return fmt.Errorf("key %q: %w", s.Key, err)
	}
	return nil
}

// options returns what holds for mounts of a repository, or with "" for all.
func (c *config) options(name string) mountOptions {
	merged := maps.Clone(c.all)
	maps.Copy(merged, c.repositories[name])
	var o mountOptions
	for _, key := range slices.Sorted(maps.Keys(merged)) {
		_ = merged[key].apply(&o) // checked by parseSetting; what a key file says by now, the mount checks
	}
	return o
}

func homeConfig(h mountd.Home) (*config, error) {
	return loadConfig(h.Config, os.Geteuid() != 0 && !h.Shared)
}

// daemonSettings reads the configuration for a daemon, and sets level.
func daemonSettings(h mountd.Home, level *slog.LevelVar) (*mountd.Settings, error) {
	c, err := homeConfig(h)
	if err != nil {
		return nil, err
	}
	o := c.options("")
	level.Set(o.logLevel)
	return &mountd.Settings{Quota: o.quota, Keys: o.keys, Repository: func(name string) mountd.Options { return c.options(name).Options },
		AtStart: map[string]string{"cache": o.cache, "metrics_listen": o.metricsListen, "socket_group": fmt.Sprint(o.group), "cache_mem": c.all["cache_mem"].Value}}, nil
}

func parseLevel(v string) (level slog.Level, err error) {
	if err = level.UnmarshalText([]byte(v)); err != nil {
		return level, fmt.Errorf("%q is no level: debug, info, warn or error", v)
	}
	return level, nil
}

func configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		GroupID: "node",
		Short:   "Show or check the configuration",
		Long: `Show or check the configuration: /etc/skimfs/skimfs.conf and /etc/skimfs/conf.d/*.conf, for users then ~/.config/skimfs/skimfs.conf and conf.d.
Keys are those of ` + "`skimfs mount -o`" + `; a section [repository."NAME"] is for one repository. -o counts more than a file.`,
		Example: `  skimfs config show
  skimfs config check /etc/skimfs/skimfs.conf`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var asJSON bool
	show := &cobra.Command{
		Use:     "show [NAME]",
		Short:   "Show each value and where it came from",
		Long:    "Show each key with its value and where that came from: a file, or the default. With NAME, as it is for mounts of that repository.",
		Example: "  skimfs config show\n  skimfs config show images.example.org",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			h, err := home()
			if err != nil {
				return nodeError(err, about{})
			}
			c, err := homeConfig(h)
			if err != nil {
				return configError(err)
			}
			list := c.show(name, h)
			if asJSON {
				return printJSON(cmd.OutOrStdout(), list)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			for _, s := range list {
				fmt.Fprintf(w, "%s\t%s\t# %s\n", s.Key, s.Value, s.From)
			}
			return w.Flush()
		},
	}
	show.Flags().BoolVar(&asJSON, "json", false, "print JSON (default off)")
	check := &cobra.Command{
		Use:     "check [FILE…]",
		Short:   "Check configuration files",
		Long:    "Check the files named, or those that count here. Nothing is printed if all is well.",
		Example: "  skimfs config check\n  skimfs config check ./skimfs.conf",
		RunE: func(_ *cobra.Command, args []string) error {
			h, err := home()
			if err != nil {
				return nodeError(err, about{})
			}
			for _, path := range args {
				if _, err := os.Stat(path); err != nil {
					return &statusError{status: exitFailed, hint: "without FILE the files that count here are checked: " + strings.Join(h.Config, ", "), err: err}
				}
			}
			if len(args) == 0 {
				args = h.Config
			}
			_, err = loadConfig(args, false)
			return configError(err)
		},
	}
	cmd.AddCommand(show, check)
	return cmd
}

func configError(err error) error {
	if err == nil {
		return nil
	}
	return &statusError{status: exitFailed, hint: "`skimfs mount --help` lists the keys", err: err}
}

// show lists all keys, with the places of h where no file names others.
func (c *config) show(name string, h mountd.Home) []setting {
	places := map[string]string{"cache": h.Cache, "keys": strings.Join(h.Keys, ";")}
	var out []setting
	for _, row := range options {
		if slices.Contains(commandOnly, row.name) {
			continue
		}
		s, ok := c.repositories[name][row.name]
		if !ok {
			s, ok = c.all[row.name]
		}
		if !ok {
			s = setting{row.name, cmp.Or(places[row.name], row.def), "default"}
		}
		out = append(out, s)
	}
	return out
}

func reloadCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "reload",
		GroupID: "node",
		Short:   "Make the daemon read its configuration again",
		Long: `Make the daemon read its configuration again, as SIGHUP does: proxies, servers, timeouts, TTL, keys, the cache's limit and the log's level change at
once, for mounts in use, too. What can't change is listed. A mistake in a file changes nothing.`,
		Example: "  skimfs reload",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := home()
			if err != nil {
				return nodeError(err, about{})
			}
			clients, err := mountd.ConnectAll(cmd.Context(), h)
			if err != nil {
				return nodeError(err, about{})
			}
			if len(clients) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "skimfs: no daemon is running")
			}
			for _, c := range clients {
				r, err := c.Reload(cmd.Context())
				if err != nil {
					if mountd.KindOf(err) == mountd.Usage {
						return configError(err)
					}
					return nodeError(err, about{})
				}
				for _, target := range r.Changed {
					fmt.Fprintf(cmd.OutOrStdout(), "changed %s\n", target)
				}
				for _, p := range r.Fixed {
					p.Target = cmp.Or(p.Target, "daemon")
					fmt.Fprintf(cmd.OutOrStdout(), "kept    %s: %s %s\n", p.Target, strings.Join(p.Options, ", "), p.Reason)
				}
			}
			return nil
		},
	}
}
