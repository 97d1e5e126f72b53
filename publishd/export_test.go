package publishd

var (
	ParseRecipe  = parseRecipe
	ParseEventID = parseEventID
	Redact       = redact
	Backoff      = backoff
	RetryAfter   = retryAfter
)

// Refuse is asked for each address, host:port, that a connection is made to.
func Refuse(address string) error { return refuse("tcp", address, nil) }

func (e eventID) Equal(o eventID) bool { return e == o }
