package fetch

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// Defaults of Config.
const (
	DefaultTimeout       = 5 * time.Second
	DefaultTimeoutDirect = 10 * time.Second
)

// Config is what New needs. Zero values mean the default given at the field; a negative ProxyReset or ServerReset means
// never, a negative MaxRetries or LowSpeed none.
type Config struct {
	Servers  []string // base URLs of the repository's mirrors, in order of preference; at least one
	Proxies  string   // as ParseProxies reads it; "" means DIRECT
	Fallback string   // more of them, after all of Proxies; if there are any, DIRECT is not used from either list
	Probe    bool     // order the servers by measured round trip, at first use and after each ServerReset
	Shard    bool     // each object has a proxy of its own in its group, instead of one proxy for all of this client

	Auth   Credentials // for the servers named in it; a user in a server's URL goes before
	CAFile string      // certificates in PEM to trust besides the system's

	Timeout       time.Duration // for connecting, and again for the first byte, through a proxy: 5 s
	TimeoutDirect time.Duration // the same without a proxy: 10 s
	LowSpeed      int64         // bytes per second below which, over a timeout's length, a transfer ends: 1024

	MaxRetries  int           // further tries on a path after a fault of the transfer: 1
	BackoffInit time.Duration // longest pause before the first of them: 2 s
	BackoffMax  time.Duration // longest pause before any: 10 s

	ProxyReset  time.Duration // after which a failed proxy is probed: 300 s
	ServerReset time.Duration // after which the servers before the one in use are probed: 1800 s
	Lookup      time.Duration // after which the names of proxies are looked up again: 60 s

	Connections int          // requests at once, and connections kept to each host: 32, which is also the least
	UserAgent   string       // "skimfs"
	Log         *slog.Logger // for changes of the path; nil: none
	Metrics     *metrics.Set // takes the counters (metrics.go lists them); nil: a set of its own
}

const minConnections = 32

func (cfg Config) withDefaults() (Config, error) {
	for _, d := range []struct {
		name  string
		value *time.Duration
		def   time.Duration
	}{
		{"Timeout", &cfg.Timeout, DefaultTimeout},
		{"TimeoutDirect", &cfg.TimeoutDirect, DefaultTimeoutDirect},
		{"BackoffInit", &cfg.BackoffInit, 2 * time.Second},
		{"BackoffMax", &cfg.BackoffMax, 10 * time.Second},
		{"Lookup", &cfg.Lookup, 60 * time.Second},
	} {
		if *d.value < 0 {
			return cfg, fmt.Errorf("%s is %v, want a positive duration", d.name, *d.value)
		}
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	if cfg.LowSpeed == 0 {
		cfg.LowSpeed = 1024
	}
	if cfg.MaxRetries == 0 {
		cfg.MaxRetries = 1
	}
	if cfg.ProxyReset == 0 {
		cfg.ProxyReset = 300 * time.Second
	}
	if cfg.ServerReset == 0 {
		cfg.ServerReset = 1800 * time.Second
	}
	cfg.Connections = max(cfg.Connections, minConnections)
	if cfg.UserAgent == "" {
		cfg.UserAgent = "skimfs"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return cfg, nil
}
