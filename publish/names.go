package publish

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/skimfs/skimfs/index"
)

// flatDir holds the images, as at unpacked.cern.ch.
const flatDir = ".flat"

// nameTree is a repository's name tree while it is changed: the directories above the images (docs/format.md, section 8).
type nameTree struct {
	root *index.Entry
	next uint32
	now  time.Time
}

// newNames returns the tree of an empty repository.
func newNames(now time.Time) *nameTree {
	t := &nameTree{root: newDir(0o755, now.Truncate(time.Second)), next: 2, now: now.Truncate(time.Second)}
	t.root.Number, t.root.Split = 1, true
	return t
}

// loadNames reads the name tree of a revision.
func loadNames(ctx context.Context, v *index.View, next uint32, now time.Time) (*nameTree, error) {
	t := &nameTree{next: next, now: now.Truncate(time.Second)}
	var err error
	t.root, err = loadName(ctx, v.Root(), "")
	return t, err
}

func loadName(ctx context.Context, dir index.File, path string) (*index.Entry, error) {
	e, err := loadEntry(dir.Pos)
	if err != nil {
		return nil, err
	}
	e.Number, e.Split, e.Children = dir.Num, isSplit(path), map[string]*index.Entry{}
	return e, dir.ReadDir(ctx, func(c index.Child) error {
		name := string(c.Name)
		if row, ok, err := c.Pos.Nested(); err != nil {
			return err
		} else if ok && row.Kind == index.NestedImage {
			image, err := loadEntry(c.Pos)
			if err != nil {
				return err
			}
			image.Number, image.Image = row.Number, &index.ImageRef{Catalog: row.Catalog, Nodes: row.Count}
			e.Children[name] = image
			return nil
		}
		_, node, err := c.Pos.Node()
		if err != nil {
			return err
		}
		var child *index.Entry
		if node.IsDir() {
			f, err := dir.Open(ctx, c)
			if err != nil {
				return err
			}
			child, err = loadName(ctx, f, path+"/"+name)
			if err != nil {
				return err
			}
		} else if child, err = loadEntry(c.Pos); err != nil {
			return err
		}
		child.Number = c.Number
		e.Children[name] = child
		return nil
	})
}

// loadEntry turns a node back into what it was built from.
func loadEntry(pos index.Pos) (*index.Entry, error) {
	cat, n, err := pos.Node()
	if err != nil {
		return nil, err
	}
	e := &index.Entry{Inode: &index.Inode{Attr: n.Attr}}
	if err := cat.EachXattr(n.Xattrs, func(name, value []byte) bool {
		e.Xattrs = append(e.Xattrs, index.Xattr{Name: string(name), Value: slices.Clone(value)})
		return true
	}); err != nil {
		return nil, err
	}
	if n.IsSymlink() {
		target, err := cat.Readlink(&n)
		if err != nil {
			return nil, err
		}
		e.Target = string(target)
	}
	return e, nil
}

// isSplit reports whether the directory at path is a catalog of its own: the root, each registry, .flat and each .flat/XX.
func isSplit(path string) bool {
	switch depth := strings.Count(path, "/"); depth {
	case 0, 1:
		return true
	case 2:
		return strings.HasPrefix(path, "/"+flatDir+"/")
	}
	return false
}

// number takes the next number that was never used.
func (t *nameTree) number() (uint32, error) {
	if t.next >= math.MaxUint32-1 {
		return 0, fmt.Errorf("repository: all numbers of the name tree are used up")
	}
	t.next++
	return t.next - 1, nil
}

// dir returns the directory at path, components separated by slashes, and makes what is missing.
func (t *nameTree) dir(path string) (*index.Entry, error) {
	at, sofar := t.root, ""
	for name := range strings.SplitSeq(path, "/") {
		sofar += "/" + name
		next := at.Children[name]
		if next == nil {
			n, err := t.number()
			if err != nil {
				return nil, err
			}
			next = newDir(0o755, t.now)
			next.Number, next.Split = n, isSplit(sofar)
			t.set(at, name, next)
		}
		if !next.IsDir() || next.Image != nil {
			return nil, fmt.Errorf("%s is in the way", sofar[1:])
		}
		at = next
	}
	return at, nil
}

