package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// children are the things this program does in a process of its own, by its first argument.
var children = map[string]func(args []string) error{
	"child-limit":  serveLimit,
	"child-files":  readFiles,
	"child-stream": readStream,
	"child-random": readRandom,
	"child-fill":   fillCache,
	"child-ask":    ask,
	"child-plain":  servePlain,
}

// childResult is what a reading child prints.
type childResult struct {
	Files   int64
	Bytes   int64
	Seconds float64
}

// self prepares a run of this program as one of its children.
func self(ctx context.Context, child string, args ...string) *exec.Cmd {
	return command(ctx, "/proc/self/exe", append([]string{child}, args...)...)
}

// command prepares a program that dies with this one and with ctx.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// run runs a program to its end, in silence, and returns what it prints to stdout.
func run(s *scope, name string, args ...string) []byte {
	cmd := command(s.ctx, name, args...)
	return output(s, cmd)
}

func output(s *scope, cmd *exec.Cmd) []byte {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		s.check(fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, stdout.Bytes(), stderr.Bytes()))
	}
	return stdout.Bytes()
}

// timed runs a program and returns the seconds from its start to its end.
func timed(s *scope, cmd *exec.Cmd) float64 {
	start := time.Now()
	output(s, cmd)
	return time.Since(start).Seconds()
}

// runChild runs a reading child and returns what it says.
func runChild(s *scope, child string, args ...string) childResult {
	var r childResult
	out := output(s, self(s.ctx, child, args...))
	if err := json.Unmarshal(out, &r); err != nil {
		s.Fatalf("%s: %w in %q", child, err, out)
	}
	return r
}

func printResult(r childResult) error { return json.NewEncoder(os.Stdout).Encode(r) }

// readFiles opens, reads and closes each file of a list on some threads.
func readFiles(args []string) error {
	flags := flag.NewFlagSet("child-files", flag.ExitOnError)
	root := flags.String("root", "", "where the files are")
	list := flags.String("list", "", "file with their paths below it, each ended by NUL")
	threads := flags.Int("threads", 1, "how many read at once")
	flags.Parse(args)
	data, err := os.ReadFile(*list)
	if err != nil {
		return err
	}
	var paths []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(data), "\x00"), "\x00") {
		paths = append(paths, filepath.Join(*root, name))
	}
	// Each reader has a thread, and a processor of Go's for the time the kernel holds it.
	runtime.GOMAXPROCS(*threads + 1)
	var next, total atomic.Int64
	errs := make([]error, *threads)
	var readers sync.WaitGroup
	start := time.Now()
	for i := range *threads {
		readers.Go(func() {
			runtime.LockOSThread()
			buf := make([]byte, 128<<10)
			for {
				n := next.Add(1) - 1
				if n >= int64(len(paths)) {
					return
				}
				bytes, err := readWhole(paths[n], buf)
				if err != nil {
					errs[i] = err
					return
				}
				total.Add(bytes)
			}
		})
	}
	readers.Wait()
	seconds := time.Since(start).Seconds()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return printResult(childResult{int64(len(paths)), total.Load(), seconds})
}

// readWhole reads a file to its end with bare system calls.
func readWhole(path string, buf []byte) (total int64, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return total, &os.PathError{Op: "read", Path: path, Err: err}
		}
		total += int64(n)
		if n < len(buf) { // less than asked for is the end
			return total, nil
		}
	}
}

// readStream reads one file from its beginning to its end, 1 MiB at a time.
func readStream(args []string) error {
	buf := make([]byte, 1<<20)
	start := time.Now()
	n, err := readWhole(args[0], buf)
	if err != nil {
		return err
	}
	return printResult(childResult{1, n, time.Since(start).Seconds()})
}

const randomReads, randomSize = 5000, 4 << 10

// readRandom reads 4 KiB at 5000 places of a file, the same ones each time.
func readRandom(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	places := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, randomSize)
	start := time.Now()
	for range randomReads {
		if _, err := f.ReadAt(buf, places.Int64N(info.Size()/randomSize)*randomSize); err != nil {
			return err
		}
	}
	return printResult(childResult{1, randomReads * randomSize, time.Since(start).Seconds()})
}

// service is a program that serves a mount until that is taken away.
type service struct {
	cmd    *exec.Cmd
	done   chan struct{} // closed when it has ended
	stdin  io.Writer
	stdout *bufio.Reader
}

// startService runs a program in the background.
func startService(s *scope, cmd *exec.Cmd) *service {
	stdin, err := cmd.StdinPipe()
	s.check(err)
	// A pipe of our own: that of exec is closed at the program's end, with what is still in it.
	reader, writer, err := os.Pipe()
	s.check(err)
	defer writer.Close()
	cmd.Stdout = writer
	s.check(cmd.Start())
	p := &service{cmd, make(chan struct{}), stdin, bufio.NewReader(reader)}
	go func() {
		cmd.Wait()
		reader.Close()
		close(p.done)
	}()
	return p
}

// await waits for a line of the program's.
func (p *service) await(s *scope) {
	if _, err := p.stdout.ReadString('\n'); err != nil {
		s.check(fmt.Errorf("%s said nothing: %w", strings.Join(p.cmd.Args, " "), err))
	}
}

// tell sends the program a line.
func (p *service) tell(s *scope) {
	_, err := p.stdin.Write([]byte{'\n'})
	s.check(err)
}

// end waits for the program's end, which the umount or a signal has asked for, and kills it after 10 s.
func (p *service) end() {
	select {
	case <-p.done:
		return
	default:
	}
	if closer, ok := p.stdin.(io.Closer); ok {
		closer.Close()
	}
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.cmd.Process.Kill()
		<-p.done
	}
}

func (p *service) pid() int { return p.cmd.Process.Pid }
