package testkit

import (
	"archive/tar"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// DemoImage returns the layout of Debian 12 with python3 and numpy; nobody may write to it. The
// first call on a machine builds it, which takes about a minute and needs root.
func DemoImage(t testing.TB) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(moduleRoot(t), "scripts", "image-demo"))
	cmd.Stderr = os.Stderr // it says that it builds
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("scripts/image-demo: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// Empty returns the layout of an image with one layer that holds nothing.
func Empty(t testing.TB, c Compression) string {
	t.Helper()
	return writeLayout(t, c, layerTar(t))
}

// NoLayers returns the layout of an image without any layer.
func NoLayers(t testing.TB) string {
	t.Helper()
	return writeLayout(t, Gzip)
}

// Whiteouts returns the layout of an image in which upper layers remove and replace what lies
// below in each way there is. A name says what must become of it: gone…, kept…, new….
func Whiteouts(t testing.TB, c Compression) string {
	t.Helper()
	base := layerTar(t,
		dir("plain", 0o755), file("plain/gone", 0o644, "1"), file("plain/kept", 0o644, "1"),
		dir("plain/gone-dir", 0o755), file("plain/gone-dir/gone", 0o644, "1"), dir("plain/gone-dir/gone-sub", 0o755),
		file("plain/gone-dir/gone-sub/gone", 0o644, "1"),
		symlink("plain/gone-link", "kept"), file("plain/"+longGone, 0o644, "1"),
		dir("opaque", 0o755), file("opaque/gone", 0o644, "1"), dir("opaque/gone-dir", 0o755), file("opaque/gone-dir/gone", 0o644, "1"),
		file("opaque/new-same-name", 0o600, "old"), dir("opaque/new-dir", 0o700), file("opaque/new-dir/gone", 0o644, "1"),
		dir("opaque-late", 0o755), file("opaque-late/gone", 0o644, "1"),
		dir("emptied", 0o755), file("emptied/gone", 0o644, "1"),
		dir("dir-to-file", 0o755), file("dir-to-file/gone", 0o644, "1"),
		file("file-to-dir", 0o644, "1"),
		dir("back-and-forth", 0o755), file("back-and-forth/gone", 0o644, "1"),
		dir("dir-to-link", 0o755), file("dir-to-link/gone", 0o644, "1"),
		symlink("link-to-dir", "plain"),
		dir("again", 0o755), file("again/new", 0o644, "first"),
		dir("again/new-dir", 0o755), file("again/new-dir/gone", 0o644, "1"),
		dir("attributes", 0o755), file("attributes/kept", 0o644, "1"),
		dir("links", 0o755), file("links/a", 0o644, "linked"), hardlink("links/b", "links/a"), hardlink("links/c", "links/a"),
		dir("deep", 0o755), dir("deep/er", 0o755), dir("deep/er/still", 0o755), file("deep/er/still/kept", 0o644, "1"), file("deep/er/gone", 0o644, "1"),
	)
	second := layerTar(t,
		dir("plain", 0o755), whiteout("plain/gone"), whiteout("plain/gone-dir"), whiteout("plain/gone-link"), whiteout("plain/"+longGone),
		whiteout("plain/was-never-there"),
		dir("opaque", 0o750), opaque("opaque"), file("opaque/new-same-name", 0o644, "new"), file("opaque/new", 0o644, "2"),
		dir("opaque/new-dir", 0o755), file("opaque/new-dir/new", 0o644, "2"),
		// The mark may come after what its own layer brings, and spares that.
		dir("opaque-late", 0o755), file("opaque-late/new", 0o644, "2"), opaque("opaque-late"),
		dir("emptied", 0o755), opaque("emptied"),
		file("dir-to-file", 0o644, "2"),
		dir("file-to-dir", 0o755), file("file-to-dir/new", 0o644, "2"),
		file("back-and-forth", 0o644, "2"),
		symlink("dir-to-link", "plain"),
		dir("link-to-dir", 0o755), file("link-to-dir/new", 0o644, "2"),
		whiteout("again"),
		dir("attributes", 0o1770).owned(12, 34).at(1_500_000_000, 5),
		whiteout("links/a"), file("links/c", 0o600, "c alone"),
		whiteout("deep/er/gone"),
	)
	third := layerTar(t,
		dir("back-and-forth", 0o711), file("back-and-forth/new", 0o644, "3"),
		dir("again", 0o755), file("again/new", 0o644, "third"), dir("again/new-dir", 0o755), file("again/new-dir/new", 0o644, "3"),
		dir("opaque", 0o750), whiteout("opaque/new"), dir("opaque/new-dir", 0o755), opaque("opaque/new-dir"), file("opaque/new-dir/newer", 0o644, "3"),
		hardlink("links/d", "links/b"),
		dir(".wh-is-no-mark", 0o755), file("wh.neither", 0o644, "3"),
	)
	return writeLayout(t, c, base, second, third)
}

// longGone has 255 bytes: its whiteout is longer than any name may be.
var longGone = "gone-" + strings.Repeat("n", 250)

// Oddities returns the layout of an image with all that a tar archive can hold and a careless
// reader loses: links, names, modes, devices, xattrs, holes, times, owners, sizes.
func Oddities(t testing.TB, c Compression) string {
	t.Helper()
	return writeLayout(t, c, append([][]byte{layerTar(t, oddBase()...), layerTar(t, oddUpper()...)}, paxSparseLayers(t)...)...)
}

// GNUSparse returns the layout of an image with sparse files in the old GNU form, which umoci
// refuses. They are the files sparse/pax-1.0-… of [Oddities] under the names sparse/gnu-….
func GNUSparse(t testing.TB, c Compression) string {
	t.Helper()
	return writeLayout(t, c, sparseLayer(t, "gnu"))
}

func oddBase() []item {
	items := []item{
		dir("", 0o755).at(1_234_567_890, 123_456_789),
		// Hard links, within and across directories, to other things than files, to an empty one.
		dir("links", 0o755), dir("links/other", 0o755),
		file("links/one", 0o640, "three names").owned(7, 8).at(1_111_111_111, 111), hardlink("links/two", "links/one"),
		hardlink("links/other/three", "links/one"),
		symlink("links/symlink", "one"), hardlink("links/symlink-too", "links/symlink"),
		{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "links/fifo", Mode: 0o600}}, hardlink("links/fifo-too", "links/fifo"),
		file("links/empty", 0o644, ""), hardlink("links/empty-too", "links/empty"),
		file("links/below", 0o644, "linked from the layer above"),
		file("links/split-a", 0o644, "one of two is replaced above"), hardlink("links/split-b", "links/split-a"),
		// Modes.
		dir("modes", 0o755), file("modes/0000", 0, "nobody"), file("modes/setuid", 0o4755, "s"), file("modes/setgid", 0o2755, "s"),
		file("modes/all", 0o7777, "s"), dir("modes/dir-0000", 0), dir("modes/dir-0700", 0o700), file("modes/dir-0700/inside", 0o400, "read me"),
		dir("modes/sticky", 0o1777), dir("modes/setgid-dir", 0o2775),
		// Devices.
		dir("dev", 0o755),
		{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}},
		{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "dev/block", Mode: 0o660, Gid: 6, Devmajor: 7, Devminor: 300}},
		{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev/large", Mode: 0o600, Devmajor: 4095, Devminor: 1_048_575}},
		{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "dev/fifo", Mode: 0o622}},
		// Owners and times.
		dir("owners", 0o755).owned(4_000_000_000, 4_000_000_001), file("owners/large", 0o600, "o").owned(4_294_967_294, 3_000_000_000),
		dir("times", 0o755), file("times/ns", 0o644, "t").at(1_700_000_000, 999_999_999), file("times/before-1970", 0o644, "t").at(-86_400, 0),
		file("times/before-1970-ns", 0o644, "t").at(-2, 250_000_000), file("times/zero", 0o644, "t").at(0, 0),
		file("times/after-2038", 0o644, "t").at(4_102_444_800, 1), symlink("times/link", "ns").at(987_654_321, 987_654_321),
		dir("times/dir", 0o755).at(1_000_000_000, 1),
		// Xattrs.
		dir("xattrs", 0o755).xattr("user.on-a-directory", "yes"),
		file("xattrs/capability", 0o755, "x").xattr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
		file("xattrs/user", 0o644, "x").xattr("user.text", "value").xattr("user.empty", ""),
		file("xattrs/binary", 0o644, "x").xattr("user.binary", "\x00\xff\n=\x00"),
		file("xattrs/long", 0o644, "x").xattr("user."+strings.Repeat("n", 250), strings.Repeat("v", 2000)),
		file("xattrs/acl", 0o644, "x").xattr("system.posix_acl_access", "\x02\x00\x00\x00"+
			"\x01\x00\x06\x00\xff\xff\xff\xff"+ // user::rw-
			"\x02\x00\x04\x00\xd2\x04\x00\x00"+ // user:1234:r--
			"\x04\x00\x04\x00\xff\xff\xff\xff"+ // group::r--
			"\x10\x00\x04\x00\xff\xff\xff\xff"+ // mask::r--
			"\x20\x00\x04\x00\xff\xff\xff\xff"), // other::r--
		// Symlinks; real is what parents that are symlinks lead to.
		dir("symlinks", 0o755), dir("symlinks/real", 0o755), symlink("symlinks/relative", "real"), symlink("symlinks/absolute", "/symlinks/real"),
		symlink("symlinks/outside", "../../../../symlinks/real"), symlink("symlinks/dangling", "no/such/thing"),
		symlink("symlinks/itself", "itself"), symlink("symlinks/odd", "a\nb\xff c"), symlink("symlinks/long", strings.Repeat("0123456789", 400)),
		// Sizes around the limits of chunks and of small files.
		dir("sizes", 0o755), file("sizes/0", 0o644, ""), file("sizes/1", 0o644, "1"),
	}
	items = append(items, oddNames()...)
	return append(items, oddSizes()...)
}

