package main

import (
	"fmt"
	"path/filepath"

	"github.com/skimfs/skimfs/internal/testkit"
)

// work is a row of the report: something done to a mounted image.
type work struct {
	name   string
	states []state
	// run does it and returns the seconds it took.
	run func(s *scope, i *image, root string) float64
	// program is run instead if it is set: its ready line and its end are reported, with the mount.
	program string
	// start reports the sum of mount and work as well: how long a user waits.
	start bool
	// memory has the server's memory recorded after it.
	memory bool
}

var everyState = []state{cold, squid, cached, hot}

// demoWorks is what is done to the demo image, or to one of the user's, which may lack a file.
func demoWorks(has func(path string) bool) []work {
	works := []work{
		{name: "find", states: everyState, run: find, memory: true},
		{name: "cat, 1 reader", states: everyState, run: cat(1)},
		{name: "cat, 8 readers", states: everyState, run: cat(8), memory: true},
		{name: "small files, 1 thread", states: []state{cached, hot}, run: smallFiles(1)},
		{name: "small files, 8 threads", states: []state{cold, cached, hot}, run: smallFiles(8)},
	}
	if has("usr/bin/python3") {
		works = append(works, work{name: "python json", states: everyState, run: python("import json"), start: true})
		if has("usr/lib/python3/dist-packages/numpy/__init__.py") {
			works = append(works, work{name: "python numpy", states: everyState, run: python("import numpy"), start: true})
		}
	}
	return works
}

// distantWorks is what is done once more at the end of a slow link.
func distantWorks(i *image) []work {
	var works []work
	for _, w := range i.works {
		if w.start || w.program != "" || w.name == "find" || w.name == "sequential" {
			w.states = []state{cold, squid}
			works = append(works, w)
		}
	}
	return works
}

var manyWorks = []work{
	{name: "find", states: everyState, run: find, memory: true},
	{name: "small files, 1 thread", states: []state{cached, hot}, run: smallFiles(1)},
	{name: "small files, 8 threads", states: []state{cold, cached, hot}, run: smallFiles(8), memory: true},
}

var bigWorks = []work{
	{name: "sequential", states: everyState, run: stream, memory: true},
	{name: "random 4 KiB", states: everyState, run: random},
}

// find asks for the attributes of every file.
func find(s *scope, _ *image, root string) float64 {
	return timed(s, command(s.ctx, "find", root, "-xdev", "-printf", "%s\n"))
}

// cat reads every file with cat, some at once.
func cat(readers int) func(*scope, *image, string) float64 {
	script := fmt.Sprintf(`find "$1" -xdev -type f -print0 | xargs -0 -n 64 -P %d cat >/dev/null`, readers)
	return func(s *scope, _ *image, root string) float64 {
		return timed(s, command(s.ctx, "sh", "-c", script, "cat", root))
	}
}

// smallLimit is the size up to which a file is small.
const smallLimit = 64 << 10

// smallFiles opens, reads and closes every small file by its path, with nothing looked up before.
func smallFiles(threads int) func(*scope, *image, string) float64 {
	return func(s *scope, i *image, root string) float64 {
		r := runChild(s, "child-files", "-root", root, "-list", i.small, "-threads", fmt.Sprint(threads))
		if r.Bytes != i.smallBytes {
			s.Fatalf("%d bytes in the small files of %s, want %d", r.Bytes, root, i.smallBytes)
		}
		return r.Seconds
	}
}

// python starts the image's python3 in the image's root.
func python(statement string) func(*scope, *image, string) float64 {
	return func(s *scope, _ *image, root string) float64 {
		cmd := command(s.ctx, testkit.Program(s, "chroot"), root, "/usr/bin/python3", "-c", statement+"; print('started')")
		cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/", "LANG=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1"}
		return timed(s, cmd)
	}
}

// stream reads the large file from its beginning to its end.
func stream(s *scope, _ *image, root string) float64 {
	r := runChild(s, "child-stream", filepath.Join(root, bigName))
	if r.Bytes != bigSize {
		s.Fatalf("%d bytes in %s of %s, want %d", r.Bytes, bigName, root, bigSize)
	}
	return r.Seconds
}

// random reads the large file here and there.
func random(s *scope, _ *image, root string) float64 {
	return runChild(s, "child-random", filepath.Join(root, bigName)).Seconds
}
