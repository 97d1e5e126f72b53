package publishd

var (
	ParseRecipe  = parseRecipe
	ParseEventID = parseEventID
	Redact       = redact
	Backoff      = backoff
	RetryAfter   = retryAfter
)

// Refuse is asked for each address, host:port, that a connection is made to.
func Refuse(address string, here bool) error { return refuse(address, here) }

// RefuseName is asked for each host that a proxy is to ask for us.
var RefuseName = refuseName

func (e eventID) Equal(o eventID) bool { return e == o }
