package publishd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	bucketName = "skimfs-publishd"
	leaseName  = "skimfs-publishd-leases"
	leaseLife  = 30 * time.Second
	heartbeat  = 10 * time.Second
	history    = 64      // states of a record that are kept, for who resumes the events
	maxValue   = 4 << 20 // bytes of a record

	connectLimit = 10 * time.Second // for servers that are just being started
)

// queue holds the records of operations and jobs: in JetStream, and a copy of the newest in memory from which all questions are answered.
type queue struct {
	server *server.Server // nil: an existing cluster
	conn   *nats.Conn
	js     jetstream.JetStream
	kv     jetstream.KeyValue
	leases jetstream.KeyValue
	log    *slog.Logger
	reader sync.WaitGroup // takes changes into memory
	stop   context.CancelFunc

	mu       sync.Mutex // guards all below
	seen     uint64     // newest revision in memory
	ready    bool       // all that was there at the start is in memory
	changed  chan struct{}
	ops      map[string]*op
	jobs     map[string]*job
	waiters  map[string]map[string]bool // job → operations
	children map[string]map[string]bool // operation → operations
	live     map[string]bool            // jobs that are not final
	light    map[string]bool            // those of them that need no worker: to be resolved, or recipes
	keys     map[string]string          // key of work → live job
	names    map[string]string          // reference or name → newest operation
	idem     map[string]string          // submitter and request id → operation
	onJob    func(j *job)               // called under mu after a job has changed
}

// ErrQueue marks that the servers which are to hold the queue do not answer, or do not hold queues.
var ErrQueue = errors.New("the queue cannot be opened")

// openQueue connects to url, or runs a server of its own in this process, with its files below dir and no port.
func openQueue(ctx context.Context, dir, url string, sync bool, log *slog.Logger) (*queue, error) {
	q := &queue{log: log, changed: make(chan struct{}), ops: map[string]*op{}, jobs: map[string]*job{}, waiters: map[string]map[string]bool{}, children: map[string]map[string]bool{},
		live: map[string]bool{}, light: map[string]bool{}, keys: map[string]string{}, names: map[string]string{}, idem: map[string]string{}}
	if err := q.connect(dir, url, sync); err != nil {
		q.close()
		return nil, err
	}
	if err := q.open(ctx); err != nil {
		q.close()
		return nil, fmt.Errorf("%w: %w", ErrQueue, err)
	}
	return q, nil
}

func (q *queue) connect(dir, url string, sync bool) (err error) {
	options := []nats.Option{nats.Name("skimfs publishd"), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true)}
	if url == "" {
		q.server, err = server.NewServer(&server.Options{
			ServerName: "skimfs-publishd", DontListen: true, JetStream: true, StoreDir: filepath.Join(dir, "jetstream"), JetStreamMaxMemory: 16 << 20, JetStreamMaxStore: 8 << 30,
			SyncInterval: time.Second, SyncAlways: sync, NoSigs: true, NoLog: true, MaxPayload: 8 << 20,
		})
		if err != nil {
			return fmt.Errorf("opening the queue in %s: %w", dir, err)
		}
		go q.server.Start()
		if !q.server.ReadyForConnections(30 * time.Second) {
			return fmt.Errorf("opening the queue in %s: it does not get ready", dir)
		}
		options = append(options, nats.InProcessServer(q.server))
	}
	if q.conn, err = nats.Connect(url, options...); err != nil {
		return fmt.Errorf("%w: %w", ErrQueue, err)
	}
	q.js, err = jetstream.New(q.conn)
	return err
}

func (q *queue) open(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for end := time.Now().Add(connectLimit); !q.conn.IsConnected(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return errors.Join(fmt.Errorf("no connection within %v", connectLimit), q.conn.LastError())
		}
	}
	q.kv, err = q.bucket(ctx, jetstream.KeyValueConfig{Bucket: bucketName, History: history, Description: "operations and jobs of skimfs publishd", MaxValueSize: maxValue})
	if err != nil {
		return err
	}
	q.leases, err = q.bucket(ctx, jetstream.KeyValueConfig{Bucket: leaseName, TTL: leaseLife, Description: "jobs that run now"})
	if err != nil {
		return err
	}
	own, stop := context.WithCancel(context.WithoutCancel(ctx))
	q.stop = stop
	w, err := q.kv.WatchAll(own)
	if err != nil {
		return err
	}
	q.reader.Go(func() {
		for {
			select {
			case <-own.Done():
				_ = w.Stop()
				return
			case e, ok := <-w.Updates():
				if !ok {
					return
				}
				q.apply(e)
			}
		}
	})
	return q.until(ctx, func() bool { return q.ready })
}

