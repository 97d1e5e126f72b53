package publish_test

import (
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publish"
)

// BenchmarkPublish converts Debian 12 with python3 and numpy: 9,800 files, 261 MB.
func BenchmarkPublish(b *testing.B) {
	layout := testkit.DemoImage(b)
	b.Run("first", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			r := newRepo(b)
			b.StartTimer()
			b.SetBytes(r.publish("oci:"+layout, "local/demo:1", publish.Options{}).Bytes)
		}
	})
	b.Run("again", func(b *testing.B) {
		r := newRepo(b)
		r.publish("oci:"+layout, "local/demo:1", publish.Options{})
		b.ResetTimer()
		for range b.N {
			r.publish("oci:"+layout, "local/demo:1", publish.Options{})
		}
	})
}
