package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// options are what the command line says.
type options struct {
	rounds    int
	image     string
	many, big bool
	shapes    bool
	shapeBig  bool
	crowd     bool
	cache     bool
	block     string
	from      string
	only      *regexp.Regexp
	link      link
	md        string
	json, png string
	profile   string
}

func init() {
	// Children die with the thread that started them; the main thread lives as long as the program.
	runtime.LockOSThread()
}

func main() {
	if len(os.Args) > 1 {
		if child, ok := children[os.Args[1]]; ok {
			if err := child(os.Args[2:]); err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
				os.Exit(1)
			}
			return
		}
	}
	o := parseOptions()
	switch {
	case o.from != "":
		os.Exit(reportAgain(o))
	case o.crowd:
		os.Exit(benchmarkCrowds(o))
	case o.cache:
		os.Exit(benchmarkCache(o))
	}
	os.Exit(benchmark(o))
}

func parseOptions() options {
	var o options
	flag.IntVar(&o.rounds, "rounds", 3, "how often everything is measured")
	flag.StringVar(&o.image, "image", "", "measure the image tagged latest in the OCI layout `DIR` instead of the demo's")
	flag.BoolVar(&o.many, "many", false, "measure an image of 100,000 files of 8 KiB as well")
	flag.BoolVar(&o.big, "big", false, "measure an image with a file of 1 GiB as well")
	flag.BoolVar(&o.shapes, "shapes", false, "measure how long a program of two larger images takes to start and to end: shape python, shape analysis")
	flag.BoolVar(&o.shapeBig, "shape-big", false, "measure that of an image of 9 GB as well, shape big; needs 45 GB of disk")
	flag.BoolVar(&o.crowd, "crowd", false, "measure nothing else: 1, 10, 50 and 200 simulated clients that start the demo image at once through one squid; see -block crowd")
	flag.BoolVar(&o.cache, "cache", false, "measure the node's cache alone instead: beside plain files and badger, under its limit, opening anew; needs 12 GB of disk")
	only := flag.String("only", "", "measure only what matches `REGEXP`, as image/row/state/contestant: demo/find/cold/skimfs")
	flag.DurationVar(&o.link.rtt, "rtt", 0, "measure the cold rows again over a link with this round-trip time")
	flag.Float64Var(&o.link.mbit, "mbit", 0, "and with this many 10^6 bits per second, 0 for no limit")
	flag.StringVar(&o.md, "md", "", "write the report to `FILE` as well, between its lines for figures if it has them, as README.md has")
	flag.StringVar(&o.block, "block", "figures", "replace the lines of this `NAME` in the file of -md")
	flag.StringVar(&o.json, "json", "", "write all samples to `FILE`")
	flag.StringVar(&o.png, "png", "", "draw the medians into `FILE`")
	from := flag.String("from", "", "measure nothing: report again from the samples of `FILE`, as -json wrote them")
	flag.StringVar(&o.profile, "profile", "", "afterwards do everything once more under perf and leave profiles of the servers in `DIR`")
	work := flag.String("work", "", "keep images and caches below `DIR` while measuring, default the directory for temporary files")
	flag.Parse()
	if flag.NArg() > 0 {
		usageError("unexpected argument %q", flag.Arg(0))
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		usageError("-only: %v", err)
	}
	if o.from = *from; o.from != "" {
		return o
	}
	if *work != "" {
		os.Setenv("TMPDIR", *work) // the test kit's servers keep theirs there, too
	}
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "benchmarks: mounting an ext4 and dropping a file's pages needs root\nhint: sudo go run ./benchmarks")
		os.Exit(1)
	}
	return o
}

func usageError(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "benchmarks: "+format+"\nhint: see -help\n", args...)
	os.Exit(2)
}

// benchmark measures, reports whatever has been measured, and returns the exit status.
func benchmark(o options) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	results := newResults(o)
	err := inScope(ctx, func(s *scope) {
		s.check(sweep())
		measureAll(s, o, results)
	})
	results.Machine.end()
	if err != nil {
		fmt.Fprintf(os.Stderr, "benchmarks: %v\n", err)
	}
	if len(results.Samples) > 0 {
		results.markdown(os.Stdout)
		err = errors.Join(err, results.save(o))
	}
	switch {
	case ctx.Err() != nil:
		return 130
	case err != nil:
		return 1
	}
	return 0
}