// bucket opens a bucket, or makes it: in a cluster on three servers, if it has them. One that a cluster holds already stays as its owner set it up.
func (q *queue) bucket(ctx context.Context, cfg jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	if q.server != nil {
		return q.js.CreateOrUpdateKeyValue(ctx, cfg)
	}
	kv, err := q.js.KeyValue(ctx, cfg.Bucket)
	if !errors.Is(err, jetstream.ErrBucketNotFound) {
		return kv, err
	}
	if q.conn.ConnectedClusterName() != "" {
		three := cfg
		three.Replicas = 3
		if kv, err = q.js.CreateKeyValue(ctx, three); err == nil {
			return kv, nil
		}
	}
	if kv, err = q.js.CreateKeyValue(ctx, cfg); errors.Is(err, jetstream.ErrBucketExists) {
		return q.js.KeyValue(ctx, cfg.Bucket) // another publishd was faster
	}
	return kv, err
}

func (q *queue) close() {
	if q.stop != nil {
		q.stop()
	}
	q.reader.Wait()
	if q.conn != nil {
		q.conn.Close()
	}
	if q.server != nil {
		q.server.Shutdown()
		q.server.WaitForShutdown()
	}
}

// apply takes a change of the bucket into memory; nil says that the first copy is whole.
func (q *queue) apply(e jetstream.KeyValueEntry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if e == nil {
		q.ready = true
	} else {
		q.seen = max(q.seen, e.Revision())
		what, id, _ := strings.Cut(e.Key(), ".")
		switch gone := e.Operation() != jetstream.KeyValuePut; what {
		case "op":
			q.applyOp(id, e, gone)
		case "job":
			q.applyJob(id, e, gone)
		}
	}
	close(q.changed)
	q.changed = make(chan struct{})
}

func add(m map[string]map[string]bool, key, value string) {
	if m[key] == nil {
		m[key] = map[string]bool{}
	}
	m[key][value] = true
}

func drop(m map[string]map[string]bool, key, value string) {
	if delete(m[key], value); len(m[key]) == 0 {
		delete(m, key)
	}
}

func (q *queue) applyOp(id string, e jetstream.KeyValueEntry, gone bool) {
	if old := q.ops[id]; old != nil {
		drop(q.waiters, old.Job, id)
		drop(q.children, old.Parent, id)
		if gone {
			delete(q.idem, idemKey(old.Submitter, old.Request.RequestID))
			for _, name := range q.called(old) {
				if q.names[name] == id {
					delete(q.names, name)
				}
			}
		}
	}
	delete(q.ops, id)
	if gone {
		return
	}
	o := &op{}
	if err := json.Unmarshal(e.Value(), o); err != nil {
		q.log.Error("reading a record", "key", e.Key(), "err", err)
		return
	}
	o.revision = e.Revision()
	q.ops[id] = o
	add(q.waiters, o.Job, id)
	if o.Parent != "" {
		add(q.children, o.Parent, id)
	}
	q.name(o)
	if o.Request.RequestID != "" {
		q.idem[idemKey(o.Submitter, o.Request.RequestID)] = id
	}
}

// called returns the names by which people look for an operation. The caller holds mu.
func (q *queue) called(o *op) []string {
	names := []string{o.Request.As, o.Request.Source, strings.TrimPrefix(o.Request.Source, "docker://")}
	if j := q.jobs[o.Job]; j != nil {
		names = append(names, j.As)
	}
	return names
}

// name makes an operation the one that is found by its names, if there is none newer.
func (q *queue) name(o *op) {
	for _, name := range q.called(o) {
		if name != "" && q.names[name] <= o.ID {
			q.names[name] = o.ID
		}
	}
}

func (q *queue) applyJob(id string, e jetstream.KeyValueEntry, gone bool) {
	if old := q.jobs[id]; old != nil && q.keys[old.Key] == id {
		delete(q.keys, old.Key)
	}
	delete(q.jobs, id)
	delete(q.live, id)
	delete(q.light, id)
	if gone {
		return
	}
	j := &job{}
	if err := json.Unmarshal(e.Value(), j); err != nil {
		q.log.Error("reading a record", "key", e.Key(), "err", err)
		return
	}
	j.revision = e.Revision()
	q.jobs[id] = j
	if !j.State.Final() {
		q.live[id] = true
		if !j.needsWorker() {
			q.light[id] = true
		}
		if q.keys[j.Key] == "" {
			q.keys[j.Key] = id
		}
	}
	for o := range q.waiters[id] {
		q.name(q.ops[o])
	}
	if q.onJob != nil {
		q.onJob(j)
	}
}

