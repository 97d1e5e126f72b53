// Package publish turns container images into a repository: objects, catalogs and a signed revision (docs/format.md).
//
// Create makes a repository, Open finds one, Publish adds an image:
//
//	repo, err := publish.Open(publish.Config{Dir: dir, Keys: keys})
//	src, err := publish.ParseSource("docker://debian:12")
//	results, err := repo.Publish(ctx, src, "", publish.Options{})
//
// Layers are streamed, several at a time: tar archive to entries, files to chunks of 1 MiB, chunks to objects that are compressed and
// stored unless they are there. All layers share one set of workers, so memory does not grow with the size of layers or files; only
// their entries are held. The converted layers are then laid over each other exactly as umoci unpacks them, mount points and
// .singularity.d are added where the image has none, and catalogs are built.
//
// A converted layer is remembered by its diff_id below .publish/layers and not read again while its objects are there.
//
// What is promised: digests of blobs, diff_ids and configs are checked before anything refers to them. Objects are on disk before a
// manifest that needs them replaces the one before, so a publish may be killed at any time. Several
// processes convert into a repository at a time; they sign one after the other, and GC waits for all of them. Equal images give equal catalogs. Numbers in the name tree are never used twice.
//
// What is not: nothing is deleted but by GC, and a name that is published again keeps its former image under .flat until then.
package publish
