// Package fusefs is the kernel's view of an image, or of a repository of images: a read-only filesystem over catalogs
// (package index) and a source of chunks.
//
// A program that mounts calls [Fusermount] when it was started under the name fusermount3, and else once [PrepareHelper]. Then,
// for each mount, [New] makes a [Core], [Mount] mounts it, and [Mounted.Wait] returns when the mount is gone, after [Unmount] or
// umount(8). Close the Core last.
//
// [Core] knows no FUSE library. Its operations are Lookup, Getattr, Readdir, Readlink, Open, Read, Getxattr, Listxattr, Statfs and
// Forget, on a [NodeID]: a slot and a number, both published data, so there is no table of nodes and nothing to remember. An
// operation that lacks something doesn't wait: [Later] is true of its error, and [Core.Do] or [Core.ReadWait] wait in its place. The
// file bazil.go is the adapter to bazil.org/fuse, on the level of its Conn; another adapter needs the Core and wire.go.
//
// Promises:
//   - What is at hand is answered on the goroutine that read the request, whatever else waits: stat, readdir, readlink, xattrs and
//     statfs need catalogs only, and those stay in memory while the kernel knows a node of theirs.
//   - A catalog is loaded once however many wait for it. A wait ends at Config.Deadline, or when its process is killed, and at no
//     other signal. What can't be loaded or read is EIO, is not remembered, and is tried again at the next request.
//   - A panic, or a fault in mapped memory, fails one request with EIO and is logged with its stack.
//   - The kernel keeps all that lies inside an image for ever, names that aren't there included. Names and attributes of a
//     repository's name tree it keeps for Config.TTL, at most a minute; [Core.Replace] shows a new revision.
//   - Inode numbers are those of the format: equal for hard links, the same on every node and after a restart.
//
// No promises: the process must not touch its own mount, which can deadlock; nothing here forces an unmount; atime and ctime
// show mtime; SEEK_HOLE finds no holes.
package fusefs
