package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/skimfs/skimfs/index"
)

const (
	// Forever is how long the kernel may keep what never changes: all that lies inside an image.
	Forever = time.Duration(1<<30) * time.Second
	// DefaultDeadline is how long an operation waits for the network before it is EIO.
	DefaultDeadline = 30 * time.Second
	// DefaultReadAhead is how far ahead of a sequential reader chunks are asked for, in bytes.
	DefaultReadAhead = 32 << 20

	maxNamesValid = 60 * time.Second
)

// Owner is a user and group; nil leaves the image's.
type Owner struct{ UID, GID *uint32 }

// IDMap changes the number of a user or group.
type IDMap func(id uint32) uint32

// Config says what a Core shows. Tree and Chunks must be set, and Catalogs where the tree has nested catalogs.
type Config struct {
	// Tree is the image to show, or a repository's name tree.
	Tree *index.Tree
	// Root is the number in Tree of the directory that is mounted; 0 is the tree's root.
	Root uint32
	// Chunks is where file content comes from; see also CachedReader and Prefetcher.
	Chunks ChunkReader
	// Catalogs loads nested catalogs and the images of a repository.
	Catalogs index.CatalogLoader
	// Deadline bounds the waiting of one operation; 0 is DefaultDeadline.
	Deadline time.Duration
	// Owner is shown as the owner of everything, as far as it is set.
	Owner Owner
	// MapUID and MapGID change owners; nil leaves them. Owner counts more.
	MapUID, MapGID IDMap
	// WorldReadable lets everybody read: it adds 0555 to the modes of directories and 0444 to those of other files.
	WorldReadable bool
	// TTL bounds how long the kernel may keep entries of the name tree; at most a minute, which is also what 0 means.
	TTL time.Duration
	// ReadAhead is the most that is asked for ahead of a sequential reader, in bytes; 0 is DefaultReadAhead, less than 0 none.
	ReadAhead int64
	// SqfsAlias shows each symlink of the name tree under its name with ".sqfs" at the end, too: a directory, as stat sees it, that
	// programs which go by the suffix take for an image file.
	SqfsAlias bool
	// NoXattrs switches extended attributes off for the whole mount.
	NoXattrs bool
	// Magic, if set, answers extended attributes of the mounted directory that the image doesn't have.
	Magic func(name string) (value []byte, ok bool)
	// MagicNames, if set, says which of them a listing shows.
	MagicNames func() []string
	// Log takes failures; nil is slog.Default().
	Log *slog.Logger
	// Metrics is where the mount counts; nil is a set of its own.
	Metrics *metrics.Set
	// Labels are added to the name of every metric, as in `mount="3"`; may be empty.
	Labels string
}

// Core is an image, or a repository, as a read-only filesystem on NodeIDs. It knows no FUSE library. All methods are safe for
// concurrent use. Those without a context never wait: what is not at hand is an error for which [Later] is true.
type Core struct {
	cfg      Config
	root     NodeID
	names    bool // a repository: slot 0 is a name tree
	cached   CachedReader
	prefetch Prefetcher
	ahead    readAhead
	errs     *errnos
	stats    *opMetrics

	ttl atomic.Int64 // Config.TTL, or what SetTTL said since

	top   *slot // slot 0
	slots atomic.Pointer[map[uint32]*slot]
	grow  sync.Mutex // held while slots is replaced; taken before nothing
	swaps sync.Mutex // held by Replace

	ctx    context.Context // of catalog loads
	stop   context.CancelFunc
	loads  map[index.CatalogRef]*load
	loadMu sync.Mutex // guards loads and closed
	closed bool
	load   sync.WaitGroup
}

