package mountd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// serveMetrics answers GET /metrics over TCP, if Config.MetricsListen asks for it, until the daemon ends. Whoever reaches the address may read; nothing can be
// changed there.
func (d *Daemon) serveMetrics() error {
	if d.cfg.MetricsListen == "" {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(d.ctx, "tcp", d.cfg.MetricsListen)
	if err != nil {
		return fmt.Errorf("listening for metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) { _, _ = d.getMetrics(w, r) }) // it has no error
	server := &http.Server{
		Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn),
	}
	d.wg.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("serving metrics", "address", d.cfg.MetricsListen, "err", err)
		}
	})
	d.wg.Go(func() {
		<-d.ctx.Done()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			server.Close()
		}
	})
	d.log.Info("metrics", "address", l.Addr())
	return nil
}
