// Package index holds the format of a repository: digests, objects, catalogs, and the notes that sign them. It turns bytes into values and
// values into bytes and does no I/O: whoever needs an object hands in a function that gets it. docs/format.md describes every byte.
//
// # From a signed note to a file
//
//	master, err := index.ParseVerifier(pub)               // what a client trusts: the content of NAME.pub
//	w, err := index.OpenWhitelist(b, name, master)        // then w.CheckTime(now)
//	m, err := index.OpenManifest(b, name, w)              // then compare m.Revision with the last one accepted
//	root, err := m.Root.Load(ctx, get)                    // get returns verified plain objects, see ObjectDecoder
//	v, err := index.NewView(root, load)                   // load does Load for nested catalogs, perhaps from a cache
//	f, err := v.Resolve(ctx, "docker.io/library/debian:12/etc/passwd", true)
//	chunks, err := f.Chunks()
//
// [NewFS] shows the same as an io/fs.FS.
//
// # Three views of a catalog
//
// A [Catalog] is one encoded directory tree, used in place: [NewCatalog] checks the header and a few rows, nothing is parsed, and what
// accessors return points into its bytes. Nodes are numbered from 0 in each catalog.
//
// A [Tree] joins an image's catalogs, or those of the name tree above the images, and numbers all nodes: these are the kernel's inode numbers.
// It never blocks. Where it needs a nested catalog that isn't there it returns a [*Missing], whose Attach takes the catalog once the
// caller has loaded it. The attributes of a mountpoint are in the parent, so stat and a listing of the parent miss nothing.
//
// A [View] resolves paths, goes from the name tree into images, and loads what it needs: for commands, not for the kernel.
//
// # Building
//
// [BuildImage] takes a tree of [Entry] values and stores its catalogs through a [Put], nested ones first; [BuildNames] does it for the name
// tree. Hard links share an [Inode]. Equal trees give equal bytes, whatever the order in which they were put together. Trees that the
// format can't hold are refused before anything is stored.
//
// # Promises
//
//   - Bytes are hostile until proven otherwise. Decoders and accessors never panic on them, loop, or allocate more than a small multiple of
//     what they were given; what is wrong gives an error that wraps [ErrFormat] and names the place. A catalog that can't be read is never an absent file.
//   - Reading is safe for concurrent use, takes no lock, and on the hot paths (Lookup, At, Node, Attr, Chunk, Xattr, ReadDir) of an image does not
//     allocate.
//   - Only Decode compares content with a digest. Catalogs and notes are taken as they come: give them verified bytes.
//   - [Catalog.Verify] and [View.Verify] check all of the format's rules. The accessors check what keeps a reader safe, and no more.
package index
