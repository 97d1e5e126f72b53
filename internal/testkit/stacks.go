package testkit

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// Stack is an image of random layers.
type Stack struct {
	Layout string     // an OCI layout; the tag "latest" has layers of any compression, "gzip" the same ones for umoci
	Layers [][]string // what tar would list of each layer, for people
}

// Listing is what the layers hold, one entry a line.
func (s Stack) Listing() string {
	var b strings.Builder
	for i, layer := range s.Layers {
		fmt.Fprintf(&b, "layer %d of %d\n\t%s\n", i+1, len(s.Layers), strings.Join(layer, "\n\t"))
	}
	return b.String()
}

// Latest is the last moment that a random stack gives to anything. What umoci unpacks with a later
// mtime has no time in any layer: umoci leaves the moment of unpacking on directories without an
// entry, and on those in which a whiteout of something above them removed a name.
var Latest = time.Unix(1_700_000_000, 0)

// RandomStack makes an image of one to six layers over so few names that they collide all the
// time. Equal seeds give equal images. A stack has everything that images can hold but for:
//
//   - what umoci refuses: entries below something that is no directory or in a loop of symlinks,
//     hard links to directories, to nothing and to what they replace, global PAX headers, GNU's
//     old sparse files, empty symlink targets, user xattrs on what can't have them;
//   - whiteouts without a name: umoci takes them for one of the directory, publish refuses them;
//   - directories without an entry below a setgid one or one with a default ACL: umoci's get group
//     or ACL from the machine's file system, no layer gives them any;
//   - access ACLs that disagree with the mode: the machine's file system changes the mode then.
func RandomStack(t testing.TB, seed uint64) Stack {
	t.Helper()
	s := stacker{r: rand.New(rand.NewPCG(seed, 0x736b696d)), root: &stackNode{kind: tar.TypeDir, children: map[string]*stackNode{}}}
	s.names = s.pickNames()
	var stack Stack
	var plain [][]byte
	for range 1 + s.r.IntN(6) {
		items := s.nextLayer()
		list := make([]string, len(items))
		for i, it := range items {
			list[i] = it.String()
		}
		stack.Layers, plain = append(stack.Layers, list), append(plain, layerTar(t, items...))
	}
	stack.Layout = s.write(t, plain)
	return stack
}

// stacker makes a stack. It keeps a model of what stands where, just enough to know what umoci
// would refuse: no attributes, no contents.
type stacker struct {
	r     *rand.Rand
	names []string
	root  *stackNode
	layer int
	items []item
}

// stackNode is what stands at a name.
type stackNode struct {
	kind     byte // a tar type
	target   string
	children map[string]*stackNode
	touched  int  // the last layer that brought it or something below it
	inherits bool // gives its group or an ACL to what is made in it without attributes of its own
}

// pickNames chooses the names of a stack: few, some of them odd.
func (s *stacker) pickNames() []string {
	odd := []string{" ", "new\nline", "\xff\xfe", "...", "..a", "-n", ".wh", ".whx", "wh.", "grüße", "e\u0301", "\u00e9", "$(id)", "\\", "=", "12 path=x", "*", strings.Repeat("n", 255), "\x01\x7f"}
	s.r.Shuffle(len(odd), func(i, j int) { odd[i], odd[j] = odd[j], odd[i] })
	return append([]string{"a", "b", "c", "d"}, odd[:2]...)
}

func (s *stacker) chance(percent int) bool { return s.r.IntN(100) < percent }
func (s *stacker) name() string            { return s.names[s.r.IntN(len(s.names))] }

// nextLayer returns the entries of one more layer.
func (s *stacker) nextLayer() []item {
	s.layer++
	s.items = nil
	if s.chance(40) {
		s.emit(s.attributes(dir("", 0)))
		s.root.inherits = s.last().gives()
	}
	for range s.r.IntN(30) {
		switch n := s.r.IntN(100); {
		case n < 30:
			s.put(s.path(), s.file)
		case n < 50:
			s.put(s.path(), func(p string) item { return s.attributes(dir(p, 0)) })
		case n < 62:
			s.put(s.path(), func(p string) item { return s.attributes(symlink(p, s.target())) })
		case n < 68:
			s.put(s.path(), s.special)
		case n < 80:
			s.hardlink(s.path(), s.path())
		case n < 93:
			s.whiteout(s.path())
		default:
			s.opaque(s.path())
		}
	}
	return s.items
}

