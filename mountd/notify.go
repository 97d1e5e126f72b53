package mountd

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
)

// notify tells systemd something, if it started this process and wants to hear.
func notify(log *slog.Logger, state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		log.Warn("telling systemd", "state", state, "err", err)
	}
}

// watchdog tells systemd that the daemon lives, as often as its unit asks for, until ctx ends. alive must return soon; while it
// does not, nothing is told.
func watchdog(ctx context.Context, log *slog.Logger, alive func()) {
	every, err := sd.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return
	}
	tick := time.NewTicker(every / 2)
	defer tick.Stop()
	for {
		alive()
		notify(log, sd.SdNotifyWatchdog)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func notifyReady(log *slog.Logger, mounts int) {
	notify(log, fmt.Sprintf("%s\nSTATUS=%d mounts", sd.SdNotifyReady, mounts))
}

func notifyStopping(log *slog.Logger) { notify(log, sd.SdNotifyStopping) }
