package fusefs_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metrics"
	"github.com/skimfs/skimfs/fusefs"
	"github.com/skimfs/skimfs/index"
)

// requests reads a mount's counter of requests of one kind.
func requests(set *metrics.Set, op string) uint64 {
	return set.GetOrCreateCounter(`skimfs_fuse_requests_total{op="` + op + `"}`).Get()
}

// visit calls f for e and all below it.
func visit(e *index.Entry, at string, f func(path string, e *index.Entry)) {
	f(at, e)
	for name, child := range e.Children {
		visit(child, path.Join(at, name), f)
	}
}

// typeLetters are find's.
var typeLetters = map[uint32]string{index.ModeDir: "d", index.ModeRegular: "f", index.ModeSymlink: "l", index.ModeChar: "c", index.ModeBlock: "b",
	index.ModeFIFO: "p", index.ModeSocket: "s"}

// compare checks all that find tells of the tree at dir against the entries it was built from.
func compare(t *testing.T, dir string, root *index.Entry) {
	t.Helper()
	got := map[string]string{}
	inodes := map[string]string{}
	for line := range strings.SplitSeq(sh(t, `find $1 -printf '%P\t%y %m %n %U:%G %s %T@ %l\t%i\0'`, dir), "\x00") {
		if fields := strings.Split(line, "\t"); len(fields) == 3 {
			got[fields[0]], inodes[fields[0]] = fields[1], fields[2]
		}
	}
	want := 0
	seen := map[*index.Inode]string{}
	users := map[string]*index.Inode{}
	visit(root, "", func(path string, e *index.Entry) {
		want++
		size := e.Size
		if e.IsSymlink() {
			size = int64(len(e.Target))
		}
		line := fmt.Sprintf("%s %s %d %d:%d %d %d.%09d0 %s", typeLetters[e.Type()], strconv.FormatUint(uint64(e.Mode&0o7777), 8), e.Nlink, e.UID, e.GID,
			size, e.Sec, e.Nsec, e.Target)
		if got[path] != line {
			t.Errorf("%q is\n%s, want\n%s", path, got[path], line)
		}
		if was, ok := seen[e.Inode]; ok && was != inodes[path] {
			t.Errorf("%q has inode %s, another link to it %s", path, inodes[path], was)
		}
		if was, ok := users[inodes[path]]; ok && was != e.Inode {
			t.Errorf("%q shares inode %s with another file", path, inodes[path])
		}
		seen[e.Inode], users[inodes[path]] = inodes[path], e.Inode
	})
	if len(got) != want {
		t.Errorf("find lists %d entries, want %d", len(got), want)
	}
}

func TestMountedTreeIsTheImage(t *testing.T) {
	z := newZoo(t)
	c, l := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog)})
	dir := mount(t, c)
	compare(t, dir, z.root)
	compare(t, dir, z.root)
	sh(t, `ls -lRai "$1" >/dev/null`, dir)
	if got := sh(t, `python3 - "$1" <<'E'
import os, stat, sys
n = 0
for top, dirs, files in os.walk(sys.argv[1].encode()):
    for d in os.scandir(top):
        st = d.stat(follow_symlinks=False)
        kind = stat.S_ISDIR(st.st_mode), stat.S_ISREG(st.st_mode), stat.S_ISLNK(st.st_mode)
        assert kind == (d.is_dir(follow_symlinks=False), d.is_file(follow_symlinks=False), d.is_symlink()), d.path
        assert st.st_ino == d.inode(), d.path
        n += 1
print(n > 3000)
E`, dir); got != "True" {
		t.Errorf("d_type and d_ino against stat: %s", got)
	}
	if l.String() != "" {
		t.Errorf("logged: %s", l)
	}
}

func TestMountedContent(t *testing.T) {
	z := newZoo(t)
	c, _ := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog)})
	dir := mount(t, c)
	sums := map[string]string{}
	for line := range strings.SplitSeq(sh(t, `cd $1 && find . -type f -size +0 -print0 | xargs -0 sha256sum -z`, dir), "\x00") {
		if sum, name, ok := strings.Cut(line, "  ./"); ok {
			sums[name] = sum
		}
	}
	visit(z.root, "", func(path string, e *index.Entry) {
		if !e.IsRegular() || e.Size == 0 {
			return
		}
		h := sha256.New()
		for i, d := range e.Chunks {
			if d.IsZero() {
				h.Write(make([]byte, min(index.ChunkSize, e.Size-int64(i)*index.ChunkSize)))
				continue
			}
			h.Write(z.objects[d])
		}
		if want := hex.EncodeToString(h.Sum(nil)); sums[path] != want {
			t.Errorf("%q has sum %s, want %s", path, sums[path], want)
		}
	})
	z.uncached.Store(true)
	if got := sh(t, `sha256sum <$1/data/big; echo 3 >/proc/sys/vm/drop_caches; sha256sum <$1/data/big`, dir); got != strings.Repeat(sums["data/big"]+"  -\n", 2)[:2*68-1] {
		t.Errorf("not cached, data/big has sums %s, want %s", got, sums["data/big"])
	}
}

