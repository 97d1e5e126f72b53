package publishd

import (
	"encoding/json"
	"time"

	"github.com/skimfs/skimfs/internal/peer"
)

// Kind says what a job does.
type Kind string

const (
	Convert     Kind = "convert"      // a source that publish takes
	Build       Kind = "build"        // a Containerfile and its context
	ConvertMany Kind = "convert-many" // a recipe of many sources
	Prefetch    Kind = "prefetch"     // warm this node's cache
)

// State of an operation or a job. Final states are never left but by an explicit retry.
type State string

const (
	Queued       State = "QUEUED"
	Running      State = "RUNNING"
	WaitingRetry State = "WAITING_RETRY" // failed for now; runs again at NextRun
	Blocked      State = "BLOCKED"       // something has to happen first: free disk space, a registry that answers
	Cancelling   State = "CANCELLING"
	Succeeded    State = "SUCCEEDED"
	Failed       State = "FAILED"
	Cancelled    State = "CANCELLED"
)

// Final reports whether nothing happens any more.
func (s State) Final() bool { return s == Succeeded || s == Failed || s == Cancelled }

// Request is what a client wants.
type Request struct {
	Kind      Kind              `json:"kind,omitempty"`
	Source    string            `json:"source"`             // as publish takes it; build: the context directory; convert-many: the recipe's text
	As        string            `json:"as,omitempty"`       // name in the repository
	Platform  string            `json:"platform,omitempty"` // os/arch[/variant]
	Bare      bool              `json:"bare,omitempty"`
	File      string            `json:"file,omitempty"` // build: the Containerfile, in the context unless absolute
	Args      map[string]string `json:"args,omitempty"` // build: build arguments
	Priority  *int              `json:"priority,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	RequestID string            `json:"request_id,omitempty"` // the same again gives the same operation
	Deadline  string            `json:"deadline,omitempty"`   // a duration for all attempts, as in 2h
}

// DefaultPriority is that of a request which names none; 0 is the lowest, 9 the highest.
const DefaultPriority = 5

// Progress of a job.
type Progress struct {
	BytesDone  int64 `json:"bytes_done"`
	BytesTotal int64 `json:"bytes_total"`
	Files      int64 `json:"files"`
	LayersDone int64 `json:"layers_done"`
	Layers     int64 `json:"layers"`
}

// Operation is what a client sees, in the shape of AIP-151.
type Operation struct {
	Name     string            `json:"name"` // operations/ID
	Metadata Metadata          `json:"metadata"`
	Done     bool              `json:"done"`
	Error    *Problem          `json:"error,omitempty"`
	Response []json.RawMessage `json:"response,omitempty"` // a publish result for each image; prefetch: its own
}

// ID is the operation's name without the collection.
func (o Operation) ID() string { return o.Name[len("operations/"):] }

// Metadata says how an operation stands.
type Metadata struct {
	Kind          Kind              `json:"kind"`
	Source        string            `json:"source"`
	As            string            `json:"as,omitempty"`
	Platform      string            `json:"platform,omitempty"`
	Digest        string            `json:"digest,omitempty"` // what the source meant when it was resolved
	State         State             `json:"state"`
	Stage         string            `json:"stage,omitempty"`
	Progress      Progress          `json:"progress"`
	Attempt       int               `json:"attempt"`
	MaxAttempts   int               `json:"max_attempts"`
	QueuePosition int               `json:"queue_position,omitempty"` // 1 runs next
	Priority      int               `json:"priority"`
	Generation    uint64            `json:"generation"` // goes up with each change
	Job           string            `json:"job"`
	Parent        string            `json:"parent,omitempty"` // operation of a recipe
	Children      int               `json:"children,omitempty"`
	ChildrenDone  int               `json:"children_done,omitempty"`
	Submitter     string            `json:"submitter"`
	Labels        map[string]string `json:"labels,omitempty"`
	Problem       *Problem          `json:"problem,omitempty"` // of the last attempt, or why it is blocked
	CreateTime    time.Time         `json:"create_time"`
	StartTime     *time.Time        `json:"start_time,omitempty"`
	EndTime       *time.Time        `json:"end_time,omitempty"`
	NextRunTime   *time.Time        `json:"next_run_time,omitempty"`
}

// op is the record of an operation: who wants what, and which job it waits for.
type op struct {
	ID        string            `json:"id"`
	Request   Request           `json:"request"`
	Job       string            `json:"job"`
	Submitter string            `json:"submitter"`
	Local     *peer.Credentials `json:"local,omitempty"` // of the caller over the local socket
	Admin     bool              `json:"admin,omitempty"`
	Parent    string            `json:"parent,omitempty"`
	Created   time.Time         `json:"created"`
	Here      bool              `json:"here,omitempty"` // the caller was at this machine
	Node      string            `json:"node,omitempty"` // of the daemon that took it
	Cancelled *time.Time        `json:"cancelled,omitempty"`
	Last      bool              `json:"last,omitempty"`  // with Cancelled: nobody else wanted the job then, which ends with it
	Final     uint64            `json:"final,omitempty"` // with Cancelled and not Last: its generation, whatever becomes of the job
	Base      uint64            `json:"base,omitempty"`  // is added to the job's generation, so that it goes on growing where the job is another one
	Moved     *time.Time        `json:"moved,omitempty"` // when it began to wait for a job that had begun without it

	revision uint64
}

// caller is who submitted it.
func (o *op) caller() Caller {
	return Caller{Name: o.Submitter, Local: o.Local, Admin: o.Admin, Here: o.Here, Node: o.Node}
}

// since is when it began to wait for its job.
func (o *op) since() time.Time {
	if o.Moved != nil {
		return *o.Moved
	}
	return o.Created
}

// job is the record of a unit of work.
type job struct {
	ID         string            `json:"id"`
	Request    Request           `json:"request"`
	Key        string            `json:"key"` // equal for equal work
	Submitter  string            `json:"submitter"`
	Local      *peer.Credentials `json:"local,omitempty"`
	Here       bool              `json:"here,omitempty"` // who submitted it is at this machine, and reaches its own services without us
	Node       string            `json:"node,omitempty"` // the only one that can do it: it is about that machine's files
	Registry   string            `json:"registry,omitempty"`
	Priority   int               `json:"priority"`
	State      State             `json:"state"`
	Stage      string            `json:"stage,omitempty"`
	Digest     string            `json:"digest,omitempty"`
	As         string            `json:"as,omitempty"`
	Bytes      int64             `json:"bytes,omitempty"`
	Attempt    int               `json:"attempt"`
	Worker     string            `json:"worker,omitempty"`
	Created    time.Time         `json:"created"`
	Started    *time.Time        `json:"started,omitempty"`
	Ended      *time.Time        `json:"ended,omitempty"`
	NextRun    *time.Time        `json:"next_run,omitempty"`
	Problem    *Problem          `json:"problem,omitempty"`
	Results    []json.RawMessage `json:"results,omitempty"`
	Expanded   bool              `json:"expanded,omitempty"` // convert-many: its children are submitted
	Generation uint64            `json:"generation"`
	Progress   Progress          `json:"progress"` // when it last changed its state

	revision uint64
}

func (j *job) resolved() bool { return j.Digest != "" || j.Registry == "" }

// needsWorker says whether the next step is a worker's: one that is not resolved yet, or is a recipe, is looked after by the daemon.
func (j *job) needsWorker() bool { return j.resolved() && j.Request.Kind != ConvertMany }

// effective is the priority after so long in the queue: one more for each aging, so that nothing starves.
func (j *job) effective(now time.Time, aging time.Duration) int {
	return min(j.Priority+int(now.Sub(j.Created)/aging), 9)
}
