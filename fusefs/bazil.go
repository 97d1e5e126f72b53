package fusefs

import (
	"context"
	"errors"
	"io"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"bazil.org/fuse"
)

const (
	fewestReaders = 2
	mostReaders   = 8
	scratchSize   = 128 << 10 // the largest reply of a connection without FUSE_MAX_PAGES
	opcodeIoctl   = 39
	maxOddReads   = 100
)

// server answers the requests of one bazil connection from a Core: a fixed number of goroutines read requests and answer
// them on the spot. What must wait leaves for a goroutine of its own.
type server struct {
	core    *Core
	conn    *fuse.Conn
	waiters waiters
	ctx     context.Context // of requests that wait
	cancel  context.CancelFunc
	readers sync.WaitGroup
	later   sync.WaitGroup
	follow  bool // as in Options
	refuse  bool // the kernel lets through what would write
}

func newServer(core *Core, conn *fuse.Conn, o Options) *server {
	s := &server{core: core, conn: conn, follow: o.FollowClient, refuse: o.Device != nil}
	readers := o.Readers
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if readers <= 0 {
		readers = min(max(runtime.NumCPU(), fewestReaders), mostReaders)
	}
	for range readers {
		s.readers.Go(s.serve)
	}
	return s
}

// wait returns when the connection has ended and everything is answered or given up.
func (s *server) wait() {
	s.readers.Wait()
	s.cancel()
	s.later.Wait()
	s.conn.Close()
}

// serve answers requests until the connection ends.
func (s *server) serve() {
	debug.SetPanicOnFault(true)
	scratch := make([]byte, scratchSize)
	var client *follower
	if s.follow {
		client = newFollower()
	}
	for odd := 0; odd < maxOddReads; {
		req, err := s.conn.ReadRequest()
		if err == nil {
			odd = 0
			client.note(req.Hdr().Pid)
			s.handle(req, scratch)
			continue
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNABORTED), errors.Is(err, syscall.EBADF):
			return
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOENT):
		default:
			odd++
			s.core.cfg.Log.Warn("reading a request", "err", err)
		}
	}
}

// handle answers one request, or hands it to a goroutine that waits.
func (s *server) handle(req fuse.Request, scratch []byte) {
	start := time.Now()
	kind := opOf(req)
	s.core.stats.requests[kind].Inc()
	switch r := req.(type) {
	case *fuse.ForgetRequest:
		s.core.Forget(NodeID(r.Node), r.N)
		r.Respond()
		return
	case *fuse.BatchForgetRequest:
		for _, f := range r.Forget {
			s.core.Forget(NodeID(f.NodeID), f.N)
		}
		r.Respond()
		return
	case *fuse.InterruptRequest:
		if !s.waiters.interrupt(r.IntrID) {
			r.RespondError(syscall.EAGAIN) // not waiting yet, or answered: the kernel knows which
			return
		}
		r.Respond()
		return
	case *fuse.NotifyReply:
		return
	}
	out, err := s.try(s.ctx, false, req, scratch)
	if Later(err) {
		s.core.stats.detached.Inc()
		s.later.Go(func() { s.await(req, kind, start) })
		return
	}
	s.finish(req, kind, start, out, err)
}

// await answers a request that has to wait, at the latest when its deadline is over.
func (s *server) await(req fuse.Request, kind op, start time.Time) {
	debug.SetPanicOnFault(true)
	defer s.core.stats.wait(start)()
	ctx, cancel := context.WithTimeoutCause(s.ctx, s.core.cfg.Deadline, errDeadline)
	defer cancel()
	ctx, leave := s.waiters.enter(ctx, req.Hdr())
	defer leave()
	buf := make([]byte, replySize(req))
	var out []byte
	err := s.core.Do(ctx, func() (err error) {
		out, err = s.try(ctx, true, req, buf)
		return err
	})
	s.finish(req, kind, start, out, err)
}

// finish sends the answer.
func (s *server) finish(req fuse.Request, kind op, start time.Time, out []byte, err error) {
	if err != nil {
		req.RespondError(s.core.errs.pick(kind, NodeID(req.Hdr().Node), err))
	} else {
		// A ReadRequest's answer is plain bytes, and bazil takes any header for it. Its own answers would lose the sticky bit.
		raw := fuse.ReadRequest{Header: *req.Hdr()}
		raw.Respond(&fuse.ReadResponse{Data: out})
	}
	s.core.stats.done(kind, start)
}

// try computes an answer and turns a panic into an error. Only a read waits, and only with wait.
func (s *server) try(ctx context.Context, wait bool, req fuse.Request, buf []byte) (out []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			out, err = nil, s.core.errs.panicked("answering "+opOf(req).String(), p)
		}
	}()
	return s.answer(ctx, wait, req, buf)
}

