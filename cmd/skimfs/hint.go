package main

import (
	"errors"
	"io/fs"
	"net/url"
	"path"
	"strings"

	"github.com/skimfs/skimfs/mountd"
)

// hintFor returns one line of advice for an error that carries none of its own, or "".
func hintFor(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "check who owns the file and whom it lets in"
	}
	return ""
}

// about is what a node command was asked to do, for the text of hints.
type about struct {
	source, target string
	unmount, limit bool
}

// nodeHint returns one line of advice for what a daemon, or the way to it, refused.
func nodeHint(err error, a about) string {
	switch mountd.KindOf(err) {
	case mountd.NoKey:
		return "put the repository's NAME.pub into the key directory, or name it with -o pubkey=FILE"
	case mountd.WrongKey:
		return "compare your NAME.pub with the publisher's: either the key is old or the server is not who it should be"
	case mountd.Expired:
		return "the publisher must renew the whitelist (`skimfs repo whitelist sign`); also check this node's clock"
	case mountd.Revoked:
		return "the publisher withdrew this revision; a newer one must be published"
	case mountd.Rollback:
		return "a server or proxy gives an old revision: name another with -o server=URL, or ask the publisher"
	case mountd.Unreachable:
		return "check the address, the network, the proxy (-o proxy=LIST) and what the server wants to see or shows (-o auth=FILE, ca=FILE); what was mounted before mounts offline"
	case mountd.Damaged:
		return "the copy on the server is incomplete or damaged: `skimfs repo verify` finds out; -o server=URL names another mirror"
	case mountd.NotFound:
		switch {
		case a.source == "":
			return ""
		case strings.Contains(err.Error(), "no repository at"):
			return addressHint(a.source)
		case strings.Contains(err.Error(), "nothing is pinned"):
			return "`skimfs cache list` lists pins"
		}
		return "`skimfs ls " + above(a.source) + "` lists what is there, the publisher's `skimfs repo history` its revisions"
	case mountd.Target:
		switch {
		case a.unmount:
			return "`skimfs status` lists all mounts"
		case !strings.Contains(err.Error(), "does not exist"):
			return "choose another directory"
		}
		return "give an existing directory: `mkdir -p " + a.target + "`"
	case mountd.Busy:
		if a.unmount {
			return "`skimfs fuser " + a.target + "` lists who uses it; `skimfs umount --lazy " + a.target + "` detaches it at once"
		}
		return "`skimfs umount " + a.target + "` first, or choose another directory"
	case mountd.NotMounted:
		return "`skimfs status` lists all mounts"
	case mountd.NoFuse:
		return "load the kernel module (`modprobe fuse`); users need /dev/fuse with mode 0666, a container `--device /dev/fuse`"
	case mountd.Conflict:
		if a.limit {
			return "`skimfs cache list` lists pins, `skimfs cache unpin SOURCE` lets one go"
		}
		return "`skimfs cache limit set SIZE` changes the limit of a running daemon"
	case mountd.CacheFailed:
		return "name a directory on a local disk of this node with -o cache=DIR"
	case mountd.NoDaemon:
		return "as root start it with `systemctl start skimfs-mountd.service`, or run `skimfs mountd`"
	}
	return ""
}

// addressHint is for a source at whose address is no repository: perhaps a path inside one was written like a part of its URL.
func addressHint(source string) string {
	src, err := mountd.ParseSource(source)
	if err != nil || src.URL == "" {
		return "check the name, and the servers that -o server=URL or the configuration gives for it"
	}
	u, err := url.Parse(src.URL)
	if err != nil || src.Path != "" || strings.Trim(u.Path, "/") == "" {
		return "the URL is that of the directory with the repository's manifest: ask the publisher for it"
	}
	inside := strings.Trim(u.Path, "/")
	u.Path = ""
	return "a path inside a repository follows a #, as in " + u.String() + "#" + inside
}

// above returns the directory that a source lies in, and a whole repository itself.
func above(source string) string {
	src, err := mountd.ParseSource(source)
	if err != nil || src.Path == "" {
		return source
	}
	src.Path = strings.TrimSuffix(path.Dir(src.Path), ".")
	return src.String()
}

// nodeStatus is the exit status of ls, cat, stat, status and cache for err.
func nodeStatus(err error) int {
	if mountd.KindOf(err) == mountd.Usage {
		return exitUsage
	}
	return exitFailed
}

// mountStatus is mount(8)'s exit status for err.
func mountStatus(err error) int {
	switch mountd.KindOf(err) {
	case mountd.Usage, mountd.Permission, mountd.Conflict:
		return exitMountUsage
	case mountd.NoFuse, mountd.NoDaemon, mountd.CacheFailed, mountd.Stopping, mountd.System:
		return exitMountSystem
	case mountd.Internal:
		return exitMountBug
	case mountd.Interrupted:
		return exitMountInterrupt
	}
	return exitMountFailed
}
