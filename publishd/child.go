package publishd

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/publish"
)

const polite = "SKIMFS_WORKER_POLITE"

// beNice lowers the priority of this process, for CPU and disk, and starts it anew: threads that exist already would keep theirs.
func beNice() {
	if os.Getenv(polite) != "" {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 15)
	const process, bestEffortLowest = 1, 2<<13 | 7
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, process, 0, bestEffortLowest)
	// Only where the kernel refuses does it go on as it is.
	_ = syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), polite+"=1"))
}

// worker is the process that does one job.
type worker struct {
	spec
	mu        sync.Mutex // guards out
	out       *json.Encoder
	stderr    io.Writer
	log       *slog.Logger
	transport *watched
	progress  publish.Progress
	copied    atomic.Int64 // bytes of a caller's files
}

// RunWorker does one job: it reads what from stdin, reports on stdout, logs to stderr, and ends early when stdin ends. It returns the
// exit status.
func RunWorker(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) int {
	beNice()
	// What this process starts must not outlive it.
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	in := bufio.NewReader(stdin)
	line, err := in.ReadBytes('\n')
	w := &worker{out: json.NewEncoder(stdout), stderr: stderr, log: slog.New(slog.NewTextHandler(stderr, nil))}
	if err == nil {
		err = json.Unmarshal(line, &w.spec)
	}
	if err != nil {
		fmt.Fprintf(stderr, "reading the job: %v\n", err)
		return 2
	}
	if w.Memory > 0 {
		// It collects before it comes near, and gives up beyond; the kernel's limit, of which Go's runtime dies in many ways, is for what grows at once.
		debug.SetMemoryLimit(w.Memory / 2)
		most := uint64(2*w.Memory + 512<<20)
		if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			fmt.Fprintf(stderr, "limiting the memory of the job to %d bytes: %v\n", most, err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
		time.Sleep(5 * time.Second)
		os.Exit(3)
	}()
	w.transport = watch(newTransport(w.Rate, w.Requests).of(w.Here))
	stop := w.reporting()
	results, err := w.do(ctx)
	stop()
	w.report("")
	if err != nil {
		p := explain(err)
		if ctx.Err() != nil {
			p = problem(CancelledReason, "cancelled")
		}
		_, later := w.transport.take()
		w.say(report{Problem: p, RetryAfter: later, Counts: takeCounts()})
		return 1
	}
	w.say(report{Results: results, Counts: takeCounts()})
	return 0
}

func (w *worker) say(r report) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.out.Encode(r) // nobody listens any more: stdin says so too
}

func (w *worker) report(stage string) {
	p, copied := &w.progress, w.copied.Load()
	requests, _ := w.transport.take()
	w.say(report{Stage: stage, Requests: requests, Progress: &Progress{
		BytesDone: copied + p.BlobBytes.Load(), BytesTotal: copied + p.BlobTotal.Load(), Files: p.Files.Load(), LayersDone: p.LayersDone.Load(), Layers: p.Layers.Load(),
	}})
}

func (w *worker) reporting() (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				w.watchMemory()
				stage := ""
				if n := w.progress.Layers.Load(); n > 0 && w.progress.LayersDone.Load() == n {
					stage = "index"
				}
				w.report(stage)
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// watchMemory ends this process if it uses more memory than it may.
func (w *worker) watchMemory() {
	used := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(used)
	if n := int64(used[0].Value.Uint64() - used[1].Value.Uint64()); w.Memory > 0 && n > w.Memory {
		w.say(report{Problem: problem("LIMIT_EXCEEDED", "the conversion uses %d bytes of memory, it may use %d", n, w.Memory), Counts: takeCounts()})
		os.Exit(4)
	}
}

func (w *worker) do(ctx context.Context) ([]json.RawMessage, error) {
	switch w.Request.Kind {
	case Convert:
		source := w.Request.Source
		if !strings.HasPrefix(source, "docker://") {
			var err error
			if source, err = w.asCaller(ctx, source); err != nil {
				return nil, err
			}
		}
		return w.convert(ctx, source)
	case Build:
		source, err := w.build(ctx)
		if err == nil {
			// What he built lies in a directory of his, which may hold links by now to what he may not read.
			source, err = w.asCaller(ctx, source)
		}
		if err != nil {
			return nil, err
		}
		return w.convert(ctx, source)
	case Prefetch:
		return w.prefetch(ctx)
	}
	return nil, problem(Internal, "no worker does %q", w.Request.Kind)
}

func (w *worker) convert(ctx context.Context, source string) ([]json.RawMessage, error) {
	w.report("fetch")
	src, err := publish.ParseSource(source)
	if err != nil {
		return nil, err
	}
	opt := publish.Options{Bare: w.Request.Bare, Progress: &w.progress, RegistryTimeout: w.Timeout, Transport: w.transport}
	if w.Request.Platform != "" {
		if opt.Platform, err = publish.ParsePlatform(w.Request.Platform); err != nil {
			return nil, err
		}
	}
	repo, err := publish.Open(publish.Config{Dir: w.Repo, Keys: w.Keys, Log: w.log})
	if err != nil {
		return nil, err
	}
	results, err := repo.Publish(ctx, src, w.Request.As, opt)
	if err != nil {
		return nil, err
	}
	var out []json.RawMessage
	for _, r := range results {
		b, err := json.Marshal(r)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// pin makes a reference mean one digest.
func pin(source, digest string) string {
	rest := strings.TrimPrefix(source, "docker://")
	if strings.Contains(rest, "@") {
		return source
	}
	if i := strings.LastIndex(rest, ":"); i > strings.LastIndex(rest, "/") {
		rest = rest[:i]
	}
	return "docker://" + rest + "@" + digest
}