// path returns the path of something that may or may not exist, each of its directories perhaps a symlink.
func (s *stacker) path() string {
	depth := []int{1, 1, 2, 2, 2, 3, 3, 4}[s.r.IntN(8)]
	var parts []string
	at := s.root
	for i := range depth {
		name := s.name()
		// Mostly along what is there, or hardly a path would lead anywhere.
		if at != nil && len(at.children) > 0 && (i+1 < depth || s.chance(50)) {
			existing := slices.Sorted(maps.Keys(at.children))
			name = existing[s.r.IntN(len(existing))]
		}
		parts = append(parts, name)
		at, _ = s.find(strings.Join(parts, "/") + "/.")
	}
	return strings.Join(parts, "/")
}

// target is that of a symlink: relative, absolute, out of the root, to nothing, to itself.
func (s *stacker) target() string {
	p := s.path()
	switch s.r.IntN(6) {
	case 0, 1:
		return "/" + p
	case 2:
		return "../" + p
	case 3:
		return []string{".", "..", "/", "../../../..", "./" + s.name() + "/..", "no/such"}[s.r.IntN(6)]
	default:
		return s.name()
	}
}

// resolve follows the directories of a path and returns its own, as names from the root on without
// any symlink; false if they are a loop.
func (s *stacker) resolve(dir string) ([]string, bool) {
	var at []string
	todo := strings.Split(dir, "/")
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = at[:max(0, len(at)-1)]
			continue
		}
		n := s.at(append(at[:len(at):len(at)], name))
		if n == nil || n.kind != tar.TypeSymlink {
			at = append(at, name)
			continue
		}
		if links++; links > 40 {
			return nil, false
		}
		if strings.HasPrefix(n.target, "/") {
			at = nil
		}
		todo = append(strings.Split(n.target, "/"), todo...)
	}
	return at, true
}

// at returns what stands at names from the root on, nil for nothing.
func (s *stacker) at(names []string) *stackNode {
	n := s.root
	for _, name := range names {
		if n = n.children[name]; n == nil {
			return nil
		}
	}
	return n
}

// find returns what stands at a path, the last name not followed; false if there is a loop on the way.
func (s *stacker) find(p string) (*stackNode, bool) {
	dir, name := path.Split(p)
	at, ok := s.resolve(dir)
	if !ok {
		return nil, false
	}
	if name == "." {
		return s.at(at), true
	}
	return s.at(append(at, name)), true
}

// parent makes sure that the directory of p may hold an entry, and returns it. It adds entries for
// the directories that are missing, or leaves them to the unpacker. It returns nil if p can't be.
func (s *stacker) parent(p string) *stackNode {
	names, ok := s.resolve(path.Dir(p))
	if !ok {
		return nil
	}
	n, depth, inherits := s.root, 0, s.root.inherits
	for ; depth < len(names) && n.children[names[depth]] != nil; depth++ {
		n = n.children[names[depth]]
		inherits = inherits || n.inherits
	}
	if n.kind != tar.TypeDir {
		return nil
	}
	implicit := !inherits && s.chance(40)
	n = s.root
	for i, name := range names {
		below := n.children[name]
		if below == nil {
			below = &stackNode{kind: tar.TypeDir, children: map[string]*stackNode{}}
			n.children[name] = below
			if !implicit {
				s.emit(s.attributes(dir(strings.Join(names[:i+1], "/"), 0)))
				below.inherits = s.last().gives()
			}
		}
		n = below
		n.touched = s.layer
	}
	return n
}

func (s *stacker) emit(i item) { s.items = append(s.items, i) }
func (s *stacker) last() item  { return s.items[len(s.items)-1] }
func (i item) gives() bool {
	return i.Mode&0o2000 != 0 || i.PAXRecords["SCHILY.xattr."+defaultACL] != ""
}
func (n *stackNode) isDir() bool { return n != nil && n.kind == tar.TypeDir }

