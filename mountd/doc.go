// Package mountd is the daemon of a node: it owns a cache directory and all mounts over it.
//
// A process becomes the daemon with [Run]; commands reach it with [Connect]:
//
//	home, err := mountd.FindHome(os.Getuid(), os.Getenv)
//	c, err := mountd.Connect(ctx, home, "", mountd.StartAlways, mountd.StartConfig{})
//	target, err := mountd.CheckTarget("/mnt")
//	reply, err := c.Mount(ctx, mountd.MountRequest{Source: "http://host/repo#docker.io/library/debian:12", Target: target})
//
// # Life
//
// One daemon runs for each cache directory; cachedb's lock sees to that, and the control socket's name is derived from the directory.
// Where the [Home] allows it (users, SKIMFS_HOME) a command that needs a daemon starts one: this program anew, as "skimfs mountd", in
// a session of its own; its start errors come back over a pipe. Such a daemon ends [DefaultIdle] after its last mount. What is
// mounted is recorded in the cache. When a daemon dies, the next command finds its record without anyone answering, starts another, and that
// one removes the dead mounts (lazily, never by force) and mounts the same digests again, with the same inode numbers, asking no server.
//
// # Trust
//
// A repository is known by a master public key: given with the mount, or NAME.pub in a key directory. With a URL the manifest's name
// chooses the key. Manifest and whitelist are checked as docs/format.md section 7 says; a check that fails is repeated past all caches on the way,
// then at the next server. What was accepted last is recorded under name and master key: nothing older is accepted after it, and
// without any server it can still be mounted from the cache.
//
// # Control API
//
// HTTP and JSON over the unix socket, for the daemon's own user and root, and within limits for the members of [Config.Group]. Errors are {"kind": …, "message": …}; see [Kind].
//
//	POST   /v1/mounts                         MountRequest → MountReply; the same again is no error
//	DELETE /v1/mounts?target=&lazy=true
//	GET    /v1/mounts                         list of MountStatus
//	GET    /v1/mounts/wait?target=            answers when it is unmounted
//	POST   /v1/mounts/refresh?target=         look for a new revision now → MountStatus
//	POST   /v1/reload                         read the configuration again → ReloadReply
//	DELETE /v1/leases?lease=                  end a lease → ReleaseReply
//	GET    /v1/status                         Status
//	GET    /v1/ls?source=&path=&options=      ListReply; options: Options as JSON
//	GET    /v1/stat?source=&path=&follow=true FileInfo
//	GET    /v1/cat?source=&path=              content; an error after the first byte is in the trailer Skimfs-Error
//	PUT    /v1/cache                          CacheRequest → CacheStatus
//	GET    /metrics                           Prometheus text format, of all packages
//
// # Promises
//
// The daemon never touches a mount of its own: it decides by /proc/self/mountinfo and by paths. A panic while answering is an error to that caller.
// A mount whose root catalog is missing or wrong fails before anything is mounted, and the error names URL and digest.
package mountd
