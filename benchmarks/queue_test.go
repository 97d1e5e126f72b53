package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publishd"
)

// BenchmarkQueue measures how long a client waits for the answers to a submission and a question while eight conversions run and ten thousand
// more are queued, beside the bare answer "ok" of the same server, which shows what the machine adds. An operation is one of each.
//
//	go test ./benchmarks -run '^$' -bench '^BenchmarkQueue$' -benchtime 2000x
func BenchmarkQueue(b *testing.B) {
	const running, queued = 8, 10_000
	home := testkit.Home(b)
	repo := filepath.Join(home, "repo")
	testkit.Run(b, "env", "SKIMFS_HOME="+home, testkit.Build(b), "repo", "create", repo, "--name", "queue.example.org")
	cmd := testkit.Command(b, home, "publishd", "--repo", repo, "--jobs", fmt.Sprint(running), "--memory", "512MiB")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	c, err := publishd.NewClient(filepath.Join(home, "run", "publishd.sock"), "")
	if err != nil {
		b.Fatal(err)
	}
	await(b, "publishd to answer", func() bool { _, err := c.Find(b.Context(), "none"); return publishd.ReasonOf(err) == publishd.NotFound })

	work := filepath.Join(home, "work")
	makeWork(b, work)
	submit := func(ctx context.Context, n int) (publishd.Operation, error) {
		return c.Submit(ctx, publishd.Request{Kind: publishd.Convert, Source: "dir:" + work, As: fmt.Sprintf("local/n%d:1", n)})
	}
	ids := make([]string, queued)
	var next atomic.Int32
	begun := time.Now()
	g, ctx := errgroup.WithContext(b.Context())
	for range 8 {
		g.Go(func() error {
			for n := int(next.Add(1)) - 1; n < queued; n = int(next.Add(1)) - 1 {
				o, err := submit(ctx, n)
				if err != nil {
					return err
				}
				ids[n] = o.ID()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	took := time.Since(begun)
	await(b, "eight conversions to run", func() bool {
		all, err := c.List(b.Context(), url.Values{"state": {"RUNNING"}})
		return err == nil && len(all) == running
	})

	bare := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(home, "run", "publishd.sock"))
	}}}
	var submits, asks, pings []time.Duration
	timed := func(to *[]time.Duration, f func() error) {
		at := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		*to = append(*to, time.Since(at))
	}
	for n := queued; b.Loop(); n++ {
		timed(&submits, func() error { _, err := submit(b.Context(), n); return err })
		timed(&asks, func() error { _, err := c.Get(b.Context(), ids[rand.IntN(queued)]); return err })
		timed(&pings, func() error {
			resp, err := bare.Get("http://publishd/healthz")
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, resp.Body)
			return errors.Join(err, resp.Body.Close())
		})
	}
	b.ReportMetric(queued/took.Seconds(), "submissions/s")
	for name, all := range map[string][]time.Duration{"submit": submits, "status": asks, "bare": pings} {
		slices.Sort(all)
		for suffix, d := range map[string]time.Duration{"p50": all[len(all)/2], "p99": all[len(all)*99/100], "max": all[len(all)-1]} {
			b.ReportMetric(float64(d.Microseconds())/1000, fmt.Sprintf("ms-%s-%s", name, suffix))
		}
	}
}

// makeWork fills a directory with what takes a while to compress.
func makeWork(b *testing.B, dir string) {
	b.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 64 {
		var text bytes.Buffer
		for text.Len() < 8<<20 {
			fmt.Fprintf(&text, "%x %x\n", random.Uint64N(1<<20), random.Uint64())
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), text.Bytes(), 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

func await(b *testing.B, what string, cond func() bool) {
	b.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("waiting for %s", what)
		}
	}
}