// put adds what make makes at p, if that can be.
func (s *stacker) put(p string, make func(p string) item) {
	parent := s.parent(p)
	if parent == nil {
		return
	}
	i := make(p)
	name := path.Base(p)
	n := parent.children[name]
	if !n.isDir() || i.Typeflag != tar.TypeDir {
		n = &stackNode{kind: i.Typeflag, target: i.Linkname, children: map[string]*stackNode{}}
	}
	n.touched, n.inherits = s.layer, i.Typeflag == tar.TypeDir && i.gives()
	parent.children[name] = n
	i.Name = s.spell(i.Name)
	s.emit(i)
}

// hardlink adds p as one more name of target, if that can be.
func (s *stacker) hardlink(p, target string) {
	if of, ok := s.find(target); !ok || of == nil || of.isDir() {
		return
	}
	parent := s.parent(p)
	if parent == nil {
		return
	}
	// What it replaces goes first, and may be the target or something on the way there.
	name := path.Base(p)
	old := parent.children[name]
	delete(parent.children, name)
	of, ok := s.find(target)
	if !ok || of == nil || of.isDir() {
		if old != nil {
			parent.children[name] = old
		}
		return
	}
	parent.children[name] = &stackNode{kind: of.kind, target: of.target, touched: s.layer}
	s.emit(hardlink(s.spell(p), s.spell(target)))
}

func (s *stacker) whiteout(p string) {
	at, ok := s.resolve(path.Dir(p))
	if !ok {
		return
	}
	if dir := s.at(at); dir.isDir() {
		s.remove(dir, path.Base(p))
	}
	s.emit(whiteout(s.spell(p)))
}

func (s *stacker) opaque(p string) {
	if s.chance(5) {
		p = "."
	}
	at, ok := s.resolve(p)
	if !ok {
		return
	}
	if dir := s.at(at); dir.isDir() {
		for name := range dir.children {
			s.remove(dir, name)
		}
	}
	s.emit(opaque(s.spell(p)))
}

// remove takes away what lower layers brought.
func (s *stacker) remove(dir *stackNode, name string) {
	n := dir.children[name]
	if n == nil {
		return
	}
	if n.touched != s.layer {
		delete(dir.children, name)
		return
	}
	for child := range n.children {
		s.remove(n, child)
	}
}

// spell writes a path in one of the ways that archives do.
func (s *stacker) spell(p string) string {
	switch s.r.IntN(12) {
	case 0:
		return "./" + p
	case 1:
		return "/" + p
	case 2:
		return strings.Replace(p, "/", "//", 1)
	case 3:
		return "../" + p
	case 4:
		return "no-such/../" + p
	}
	return p
}

const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
	readableBy = "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xd2\x04\x00\x00" + // user::rw- user:1234:r--
		"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff" // group, mask and other r--
	capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
)

// attributes gives an entry a mode, an owner, a time and perhaps xattrs.
func (s *stacker) attributes(i item) item {
	i.Mode = int64([]int{0o644, 0o755, 0o600, 0, 0o4755, 0o1777, 0o2775, 0o7777, s.r.IntN(0o10000)}[s.r.IntN(9)])
	i = i.owned([]int{0, 0, 0, 1000, 4_000_000_000}[s.r.IntN(5)], []int{0, 0, 5, 65_534, 4_294_967_294}[s.r.IntN(5)])
	sec := s.r.Int64N(Latest.Unix())
	switch s.r.IntN(8) {
	case 0:
		sec = -s.r.Int64N(1 << 30)
	case 1:
		sec = 0
	}
	i = i.at(sec, []int64{0, s.r.Int64N(1e9), 999_999_999}[s.r.IntN(3)])
	if !s.chance(25) {
		return i
	}
	i = i.xattr("trusted.skimfs", s.name())
	switch i.Typeflag {
	case tar.TypeReg:
		switch s.r.IntN(3) {
		case 0:
			i = i.xattr("security.capability", capability)
		case 1:
			i.Mode = i.Mode&^0o777 | 0o644
			i = i.xattr(accessACL, readableBy)
		}
		i = i.xattr("user.binary", "\x00\xff\n=").xattr("user.empty", "")
	case tar.TypeDir:
		if s.chance(30) {
			i = i.xattr(defaultACL, readableBy)
		}
		i = i.xattr("user."+strings.Repeat("n", 1+s.r.IntN(250)), strings.Repeat("v", s.r.IntN(300)))
	}
	return i
}

