package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/internal/testkit"
)

// scope lends the test kit, which wants a test, to a program: it is a testing.TB whose Fatal
// unwinds to the enclosing [inScope] and whose cleanups run there. Its methods are for the
// goroutine of main alone.
type scope struct {
	testing.TB // never set: what is not defined below isn't called
	ctx        context.Context
	cleanups   []func()
	errs       []error
}

// fatal is what Fatal panics with.
type fatal struct{ err error }

// inScope calls f with a scope and undoes, at its end, all that was begun in it.
func inScope(ctx context.Context, f func(*scope)) error {
	s := &scope{ctx: ctx}
	s.guard(func() { f(s) })
	for len(s.cleanups) > 0 {
		last := len(s.cleanups) - 1
		cleanup := s.cleanups[last]
		s.cleanups = s.cleanups[:last]
		s.guard(cleanup)
	}
	return errors.Join(s.errs...)
}

// within opens a scope inside this one: what f begins ends with it.
func (s *scope) within(f func(*scope)) {
	if err := inScope(s.ctx, f); err != nil {
		s.Fatal(err)
	}
}

func (s *scope) guard(f func()) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case fatal:
			s.errs = append(s.errs, r.err)
		default:
			// A bug; the cleanups of the scopes around it still run.
			s.errs = append(s.errs, fmt.Errorf("panic: %v", r))
		}
	}()
	f()
}

func (s *scope) Helper()          {}
func (s *scope) Name() string     { return "benchmarks" }
func (s *scope) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

func (s *scope) Fatal(args ...any) {
	if len(args) == 1 {
		if err, ok := args[0].(error); ok {
			panic(fatal{err})
		}
	}
	panic(fatal{errors.New(fmt.Sprint(args...))})
}

func (s *scope) Fatalf(format string, args ...any) { panic(fatal{fmt.Errorf(format, args...)}) }
func (s *scope) Error(args ...any)                 { s.errs = append(s.errs, errors.New(fmt.Sprint(args...))) }
func (s *scope) Errorf(format string, args ...any) {
	s.errs = append(s.errs, fmt.Errorf(format, args...))
}
func (s *scope) Log(args ...any)                 { fmt.Fprintln(os.Stderr, args...) }
func (s *scope) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (s *scope) Failed() bool                    { return len(s.errs) > 0 }

func (s *scope) TempDir() string {
	dir, err := os.MkdirTemp("", fmt.Sprintf("skimfs-bench-%d-", os.Getpid()))
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			s.Error(err)
		}
	})
	return dir
}

// sweep removes what runs of this program left that were killed.
func sweep() error {
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "skimfs-bench-*-*"))
	for _, dir := range left {
		pid, e := strconv.Atoi(strings.Split(filepath.Base(dir), "-")[2])
		if e != nil || unix.Kill(pid, 0) != unix.ESRCH {
			continue
		}
		mounts, e := testkit.MountsBelow(dir)
		for _, mount := range mounts {
			e = errors.Join(e, unix.Unmount(mount, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
		}
		if e == nil { // what is still mounted there would be emptied
			e = os.RemoveAll(dir)
		}
		err = errors.Join(err, e)
	}
	return err
}

// check ends the scope if err is set or the user has asked to stop.
func (s *scope) check(err error) {
	if s.ctx.Err() != nil {
		panic(fatal{errStopped})
	}
	if err != nil {
		s.Fatal(err)
	}
}

var errStopped = errors.New("stopped")

var _ testing.TB = (*scope)(nil)

// onlyStopped says whether an error of inScope tells of nothing but the user's wish.
func onlyStopped(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(joined.Unwrap(), func(e error) bool { return !onlyStopped(e) })
	}
	return err == errStopped
}
