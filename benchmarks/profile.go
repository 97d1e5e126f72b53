package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/internal/testkit"
)

// profiled is a contestant whose server can be looked into.
type profiled interface{ pid() int }

// profileRound does each work once more for each server, under perf, and leaves what that says in
// the directory of -profile: IMAGE-ROW-STATE-CONTESTANT.txt by function, .data with the stacks.
func (m *measurement) profileRound(s *scope, works []work, contestants []contestant) {
	perf := testkit.Program(s, "perf")
	s.check(os.MkdirAll(m.options.profile, 0o755))
	for _, w := range works {
		for _, c := range contestants {
			p, ok := c.(profiled)
			if !ok {
				continue
			}
			for _, st := range c.states() {
				if !m.wanted(w, st, c.name()) {
					continue
				}
				progress("%s: profiling %s, %s, %s", m.image.name, w.name, st, c.name())
				name := strings.NewReplacer(" ", "-", ",", "").Replace(strings.Join([]string{m.image.name, w.name, string(st), c.name()}, "-"))
				s.within(func(s *scope) {
					c.enter(s, st)
					root := c.mount(s)
					data := filepath.Join(m.options.profile, name+".data")
					watch := startService(s, command(s.ctx, perf, "record", "-q", "-e", "cpu-clock", "-F", "999", "-g", "-o", data, "-p", strconv.Itoa(p.pid())))
					w.run(s, m.image, root)
					watch.cmd.Process.Signal(unix.SIGINT)
					<-watch.done
					text := run(s, perf, "report", "-i", data, "--stdio", "--no-children", "-g", "none", "--percent-limit", "0.5")
					s.check(os.WriteFile(strings.TrimSuffix(data, ".data")+".txt", text, 0o644))
				})
			}
		}
	}
}