// file is a regular file: mostly small, often empty, at times longer than a chunk or with holes.
func (s *stacker) file(p string) item {
	i := s.attributes(file(p, 0, ""))
	const MiB = 1 << 20
	switch n := s.r.IntN(40); {
	case n < 8:
	case n < 32:
		i.content = fmt.Appendf(nil, "%d", s.r.IntN(30)) // a few contents, so that files share them
	case n < 35:
		i.content = make([]byte, s.r.IntN(10_000)) // zeros
	case n < 37:
		i.content = bytes.Repeat([]byte{byte(s.r.Uint32()), 'x'}, (MiB+s.r.IntN(3)-1)/2)
	case n < 38:
		i.content = make([]byte, 2*MiB+s.r.IntN(MiB))
		copy(i.content[s.r.IntN(len(i.content)):], "data")
	default:
		i.sparse = s.extents()
		i.Size = i.sparse[len(i.sparse)-1].end() + int64(s.r.IntN(2))*int64(s.r.IntN(MiB))
	}
	return i
}

// extents are the parts of a sparse file that hold data.
func (s *stacker) extents() []extent {
	var all []extent
	end := int64(0)
	for range 1 + s.r.IntN(4) {
		e := extent{offset: end + int64(s.r.IntN(3))*s.r.Int64N(1<<20), data: bytes.Repeat([]byte{'s'}, 1+s.r.IntN(3000))}
		all, end = append(all, e), e.end()+1
	}
	return all
}

func (s *stacker) special(p string) item {
	h := tar.Header{Typeflag: []byte{tar.TypeFifo, tar.TypeChar, tar.TypeBlock}[s.r.IntN(3)], Name: p}
	if h.Typeflag != tar.TypeFifo {
		h.Devmajor, h.Devminor = int64(s.r.IntN(4096)), int64([]int{0, 3, 300, s.r.IntN(1 << 20)}[s.r.IntN(4)])
	}
	return s.attributes(item{Header: h})
}

// String is one line of a listing.
func (i item) String() string {
	size := i.Size
	if i.sparse == nil {
		size = int64(len(i.content))
	}
	kind := strings.NewReplacer("0", "-", "1", "h", "2", "l", "3", "c", "4", "b", "5", "d", "6", "p").Replace(string(i.Typeflag))
	line := fmt.Sprintf("%s %q", kind, i.Name)
	if i.Typeflag != tar.TypeLink && !i.ModTime.IsZero() {
		line = fmt.Sprintf("%s %04o %d:%d %d B %d.%09d %q", kind, i.Mode, i.Uid, i.Gid, size, i.ModTime.Unix(), i.ModTime.Nanosecond(), i.Name)
	}
	switch i.Typeflag {
	case tar.TypeSymlink, tar.TypeLink:
		line += fmt.Sprintf(" -> %q", i.Linkname)
	case tar.TypeChar, tar.TypeBlock:
		line += fmt.Sprintf(" %d:%d", i.Devmajor, i.Devminor)
	}
	for _, key := range slices.Sorted(maps.Keys(i.PAXRecords)) {
		line += fmt.Sprintf(" %.40q", key)
	}
	return line
}

// write writes the layout with both of its tags.
func (s *stacker) write(t testing.TB, layers [][]byte) string {
	t.Helper()
	l := newLayout(t)
	var diffIDs []string
	var packed, forUmoci []descriptor
	for _, plain := range layers {
		diffIDs = append(diffIDs, digestOf(plain))
		gzipped := l.layer(Gzip, plain)
		forUmoci = append(forUmoci, gzipped)
		if s.chance(50) {
			gzipped = l.layer(Zstd, plain)
		}
		packed = append(packed, gzipped)
	}
	config := l.config(runtime.GOARCH, diffIDs)
	l.index(l.manifest(config, "latest", packed...), l.manifest(config, "gzip", forUmoci...))
	return l.dir
}