// benchmarkCrowds is benchmark for crowds.
func benchmarkCrowds(o options) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	m := thisMachine()
	var rows []crowdRow
	err := inScope(ctx, func(s *scope) {
		s.check(sweep())
		rows = measureCrowds(s)
	})
	m.end()
	if err == nil {
		var text bytes.Buffer
		crowdTable(&text, m, rows)
		fmt.Print(text.String())
		if o.md != "" {
			err = savePage(o.md, text.Bytes(), o.block)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "benchmarks: %v\n", err)
		return 1
	}
	return 0
}

// reportAgain makes the report of an earlier run.
func reportAgain(o options) int {
	var results results
	data, err := os.ReadFile(o.from)
	if err == nil {
		err = json.Unmarshal(data, &results)
	}
	if err == nil {
		results.markdown(os.Stdout)
		err = results.save(o)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "benchmarks: %v\n", err)
		return 1
	}
	return 0
}

func measureAll(s *scope, o options, results *results) {
	name := "demo"
	if o.image != "" {
		name = "image"
	}
	if o.wantedImage(name, demoWorks(func(string) bool { return true })) {
		s.within(func(s *scope) {
			layout := o.image
			if layout == "" {
				layout = testkit.DemoImage(s)
			}
			progress("%s: unpacking", name)
			i := newImage(s, name, layout, testkit.Unpack(s, layout, "latest"))
			i.works = demoWorks(i.has)
			measureImage(s, o, i, results)
		})
	}
	made := func(name string, works []work, layers func() []func(*tar.Writer) error) {
		if !o.wantedImage(name, works) {
			return
		}
		s.within(func(s *scope) {
			progress("%s: making the image", name)
			layout := writeLayout(s, layers())
			i := newImage(s, name, layout, unpack(s, layout))
			i.works = works
			measureImage(s, o, i, results)
		})
	}
	if o.many {
		made("many", manyWorks, manyLayers)
	}
	if o.big {
		made("big", bigWorks, bigLayers)
	}
	if o.shapes {
		for _, sh := range shapes {
			s.within(func(s *scope) { measureShape(s, o, sh, results) })
		}
	}
	if o.shapeBig {
		s.within(func(s *scope) { measureShape(s, o, bigShape, results) })
	}
}

// contestantNames are all there are, in the order of the tables.
var contestantNames = []string{"skimfs", "limit", "native", "squashfuse", "full pull"}

// wantedImage says whether anything is to be measured of an image.
func (o options) wantedImage(name string, works []work) bool {
	for _, row := range publishRows {
		works = append(works, work{name: row, states: []state{""}})
	}
	m := &measurement{options: o, image: &image{name: name}}
	for _, w := range works {
		for _, st := range w.states {
			for _, contestant := range contestantNames {
				if m.wanted(w, st, contestant) {
					return true
				}
			}
		}
	}
	return false
}

// measureImage measures all rows of an image, and then again what the slow link is for.
func measureImage(s *scope, o options, i *image, results *results) {
	results.describe(i)
	repository := publishImage(s, o, i, results)
	m := &measurement{o, i, link{}, results}
	s.within(func(s *scope) { m.rounds(s, i.works, repository) })
	if o.link != (link{}) {
		m.link = o.link
		s.within(func(s *scope) { m.rounds(s, distantWorks(i), repository) })
	}
}

// measurement is what stays the same while an image is measured over a link.
type measurement struct {
	options options
	image   *image
	link    link
	results *results
}

