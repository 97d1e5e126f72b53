package publishd

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/skimfs/skimfs/internal/peer"
)

// Scope is what a caller may do. Each includes those before it.
type Scope string

const (
	ScopeRead   Scope = "read"   // look
	ScopeSubmit Scope = "submit" // submit; cancel, retry and forget what is one's own
	ScopeAdmin  Scope = "admin"  // all that for everybody's
)

var scopes = []Scope{ScopeRead, ScopeSubmit, ScopeAdmin}

// Token lets somebody in over TCP. What is kept is a digest of it.
type Token struct {
	Name  string
	Scope Scope
	sum   [sha256.Size]byte
}

// NewToken returns a new secret and the line that lets it in.
func NewToken(name string, scope Scope) (secret, line string, err error) {
	if name == "" || strings.ContainsAny(name, " \t\n#:") || !slices.Contains(scopes, scope) {
		return "", "", fmt.Errorf("token %q with scope %q: want a name without blanks and read, submit or admin", name, scope)
	}
	var b [24]byte
	_, _ = rand.Read(b[:]) // it never fails
	secret = "skimfs_" + hex.EncodeToString(b[:])
	sum := sha256.Sum256([]byte(secret))
	return secret, fmt.Sprintf("%s %s sha256:%x", name, scope, sum), nil
}

// ParseTokens reads lines NAME SCOPE sha256:HEX; what follows # is a comment.
func ParseTokens(r io.Reader) ([]Token, error) {
	var out []Token
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		f := strings.Fields(text)
		if len(f) == 0 {
			continue
		}
		bad := fmt.Errorf("tokens: line %d: want NAME read|submit|admin sha256:HEX", n)
		if len(f) != 3 || !slices.Contains(scopes, Scope(f[1])) {
			return nil, bad
		}
		sum, err := hex.DecodeString(strings.TrimPrefix(f[2], "sha256:"))
		if err != nil || len(sum) != sha256.Size || strings.Contains(f[0], ":") {
			return nil, bad
		}
		out = append(out, Token{f[0], Scope(f[1]), [sha256.Size]byte(sum)})
	}
	return out, lines.Err()
}

// find returns the token that a secret is, after comparing it with all of them in constant time.
func find(tokens []Token, secret string) (found Token, ok bool) {
	sum := sha256.Sum256([]byte(secret))
	for _, t := range tokens {
		if subtle.ConstantTimeCompare(sum[:], t.sum[:]) == 1 {
			found, ok = t, true
		}
	}
	return found, ok
}

type callerKey struct{}

// ConnContext is for http.Server: it notes who is at the other end of a unix socket. Of whom nothing can be told, he needs a token.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	p, err := peer.Of(c)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, callerKey{}, Caller{Name: "uid:" + strconv.Itoa(p.UID), Local: &p, Here: true, Admin: p.UID == 0 || p.UID == os.Geteuid()})
}

// caller says who asks and whether he may.
func (a *api) caller(r *http.Request, need Scope) (Caller, error) {
	if c, ok := r.Context().Value(callerKey{}).(Caller); ok {
		if need == ScopeAdmin && !c.Admin {
			return c, problem(PermissionDenied, "only an administrator may do this")
		}
		return c, nil
	}
	secret, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return Caller{}, problem(Unauthenticated, "a token is needed: Authorization: Bearer …")
	}
	t, ok := find(a.tokens, secret)
	if !ok {
		return Caller{}, problem(Unauthenticated, "the token is not known")
	}
	if slices.Index(scopes, t.Scope) < slices.Index(scopes, need) {
		return Caller{}, problem(PermissionDenied, "token %s has scope %s, this needs %s", t.Name, t.Scope, need)
	}
	return Caller{Name: "token:" + t.Name, Admin: t.Scope == ScopeAdmin, Here: fromHere(r)}, nil
}

// fromHere reports whether a request comes from loopback, and not through a proxy there.
func fromHere(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !from.Addr().Unmap().IsLoopback() {
		return false
	}
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via"} {
		if r.Header.Get(name) != "" {
			return false
		}
	}
	return true
}
