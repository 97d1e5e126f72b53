package publish

import "github.com/VictoriaMetrics/metrics"

// Metrics counts what this process published, for a program that publishes for a long time and exposes it. It is a set of its own: the
// daemon, which is the same program and never publishes, would show zeros.
var Metrics = metrics.NewSet()

var (
	objectsWritten  = Metrics.NewCounter("skimfs_publish_objects_written_total")
	objectBytes     = Metrics.NewCounter("skimfs_publish_object_bytes_total")
	layersConverted = Metrics.NewCounter("skimfs_publish_layers_converted_total")
	layersReused    = Metrics.NewCounter("skimfs_publish_layers_reused_total")
	layerBytes      = Metrics.NewCounter("skimfs_publish_layer_bytes_total")
	revisionsSigned = Metrics.NewCounter("skimfs_publish_revisions_total")
)
