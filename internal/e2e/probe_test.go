package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// answer is what became of one system call.
type answer struct {
	Call, Got string
}

// probeVariable turns the test binary into a program that makes system calls in the directory it names and prints the answers.
const probeVariable = "SKIMFS_E2E_PROBE"

func init() {
	root, ok := os.LookupEnv(probeVariable)
	if !ok {
		return
	}
	if err := os.Chdir(root); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var p probe
	p.writes()
	p.opens()
	p.names()
	p.reads()
	p.locks()
	p.maps()
	p.copies()
	p.listings()
	p.attributes()
	p.xattrs()
	p.others()
	if err := json.NewEncoder(os.Stdout).Encode(p.answers); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

type probe struct {
	answers []answer
}

// What the probe works on, in the image of oddities.
const (
	aFile   = "sizes/random"
	small   = "sizes/4097"
	aDir    = "sizes"
	aLink   = "symlinks/relative" // to a directory
	missing = "sizes/missing"
	fifo    = "links/fifo"
)

// say records a call that gives nothing but an error.
func (p *probe) say(call string, err error) { p.tell(call, "done", err) }

// tell records what a call gives.
func (p *probe) tell(call string, got any, err error) {
	text := fmt.Sprint(got)
	if err != nil {
		var errno syscall.Errno
		if text = err.Error(); errors.As(err, &errno) {
			text = unix.ErrnoName(errno)
		}
	}
	p.answers = append(p.answers, answer{call, text})
}

// fd opens what must be there, to work on.
func fd(path string, flags int) int {
	n, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, path, err)
		os.Exit(1)
	}
	return n
}

func (p *probe) open(what, path string, flags int) {
	n, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
	if err == nil {
		unix.Close(n)
	}
	p.say("open "+what, err)
}

func sum(b []byte) string { return fmt.Sprintf("%d bytes %x", len(b), sha256.Sum256(b)) }

func raw(call uintptr, args ...uintptr) (uintptr, error) {
	args = append(args, make([]uintptr, 6-len(args))...)
	n, _, errno := unix.Syscall6(call, args[0], args[1], args[2], args[3], args[4], args[5])
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}

