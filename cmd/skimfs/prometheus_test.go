package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestDashboardQueriesFindSomething runs each query of the dashboard against Prometheus, which scrapes a daemon in use over TCP.
func TestDashboardQueriesFindSomething(t *testing.T) {
	t.Parallel()
	prometheus := testkit.Program(t, "prometheus")
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	daemon, own := freeAddress(t), freeAddress(t)
	writeTest(t, filepath.Join(n.home, "etc", "skimfs.conf"), fmt.Sprintf("metrics_listen = %q\n", daemon))
	target := n.mount(s.image())
	n.read(filepath.Join(target, "big"))
	config := filepath.Join(n.home, "prometheus.yml")
	writeTest(t, config, fmt.Sprintf("global: {scrape_interval: 500ms, scrape_timeout: 500ms}\nscrape_configs: [{job_name: skimfs, static_configs: [{targets: [%q]}]}]\n", daemon))
	cmd := exec.Command(prometheus, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(n.home, "tsdb"), "--web.listen-address="+own)
	log, err := os.Create(filepath.Join(n.home, "prometheus.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	client := &http.Client{Timeout: 10 * time.Second}
	query := func(expr string) (results int, err error) {
		resp, err := client.Get("http://" + own + "/api/v1/query?query=" + url.QueryEscape(expr))
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		var reply struct {
			Status, Error string
			Data          struct {
				Result []struct{ Value [2]any }
			}
		}
		if err := json.NewDecoder(resp.Body).Decode(&reply); err != nil {
			return 0, err
		}
		if reply.Status != "success" {
			return 0, fmt.Errorf("%s", reply.Error)
		}
		return len(reply.Data.Result), nil
	}
	n.await("two scrapes", func() bool {
		got, err := query(`count_over_time(skimfs_mounted[1m]) >= 3`)
		return err == nil && got == 1
	})
	n.read(filepath.Join(target, "etc", "motd"))
	b, err := os.ReadFile(filepath.Join("..", "..", "packaging", "grafana", "skimfs.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &board); err != nil || len(board.Panels) < 10 {
		t.Fatalf("%d panels: %v", len(board.Panels), err)
	}
	for _, p := range board.Panels {
		for _, q := range p.Targets {
			got, err := query(strings.ReplaceAll(q.Expr, "$__rate_interval", "1m"))
			if err != nil || got == 0 {
				t.Errorf("%s: %s finds %d series: %v", p.Title, q.Expr, got, err)
			}
		}
	}
	// Nothing but metrics is answered over TCP.
	resp, err := client.Get("http://" + daemon + "/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("status over TCP: %s", resp.Status)
	}
}
