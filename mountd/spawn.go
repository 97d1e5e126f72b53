package mountd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	startTime   = 60 * time.Second // for a daemon to be ready: it may have to check its cache after a crash
	maxLogBytes = 8 << 20          // above it a log begins anew
	readyFD     = 3                // where a daemon started on demand reports
)

// startReport is what a starting daemon says over its pipe: empty when it is ready.
type startReport struct {
	Kind    Kind   `json:"kind,omitempty"`
	Message string `json:"message,omitempty"`
}

// startDaemon runs this program anew as a daemon of its own session, and returns when it is ready. Of several that want to start
// one, one does.
func (p place) startDaemon(ctx context.Context, s StartConfig) error {
	if err := checkRun(p.run, 0); err != nil {
		return err
	}
	if err := os.MkdirAll(p.state, 0o700); err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	lock, err := flock(ctx, p.starting())
	if err != nil {
		return fmt.Errorf("waiting for a daemon that another process starts: %w", err)
	}
	defer lock.Close()
	if conn, err := dialUnix(ctx, p.socket()); err == nil {
		return conn.Close()
	}
	return p.spawn(ctx, s)
}

// flock waits for an exclusive lock on a file.
func flock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = sleep(ctx, 10*time.Millisecond)
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, err
		}
	}
}

func (p place) spawn(ctx context.Context, s StartConfig) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	log, err := openLog(p.log())
	if err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	defer log.Close()
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	defer r.Close()
	if s.Idle == 0 {
		s.Idle = DefaultIdle
	}
	cmd := exec.Command(program, "mountd", "--cache", p.cache, "--idle", s.Idle.String(), "--ready-fd", strconv.Itoa(readyFD))
	if s.Quota > 0 {
		cmd.Args = append(cmd.Args, "--quota", strconv.FormatInt(s.Quota, 10)+"B")
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = "/", log, log, []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	defer cmd.Process.Release()
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Now()) })
	defer stop()
	line, err := bufio.NewReader(r).ReadBytes('\n')
	if ctx.Err() != nil {
		return problem(NoDaemon, "the daemon started with pid %d is not ready yet: %w", cmd.Process.Pid, ctx.Err())
	}
	if err != nil {
		return problem(NoDaemon, "the daemon ended while it started; its log %s ends with %q", p.log(), lastLine(log, from))
	}
	var report startReport
	if err := json.Unmarshal(line, &report); err != nil {
		return problem(Internal, "the starting daemon said %q: %w", line, err)
	}
	if report.Kind != "" {
		return &Error{report.Kind, errors.New(report.Message)}
	}
	return nil
}

func openLog(path string) (*os.File, error) {
	flags := os.O_RDWR | os.O_CREATE | os.O_APPEND
	if st, err := os.Stat(path); err == nil && st.Size() > maxLogBytes {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(path, flags, 0o600)
}

// lastLine returns the last line that a log got since from.
func lastLine(log *os.File, from int64) string {
	b, err := io.ReadAll(io.NewSectionReader(log, from, maxRequest))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// RunReporting is Run for a daemon that was started on demand: it reports to the file descriptor fd whether it became ready.
func RunReporting(ctx context.Context, cfg Config, fd int) error {
	pipe := os.NewFile(uintptr(fd), "ready")
	if pipe == nil {
		return problem(Usage, "descriptor %d is not open", fd)
	}
	report := func(s startReport) {
		if pipe == nil {
			return
		}
		b, err := json.Marshal(s)
		if err == nil {
			_, err = pipe.Write(append(b, '\n'))
		}
		if err != nil {
			cfg.Log.Warn("telling who started this daemon", "err", err)
		}
		pipe.Close()
		pipe = nil
	}
	unix.CloseOnExec(fd)
	err := Run(ctx, cfg, func() { report(startReport{}) })
	if err != nil {
		report(startReport{KindOf(err), err.Error()})
	}
	return err
}
