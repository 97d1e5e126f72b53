package main

import (
	"os"
	"path/filepath"

	"github.com/skimfs/skimfs/internal/testkit"
)

// Rows of the publisher; they have no state.
const (
	publishFirst   = "publish first"
	publishAgain   = "publish again"
	publishChanged = "publish, one file changed"
)

var publishRows = []string{publishFirst, publishAgain, publishChanged}

// repoName is the repository's name, imageName that of the only image in it.
const repoName, imageName = "bench.skimfs.test", "bench.skimfs.test/image:1"

// repository is a published image.
type repository struct {
	dir  string
	keys string
}

func newRepository(s *scope) *repository {
	dir := s.TempDir()
	r := &repository{filepath.Join(dir, "repo"), filepath.Join(dir, "keys")}
	run(s, testkit.Build(s), "repo", "create", r.dir, "--name", repoName, "--keys", r.keys)
	// TempDir is closed to others; nginx may run as one.
	s.check(os.Chmod(dir, 0o755))
	return r
}

func (r *repository) publish(s *scope, layout string) float64 {
	return timed(s, command(s.ctx, testkit.Build(s), "publish", "--repo", r.dir, "--keys", r.keys, "--bare", "oci:"+layout+":latest", imageName))
}

// publishImage publishes an image as often as the rounds say, each time into a new repository, and
// returns the last of them; nil if nothing of skimfs is wanted.
func publishImage(s *scope, o options, i *image, results *results) *repository {
	m := &measurement{o, i, link{}, results}
	wanted := func(row string) bool { return m.wanted(work{name: row, states: []state{""}}, "", "skimfs") }
	measure := wanted(publishFirst) || wanted(publishAgain) || wanted(publishChanged)
	served := false
	for _, w := range append(distantWorks(i), i.works...) {
		for _, st := range everyState {
			served = served || m.wanted(w, st, "skimfs")
		}
	}
	if !measure && !served {
		return nil
	}
	rounds := o.rounds
	if !measure {
		rounds = 1
	}
	var changed string
	if measure {
		changed = changedImage(s, i.layout)
	}
	for round := range rounds - 1 {
		s.within(func(s *scope) { publishRound(s, newRepository(s), i, changed, round, results) })
	}
	r := newRepository(s)
	if !measure {
		r.publish(s, i.layout)
		return r
	}
	publishRound(s, r, i, changed, rounds-1, results)
	// What is mounted is the image itself.
	r.publish(s, i.layout)
	return r
}

func publishRound(s *scope, r *repository, i *image, changed string, round int, results *results) {
	progress("%s: publishing, %d", i.name, round+1)
	add := func(row, layout string) {
		at := sample{Image: i.name, Contestant: "skimfs", Round: round, Load: loadNow()}
		results.add(at, row, r.publish(s, layout), usage{})
	}
	add(publishFirst, i.layout)
	_, results.Images[len(results.Images)-1].Repository = measureTree(s, r.dir)
	add(publishAgain, i.layout)
	add(publishChanged, changed)
}

// changedImage copies a layout and puts another layer, with one small file, on top of its image.
func changedImage(s *scope, layout string) string {
	dir := s.TempDir()
	twin := filepath.Join(dir, "layout")
	run(s, "cp", "-r", layout, twin)
	run(s, "chmod", "-R", "u+w", twin)
	file := filepath.Join(dir, "changed")
	s.check(os.WriteFile(file, []byte("a new line\n"), 0o644))
	run(s, testkit.Program(s, "umoci"), "insert", "--image", twin+":latest", file, "/changed")
	return twin
}
