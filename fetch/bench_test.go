package fetch_test

import (
	"fmt"
	"testing"

	"github.com/skimfs/skimfs/fetch"
)

func BenchmarkObject(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		for _, parallel := range []int{1, 16} { // requests at once, for each processor
			b.Run(fmt.Sprintf("size=%d/parallel=%d", size, parallel), func(b *testing.B) {
				obj := newObject(b, size)
				n := newOrigin(b, obj.wire)
				c := newClient(b, fetch.Config{Servers: []string{n.URL}})
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.SetParallelism(parallel)
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if _, err := c.Object(b.Context(), obj.digest, int64(size)); err != nil {
							b.Error(err)
							return
						}
					}
				})
				if s := c.Stats(); s.Dials > 64 {
					b.Errorf("%d connections", s.Dials)
				}
			})
		}
	}
}
