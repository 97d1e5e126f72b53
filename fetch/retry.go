package fetch

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// side says whose fault an attempt's end is.
type side string

const (
	sideLocal side = "local" // the caller or this node
	sideProxy side = "proxy"
	sideHost  side = "host"
	sideData  side = "data" // the bytes, or that there are none
)

// kind says what happened, for counters and for Error.Temporary.
type kind string

const (
	kindCanceled kind = "canceled" // by the caller
	kindDeadline kind = "deadline" // the caller's
	kindResource kind = "resource" // descriptors, memory, ports of this node
	kindUsage    kind = "usage"    // the call can't be served
	kindDNS      kind = "dns"
	kindConnect  kind = "connect"
	kindTLS      kind = "tls"
	kindTimeout  kind = "timeout"  // no first byte
	kindSlow     kind = "slow"     // below the lowest speed
	kindTransfer kind = "transfer" // reset, short, not HTTP
	kindBusy     kind = "busy"     // 429, 503
	kindStatus   kind = "status"   // any other status
	kindRedirect kind = "redirect"
	kindMissing  kind = "missing" // 404, 410
	kindContent  kind = "content" // wrong digest, format, length, encoding
)

// fault is why an attempt did not succeed.
type fault struct {
	side   side
	kind   kind
	again  bool // the same path deserves another try
	status int
	err    error
	alive  bool          // the same side served others meanwhile
	after  time.Duration // not to be asked before: what Retry-After says
}

// judge finds the fault behind an error of the transport or of reading the body (row W05 of CernVM-FS' semantics).
// The caller has excluded the end of its own context.
func judge(err error, proxied bool) *fault {
	f := &fault{side: sideHost, kind: kindTransfer, again: true, err: err}
	if proxied {
		f.side = sideProxy
	}
	var (
		op     *net.OpError
		dns    *net.DNSError
		cert   *tls.CertificateVerificationError
		status *statusError
		nerr   net.Error
	)
	isOp := errors.As(err, &op)
	switch {
	case errors.Is(err, errTooLong), errors.Is(err, errEncoded):
		f.side, f.kind, f.again = sideData, kindContent, false
	case local(err):
		f.side, f.kind, f.again = sideLocal, kindResource, false
	case errors.Is(err, errSlow):
		f.kind = kindSlow
	case errors.As(err, &status): // a proxy's answer to CONNECT
		f.kind, f.again, f.status = kindStatus, false, status.code
	case errors.As(err, &dns):
		f.kind, f.again = kindDNS, false
	case errors.As(err, &cert):
		f.kind, f.again = kindTLS, false
		if !isOp || op.Op != "proxyconnect" {
			f.side = sideHost
		}
	case isOp && (op.Op == "dial" || op.Op == "proxyconnect"):
		f.kind = kindConnect
		f.again = !errors.Is(err, syscall.ENETUNREACH) && !errors.Is(err, syscall.ENETDOWN)
	case errors.Is(err, errSilent), errors.As(err, &nerr) && nerr.Timeout():
		f.kind = kindTimeout
	}
	return f
}

// local reports errors that say nothing about the other side.
func local(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// judgeStatus finds the fault of an answer that isn't 200 (row W05). A proxy that reports its own trouble, or that
// refuses, is the proxy's fault.
func judgeStatus(code int, h http.Header, proxied bool) *fault {
	f := &fault{side: sideHost, kind: kindStatus, status: code, err: &statusError{code}}
	own := proxied && (h.Get("X-Squid-Error") != "" || strings.Contains(h.Get("Proxy-Status"), "error="))
	switch {
	case own:
		f.side = sideProxy
	case code >= 300 && code < 400:
		f.kind, f.err = kindRedirect, fmt.Errorf("%w: %w", errRedirect, f.err)
	case code == http.StatusNotFound, code == http.StatusGone:
		f.side, f.kind = sideData, kindMissing
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		f.kind, f.again, f.after = kindBusy, true, retryAfter(h.Get("Retry-After"), time.Now())
	case code == http.StatusBadRequest, code == http.StatusUnauthorized, code >= 500: // a proxy's own is 407
	case proxied:
		f.side = sideProxy
	}
	return f
}

// maxRetryAfter bounds what a server may ask for.
const maxRetryAfter = time.Minute

// retryAfter reads seconds or a date. What it can't read is no wish.
func retryAfter(value string, now time.Time) time.Duration {
	var d time.Duration
	if n, err := strconv.ParseUint(value, 10, 31); err == nil {
		d = time.Duration(n) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		d = at.Sub(now)
	}
	return min(max(d, 0), maxRetryAfter)
}

// step is what a request does after a fault.
type step uint8

const (
	giveUp     step = iota
	retry           // same path, after a pause
	refresh         // same path, past the caches
	nextProxy       // same server
	nextServer      // same proxy, if it may
)

// ways says what a request has done on its path and what other paths it has not tried.
type ways struct {
	retries, maxRetries int
	noCache             bool // this try went past the caches
	proxy               bool // this server through another proxy
	server              bool // another server through this proxy
	other               bool // another server through another proxy
}

// decide chooses the step after a fault (rows W06, W07, D10).
func decide(f *fault, w ways) step {
	switch f.side {
	case sideProxy:
		switch {
		case f.again && !w.noCache && w.retries < w.maxRetries:
			return retry
		case w.proxy:
			return nextProxy
		case w.server, w.other: // all proxies failed: it may be the server, after all
			return nextServer
		}
	case sideHost:
		switch {
		case f.again && !w.noCache && w.retries < w.maxRetries:
			return retry
		case w.server:
			return nextServer
		case w.proxy: // no server has it: the answer may be the proxy's own
			return nextProxy
		}
	case sideData:
		switch {
		case !w.noCache:
			return refresh
		case w.server:
			return nextServer
		case w.proxy: // one that spoils what it keeps, or has pages of its own
			return nextProxy
		}
	}
	return giveUp
}

// pause returns how long to wait before retry n (0 is the first): a random part r (0 < r ≤ 1) of first, doubled each
// time, at most most.
func pause(n int, r float64, first, most time.Duration) time.Duration {
	d := time.Duration(r * float64(first))
	for ; n > 0 && d < most; n-- {
		d *= 2
	}
	return min(d, most)
}
