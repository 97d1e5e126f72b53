// Package soak holds a daemon under load for a while: 64 mounts of 8 images, 256 processes that read and compare every byte, proxies and servers of which
// half are failing at any time, mounts that come and go, and a cache too small for it all.
//
//	go test -v ./benchmarks/soak                                  2 minutes, as CI has it: readers take a tenth of the pace, since other tests run beside it
//	SKIMFS_SOAK=10m go test -v -timeout 30m ./benchmarks/soak     `make soak`
//
// No byte may be wrong, no process may hang, and the daemon's memory, descriptors and goroutines must not grow.
package soak