// answer computes the bytes that answer a request, in buf or elsewhere.
func (s *server) answer(ctx context.Context, wait bool, req fuse.Request, buf []byte) ([]byte, error) {
	c := s.core
	switch r := req.(type) {
	case *fuse.LookupRequest:
		var e Entry
		if err := c.Lookup(NodeID(r.Node), nameBytes(r.Name), &e); err != nil {
			return nil, err
		}
		return entryOut(buf, &e), nil
	case *fuse.GetattrRequest:
		var a Attr
		if err := c.Getattr(NodeID(r.Node), &a); err != nil {
			return nil, err
		}
		return attrOut(buf, &a), nil
	case *fuse.ReadRequest:
		return s.read(ctx, wait, r, buf)
	case *fuse.ReadlinkRequest:
		target, err := c.Readlink(NodeID(r.Node))
		return append(buf[:0], target...), err // copied here, where a fault in mapped memory is caught
	case *fuse.OpenRequest:
		return s.open(r, buf)
	case *fuse.GetxattrRequest:
		value, err := c.Getxattr(NodeID(r.Node), r.Name)
		return sized(buf, value, r.Size, err)
	case *fuse.ListxattrRequest:
		names, err := c.Listxattr(NodeID(r.Node), nil)
		return sized(buf, names, r.Size, err)
	case *fuse.StatfsRequest:
		t, err := c.Statfs(NodeID(r.Node))
		return statfsOut(buf, t), err
	case *fuse.ReleaseRequest, *fuse.DestroyRequest:
		return nil, nil
	case *fuse.UnrecognizedRequest:
		if r.Opcode == opcodeIoctl {
			return nil, errNoIoctl
		}
		return nil, errNoSys
	}
	if opOf(req) == opWrite {
		return nil, errReadOnly
	}
	// FLUSH, FSYNC and ACCESS among them: ENOSYS is success to the kernel, which does not ask again.
	return nil, errNoSys
}

func (s *server) read(ctx context.Context, wait bool, r *fuse.ReadRequest, buf []byte) ([]byte, error) {
	if r.Size > len(buf) {
		buf = make([]byte, r.Size)
	}
	buf = buf[:r.Size]
	var n int
	var err error
	switch {
	case r.Dir:
		n, err = s.core.Readdir(NodeID(r.Node), uint64(r.Offset), buf)
	case !wait:
		n, err = s.core.Read(NodeID(r.Node), r.Offset, buf)
	default:
		n, err = s.core.ReadWait(ctx, NodeID(r.Node), r.Offset, buf)
	}
	if err != nil {
		return nil, err
	}
	if !r.Dir {
		s.core.stats.bytes.Add(n)
	}
	return buf[:n], nil
}

// open tells the kernel not to ask again: it then keeps pages, and listings where nothing changes. In a repository OPENDIR is
// answered, because a listing of the name tree must not be kept; and OPEN where the kernel doesn't know that nothing can be written.
func (s *server) open(r *fuse.OpenRequest, buf []byte) ([]byte, error) {
	changing := r.Dir && s.core.Repository()
	if !changing && (r.Dir || !s.refuse) {
		return nil, errNoSys
	}
	if !r.Dir && !r.Flags.IsReadOnly() {
		return nil, errReadOnly
	}
	if err := s.core.Open(NodeID(r.Node), r.Dir); err != nil {
		return nil, err
	}
	buf = buf[:16] // struct fuse_open_out
	clear(buf)
	if !changing || NodeID(r.Node).Slot() != 0 {
		wire.PutUint32(buf[8:], uint32(fuse.OpenKeepCache|fuse.OpenCacheDir))
	}
	return buf, nil
}

// sized answers GETXATTR and LISTXATTR: the length alone if the kernel gave no room.
func sized(buf, value []byte, room uint32, err error) ([]byte, error) {
	switch {
	case err != nil:
		return nil, err
	case room == 0:
		size := len(value)
		buf = buf[:8]
		wire.PutUint32(buf, uint32(size))
		wire.PutUint32(buf[4:], 0)
		return buf, nil
	case uint64(len(value)) > uint64(room):
		return nil, errRange
	}
	return append(buf[:0], value...), nil // copied for the reason Readlink's answer is
}

// replySize is the room that the answer to a request needs.
func replySize(req fuse.Request) int {
	if r, ok := req.(*fuse.ReadRequest); ok {
		return r.Size
	}
	return 4096
}

func opOf(req fuse.Request) op {
	switch r := req.(type) {
	case *fuse.LookupRequest:
		return opLookup
	case *fuse.ForgetRequest, *fuse.BatchForgetRequest:
		return opForget
	case *fuse.GetattrRequest:
		return opGetattr
	case *fuse.ReadRequest:
		if r.Dir {
			return opReaddir
		}
		return opRead
	case *fuse.ReadlinkRequest:
		return opReadlink
	case *fuse.OpenRequest:
		if r.Dir {
			return opOpendir
		}
		return opOpen
	case *fuse.GetxattrRequest:
		return opGetxattr
	case *fuse.ListxattrRequest:
		return opListxattr
	case *fuse.StatfsRequest:
		return opStatfs
	case *fuse.ReleaseRequest:
		return opRelease
	case *fuse.FlushRequest:
		return opFlush
	case *fuse.FsyncRequest:
		return opFsync
	case *fuse.AccessRequest:
		return opAccess
	case *fuse.InterruptRequest:
		return opInterrupt
	case *fuse.UnrecognizedRequest:
		if r.Opcode == opcodeIoctl {
			return opIoctl
		}
		return opOther
	case *fuse.SetattrRequest, *fuse.CreateRequest, *fuse.MkdirRequest, *fuse.MknodRequest, *fuse.SymlinkRequest, *fuse.LinkRequest,
		*fuse.RemoveRequest, *fuse.RenameRequest, *fuse.WriteRequest, *fuse.SetxattrRequest, *fuse.RemovexattrRequest, *fuse.FAllocateRequest:
		return opWrite
	}
	return opOther
}
