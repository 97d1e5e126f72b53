package main

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
)

// target is a figure that the design promises.
type target struct {
	what  string
	limit float64
	unit  string // "s", "×", "MB", "%", "GB/s"
	least bool   // limit is the least allowed, not the most
	value func(r *results) float64
}

// median returns a median of the seconds of a row on the loopback.
func median(image, row string, st state, contestant string) func(*results) float64 {
	return func(r *results) float64 { return r.pick(image, "", row, st, contestant, seconds).median }
}

func ratio(a, b func(*results) float64) func(*results) float64 {
	return func(r *results) float64 { return a(r) / b(r) }
}

// throughput returns GB/s for the large file, over the loopback or over the slow link.
func throughput(st state, distant bool) func(*results) float64 {
	return func(r *results) float64 {
		for _, t := range r.tables() {
			if t[0] == "big" && (t[1] != "") == distant {
				return bigSize / 1e9 / r.pick("big", t[1], "sequential", st, "skimfs", seconds).median
			}
		}
		return math.NaN()
	}
}

func memoryAfter(image, after string, st state) func(*results) float64 {
	return func(r *results) float64 {
		var values []float64
		for _, m := range r.Memory {
			if m.Image == image && m.After == after && m.State == st && m.Contestant == "skimfs" {
				values = append(values, float64(m.Anonymous)/1e6)
			}
		}
		return statsOf(values).median
	}
}

// shareFetched returns what the start of python fetches, as a part of the image as shipped.
func shareFetched(r *results) float64 {
	for _, i := range r.Images {
		if i.Name == "demo" {
			return 100 * r.pick("demo", "", "mount + python json", cold, "skimfs", received).median / float64(i.Packed)
		}
	}
	return math.NaN()
}

// hotRows returns, for each hot row that takes long enough to be measured, its ratio to native. The
// minima are compared: what is above them is the machine's.
func hotRows(r *results) map[string]float64 {
	ratios := map[string]float64{}
	for _, t := range r.tables() {
		rows, _ := r.rows(t[0], t[1])
		for _, k := range rows {
			native := r.pick(t[0], t[1], k.row, hot, "native", seconds)
			ours := r.pick(t[0], t[1], k.row, hot, "skimfs", seconds)
			if k.state == hot && native.n > 0 && ours.n > 0 && native.min > 0.01 {
				ratios[t[0]+", "+k.row] = ours.min / native.min
			}
		}
	}
	return ratios
}

// targets are those of the design's section 10.
var targets = []target{
	{"mount, 100 k files, catalog cached", 0.020, "s", false, median("many", "mount", cached, "skimfs")},
	{"mount, 100 k files, cold through squid", 0.250, "s", false, median("many", "mount", cold, "skimfs")},
	{"find of 100 k files, cold, ÷ limit", 1.3, "×", false, ratio(median("many", "find", cold, "skimfs"), median("many", "find", cached, "limit"))},
	{"100 k cached small files, 8 threads, ÷ limit", 1.3, "×", false,
		ratio(median("many", "small files, 8 threads", cached, "skimfs"), median("many", "small files, 8 threads", cached, "limit"))},
	{"1 GiB sequential, cached, fresh mount", 1, "GB/s", true, throughput(cached, false)},
	{"1 GiB sequential, cold, over the link (20 ms)", 0.2, "GB/s", true, throughput(cold, true)},
	{"memory after walking 100 k files", 100, "MB", false, memoryAfter("many", "find", cold)},
	{"publish the demo image", 10, "s", false, median("demo", publishFirst, "", "skimfs")},
	{"publish it again, one file changed", 1, "s", false, median("demo", publishChanged, "", "skimfs")},
	{"fetched for python's import json, of the image", 10, "%", false, shareFetched},
	// CVMFS 2.12 on a quiet machine, an image of the same size, squid warm.
	{"CVMFS: mount", 0.045, "s", false, median("demo", "mount", squid, "skimfs")},
	{"CVMFS: find, cold", 0.47, "s", false, median("demo", "find", squid, "skimfs")},
	{"CVMFS: cat of all files, cold", 6.5, "s", false, median("demo", "cat, 1 reader", squid, "skimfs")},
	{"CVMFS: with 8 readers, cold", 3.7, "s", false, median("demo", "cat, 8 readers", squid, "skimfs")},
	{"CVMFS: cat of all files, cached", 1.8, "s", false, median("demo", "cat, 1 reader", cached, "skimfs")},
	{"CVMFS: import numpy, cold", 0.51, "s", false, median("demo", "python numpy", squid, "skimfs")},
	{"CVMFS: import numpy, cached", 0.21, "s", false, median("demo", "python numpy", cached, "skimfs")},
	{"CVMFS: large file, cold (268 MB in 0.79 s)", 0.34, "GB/s", true, throughput(squid, false)},
	{"CVMFS: large file, cached (268 MB in 0.15 s)", 1.79, "GB/s", true, throughput(cached, false)},
	{"CVMFS: memory after find", 32, "MB", false, memoryAfter("demo", "find", cold)},
}

// targetTable compares what was measured with what was promised.
func (r *results) targetTable(w io.Writer) {
	all := slices.Clone(targets)
	ratios := hotRows(r)
	for _, name := range slices.Sorted(maps.Keys(ratios)) {
		all = append(all, target{"hot ÷ native: " + name, 1.05, "×", false, func(*results) float64 { return ratios[name] }})
	}
	head := "\n### Targets\n\n| what | target | measured | |\n|---|--:|--:|---|\n"
	for _, t := range all {
		value := t.value(r)
		if math.IsNaN(value) || math.IsInf(value, 0) {
			continue
		}
		fmt.Fprint(w, head)
		head = ""
		sign, held := "≤", value <= t.limit
		if t.least {
			sign, held = "≥", value >= t.limit
		}
		verdict := "held"
		if !held {
			verdict = "**missed**"
		}
		fmt.Fprintf(w, "| %s | %s %s %s | %s %s | %s |\n", t.what, sign, numberText("%.4g", t.limit), t.unit, numberText("%.3g", value), t.unit, verdict)
	}
}
