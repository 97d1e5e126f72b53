package publish

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/skimfs/skimfs/index"
)

// maxLinks bounds the symlinks followed in one path.
const maxLinks = 255

// merge lays layers over each other, the lowest first, and returns the image's root. The result is what umoci unpacks: entries apply in
// the order of the archive; a whiteout spares what its own layer brought; parents that are symlinks are followed inside the root. created
// is the mtime of directories that no layer has an entry for.
func merge(layers []*layer, created time.Time) (*index.Entry, error) {
	m := &merger{root: newDir(0o755, time.Unix(0, 0)), created: created, touched: map[*index.Entry]int{}}
	for i, l := range layers {
		m.layer, m.objects = i+1, l.Objects
		for j := range l.Ops {
			if err := m.apply(&l.Ops[j]); err != nil {
				return nil, fmt.Errorf("layer %d of %d: entry %q: %w", i+1, len(layers), l.Ops[j].Name, err)
			}
		}
	}
	return m.root, nil
}

func newDir(mode uint32, mtime time.Time) *index.Entry {
	return index.NewDir(index.Attr{Mode: index.ModeDir | mode, Sec: mtime.Unix(), Nsec: uint32(mtime.Nanosecond())})
}

type merger struct {
	root    *index.Entry
	created time.Time
	layer   int // the one being applied, from 1 on
	objects []object
	touched map[*index.Entry]int // the last layer that brought a name or something below it
}

// step is a directory on the way to an entry: its name, and what is there, nil for nothing yet.
type step struct {
	name string
	e    *index.Entry
}

// resolve follows the path of a directory inside the root, as if that were the root of the system. Names that don't exist are taken as
// they are.
func (m *merger) resolve(dir string) ([]step, error) {
	var at []step
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
		e := child(m.top(at), name)
		if e == nil || !e.IsSymlink() {
			at = append(at, step{name, e})
			continue
		}
		if links++; links > maxLinks {
			return nil, errors.New("too many symlinks in its path")
		}
		if strings.HasPrefix(e.Target, "/") {
			at = nil
		}
		todo = append(strings.Split(e.Target, "/"), todo...)
	}
	return at, nil
}

// top returns what is at the end of a path, nil for nothing.
func (m *merger) top(at []step) *index.Entry {
	if len(at) == 0 {
		return m.root
	}
	return at[len(at)-1].e
}

func child(e *index.Entry, name string) *index.Entry {
	if e == nil {
		return nil
	}
	return e.Children[name]
}

// mkdirs makes the directories of a resolved path that don't exist, and returns the last.
func (m *merger) mkdirs(at []step) (*index.Entry, error) {
	parent := m.root
	for i := range at {
		if at[i].e == nil {
			at[i].e = newDir(0o755, m.created)
			parent.Children[at[i].name] = at[i].e
		}
		if parent = at[i].e; !parent.IsDir() {
			return nil, fmt.Errorf("%q is not a directory", at[i].name)
		}
	}
	return parent, nil
}

func (m *merger) apply(o *op) error {
	if o.Name == "" {
		if o.Hard || !o.Attr.IsDir() {
			return errors.New("the root must be a directory")
		}
		m.root.Attr, m.root.Xattrs = o.Attr, o.Xattrs
		return nil
	}
	dir, name := path.Split(o.Name)
	at, err := m.resolve(dir)
	if err != nil {
		return err
	}
	if strings.HasPrefix(name, whiteoutPrefix) {
		return m.whiteout(m.top(at), name)
	}
	parent, err := m.mkdirs(at)
	if err != nil {
		return err
	}
	e := parent.Children[name]
	if e != nil && e.IsDir() && o.Attr.IsDir() {
		e.Attr, e.Xattrs = o.Attr, o.Xattrs
	} else {
		delete(parent.Children, name)
		if e, err = m.entry(o); err != nil {
			return err
		}
		parent.Children[name] = e
	}
	m.touched[e] = m.layer
	for _, s := range at {
		m.touched[s.e] = m.layer
	}
	return nil
}

// entry makes the entry that o describes.
func (m *merger) entry(o *op) (*index.Entry, error) {
	if o.Hard {
		dir, name := path.Split(o.Link)
		at, err := m.resolve(dir)
		if err != nil {
			return nil, err
		}
		target := child(m.top(at), name)
		switch {
		case target == nil:
			return nil, fmt.Errorf("hard link to %q, which doesn't exist", o.Link)
		case target.IsDir():
			return nil, fmt.Errorf("hard link to %q, a directory", o.Link)
		}
		return &index.Entry{Inode: target.Inode}, nil
	}
	e := &index.Entry{Inode: &index.Inode{Attr: o.Attr, Xattrs: o.Xattrs, Target: o.Link}}
	if o.Attr.IsDir() {
		e.Children = map[string]*index.Entry{}
	}
	if n := len(o.Chunks); n > 0 {
		e.Chunks = make([]index.Digest, n)
		for i, c := range o.Chunks {
			if c >= 0 {
				e.Chunks[i] = m.objects[c].digest()
			}
		}
		if n > 1 {
			e.File = index.SHA256Digest(o.File)
		}
	}
	return e, nil
}

// whiteout removes from dir what the name says: everything, or one entry.
func (m *merger) whiteout(dir *index.Entry, name string) error {
	if name == whiteoutOpaque {
		if dir != nil {
			for child := range dir.Children {
				m.remove(dir, child)
			}
		}
		return nil
	}
	name = strings.TrimPrefix(name, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return errors.New("whiteout without a name")
	}
	if child(dir, name) != nil {
		m.remove(dir, name)
	}
	return nil
}

// remove takes name out of dir, but for what the layer being applied has brought.
func (m *merger) remove(dir *index.Entry, name string) {
	e := dir.Children[name]
	if m.touched[e] != m.layer {
		delete(dir.Children, name)
		return
	}
	for child := range e.Children {
		m.remove(e, child)
	}
}