// until waits until cond, which is called under mu, holds.
func (q *queue) until(ctx context.Context, cond func() bool) error {
	for {
		q.mu.Lock()
		ok, changed := cond(), q.changed
		q.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// errConflict says that a record changed since it was read.
var errConflict = errors.New("the record has changed")

// put writes a record if it still is of the given revision (0: it isn't there), and returns once memory has it.
func (q *queue) put(ctx context.Context, key string, value any, revision uint64) error {
	b, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if most := min(q.conn.MaxPayload()-4096, maxValue); int64(len(b)) > most && most > 0 {
		return problem(InvalidArgument, "a record of %d bytes, the queue takes %d", len(b), most)
	}
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	// Who writes while the server goes away is told so at once, too.
	lost := q.conn.StatusChanged(nats.DISCONNECTED, nats.RECONNECTING, nats.CLOSED)
	defer q.conn.RemoveStatusListener(lost)
	if !q.conn.IsConnected() {
		return problem(ServiceUnavailable, "the queue is not connected")
	}
	go func() {
		select {
		case <-lost:
			cancel()
		case <-limited.Done():
		}
	}()
	if revision == 0 {
		revision, err = q.kv.Create(limited, key, b)
	} else {
		revision, err = q.kv.Update(limited, key, b, revision)
	}
	var api *jetstream.APIError
	if errors.Is(err, jetstream.ErrKeyExists) || errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		return errConflict
	}
	if err == nil {
		err = q.until(limited, func() bool { return q.seen >= revision })
	}
	if err != nil && ctx.Err() == nil {
		q.log.Error("writing to the queue", "key", key, "err", err)
		return problem(ServiceUnavailable, "the queue does not take the record: %v", err)
	}
	return err
}

// changeJob changes a job by compare-and-set. edit works on a copy and may be called again; it returns false to leave it.
func (q *queue) changeJob(ctx context.Context, id string, edit func(j *job) bool) (*job, error) {
	for {
		q.mu.Lock()
		old := q.jobs[id]
		q.mu.Unlock()
		if old == nil {
			return nil, problem(NotFound, "no job %s", id)
		}
		j := *old
		if !edit(&j) {
			return old, nil
		}
		j.Generation++
		err := q.put(ctx, "job."+id, &j, old.revision)
		if err == nil {
			return &j, nil
		}
		if !errors.Is(err, errConflict) {
			return nil, err
		}
		if err := q.until(ctx, func() bool { return q.jobs[id] == nil || q.jobs[id].revision != old.revision }); err != nil {
			return nil, err
		}
	}
}

// changeOp is changeJob for an operation.
func (q *queue) changeOp(ctx context.Context, id string, edit func(o *op) bool) error {
	for {
		q.mu.Lock()
		old := q.ops[id]
		q.mu.Unlock()
		if old == nil {
			return problem(NotFound, "no operation %s", id)
		}
		o := *old
		if !edit(&o) {
			return nil
		}
		err := q.put(ctx, "op."+id, &o, old.revision)
		if err == nil || !errors.Is(err, errConflict) {
			return err
		}
		if err := q.until(ctx, func() bool { return q.ops[id] == nil || q.ops[id].revision != old.revision }); err != nil {
			return err
		}
	}
}

// generation of an operation, 0 of one that is gone.
func (q *queue) generation(id string) uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ops[id] == nil {
		return 0
	}
	return q.view(id).Metadata.Generation
}

// move has an operation wait for another job. Its generation goes on growing.
func (q *queue) move(o *op, job string) {
	now := time.Now().UTC()
	o.Base, o.Job, o.Moved = q.generation(o.ID)+1, job, &now
}

// wanted returns the operations that still want a job. The caller holds mu.
func (q *queue) wanted(job string) (ids []string) {
	for id := range q.waiters[job] {
		if q.ops[id].Cancelled == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// done reports whether nothing happens to an operation any more. The caller holds mu.
func (q *queue) done(id string) bool {
	o := q.ops[id]
	j := q.jobs[o.Job]
	return j != nil && j.State.Final() || o.Cancelled != nil && (j == nil || !o.Last)
}

// ended is when an operation was done, nil if it isn't. The caller holds mu.
func (q *queue) ended(id string) *time.Time {
	o := q.ops[id]
	switch j := q.jobs[o.Job]; {
	case !q.done(id):
		return nil
	case o.Cancelled != nil || j == nil:
		return o.Cancelled
	default:
		return j.Ended
	}
}

func idemKey(submitter, id string) string { return submitter + "\x00" + id }
