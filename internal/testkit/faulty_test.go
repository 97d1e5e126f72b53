package testkit_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// TestFaultyGoesWrongAsToldAndRecovers: as a server and as a proxy each fault looks to a client as its name says, and none lasts.
func TestFaultyGoesWrongAsToldAndRecovers(t *testing.T) {
	t.Parallel()
	body := bytes.Repeat([]byte("skim "), 1000)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
	t.Cleanup(backend.Close)
	isRight := func(b []byte, err error) bool { return err == nil && bytes.Equal(b, body) }
	late := func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }
	page := func(code int) func(int, []byte, error) bool {
		return func(status int, _ []byte, err error) bool { return err == nil && status == code }
	}
	flipped := func(_ int, b []byte, err error) bool {
		return err == nil && len(b) == len(body) && !bytes.Equal(b, body)
	}
	looks := map[testkit.Fault]func(status int, b []byte, err error) bool{
		testkit.Refuse:  func(_ int, _ []byte, err error) bool { return errors.Is(err, syscall.ECONNREFUSED) },
		testkit.Silent:  func(status int, _ []byte, err error) bool { return status == 0 && late(err) },
		testkit.Stall:   func(status int, b []byte, err error) bool { return status == 200 && len(b) == 0 && late(err) },
		testkit.Trickle: func(_ int, b []byte, err error) bool { return late(err) && len(b) > 0 && len(b) <= 500 },
		testkit.Truncate: func(_ int, b []byte, err error) bool {
			return errors.Is(err, io.ErrUnexpectedEOF) && len(b) == len(body)/2
		},
		testkit.Garbage:      func(_ int, b []byte, err error) bool { return err == nil && string(b[len(body):]) == "garbage" },
		testkit.FlipOnce:     flipped,
		testkit.FlipKept:     flipped,
		testkit.FlipAlways:   flipped,
		testkit.BadRequest:   page(400),
		testkit.Forbidden:    page(403),
		testkit.NotFound:     page(404),
		testkit.TooMany:      page(429),
		testkit.ServerError:  page(500),
		testkit.BadGateway:   page(502),
		testkit.RedirectLoop: page(302),
		testkit.Portal: func(status int, b []byte, err error) bool {
			return status == 200 && strings.Contains(string(b), "log in")
		},
		testkit.LengthAbove: func(_ int, b []byte, err error) bool { return late(err) && bytes.Equal(b, body) },
		testkit.LengthBelow: func(_ int, b []byte, err error) bool { return err == nil && len(b) == len(body)/2 },
		testkit.Encoded:     func(_ int, b []byte, err error) bool { return err == nil && bytes.HasPrefix(b, []byte("\x1f\x8b")) },
	}
	for _, place := range []string{"server", "proxy"} {
		for _, fault := range testkit.Faults {
			t.Run(place+" "+string(fault), func(t *testing.T) {
				t.Parallel()
				f := testkit.NewFaulty(t, backend.Listener.Addr().String())
				transport := &http.Transport{DisableCompression: true}
				t.Cleanup(transport.CloseIdleConnections)
				from := f.URL
				if place == "proxy" {
					from = backend.URL
					transport.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(f.URL) }
				}
				ask := func(limit time.Duration, header ...string) (int, []byte, error) {
					ctx, cancel := context.WithTimeout(t.Context(), limit)
					defer cancel()
					r, err := http.NewRequestWithContext(ctx, http.MethodGet, from+"/x", nil)
					if err != nil {
						t.Fatal(err)
					}
					if header != nil {
						r.Header.Set(header[0], header[1])
					}
					resp, err := transport.RoundTrip(r)
					if err != nil {
						return 0, nil, err
					}
					defer resp.Body.Close()
					b, err := io.ReadAll(resp.Body)
					return resp.StatusCode, b, err
				}
				sound := func(header ...string) {
					if status, b, err := ask(10*time.Second, header...); status != 200 || !isRight(b, err) {
						t.Errorf("a sound answer: %d, %d bytes, %v", status, len(b), err)
					}
				}
				sound()
				f.Set(fault)
				if status, b, err := ask(500 * time.Millisecond); !looks[fault](status, b, err) {
					t.Errorf("%d, %d bytes, %v", status, len(b), err)
				}
				switch fault {
				case testkit.FlipOnce:
					sound()
				case testkit.FlipKept:
					sound("Cache-Control", "no-cache")
				case testkit.Refuse:
				default:
					if f.Requests("/x") != 1 {
						t.Errorf("%d requests, want 1", f.Requests("/x"))
					}
				}
				f.Set(testkit.Sound)
				sound()
			})
		}
	}
}
