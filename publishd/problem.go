package publishd

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Reason says in one word what went wrong. The list is fixed; clients may branch on it.
type Reason string

// Reasons of this package; publish.Reason has those of a conversion, with the same names on the wire.
const (
	InvalidArgument    Reason = "INVALID_ARGUMENT"
	Unauthenticated    Reason = "UNAUTHENTICATED"
	PermissionDenied   Reason = "PERMISSION_DENIED"
	NotFound           Reason = "OPERATION_NOT_FOUND"
	IdempotencyClash   Reason = "IDEMPOTENCY_CONFLICT" // the request id was used for another request
	WrongState         Reason = "WRONG_STATE"          // not in this state: retry of what runs, forgetting what is not final
	QueueFull          Reason = "QUEUE_FULL"
	CancelledReason    Reason = "CANCELLED"
	Interrupted        Reason = "INTERRUPTED" // the daemon ended while it ran
	DeadlineExceeded   Reason = "DEADLINE"
	Stalled            Reason = "STALLED" // no progress for too long
	BuildFailed        Reason = "BUILD_FAILED"
	ChildrenFailed     Reason = "CHILDREN_FAILED" // some images of a recipe
	NoSpace            Reason = "NO_SPACE"
	RegistryRests      Reason = "REGISTRY_UNAVAILABLE"
	RateLimited        Reason = "RATE_LIMITED"
	ServiceUnavailable Reason = "SERVICE_UNAVAILABLE"
	Internal           Reason = "INTERNAL"
)

// Reasons lists all that an operation's error or an answer can have.
var Reasons = []Reason{
	InvalidArgument, Unauthenticated, PermissionDenied, NotFound, IdempotencyClash, WrongState, QueueFull, CancelledReason, Interrupted, DeadlineExceeded,
	Stalled, BuildFailed, ChildrenFailed, NoSpace, RegistryRests, RateLimited, ServiceUnavailable, Internal,
	"IMAGE_NOT_FOUND", "PLATFORM_NOT_FOUND", "AUTH_REQUIRED", "UNSUPPORTED_MEDIA", "CORRUPT_LAYER", "LIMIT_EXCEEDED", "REPOSITORY_UNUSABLE",
}

// Problem is an error as clients see it: the body of RFC 9457, and the error of an operation.
type Problem struct {
	Type       string        `json:"type"` // about:blank
	Title      string        `json:"title"`
	Status     int           `json:"status"`
	Reason     Reason        `json:"reason"`
	Detail     string        `json:"detail"`
	Temporary  bool          `json:"temporary,omitempty"`
	RetryAfter time.Duration `json:"-"`
}

func (p *Problem) Error() string { return p.Detail }

var statusOf = map[Reason]int{
	InvalidArgument: 400, Unauthenticated: 401, PermissionDenied: 403, NotFound: 404, IdempotencyClash: 409, WrongState: 409, QueueFull: 429, RateLimited: 429,
	ServiceUnavailable: 503, RegistryRests: 503, "IMAGE_NOT_FOUND": 404, "PLATFORM_NOT_FOUND": 404, "AUTH_REQUIRED": 403, NoSpace: 507,
	"UNSUPPORTED_MEDIA": 415, "CORRUPT_LAYER": 422, "LIMIT_EXCEEDED": 422, BuildFailed: 422, CancelledReason: 409, DeadlineExceeded: 504, Stalled: 504,
}

func problem(r Reason, format string, args ...any) *Problem {
	status := statusOf[r]
	if status == 0 {
		status = http.StatusInternalServerError
	}
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Reason: r, Detail: redact(fmt.Sprintf(format, args...))}
}

func asProblem(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	return problem(Internal, "%v", err)
}

// ReasonOf returns the reason of an error of this package, or "".
func ReasonOf(err error) Reason {
	var p *Problem
	if errors.As(err, &p) {
		return p.Reason
	}
	return ""
}
