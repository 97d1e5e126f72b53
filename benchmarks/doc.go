// Command benchmarks measures skimfs beside its peers, in one interleaved run.
//
//	go run ./benchmarks                    the demo image, three rounds, about eleven minutes
//	go run ./benchmarks -many -big         also an image of 100,000 small files and one with a file of 1 GiB
//	go run ./benchmarks -shapes            also how long programs in larger images take to start
//	go run ./benchmarks -rtt 20ms          the cold rows once more, 20 ms away
//	go run ./benchmarks -only 'find|mount' some rows only
//
// The contestants are the real skimfs program (its daemon, a real squid, a real nginx), the limit
// (a filesystem with the same tree out of memory on the bare connection of the same FUSE library:
// what skimfs' adapter could reach at best), a native ext4, squashfuse_ll, and a full pull with
// skopeo and umoci. Each measures the same work in the same states:
//
//	cold     nothing on the node; for skimfs, the squid is empty too
//	squid    nothing on the node, everything in the squid
//	cached   everything in the node's cache, on a fresh mount
//	hot      once more on that mount: the kernel's caches answer
//
// Round by round all contestants take their turn, so that a busy moment of the machine hits all of
// them; the order rotates. The reports give medians, minima and spreads, a Markdown table on
// standard output, all samples with -json, a drawing with -png.
//
// The files: main.go the flags and the order of things; world.go what a run needs of servers and
// artefacts; contestant.go what a contestant is, then one file for each of them; work.go the rows; shapes.go images as people run them;
// child.go what runs in processes of its own, so that no daemon ever reads its own mount; report.go
// medians and tables; plot.go the drawing; target.go the figures of the design and whether they hold.
package main
