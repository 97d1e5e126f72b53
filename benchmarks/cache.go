package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/skimfs/skimfs/index"
)

// cacheReport is what -cache measures.
type cacheReport struct {
	*results
	peers  []peerRow
	churns []churnResult
	reopen *reopenResult
}

// benchmarkCache measures the cache alone, beside plain files and badger, and returns the exit status.
func benchmarkCache(o options) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := cacheReport{results: newResults(o)}
	err := inScope(ctx, func(s *scope) {
		parts := []struct {
			name string
			run  func()
		}{
			{"peers", func() { r.peers = measurePeers(s, o.rounds) }},
			{"churn mixed", func() { r.churns = append(r.churns, measureChurn(s, 2, "100 B to 1 MiB", mixedSize)) }},
			{"churn small", func() { r.churns = append(r.churns, measureChurn(s, 2, "100 B to 32 KiB", smallSize)) }},
			// What hangs on the cache and what on CPUs that are all busy shows beside a writer that leaves one.
			{"churn mixed one", func() { r.churns = append(r.churns, measureChurn(s, 1, "100 B to 1 MiB", mixedSize)) }},
			{"churn small one", func() { r.churns = append(r.churns, measureChurn(s, 1, "100 B to 32 KiB", smallSize)) }},
			{"reopen", func() { r.reopen = measureReopen(s) }},
		}
		for _, p := range parts {
			if o.only.MatchString("cache/" + p.name) {
				progress("cache: %s", p.name)
				p.run()
			}
		}
	})
	r.Machine.end()
	if err != nil {
		fmt.Fprintf(os.Stderr, "benchmarks: %v\n", err)
		return 1
	}
	var text bytes.Buffer
	r.markdown(&text)
	os.Stdout.Write(text.Bytes())
	if o.md == "" {
		return 0
	}
	if err := savePage(o.md, text.Bytes(), "cache"); err != nil {
		fmt.Fprintf(os.Stderr, "benchmarks: %v\n", err)
		return 1
	}
	return 0
}

func (r *cacheReport) markdown(w io.Writer) {
	r.Machine.markdown(w)
	fmt.Fprintf(w, "; %d rounds.\n", r.Rounds)
	peerTables(w, r.peers)
	churnTable(w, r.churns)
	if r.reopen != nil {
		r.reopen.table(w)
	}
}

// noise is what contents are cut from; making them costs a copy.
var noise = func() []byte {
	b := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}()

// fillContent makes p object n's content.
func fillContent(p []byte, n uint64) {
	copy(p, noise[n*4099%(uint64(len(noise)-len(p))):])
	if len(p) >= 8 {
		binary.LittleEndian.PutUint64(p, n)
	}
}

func contentOf(n uint64, size int) []byte {
	p := make([]byte, size)
	fillContent(p, n)
	return p
}

// digestOf names object n. It is not its content's digest: what is measured does not look.
func digestOf(n uint64) index.Digest { return index.DigestOf(binary.LittleEndian.AppendUint64(nil, n)) }

func spread(n uint64, from, to int) int {
	return from + rand.New(rand.NewPCG(n, 7)).IntN(to-from+1)
}

// smallSize draws a size that goes to packs.
func smallSize(n uint64) int { return spread(n, 100, 32<<10) }

// mixedSize draws as many small sizes as large ones.
func mixedSize(n uint64) int {
	if n%2 == 0 {
		return smallSize(n)
	}
	return spread(n, 32<<10+1, 1<<20)
}

// latencies are times of single operations, in seconds.
type latencies []float64

func (l *latencies) since(begun time.Time) { *l = append(*l, time.Since(begun).Seconds()) }

// at returns the quantile q, 0 to 1.
func (l latencies) at(q float64) float64 {
	if len(l) == 0 {
		return 0
	}
	slices.Sort(l)
	return l[min(len(l)-1, int(q*float64(len(l))))]
}

func (l latencies) sum() (s float64) {
	for _, v := range l {
		s += v
	}
	return s
}

// diskUsage is what du counts below dir.
func diskUsage(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if st, statErr := os.Lstat(path); err == nil && statErr == nil {
			n += st.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil // what vanishes meanwhile uses nothing
	})
	return n
}

// written is what this process had the kernel write to disks until now, in bytes.
func written() (n int64) {
	b, _ := os.ReadFile("/proc/self/io")
	_, rest, _ := strings.Cut(string(b), "\nwrite_bytes: ")
	fmt.Sscan(rest, &n)
	return n
}