func (m *measurement) rounds(s *scope, works []work, repository *repository) {
	contestants := m.contestants(s, works, repository)
	for round := range m.options.rounds {
		for w, work := range works {
			progress("%s %s: round %d of %d: %s", m.image.name, m.link, round+1, m.options.rounds, work.name)
			for c := range contestants {
				// Each takes each place in the order.
				contestant := contestants[(c+w+round)%len(contestants)]
				for _, st := range contestant.states() {
					if m.wanted(work, st, contestant.name()) && !m.enough(work, st, contestant) {
						m.measure(s, round, work, st, contestant)
					}
				}
			}
		}
	}
	if m.options.profile != "" && m.link == (link{}) {
		m.profileRound(s, works, contestants)
	}
}

// contestants makes those that have something to do.
func (m *measurement) contestants(s *scope, works []work, repository *repository) []contestant {
	distant := m.link != (link{})
	var all []contestant
	add := func(name string, states []state, make func() contestant) {
		for _, w := range works {
			for _, st := range states {
				if m.wanted(w, st, name) {
					progress("%s %s: preparing %s", m.image.name, m.link, name)
					all = append(all, make())
					return
				}
			}
		}
	}
	if repository != nil {
		add("skimfs", everyState, func() contestant { return newSkimfs(s, m.image, repository, m.link) })
	}
	if !distant {
		add("limit", []state{cached}, func() contestant { return newLimit(s, m.image.root) })
		add("native", []state{cold, cached}, func() contestant { return newNative(s, m.image.root) })
		add("squashfuse", []state{cold, cached}, func() contestant { return newSquashfuse(s, m.image.root) })
	}
	add("full pull", []state{cold}, func() contestant { return newPull(s, m.image, m.link) })
	return all
}

// enough says whether a slow work has been measured often enough: once if it took more than 30 s
// with its mount, twice if more than 8 s.
func (m *measurement) enough(w work, st state, c contestant) bool {
	at := func(row string) stats {
		return m.results.pick(m.image.name, m.link.String(), row, st, c.name(), seconds)
	}
	row := w.name
	if w.program != "" {
		row = totalRow
	}
	done := at(row)
	took := done.max
	if w.start { // a full pull's mount is all of it
		took = at("mount + " + row).max
	}
	return done.n >= 1 && took > 30 || done.n >= 2 && took > 8
}

func (m *measurement) wanted(w work, st state, contestant string) bool {
	if contestant == "full pull" && !w.start && w.program == "" && w.name != "sequential" {
		return false // after a pull it is a native directory
	}
	if w.program != "" && contestant != "skimfs" && contestant != "full pull" {
		return false // the image is not unpacked for the others
	}
	return slices.Contains(w.states, st) && m.options.only.MatchString(strings.Join([]string{m.image.name, w.name, string(st), contestant}, "/"))
}

// measure has a contestant do a work once in a state, and once more if that makes the caches hot.
func (m *measurement) measure(s *scope, round int, w work, st state, c contestant) {
	s.within(func(s *scope) {
		c.enter(s, st)
		sample := sample{Image: m.image.name, Link: m.link.String(), Contestant: c.name(), State: st, Round: round, Load: loadNow()}
		before := c.usage(s)
		start := time.Now()
		root := c.mount(s)
		mount := time.Since(start).Seconds()
		mounted := c.usage(s)
		m.results.add(sample, "mount", mount, mounted.since(before))

		if w.program != "" {
			ready, total := startProgram(s, root, w.program)
			m.results.add(sample, readyRow, mount+ready, usage{})
			m.results.add(sample, totalRow, mount+total, c.usage(s).since(before))
			return
		}
		seconds := w.run(s, m.image, root)
		done := c.usage(s)
		m.results.add(sample, w.name, seconds, done.since(mounted))
		if w.start {
			m.results.add(sample, "mount + "+w.name, mount+seconds, done.since(before))
		}
		if r, ok := c.(rememberer); ok && w.memory {
			m.results.remember(sample, w.name, r.memory(s))
		}
		if sample.State = hot; st == cached && m.wanted(w, hot, c.name()) {
			seconds := w.run(s, m.image, root)
			m.results.add(sample, w.name, seconds, c.usage(s).since(done))
		}
	})
	s.check(nil)
}

// progress tells a waiting user what goes on.
func progress(format string, args ...any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), " :", ":")
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format(time.TimeOnly), text)
}