// New returns a Core. Close it when it is no longer served.
func New(cfg Config) (*Core, error) {
	if cfg.Tree == nil || cfg.Chunks == nil {
		return nil, errors.New("fusefs: a tree and a source of chunks are needed")
	}
	if cfg.Catalogs == nil {
		cfg.Catalogs = func(_ context.Context, ref index.CatalogRef) (*index.Catalog, error) {
			return nil, fmt.Errorf("no loader for catalog %v", ref)
		}
	}
	if cfg.Deadline <= 0 {
		cfg.Deadline = DefaultDeadline
	}
	if cfg.ReadAhead == 0 {
		cfg.ReadAhead = DefaultReadAhead
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Metrics == nil {
		cfg.Metrics = metrics.NewSet()
	}
	c := &Core{cfg: cfg, names: cfg.Tree.Root().IsNameTree(), loads: map[index.CatalogRef]*load{}, root: RootID, top: &slot{}}
	if cfg.Root > 1 {
		c.root = Node(0, cfg.Root)
		if err := mountable(cfg.Tree, cfg.Root); err != nil {
			return nil, err
		}
	}
	c.cached, _ = cfg.Chunks.(CachedReader)
	c.prefetch, _ = cfg.Chunks.(Prefetcher)
	c.stats = newOpMetrics(cfg.Metrics, cfg.Labels)
	c.errs = newErrnos(cfg.Log, cfg.Metrics, cfg.Labels)
	c.ahead.budget = cfg.ReadAhead
	c.SetTTL(cfg.TTL)
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.slots.Store(&map[uint32]*slot{})
	if err := c.top.set(cfg.Tree); err != nil {
		return nil, err
	}
	c.register()
	return c, nil
}

// mountable checks that the node is a directory.
func mountable(t *index.Tree, number uint32) error {
	pos, err := t.At(number)
	if err != nil {
		return fmt.Errorf("finding directory %d to mount: %w", number, err)
	}
	_, n, err := pos.Node()
	if err != nil {
		return fmt.Errorf("finding directory %d to mount: %w", number, err)
	}
	if !n.IsDir() {
		return fmt.Errorf("mounting node %d: %w", number, errNotDir)
	}
	return nil
}

// Close ends catalog loads and waits for them.
func (c *Core) Close() {
	c.loadMu.Lock()
	c.closed = true
	c.loadMu.Unlock()
	c.stop()
	c.load.Wait()
}

// Repository reports whether the Core shows a repository rather than one image.
func (c *Core) Repository() bool { return c.names }

// Attr is what stat shows of a node, and how long the kernel may keep it.
type Attr struct {
	index.Attr
	Node  NodeID
	Valid time.Duration
}

// Entry is the answer to a Lookup. Node 0 says that there is no such name.
type Entry struct {
	Attr
	EntryValid time.Duration
}

// place is a node found: its tree and where it is.
type place struct {
	slot *slot
	tree *index.Tree
	pos  index.Pos
}

// at finds a node. With dir its entries must be within reach: an image's tree is wanted, not just its mountpoint.
func (c *Core) at(id NodeID, dir bool) (place, error) {
	id = c.swap(id)
	if id.Slot() == 0 {
		t := c.top.tree.Load()
		pos, err := t.At(id.Number())
		if err != nil {
			return place{}, c.lost(id, err)
		}
		return place{c.top, t, pos}, nil
	}
	s := c.slot(id.Slot())
	if s == nil {
		return place{}, errStale
	}
	t := s.tree.Load()
	if t == nil {
		m := s.mount.Load()
		if dir || id.Number() != 1 {
			return place{}, &Wait{core: c, slot: s, ref: m.row.Catalog}
		}
		return place{s, m.tree, m.pos}, nil
	}
	pos, err := t.At(id.Number())
	if err != nil {
		return place{}, c.lost(id, err)
	}
	return place{s, t, pos}, nil
}

// lost turns the error of a Tree into ours.
func (c *Core) lost(id NodeID, err error) error {
	if c.names && id.Slot() == 0 && errors.Is(err, index.ErrFormat) {
		return errStale // a later revision of the name tree no longer has it
	}
	return c.lacks(err)
}

// lacks turns a missing catalog into a Wait and leaves other errors alone.
func (c *Core) lacks(err error) error {
	var m *index.Missing
	if errors.As(err, &m) {
		return &Wait{core: c, missing: m, ref: m.Ref}
	}
	return err
}

// Getattr tells the attributes of a node. It never needs a catalog that no Lookup has loaded.
func (c *Core) Getattr(id NodeID, out *Attr) error {
	at, err := c.at(id, false)
	if err != nil {
		return err
	}
	_, n, err := at.pos.Node()
	if err != nil {
		return err
	}
	c.fill(out, id, &n.Attr)
	return nil
}

// fill writes what the kernel is told of a node; id is the kernel's.
func (c *Core) fill(out *Attr, id NodeID, a *index.Attr) {
	out.Attr, out.Node, out.Valid = *a, id, Forever
	out.UID = shownID(out.UID, c.cfg.Owner.UID, c.cfg.MapUID)
	out.GID = shownID(out.GID, c.cfg.Owner.GID, c.cfg.MapGID)
	if c.cfg.WorldReadable && !a.IsSymlink() {
		if out.Mode |= 0o444; a.IsDir() {
			out.Mode |= 0o111
		}
	}
	if c.names && c.swap(id).Slot() == 0 && !a.IsSymlink() {
		out.Valid = c.namesValid()
	}
}

func shownID(id uint32, all *uint32, to IDMap) uint32 {
	switch {
	case all != nil:
		return *all
	case to != nil:
		return to(id)
	}
	return id
}

// entryValid is how long names in a directory hold.
func (c *Core) entryValid(dir NodeID) time.Duration {
	if c.names && c.swap(dir).Slot() == 0 {
		return c.namesValid()
	}
	return Forever
}

// namesValid is how long the name tree's entries hold.
func (c *Core) namesValid() time.Duration { return time.Duration(c.ttl.Load()) }

// SetTTL changes Config.TTL for what the kernel asks from now on. What it knows already it keeps for as long as it was told.
func (c *Core) SetTTL(ttl time.Duration) {
	if ttl <= 0 || ttl > maxNamesValid {
		ttl = maxNamesValid
	}
	c.ttl.Store(int64(ttl))
}