// set puts an entry into a directory, or with nil takes it out.
func (t *nameTree) set(dir *index.Entry, name string, e *index.Entry) {
	if e == nil {
		delete(dir.Children, name)
	} else {
		dir.Children[name] = e
	}
	dir.Sec, dir.Nsec = t.now.Unix(), 0
}

// flatPath is where an image lies.
func flatPath(manifest index.Digest, bare bool) string {
	h := manifest.Hex()
	if bare {
		return flatDir + "/" + h[:2] + "/" + h + "-bare"
	}
	return flatDir + "/" + h[:2] + "/" + h
}

func splitPath(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	return path[:i], path[i+1:]
}

// image puts an image's root at flat and returns its slot. It keeps the slot of one that is there with the same catalog.
func (t *nameTree) image(flat string, root *index.Entry, ref index.ImageRef) (slot uint32, err error) {
	dir, name := splitPath(flat)
	parent, err := t.dir(dir)
	if err != nil {
		return 0, err
	}
	if old := parent.Children[name]; old != nil && old.Image != nil && *old.Image == ref {
		return old.Number, nil
	}
	if slot, err = t.number(); err != nil {
		return 0, err
	}
	t.set(parent, name, &index.Entry{Inode: root.Inode, Number: slot, Image: &ref})
	return slot, nil
}

// link points the name as to the image at flat. It keeps a link that does already.
func (t *nameTree) link(as, flat string) error {
	dir, name := splitPath(as)
	parent, err := t.dir(dir)
	if err != nil {
		return err
	}
	target := strings.Repeat("../", strings.Count(as, "/")) + flat
	if old := parent.Children[name]; old != nil && old.IsSymlink() && old.Target == target {
		return nil
	}
	n, err := t.number()
	if err != nil {
		return err
	}
	link := &index.Inode{Attr: index.Attr{Mode: index.ModeSymlink | 0o777, Sec: t.now.Unix()}, Target: target}
	t.set(parent, name, &index.Entry{Inode: link, Number: n})
	return nil
}

// names returns the image names in order and the paths of their images.
func (t *nameTree) names() (names []string, flat map[string]string) {
	flat = map[string]string{}
	var walk func(dir *index.Entry, path string)
	walk = func(dir *index.Entry, path string) {
		for _, name := range slices.Sorted(maps.Keys(dir.Children)) {
			switch e := dir.Children[name]; {
			case path == "" && name[0] == '.':
			case e.IsSymlink():
				as := path + name
				names = append(names, as)
				flat[as] = strings.TrimPrefix(e.Target, strings.Repeat("../", strings.Count(as, "/")))
			case e.IsDir():
				walk(e, path+name+"/")
			}
		}
	}
	walk(t.root, "")
	return names, flat
}

// at returns the entry at path, nil if there is none.
func (t *nameTree) at(path string) *index.Entry {
	e := t.root
	for name := range strings.SplitSeq(path, "/") {
		if e = child(e, name); e == nil {
			return nil
		}
	}
	return e
}

// remove takes path out, and directories above that become empty.
func (t *nameTree) remove(path string) error {
	if t.at(path) == nil {
		return fmt.Errorf("%q: %w", path, fs.ErrNotExist)
	}
	for path != "" {
		parent, name := t.root, path
		if i := strings.LastIndexByte(path, '/'); i >= 0 {
			parent, name = t.at(path[:i]), path[i+1:]
		}
		t.set(parent, name, nil)
		if len(parent.Children) > 0 || parent == t.root {
			return nil
		}
		path = strings.TrimSuffix(strings.TrimSuffix(path, name), "/")
	}
	return nil
}
