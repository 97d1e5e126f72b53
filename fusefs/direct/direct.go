// Package direct is mount(2) of a FUSE filesystem in the words of fusermount3, without any other package that has to be set up first.
//
// A daemon runs its own program under the name of fusermount3 for each mount. Setting up all packages of the program takes several
// times longer than the mount itself, so this one imports next to nothing: a program that imports it may call Run while the rest
// of it is not initialised yet.
package direct

import (
	"errors"
	"os"
	"syscall"
)

const (
	// HelperName is the name under which the program mounts.
	HelperName = "fusermount3"
	// SocketVariable names the descriptor of the socket that the device's descriptor goes to.
	SocketVariable = "_FUSE_COMMFD"
	// Subtype is the type of filesystem shown where the options give none.
	Subtype = "skimfs"
	// Device is where the kernel's FUSE is.
	Device = "/dev/fuse"
)

// Args is a command line of fusermount3.
type Args struct {
	Options []string
	Target  string
	Unmount bool
	Lazy    bool
}

// Parse reads the arguments after the program's name.
func Parse(args []string) (Args, error) {
	var a Args
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "-o" && i+1 < len(args):
			i++
			a.Options = append(a.Options, split(args[i])...)
		case arg == "-u":
			a.Unmount = true
		case arg == "-z":
			a.Lazy = true
		case arg == "-q", arg == "--":
		case arg != "" && arg[0] == '-', a.Target != "":
			return a, errors.New("unexpected argument " + arg)
		default:
			a.Target = arg
		}
	}
	if a.Target == "" {
		return a, errors.New("no mountpoint given")
	}
	return a, nil
}

// split splits at commas that no backslash protects.
func split(s string) []string {
	var out []string
	var one []byte
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			one = append(one, s[i])
		case s[i] == ',':
			out = append(out, string(one))
			one = nil
		default:
			one = append(one, s[i])
		}
	}
	return append(out, string(one))
}

// cut splits an option at its "=".
func cut(s string) (name, value string) {
	for i := range len(s) {
		if s[i] == '=' {
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}

// Mount opens the device, calls mount(2), read-only, nodev and, unless suid is among the options, nosuid, and passes the descriptor to the socket. Its error is an
// errno, or an *os.PathError where the device is at fault.
func Mount(a Args, socket int) error {
	dev, err := syscall.Open(Device, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "opening", Path: Device, Err: err}
	}
	defer syscall.Close(dev)
	var st syscall.Stat_t
	if err := syscall.Stat(a.Target, &st); err != nil {
		return err
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return syscall.ENOTDIR
	}
	source, kind := Subtype, "fuse."+Subtype
	data := "fd=" + decimal(dev) + ",rootmode=40000,user_id=" + decimal(os.Getuid()) + ",group_id=" + decimal(os.Getgid())
	flags := uintptr(syscall.MS_RDONLY | syscall.MS_NOSUID | syscall.MS_NODEV)
	for _, o := range a.Options {
		switch name, value := cut(o); name {
		case "suid":
			flags &^= syscall.MS_NOSUID
		case "fsname":
			source = value
		case "subtype":
			kind = "fuse." + value
		case "allow_other", "default_permissions", "max_read":
			data += "," + o
		}
	}
	if err := syscall.Mount(source, a.Target, kind, flags, data); err != nil {
		return err
	}
	if err := Pass(dev, socket); err != nil {
		const noFollow = 8 // UMOUNT_NOFOLLOW
		_ = syscall.Unmount(a.Target, noFollow|syscall.MNT_DETACH)
		return err // the mount has no server
	}
	return nil
}

// Pass passes a device's descriptor to the socket.
func Pass(dev, socket int) error {
	return syscall.Sendmsg(socket, []byte{0}, syscall.UnixRights(dev), nil, 0)
}

// Socket returns the descriptor that the environment names.
func Socket() (fd int, ok bool) { return number(os.Getenv(SocketVariable)) }

// Descriptor returns the number of a target such as /dev/fd/7: a device that somebody else has opened and mounted.
func Descriptor(target string) (fd int, ok bool) {
	if len(target) < len(descriptors) || target[:len(descriptors)] != descriptors {
		return 0, false
	}
	return number(target[len(descriptors):])
}

const descriptors = "/dev/fd/"

// number reads a descriptor's number.
func number(text string) (n int, ok bool) {
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' || i > 6 {
			return 0, false
		}
		n = 10*n + int(text[i]-'0')
	}
	return n, text != ""
}

// Run mounts as the arguments after the program's name say, if root asks for just that and nothing is in the way, or passes on what is mounted
// already. Else it returns false and has changed nothing: who looks into it more thoroughly finds out why.
func Run(args []string) bool {
	socket, ok := Socket()
	if !ok {
		return false
	}
	a, err := Parse(args)
	if err != nil || a.Unmount {
		return false
	}
	if dev, ok := Descriptor(a.Target); ok {
		return Pass(dev, socket) == nil
	}
	return os.Geteuid() == 0 && Mount(a, socket) == nil
}

// decimal writes a number that is not negative.
func decimal(n int) string {
	var buf [20]byte
	i := len(buf)
	for {
		i--
		buf[i] = byte('0' + n%10)
		if n /= 10; n == 0 {
			return string(buf[i:])
		}
	}
}