func TestMountedCalls(t *testing.T) {
	z := newZoo(t)
	set := metrics.NewSet()
	c, l := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog), Metrics: set})
	dir := mount(t, c)
	// Each script runs with the mountpoint as $1; what it prints is compared.
	for _, test := range []struct{ claim, script, want string }{
		{"stat of a sticky directory", `stat -c '%a %F %h' $1/tmp`, "1777 directory 2"},
		{"a device", `stat -c '%t:%T %F' $1/dev/console $1/dev/disk`, "5:1 character special file\n103:11170 block special file"},
		{"before 1970", `stat -c '%Y' $1/old`, "-86400"},
		{"hard links are one inode", `[ $1/links/one -ef $1/other/two ] && stat -c %h $1/links/three`, "3"},
		{"a link's text", `readlink -n $1/sym/absolute; readlink $1/sym/long | wc -c`, "/etc/hello4001"},
		{"a relative link leads on", `cat $1/sym/relative`, "hello"},
		{"an attribute", `cd $1 && getfattr -n user.a --only-values xattr/file`, "1"},
		{"a long attribute", `cd $1 && getfattr -n user.big --only-values xattr/file | wc -c`, "8000"},
		{"attributes are listed but overlay's", `cd $1 && getfattr -m- xattr/file xattr`,
			"# file: xattr/file\nsecurity.capability\nuser.a\nuser.big\nuser.empty\n\n# file: xattr\nuser.dir"},
		{"an absent attribute is ENODATA", `cd $1 && getfattr -n user.nope etc/hello`, "etc/hello: user.nope: No such attribute"},
		{"a program runs", `$1/usr/bin/busybox echo it runs`, "it runs"},
		{"a name of 255 bytes", `cat $1/names/` + longName, "long"},
		{"256 bytes are too long", `stat $1/names/x` + longName + ` 2>&1 | grep -o 'File name too long'`, "File name too long"},
		{"a hole reads as zeros", `dd if=$1/data/sparse bs=1000 skip=500 count=1 2>/dev/null | od -An -tx1 -v | tr -d ' 0\n'; tail -c 5 $1/data/sparse | wc -c`, "5"},
		{"statfs", `stat -f -c '%b %S %c %T %l' $1`, "30141 4096 4321 fuseblk 255"},
		{"statfs of a file", `stat -f -c '%b %f' $1/data/big`, "30141 0"},
		{"flags of the mount", `awk -v d=$1 '$5 == d {print $6, $8, $9}' /proc/self/mountinfo`, "ro,nosuid,nodev,relatime fuse.skimfs test"},
		{"touch", `touch $1/new`, "touch: cannot touch '$1/new': Read-only file system"},
		{"touch of a file", `touch $1/etc/hello`, "touch: cannot touch '$1/etc/hello': Read-only file system"},
		{"mkdir", `mkdir $1/new`, "mkdir: cannot create directory '$1/new': Read-only file system"},
		{"rm", `rm -f $1/etc/hello`, "rm: cannot remove '$1/etc/hello': Read-only file system"},
		{"rmdir", `rmdir $1/tmp`, "rmdir: failed to remove '$1/tmp': Read-only file system"},
		{"mv", `mv $1/old $1/older`, "mv: cannot move '$1/old' to '$1/older': Read-only file system"},
		{"ln", `ln $1/old $1/older`, "ln: failed to create hard link '$1/older': Read-only file system"},
		{"ln -s", `ln -s x $1/older`, "ln: failed to create symbolic link '$1/older': Read-only file system"},
		{"chmod", `chmod 600 $1/old`, "chmod: changing permissions of '$1/old': Read-only file system"},
		{"chown", `chown 5 $1/old`, "chown: changing ownership of '$1/old': Read-only file system"},
		{"truncate", `truncate -s 0 $1/old`, "truncate: cannot open '$1/old' for writing: Read-only file system"},
		{"mknod", `mknod $1/new p`, "mknod: $1/new: Read-only file system"},
		{"setfattr", `cd $1 && setfattr -n user.new -v 1 old`, "setfattr: old: Read-only file system"},
		{"a device is not opened", `head -c1 $1/dev/console`, "head: cannot open '$1/dev/console' for reading: Permission denied"},
		{"another user may not read 0600", `setpriv --reuid 65534 --regid 65534 --clear-groups cat $1/etc/shadow`, "cat: $1/etc/shadow: Permission denied"},
		{"another user may not enter 0700", `setpriv --reuid 65534 --regid 65534 --clear-groups ls $1/private/file`, "ls: cannot access '$1/private/file': Permission denied"},
		{"the group may read by mode", `setpriv --reuid 65534 --regid 0 --clear-groups cat $1/links/one`, "linked"},
	} {
		t.Run(test.claim, func(t *testing.T) {
			got, _ := try(t, test.script, dir)
			if want := strings.ReplaceAll(test.want, "$1", dir); got != want {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
	if n := requests(set, "write"); n != 0 {
		t.Errorf("%d writes came through to us", n)
	}
	if l.String() != "" {
		t.Errorf("logged: %s", l)
	}
}

// calls is a program that makes system calls on the mount and prints what comes out.
const calls = `
import ctypes, errno, fcntl, mmap, os, sys
top = sys.argv[1]
def say(what, f):
    try: print(what, f())
    except OSError as e: print(what, errno.errorcode[e.errno])
f = os.open(top + '/data/big', os.O_RDONLY)
d = os.open(top + '/data', os.O_RDONLY)
size = os.fstat(f).st_size
say('fsync', lambda: os.fsync(f))
say('fsync again', lambda: os.fsync(f))
say('fdatasync', lambda: os.fdatasync(f))
say('fsync of a directory', lambda: os.fsync(d))
say('flock', lambda: fcntl.flock(f, fcntl.LOCK_EX))
say('read lock', lambda: fcntl.lockf(f, fcntl.LOCK_SH))
say('ioctl', lambda: fcntl.ioctl(f, 0x80086601, b'12345678'))
say('ioctl of a directory', lambda: fcntl.ioctl(d, 0x80086601, b'12345678'))
say('O_DIRECT', lambda: os.close(os.open(top + '/etc/hello', os.O_RDONLY | os.O_DIRECT)))
say('O_TMPFILE', lambda: os.open(top, os.O_RDWR | os.O_TMPFILE))
say('O_RDWR', lambda: os.open(top + '/etc/hello', os.O_RDWR))
say('O_CREAT', lambda: os.open(top + '/new', os.O_WRONLY | os.O_CREAT))
say('O_TRUNC', lambda: os.open(top + '/etc/hello', os.O_WRONLY | os.O_TRUNC))
say('O_DIRECTORY', lambda: os.open(top + '/etc/hello', os.O_RDONLY | os.O_DIRECTORY))
say('utime', lambda: os.utime(top + '/etc/hello'))
say('access read', lambda: os.access(top + '/etc/hello', os.R_OK))
say('access write', lambda: os.access(top + '/etc/hello', os.W_OK))
say('access exec', lambda: os.access(top + '/etc/hello', os.X_OK))
say('SEEK_DATA', lambda: os.lseek(f, 5, os.SEEK_DATA))
say('SEEK_HOLE', lambda: os.lseek(f, 5, os.SEEK_HOLE) == size)
say('read at the end', lambda: os.pread(f, 10, size))
say('read of a directory', lambda: os.read(d, 10))
m = mmap.mmap(f, size, mmap.MAP_SHARED, mmap.PROT_READ)
say('mapped', lambda: m[:] == os.pread(f, size, 0) and m[:] == open(top + '/data/big', 'rb').read())
x = mmap.mmap(f, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
say('mapped to execute', lambda: len(x[:]))
r, w = os.pipe()
say('sendfile', lambda: os.sendfile(w, f, 1000, 5000))
say('sent', lambda: os.read(r, 5000) == m[1000:6000])
say('statvfs', lambda: os.statvfs(top).f_blocks > 0)
say('listxattr', lambda: os.listxattr(top + '/xattr/file'))
libc = ctypes.CDLL(None, use_errno=True)
def room():
    if libc.getxattr((top + '/xattr/file').encode(), b'user.big', ctypes.create_string_buffer(10), 10) < 0: raise OSError(ctypes.get_errno(), '')
say('too small a buffer', room)
dirp = sorted(os.listdir(top + '/many'))
say('many', lambda: (len(dirp), len(set(dirp))))
`

func TestMountedSystemCalls(t *testing.T) {
	z := newZoo(t)
	c, l := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog)})
	dir := mount(t, c)
	script := t.TempDir() + "/calls.py"
	if err := os.WriteFile(script, []byte(calls), 0o600); err != nil {
		t.Fatal(err)
	}
	want := `fsync None
fsync again None
fdatasync None
fsync of a directory None
flock None
read lock None
ioctl ENOTTY
ioctl of a directory ENOTTY
O_DIRECT None
O_TMPFILE EROFS
O_RDWR EROFS
O_CREAT EROFS
O_TRUNC EROFS
O_DIRECTORY ENOTDIR
utime EROFS
access read True
access write False
access exec False
SEEK_DATA 5
SEEK_HOLE True
read at the end b''
read of a directory EISDIR
mapped True
mapped to execute 4096
sendfile 5000
sent True
statvfs True
listxattr ['security.capability', 'user.a', 'user.big', 'user.empty']
too small a buffer ERANGE
many (3000, 3000)`
	if got := sh(t, `python3 "$2" "$1"`, dir, script); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if l.String() != "" {
		t.Errorf("logged: %s", l)
	}
}

