package mountd

import (
	"fmt"
	"io"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

var (
	metricPanics      = metrics.NewCounter(`skimfs_control_panics_total`)
	metricMounts      = metrics.NewCounter(`skimfs_mounts_total`)
	metricMountErrors = metrics.NewCounter(`skimfs_mount_errors_total`)
	metricMountTime   = metrics.NewHistogram(`skimfs_mount_seconds`)

	metricRevisionChecks   = metrics.NewCounter(`skimfs_revision_checks_total`)
	metricRevisionErrors   = metrics.NewCounter(`skimfs_revision_check_errors_total`)
	metricRevisionSwitches = metrics.NewCounter(`skimfs_revision_switches_total`)

	metricMounted   = metrics.NewGauge(`skimfs_mounted`, nil)
	metricOffline   = metrics.NewGauge(`skimfs_repositories_offline`, nil)
	metricLowerHung = metrics.NewGauge(`skimfs_cache_lower_hung`, nil)
	metricRefused   = metrics.NewGauge(`skimfs_repositories_refused`, nil)
)

// gauges adds what tells how old a mount's revision is.
func (m *mount) gauges() {
	name := func(s string) string { return fmt.Sprintf(`%s{mount="%d"}`, s, m.id) }
	m.metrics.NewGauge(name("skimfs_revision_age_seconds"), func() float64 { return time.Since(m.shown.Load().published).Seconds() })
	if m.follows() {
		m.metrics.NewGauge(name("skimfs_revision_check_age_seconds"), func() float64 {
			checked := m.shown.Load().checked
			if checked.IsZero() {
				checked = m.begun
			}
			return time.Since(checked).Seconds()
		})
	}
}

// countRequest counts an answer of the control API; kind is "none" for a success.
func countRequest(pattern string, err error) {
	kind := Kind("none")
	if err != nil {
		kind = KindOf(err)
	}
	metrics.GetOrCreateCounter(fmt.Sprintf(`skimfs_control_requests_total{request=%q,error=%q}`, pattern, kind)).Inc()
}

// writeMetrics writes all packages' metrics in Prometheus' text format.
func (d *Daemon) writeMetrics(w io.Writer) {
	d.db.UpdateGauges()
	d.mu.Lock()
	sets := []*metrics.Set{d.origins.set}
	for _, m := range d.mounts {
		sets = append(sets, m.metrics)
	}
	metricMounted.Set(float64(len(d.mounts)))
	d.mu.Unlock()
	offline, refused := d.origins.standings()
	metricOffline.Set(float64(offline))
	metricRefused.Set(float64(refused))
	var hung int64
	for _, l := range d.lowerStatuses() {
		hung += l.Hung
	}
	metricLowerHung.Set(float64(hung))
	metrics.WritePrometheus(w, true)
	metrics.WriteFDMetrics(w)
	for _, s := range sets {
		s.WritePrometheus(w)
	}
}