func oddNames() []item {
	items := []item{dir("names", 0o755)}
	for _, name := range []string{
		" ", "  two  ", "new\nline", "tab\there", "-n", "--", "...", "..a", "a..", "\\", "back\\slash", "\"quoted'", "$(id)", "*", "?", "%s%n", "#",
		"\xff\xfe", "latin-\xe9", "cut-\xe2\x82", "grüße", "日本語", "e\u0301", "\u00e9", "\u202egnp.exe", "\x01\x1b[31m", "\x7f",
		strings.Repeat("n", 255), strings.Repeat("ü", 127) + "x", ".hidden", ".wh", ".whx", "wh.", "A", "a", "=", "a=b", "12345678901234567890 path=x",
	} {
		items = append(items, file("names/"+name, 0o644, name))
	}
	path := "names/deep"
	for i := range 10 {
		items = append(items, dir(path, 0o755))
		path += "/" + strings.Repeat(string(rune('a'+i)), 250)
	}
	return append(items, file(path, 0o644, "at the end of a path of 2.5 kB"))
}

func oddSizes() []item {
	const MiB = 1 << 20
	random := rand.NewChaCha8([32]byte{1: 's', 2: 'k', 3: 'i', 4: 'm'})
	noise := func(n int) string {
		b := make([]byte, n)
		random.Read(b)
		return string(b)
	}
	zeros := strings.Repeat("\x00", 3*MiB)
	return []item{
		file("sizes/zeros", 0o644, zeros),
		file("sizes/random", 0o644, noise(2*MiB+MiB/2)),
		file("sizes/chunk", 0o644, noise(MiB)), file("sizes/chunk-1", 0o644, noise(MiB-1)), file("sizes/chunk+1", 0o644, noise(MiB+1)),
		file("sizes/two-chunks", 0o644, noise(2*MiB)), file("sizes/4096", 0o644, noise(4096)), file("sizes/4097", 0o644, noise(4097)),
		file("sizes/32769", 0o644, noise(32769)),
		file("sizes/zeros-then-data", 0o644, zeros[:2*MiB]+"data"), file("sizes/data-then-zeros", 0o644, "data"+zeros[:2*MiB]),
		file("sizes/data-zeros-data", 0o644, noise(MiB)+zeros[:MiB]+noise(100)),
		file("sizes/the-same-a", 0o644, strings.Repeat("the same content ", 10_000)), file("sizes/the-same-b", 0o600, strings.Repeat("the same content ", 10_000)),
	}
}

func oddUpper() []item {
	return []item{
		hardlink("links/above", "links/below"), hardlink("links/other/above", "links/below"),
		file("links/split-a", 0o600, "replaced").at(1_222_222_222, 0),
		// Through parents that are symlinks, all into symlinks/real.
		file("symlinks/relative/by-relative", 0o644, "r"), file("symlinks/absolute/by-absolute", 0o644, "a"),
		file("symlinks/outside/by-outside", 0o644, "o"), hardlink("symlinks/real/by-hardlink", "symlinks/relative/by-relative"),
		// Only attributes change.
		dir("modes/dir-0700", 0o711).owned(1, 2).at(1_333_333_333, 3),
		// An xattr of the layer below goes with the file's new version.
		file("xattrs/user", 0o644, "y").xattr("user.above", "only"),
	}
}