func TestKernelKeepsWhatNeverChanges(t *testing.T) {
	z := newZoo(t)
	set := metrics.NewSet()
	c, _ := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog), Metrics: set})
	dir := mount(t, c)
	for _, test := range []struct {
		claim, script string
		ops           []string
	}{
		{"names that aren't there", `stat $1/etc/nope $1/nope 2>&1; true`, []string{"lookup", "getattr"}},
		{"attributes", `stat $1/etc/hello $1/usr/bin $1/data/big`, []string{"lookup", "getattr"}},
		{"listings", `ls $1/many $1/etc`, []string{"lookup", "readdir", "opendir", "release"}},
		{"all of find", `find $1 -printf %s`, []string{"lookup", "readdir", "getattr", "opendir"}},
		{"targets", `readlink $1/sym/absolute $1/sym/relative`, []string{"lookup", "readlink"}},
		{"pages", `cat $1/data/big $1/etc/hello`, []string{"lookup", "read", "open", "release", "flush"}},
	} {
		t.Run(test.claim, func(t *testing.T) {
			sh(t, test.script, dir)
			for _, op := range test.ops {
				var n uint64
				for range 3 { // somebody else may drop the machine's caches meanwhile
					before := requests(set, op)
					sh(t, test.script, dir)
					if n = requests(set, op) - before; n == 0 {
						break
					}
				}
				if n != 0 {
					t.Errorf("each time takes %d %s requests", n, op)
				}
			}
		})
	}
	for _, op := range []string{"open", "opendir", "flush", "access"} {
		if n := requests(set, op); n > 1 {
			t.Errorf("%d %s requests, want at most one: it was answered ENOSYS", n, op)
		}
	}
}

func TestMountedSubdirectory(t *testing.T) {
	z := newZoo(t)
	tree := z.tree(t, z.ref.Catalog)
	whole, _ := z.newCore(t, fusefs.Config{Tree: tree})
	c, _ := z.newCore(t, fusefs.Config{Tree: tree, Root: walk(t, whole, fusefs.RootID, "usr").Node.Number()})
	dir := mount(t, c)
	compare(t, dir, z.root.Children["usr"])
	if got := sh(t, `stat -c %i $1; cd $1/bin && cd .. && ls`, dir); got != "1\nbin" {
		t.Errorf("got %q", got)
	}
}

func TestMountedOwner(t *testing.T) {
	z := newZoo(t)
	c, _ := z.newCore(t, fusefs.Config{Tree: z.tree(t, z.ref.Catalog), Owner: fusefs.Owner{UID: id(65534), GID: id(65534)}})
	dir := mount(t, c)
	if got := sh(t, `setpriv --reuid 65534 --regid 65534 --clear-groups cat $1/etc/shadow $1/private/file; find $1 -printf '%U:%G\n' | sort -u`, dir); got != "secret\nprivate\n65534:65534" {
		t.Errorf("got %q", got)
	}
}