// writes are all the ways to change something.
func (p *probe) writes() {
	p.open("O_WRONLY", aFile, unix.O_WRONLY)
	p.open("O_RDWR", aFile, unix.O_RDWR)
	p.open("O_APPEND", aFile, unix.O_WRONLY|unix.O_APPEND)
	p.open("O_TRUNC", aFile, unix.O_RDONLY|unix.O_TRUNC)
	p.open("O_CREAT of a new file", missing, unix.O_WRONLY|unix.O_CREAT)
	p.open("O_CREAT of a file that is there", aFile, unix.O_RDONLY|unix.O_CREAT)
	p.open("O_CREAT and O_EXCL of a file that is there", aFile, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	p.open("O_CREAT in a file", aFile+"/x", unix.O_WRONLY|unix.O_CREAT)
	p.open("O_TMPFILE", aDir, unix.O_RDWR|unix.O_TMPFILE)
	p.open("O_WRONLY of a directory", aDir, unix.O_WRONLY)
	p.open("O_WRONLY of what is missing", missing, unix.O_WRONLY)
	p.open("O_WRONLY of a fifo without a reader", fifo, unix.O_WRONLY|unix.O_NONBLOCK)
	p.open("O_RDWR of a fifo", fifo, unix.O_RDWR|unix.O_NONBLOCK)

	p.say("mkdir", unix.Mkdir(missing, 0o755))
	p.say("mkdir of what is there", unix.Mkdir(aDir, 0o755))
	p.say("mkdir in a missing directory", unix.Mkdir(missing+"/x", 0o755))
	p.say("mkdir in a file", unix.Mkdir(aFile+"/x", 0o755))
	p.say("mkdir of a name of 256 bytes", unix.Mkdir(strings.Repeat("n", 256), 0o755))
	p.say("mknod of a fifo", unix.Mknod(missing, unix.S_IFIFO|0o600, 0))
	p.say("mknod of a device", unix.Mknod(missing, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	p.say("mknod of a file", unix.Mknod(missing, unix.S_IFREG|0o600, 0))
	p.say("link", unix.Link(aFile, missing))
	p.say("link of what is missing", unix.Link(missing, missing+"2"))
	p.say("link over what is there", unix.Link(aFile, small))
	p.say("symlink", unix.Symlink("x", missing))
	p.say("symlink over what is there", unix.Symlink("x", aFile))
	p.say("unlink", unix.Unlink(aFile))
	p.say("unlink of a directory", unix.Unlink(aDir))
	p.say("unlink of what is missing", unix.Unlink(missing))
	p.say("rmdir", unix.Rmdir("modes/dir-0000"))
	p.say("rmdir of a directory with entries", unix.Rmdir(aDir))
	p.say("rmdir of a file", unix.Rmdir(aFile))
	p.say("rename", unix.Rename(aFile, missing))
	p.say("rename over a file", unix.Rename(aFile, small))
	p.say("rename to itself", unix.Rename(aFile, aFile))
	p.say("rename of a directory", unix.Rename(aDir, "moved"))
	p.say("rename of what is missing", unix.Rename(missing, missing+"2"))
	p.say("rename with RENAME_EXCHANGE", unix.Renameat2(unix.AT_FDCWD, aFile, unix.AT_FDCWD, small, unix.RENAME_EXCHANGE))
	p.say("rename with RENAME_NOREPLACE", unix.Renameat2(unix.AT_FDCWD, aFile, unix.AT_FDCWD, missing, unix.RENAME_NOREPLACE))
	p.say("rename with RENAME_WHITEOUT", unix.Renameat2(unix.AT_FDCWD, aFile, unix.AT_FDCWD, missing, unix.RENAME_WHITEOUT))

	p.say("truncate", unix.Truncate(aFile, 0))
	p.say("truncate of a directory", unix.Truncate(aDir, 0))
	p.say("truncate of what is missing", unix.Truncate(missing, 0))
	p.say("chmod", unix.Chmod(aFile, 0o777))
	p.say("chmod of a directory", unix.Chmod(aDir, 0o777))
	p.say("chmod of what is missing", unix.Chmod(missing, 0o777))
	p.say("chown", unix.Chown(aFile, 1, 1))
	p.say("lchown of a symlink", unix.Lchown(aLink, 1, 1))
	now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
	p.say("utimensat", unix.UtimesNanoAt(unix.AT_FDCWD, aFile, now, 0))
	p.say("utimensat of a symlink", unix.UtimesNanoAt(unix.AT_FDCWD, aLink, now, unix.AT_SYMLINK_NOFOLLOW))
	omit := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	p.say("utimensat of no time", unix.UtimesNanoAt(unix.AT_FDCWD, aFile, omit, 0))
	p.say("setxattr", unix.Setxattr(aFile, "user.new", []byte("x"), 0))
	p.say("setxattr in trusted", unix.Setxattr(aFile, "trusted.new", []byte("x"), 0))
	p.say("setxattr with XATTR_REPLACE", unix.Setxattr(aFile, "user.new", []byte("x"), unix.XATTR_REPLACE))
	p.say("setxattr of an ACL", unix.Setxattr(aFile, "system.posix_acl_access", []byte("\x02\x00\x00\x00"), 0))
	p.say("lsetxattr of a symlink", unix.Lsetxattr(aLink, "trusted.new", []byte("x"), 0))
	p.say("removexattr", unix.Removexattr("xattrs/user", "user.text"))
	p.say("removexattr of what is missing", unix.Removexattr(aFile, "user.missing"))

	f, d := fd(aFile, unix.O_RDONLY), fd(aDir, unix.O_RDONLY)
	defer unix.Close(f)
	defer unix.Close(d)
	_, err := unix.Write(f, []byte("x"))
	p.say("write to what is open for reading", err)
	_, err = unix.Write(d, []byte("x"))
	p.say("write to a directory", err)
	p.say("ftruncate", unix.Ftruncate(f, 0))
	p.say("fallocate", unix.Fallocate(f, 0, 0, 4096))
	p.say("fallocate, punching a hole", unix.Fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096))
	p.say("fchmod", unix.Fchmod(f, 0o777))
	p.say("fchown", unix.Fchown(d, 1, 1))
	p.say("fsetxattr", unix.Fsetxattr(f, "user.new", []byte("x"), 0))
	p.say("fremovexattr", unix.Fremovexattr(f, "user.new"))
	p.say("futimens", unix.UtimesNanoAt(f, "", now, unix.AT_EMPTY_PATH))
	p.say("unlinkat", unix.Unlinkat(d, "random", 0))
	p.say("linkat of a descriptor", unix.Linkat(f, "", d, "missing", unix.AT_EMPTY_PATH))
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Bind(socket, &unix.SockaddrUnix{Name: "socket"})
		unix.Close(socket)
	}
	p.say("bind of a socket", err)
}

func (p *probe) opens() {
	p.open("O_RDONLY", aFile, unix.O_RDONLY)
	p.open("O_NOATIME", aFile, unix.O_RDONLY|unix.O_NOATIME)
	p.open("O_SYNC", aFile, unix.O_RDONLY|unix.O_SYNC)
	p.open("O_NOFOLLOW of a file", aFile, unix.O_RDONLY|unix.O_NOFOLLOW)
	p.open("O_NOFOLLOW of a symlink", aLink, unix.O_RDONLY|unix.O_NOFOLLOW)
	p.open("O_NOFOLLOW behind a symlink", aLink+"/by-relative", unix.O_RDONLY|unix.O_NOFOLLOW)
	p.open("O_DIRECTORY", aDir, unix.O_RDONLY|unix.O_DIRECTORY)
	p.open("O_DIRECTORY of a file", aFile, unix.O_RDONLY|unix.O_DIRECTORY)
	p.open("O_DIRECTORY of a symlink to a directory", aLink, unix.O_RDONLY|unix.O_DIRECTORY)
	p.open("O_DIRECTORY and O_NOFOLLOW of a symlink", aLink, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	p.open("a device", "dev/null", unix.O_RDONLY)
	p.open("a fifo", fifo, unix.O_RDONLY|unix.O_NONBLOCK)
	p.open("what is missing", missing, unix.O_RDONLY)
	p.open("a dangling symlink", "symlinks/dangling", unix.O_RDONLY)
	p.open("a symlink to itself", "symlinks/itself", unix.O_RDONLY)
	p.open("a file in mode 0000", "modes/0000", unix.O_RDONLY)

	path := fd(aFile, unix.O_PATH)
	defer unix.Close(path)
	var st unix.Stat_t
	err := unix.Fstat(path, &st)
	p.tell("fstat of O_PATH", st.Size, err)
	_, err = unix.Read(path, make([]byte, 1))
	p.say("read from O_PATH", err)
	_, err = unix.Fgetxattr(path, "user.x", nil)
	p.say("fgetxattr of O_PATH", err)
	p.open("O_PATH again by /proc", fmt.Sprintf("/proc/self/fd/%d", path), unix.O_RDONLY)
	p.open("O_PATH for writing by /proc", fmt.Sprintf("/proc/self/fd/%d", path), unix.O_WRONLY)
	link := fd(aLink, unix.O_PATH|unix.O_NOFOLLOW)
	defer unix.Close(link)
	buf := make([]byte, 100)
	n, err := unix.Readlinkat(link, "", buf)
	p.tell("readlinkat of O_PATH", string(buf[:max(n, 0)]), err)

	for _, how := range []struct {
		name, path string
		resolve    uint64
	}{
		{"RESOLVE_NO_SYMLINKS through one", aLink + "/by-relative", unix.RESOLVE_NO_SYMLINKS},
		{"RESOLVE_NO_SYMLINKS", aFile, unix.RESOLVE_NO_SYMLINKS},
		{"RESOLVE_BENEATH to the outside", "symlinks/outside", unix.RESOLVE_BENEATH},
		{"RESOLVE_IN_ROOT to the outside", "symlinks/outside", unix.RESOLVE_IN_ROOT},
		{"RESOLVE_NO_XDEV", aFile, unix.RESOLVE_NO_XDEV},
	} {
		n, err := unix.Openat2(unix.AT_FDCWD, how.path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: how.resolve})
		if err == nil {
			unix.Close(n)
		}
		p.say("openat2 with "+how.name, err)
	}
	for _, a := range []struct {
		name, path  string
		mode, flags uint32
	}{
		{"F_OK", aFile, unix.F_OK, 0}, {"R_OK", aFile, unix.R_OK, 0}, {"W_OK", aFile, unix.W_OK, 0}, {"X_OK of no program", aFile, unix.X_OK, 0},
		{"X_OK of a program", "modes/setuid", unix.X_OK, 0}, {"W_OK of a directory", aDir, unix.W_OK, 0}, {"W_OK of a fifo", fifo, unix.W_OK, 0},
		{"F_OK of what is missing", missing, unix.F_OK, 0}, {"F_OK of a dangling symlink", "symlinks/dangling", unix.F_OK, 0},
		{"W_OK of a mode that forbids it", "modes/0000", unix.W_OK, 0},
		{"F_OK of a dangling symlink itself", "symlinks/dangling", unix.F_OK, unix.AT_SYMLINK_NOFOLLOW}, {"R_OK with AT_EACCESS", aFile, unix.R_OK, unix.AT_EACCESS},
	} {
		p.say("faccessat "+a.name, unix.Faccessat(unix.AT_FDCWD, a.path, a.mode, int(a.flags)))
	}
}

// names are long ones, and those that lead nowhere.
func (p *probe) names() {
	stat := func(call, path string) {
		var st unix.Stat_t
		err := unix.Lstat(path, &st)
		p.tell("lstat of "+call, st.Size, err)
	}
	stat("a name of 255 bytes", "names/"+strings.Repeat("n", 255))
	stat("a missing name of 255 bytes", "names/"+strings.Repeat("m", 255))
	stat("a name of 256 bytes", "names/"+strings.Repeat("n", 256))
	stat("a file as a directory", aFile+"/x")
	stat("a file with a slash", aFile+"/")
	stat("a file and ..", aFile+"/..")
	stat("a missing directory", missing+"/x")
	stat("nothing", "")
	stat("a symlink to a file with a slash", "symlinks/dangling/")
	stat("an invalid name in UTF-8", "names/\xff\xfe")
	stat("a name with a newline", "names/new\nline")
	stat("another case", "SIZES")
	deep := "names/deep"
	for i := range 10 {
		deep += "/" + strings.Repeat(string(rune('a'+i)), 250)
	}
	stat("a path of 2.5 kB", deep)
	// The kernel takes PATH_MAX bytes with the one that ends it.
	for _, length := range []int{unix.PathMax - 1, unix.PathMax} {
		fill := length - len(deep) - 1
		slashes := 2 - fill%2
		stat(fmt.Sprintf("a path of %d bytes", length), "."+strings.Repeat("/", slashes)+strings.Repeat("./", (fill-slashes)/2)+deep)
	}
	stat("a path of slashes", "sizes"+strings.Repeat("/", 4095-len(aFile)+1)+"random")

	readlink := func(call, path string, room int) {
		buf := make([]byte, room)
		n, err := unix.Readlink(path, buf)
		p.tell("readlink of "+call, sum(buf[:max(n, 0)]), err)
	}
	readlink("a symlink", aLink, 100)
	readlink("a symlink with bytes of all kinds", "symlinks/odd", 100)
	readlink("a symlink of 4000 bytes", "symlinks/long", 5000)
	readlink("a symlink into too small a buffer", "symlinks/long", 10)
	readlink("a file", aFile, 100)
	readlink("a directory", aDir, 100)
	readlink("what is missing", missing, 100)
}

func (p *probe) reads() {
	f, d := fd(aFile, unix.O_RDONLY), fd(aDir, unix.O_RDONLY)
	defer unix.Close(f)
	defer unix.Close(d)
	pread := func(call string, f, room int, offset int64) {
		buf := make([]byte, room)
		n, err := unix.Pread(f, buf, offset)
		p.tell("pread "+call, sum(buf[:max(n, 0)]), err)
	}
	pread("of all", f, 3<<20, 0)
	pread("across chunks", f, 5000, 1<<20-2500)
	pread("across the end", f, 8192, 2<<20+1<<19-100)
	pread("at the end", f, 10, 2<<20+1<<19)
	pread("far behind the end", f, 10, 1<<40)
	pread("before the beginning", f, 10, -1)
	pread("of nothing", f, 0, 0)
	pread("of a directory", d, 10, 0)
	n, err := unix.Preadv2(f, [][]byte{make([]byte, 10), make([]byte, 20)}, 100, 0)
	p.tell("preadv2", n, err)
	for _, s := range []struct {
		name, path string
		offset     int64
		whence     int
	}{
		{"SEEK_END", aFile, 0, unix.SEEK_END}, {"SEEK_SET behind the end", aFile, 1 << 40, unix.SEEK_SET}, {"SEEK_SET before the beginning", aFile, -1, unix.SEEK_SET},
		{"SEEK_DATA", aFile, 5, unix.SEEK_DATA}, {"SEEK_HOLE", aFile, 5, unix.SEEK_HOLE}, {"SEEK_DATA at the end", small, 4097, unix.SEEK_DATA},
		{"SEEK_HOLE at the end", small, 4097, unix.SEEK_HOLE}, {"SEEK_DATA in a hole", "sparse/pax-1.0-all", 0, unix.SEEK_DATA},
		{"SEEK_HOLE in a hole", "sparse/pax-1.0-all", 5, unix.SEEK_HOLE}, {"SEEK_HOLE of an empty file", "sizes/0", 0, unix.SEEK_HOLE}, {"an unknown whence", aFile, 0, 77},
	} {
		f := fd(s.path, unix.O_RDONLY)
		at, err := unix.Seek(f, s.offset, s.whence)
		p.tell("lseek "+s.name, at, err)
		unix.Close(f)
	}

	direct, err := unix.Open(aFile, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	p.say("open O_DIRECT", err)
	page, err := unix.Mmap(-1, 0, 1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err == nil {
		n, err := unix.Pread(direct, page, 1<<20-1<<15)
		p.tell("pread with O_DIRECT", sum(page[:max(n, 0)]), err)
		n, err = unix.Pread(direct, page, 2<<20+1<<19-4096)
		p.tell("pread with O_DIRECT across the end", sum(page[:max(n, 0)]), err)
		n, err = unix.Pread(direct, page, 2<<20+1<<19)
		p.tell("pread with O_DIRECT at the end", sum(page[:max(n, 0)]), err)
	}
	unix.Close(direct)

	p.say("fsync", unix.Fsync(f))
	p.say("fdatasync", unix.Fdatasync(f))
	p.say("fsync of a directory", unix.Fsync(d))
	p.say("syncfs", unix.Syncfs(f))
	p.say("sync_file_range", unix.SyncFileRange(f, 0, 4096, 2))
	p.say("posix_fadvise", unix.Fadvise(f, 0, 0, unix.FADV_WILLNEED))
	p.say("posix_fadvise, not needed", unix.Fadvise(f, 0, 0, unix.FADV_DONTNEED))
	_, err = raw(unix.SYS_READAHEAD, uintptr(f), 0, 1<<16)
	p.say("readahead", err)
	_, err = raw(unix.SYS_READAHEAD, uintptr(d), 0, 1<<16)
	p.say("readahead of a directory", err)
	_, err = unix.IoctlGetInt(f, unix.FS_IOC_GETFLAGS)
	p.say("ioctl FS_IOC_GETFLAGS", err)
	_, err = unix.IoctlGetInt(d, unix.FS_IOC_GETFLAGS)
	p.say("ioctl FS_IOC_GETFLAGS of a directory", err)
	left, err := unix.IoctlGetInt(f, unix.TIOCINQ)
	p.tell("ioctl FIONREAD", left, err)
	_, err = unix.IoctlGetTermios(f, unix.TCGETS)
	p.say("ioctl TCGETS", err)
	poll := []unix.PollFd{{Fd: int32(f), Events: unix.POLLIN | unix.POLLOUT}}
	_, err = unix.Poll(poll, 0)
	p.tell("poll", poll[0].Revents, err)
	epoll, err := unix.EpollCreate1(0)
	if err == nil {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, f, &unix.EpollEvent{Events: unix.EPOLLIN})
		unix.Close(epoll)
	}
	p.say("epoll_ctl", err)
}

func (p *probe) locks() {
	one, two := fd(aFile, unix.O_RDONLY), fd(aFile, unix.O_RDONLY)
	defer unix.Close(one)
	defer unix.Close(two)
	p.say("flock, shared", unix.Flock(one, unix.LOCK_SH|unix.LOCK_NB))
	p.say("flock, shared by two", unix.Flock(two, unix.LOCK_SH|unix.LOCK_NB))
	p.say("flock, exclusive beside a shared one", unix.Flock(two, unix.LOCK_EX|unix.LOCK_NB))
	p.say("flock, released", unix.Flock(one, unix.LOCK_UN))
	p.say("flock, exclusive", unix.Flock(two, unix.LOCK_EX|unix.LOCK_NB))
	p.say("flock, shared beside an exclusive one", unix.Flock(one, unix.LOCK_SH|unix.LOCK_NB))
	d := fd(aDir, unix.O_RDONLY)
	p.say("flock of a directory", unix.Flock(d, unix.LOCK_EX|unix.LOCK_NB))
	unix.Close(d)
	lock := func(kind int16) *unix.Flock_t { return &unix.Flock_t{Type: kind, Start: 10, Len: 20} }
	p.say("POSIX lock for reading", unix.FcntlFlock(uintptr(one), unix.F_SETLK, lock(unix.F_RDLCK)))
	p.say("POSIX lock for writing", unix.FcntlFlock(uintptr(one), unix.F_SETLK, lock(unix.F_WRLCK)))
	p.say("OFD lock for reading", unix.FcntlFlock(uintptr(one), unix.F_OFD_SETLK, lock(unix.F_RDLCK)))
	p.say("OFD lock for writing", unix.FcntlFlock(uintptr(one), unix.F_OFD_SETLK, lock(unix.F_WRLCK)))
	asked := lock(unix.F_WRLCK)
	err := unix.FcntlFlock(uintptr(two), unix.F_OFD_GETLK, asked)
	p.tell("OFD lock seen from elsewhere", fmt.Sprintf("type %d from %d for %d", asked.Type, asked.Start, asked.Len), err)
	p.say("POSIX lock, released", unix.FcntlFlock(uintptr(one), unix.F_SETLK, lock(unix.F_UNLCK)))
	_, err = unix.FcntlInt(uintptr(one), unix.F_SETLEASE, unix.F_UNLCK)
	p.say("lease, released", err)
}

func (p *probe) maps() {
	f := fd(aFile, unix.O_RDONLY)
	defer unix.Close(f)
	const size = 2<<20 + 1<<19
	for _, m := range []struct {
		name        string
		prot, flags int
	}{
		{"shared", unix.PROT_READ, unix.MAP_SHARED}, {"private", unix.PROT_READ, unix.MAP_PRIVATE}, {"shared, to write", unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED},
		{"private, to write", unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE}, {"private, to execute", unix.PROT_READ | unix.PROT_EXEC, unix.MAP_PRIVATE},
		{"shared, to execute", unix.PROT_READ | unix.PROT_EXEC, unix.MAP_SHARED}, {"populated", unix.PROT_READ, unix.MAP_SHARED | unix.MAP_POPULATE},
	} {
		b, err := unix.Mmap(f, 0, size, m.prot, m.flags)
		p.tell("mmap "+m.name, sum(b), err)
		if err != nil {
			continue
		}
		if m.prot&unix.PROT_WRITE != 0 {
			b[0]++
			p.tell("mmap, written to", sum(b), nil)
		}
		p.say("msync "+m.name, unix.Msync(b, unix.MS_SYNC))
		p.say("madvise "+m.name, unix.Madvise(b, unix.MADV_WILLNEED))
		unix.Munmap(b)
	}
	d := fd(aDir, unix.O_RDONLY)
	_, err := unix.Mmap(d, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	p.say("mmap of a directory", err)
	unix.Close(d)
	p.say("execve of no program", unix.Exec(aFile, []string{"x"}, nil))
	p.say("execve of a directory", unix.Exec(aDir, []string{"x"}, nil))
	p.say("execve of a program in no format", unix.Exec("xattrs/capability", []string{"x"}, nil))
}

func (p *probe) copies() {
	f := fd(aFile, unix.O_RDONLY)
	defer unix.Close(f)
	memory, err := unix.MemfdCreate("copy", unix.MFD_CLOEXEC)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer unix.Close(memory)
	copied := func() string {
		var st unix.Stat_t
		unix.Fstat(memory, &st)
		b := make([]byte, st.Size)
		unix.Pread(memory, b, 0)
		unix.Ftruncate(memory, 0)
		unix.Seek(memory, 0, unix.SEEK_SET)
		return sum(b)
	}
	offset := int64(1<<20 - 3000)
	for left := 10_000; left > 0 && err == nil; {
		var n int
		n, err = unix.Sendfile(memory, f, &offset, left)
		left -= n
	}
	p.tell("sendfile", copied(), err)
	offset = 1000
	_, err = unix.CopyFileRange(f, &offset, memory, nil, 5000, 0)
	p.tell("copy_file_range to another filesystem", copied(), err)
	_, err = unix.CopyFileRange(memory, nil, f, nil, 10, 0)
	p.say("copy_file_range into a file open for reading", err)
	var pipe, other [2]int
	if err := errors.Join(unix.Pipe2(pipe[:], unix.O_CLOEXEC), unix.Pipe2(other[:], unix.O_CLOEXEC)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	offset = 2000
	n, err := unix.Splice(f, &offset, pipe[1], nil, 4000, 0)
	buf := make([]byte, 4000)
	_, teeErr := unix.Tee(pipe[0], other[1], 4000, 0)
	got, _ := unix.Read(pipe[0], buf)
	p.tell("splice", fmt.Sprint(n > 0, bytes.Equal(buf[:max(got, 0)], part(f, 2000, n))), err)
	got, _ = unix.Read(other[0], buf)
	p.tell("tee", bytes.Equal(buf[:max(got, 0)], part(f, 2000, n)), teeErr)
	_, err = unix.Splice(pipe[0], nil, f, nil, 10, unix.SPLICE_F_NONBLOCK)
	p.say("splice into a file open for reading", err)
}

func part(f int, offset, n int64) []byte {
	b := make([]byte, max(n, 0))
	unix.Pread(f, b, offset)
	return b
}

func (p *probe) listings() {
	for _, dir := range []string{"links", "dev", "modes", "names", "symlinks", "names/deep", "modes/dir-0000"} {
		d := fd(dir, unix.O_RDONLY|unix.O_DIRECTORY)
		whole, err := list(d, 1<<16)
		p.tell("getdents64 of "+dir, strings.Join(whole, " "), err)
		unix.Seek(d, 0, unix.SEEK_SET)
		pieces, err := list(d, 300)
		p.tell("getdents64 in pieces of "+dir, slices.Equal(whole, pieces), err)
		unix.Close(d)
	}
	d, f := fd("names", unix.O_RDONLY), fd(aFile, unix.O_RDONLY)
	defer unix.Close(d)
	defer unix.Close(f)
	_, err := unix.Getdents(d, make([]byte, 10))
	p.say("getdents64 into too small a buffer", err)
	_, err = unix.Getdents(f, make([]byte, 1000))
	p.say("getdents64 of a file", err)
}

// list reads a directory into a buffer of some size and gives names and types in order of the names.
func list(d, room int) ([]string, error) {
	var all []string
	buf := make([]byte, room)
	for {
		n, err := unix.Getdents(d, buf)
		if n <= 0 {
			slices.Sort(all)
			return all, err
		}
		for b := buf[:n]; len(b) > 0; {
			e := (*unix.Dirent)(unsafe.Pointer(&b[0]))
			name, _, _ := bytes.Cut(b[19:e.Reclen], []byte{0})
			var st unix.Stat_t
			if err := unix.Fstatat(d, string(name), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return nil, err
			}
			all = append(all, fmt.Sprintf("%q:%d:%v", name, e.Type, st.Ino == e.Ino))
			b = b[e.Reclen:]
		}
	}
}

func (p *probe) attributes() {
	for _, path := range []string{".", aFile, aDir, aLink, "sizes/0", fifo, "dev/null", "dev/large", "modes/all", "modes/sticky", "links/one", "owners/large", "times/before-1970-ns", "times/after-2038"} {
		var st unix.Stat_t
		err := unix.Lstat(path, &st)
		size := st.Size
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			size = 0 // each filesystem has its own idea
		}
		p.tell("lstat of "+path, fmt.Sprintf("mode %o nlink %d owner %d:%d size %d rdev %x mtime %d.%09d", st.Mode, st.Nlink, st.Uid, st.Gid, size, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec), err)
		for _, flags := range []int{unix.AT_STATX_DONT_SYNC, unix.AT_STATX_FORCE_SYNC} {
			var sx unix.Statx_t
			err = unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|flags, unix.STATX_BASIC_STATS, &sx)
			p.tell(fmt.Sprintf("statx %#x of %s", flags, path), sx.Mask&unix.STATX_BASIC_STATS == unix.STATX_BASIC_STATS && uint32(sx.Mode) == st.Mode && sx.Ino == st.Ino && sx.Size == uint64(st.Size) &&
				sx.Mtime.Sec == st.Mtim.Sec && uint64(sx.Nlink) == uint64(st.Nlink), err)
		}
	}
	var sx unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, aFile, 0, unix.STATX_BTIME, &sx)
	p.tell("statx knows the time of birth", sx.Mask&unix.STATX_BTIME != 0, err)
	var st unix.Stat_t
	err = unix.Stat("sizes/random", &st)
	p.tell("stat gives a size of block", st.Blksize >= 512, err)
	for _, path := range []string{".", aFile, aDir} {
		var sf unix.Statfs_t
		err := unix.Statfs(path, &sf)
		p.tell("statfs of "+path, fmt.Sprint(sf.Type != 0, sf.Bsize > 0, sf.Frsize > 0, sf.Blocks > 0, sf.Files > 0, sf.Namelen), err)
		p.tell("statfs flags of "+path, sf.Flags&(unix.ST_RDONLY|unix.ST_NOSUID|unix.ST_NODEV|unix.ST_NOEXEC), err)
	}
}

func (p *probe) xattrs() {
	get := func(call, path, name string, room int) {
		buf := make([]byte, room)
		n, err := unix.Lgetxattr(path, name, buf)
		p.tell("lgetxattr of "+call, fmt.Sprintf("%d %q", n, buf[:min(max(n, 0), room)]), err)
	}
	long := "user." + strings.Repeat("n", 250)
	get("a value", "xattrs/user", "user.text", 100)
	get("a value into just enough room", "xattrs/user", "user.text", 5)
	get("a value into too little room", "xattrs/user", "user.text", 4)
	get("a value's size", "xattrs/user", "user.text", 0)
	get("an empty value", "xattrs/user", "user.empty", 10)
	get("an empty value's size", "xattrs/user", "user.empty", 0)
	get("a binary value", "xattrs/binary", "user.binary", 100)
	get("a long name and value", "xattrs/long", long, 3000)
	get("a long name and value into too little room", "xattrs/long", long, 1999)
	get("a name that is too long", "xattrs/long", long+"n", 3000)
	get("a missing value", "xattrs/user", "user.missing", 100)
	get("a value that no file has", aFile, "user.text", 100)
	get("a value of a missing file", missing, "user.text", 100)
	get("a value of a directory", "xattrs", "user.on-a-directory", 100)
	get("a symlink's user value", aLink, "user.text", 100)
	get("a symlink's trusted value", aLink, "trusted.text", 100)
	get("a device's user value", "dev/null", "user.text", 100)
	get("a missing trusted value", aFile, "trusted.text", 100)
	get("capabilities", "xattrs/capability", "security.capability", 100)
	get("missing capabilities", aFile, "security.capability", 100)
	get("an ACL", "xattrs/acl", "system.posix_acl_access", 100)
	get("a missing ACL", aFile, "system.posix_acl_access", 100)
	get("an unknown kind", aFile, "unknown.text", 100)
	get("no name", aFile, "", 100)
	get("a kind alone", aFile, "user.", 100)
	for _, path := range []string{"xattrs/user", "xattrs/long", "xattrs/acl", "xattrs", aFile, aLink, "dev/null", missing} {
		for _, room := range []int{0, 5, 5000} {
			buf := make([]byte, room)
			n, err := unix.Llistxattr(path, buf)
			names := strings.Split(string(buf[:min(max(n, 0), room)]), "\x00")
			slices.Sort(names)
			p.tell(fmt.Sprintf("llistxattr of %s into %d bytes", path, room), fmt.Sprintf("%d %q", n, names), err)
		}
	}
}

func (p *probe) others() {
	watcher, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err == nil {
		_, err = unix.InotifyAddWatch(watcher, aDir, unix.IN_ALL_EVENTS)
		p.say("inotify_add_watch", err)
		_, err = unix.InotifyAddWatch(watcher, missing, unix.IN_ALL_EVENTS)
		unix.Close(watcher)
	}
	p.say("inotify_add_watch of what is missing", err)
	_, _, err = unix.NameToHandleAt(unix.AT_FDCWD, aFile, 0)
	p.say("name_to_handle_at", err)
	p.say("chdir to a file", unix.Chdir(aFile))
	p.say("chdir to what is missing", unix.Chdir(missing))
	here, err := unix.Open(".", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == nil {
		p.say("chdir", unix.Chdir(aLink))
		buf := make([]byte, unix.PathMax)
		n, err := unix.Getcwd(buf)
		p.tell("getcwd", strings.HasSuffix(string(buf[:max(n-1, 0)]), "/symlinks/real"), err)
		p.say("fchdir", unix.Fchdir(here))
	}
	p.say("mount over it", unix.Mount("none", aDir, "no such type", 0, ""))
	p.say("umount of no mount", unix.Unmount(aDir, 0))
}
