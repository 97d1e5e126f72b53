package publish

import "github.com/VictoriaMetrics/metrics"

var (
	objectsWritten  = metrics.NewCounter("skimfs_publish_objects_written_total")
	objectBytes     = metrics.NewCounter("skimfs_publish_object_bytes_total")
	layersConverted = metrics.NewCounter("skimfs_publish_layers_converted_total")
	layersReused    = metrics.NewCounter("skimfs_publish_layers_reused_total")
	layerBytes      = metrics.NewCounter("skimfs_publish_layer_bytes_total")
	revisionsSigned = metrics.NewCounter("skimfs_publish_revisions_total")
)
