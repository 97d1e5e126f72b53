package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skimfs/skimfs/internal/testkit"
)

// shape is an image like one that people run, with a program that prints "ready" when its modules
// are loaded and "done" at the end of its work.
type shape struct {
	name     string
	packages string // of Debian 12, in the lowest layer
	program  string
	filler   int   // files on top, each layer of fillerLayers having as many as the next
	disk     int64 // bytes that must be free
}

// Rows of the shapes: from before the mount to a line of the program's.
const readyRow, totalRow = "ready", "total"

const minimal = "python3,python3-numpy"

// shapes are measured with -shapes: an interpreter with all that builds its modules, and an
// analysis that fits a histogram and draws it.
var shapes = []shape{
	{name: "shape python", disk: 5e9, program: pythonProgram, packages: "python3,python3-dev,python3-pip,python3-venv,build-essential,git," +
		"curl,libssl-dev,libffi-dev,libsqlite3-dev,zlib1g-dev,imagemagick,mercurial,subversion"},
	{name: "shape analysis", disk: 12e9, program: analysisProgram, packages: "python3,python3-numpy,python3-scipy,python3-matplotlib," +
		"python3-pandas,python3-sklearn,python3-numba,python3-astropy,python3-skimage,gfortran,g++"},
}

// bigShape is measured with -shape-big: an experiment's software, of which a job reads 2 %.
var bigShape = shape{name: "shape big", disk: 45e9, program: bigProgram, packages: minimal, filler: 220_000}

const pythonProgram = `
import json, http.client, ssl, sqlite3, argparse, logging, email.message, concurrent.futures
print("ready", flush=True)
db = sqlite3.connect(":memory:")
db.execute("create table t (n integer)")
db.executemany("insert into t values (?)", [(n,) for n in range(1000)])
print(json.dumps({"sum": db.execute("select sum(n) from t").fetchone()[0]}))
print("done")
`

const analysisProgram = `
import numpy as np, matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
from scipy.optimize import curve_fit
print("ready", flush=True)
masses = np.concatenate([np.random.default_rng(1).normal(91.2, 2.5, 20000), np.random.default_rng(2).uniform(60, 120, 20000)])
counts, edges = np.histogram(masses, bins=120, range=(60, 120))
x = (edges[1:] + edges[:-1]) / 2
peak = lambda x, n, mean, sigma, flat: n * np.exp(-0.5 * ((x - mean) / sigma) ** 2) + flat
best, _ = curve_fit(peak, x, counts, p0=[1000, 90, 3, 100], sigma=np.sqrt(counts + 1))
assert abs(best[1] - 91.2) < 0.2, best
plt.errorbar(x, counts, yerr=np.sqrt(counts), fmt=".")
plt.plot(x, peak(x, *best))
plt.xlabel("mass")
plt.savefig("/tmp/fit.png")
assert open("/tmp/fit.png", "rb").read(4) == b"\x89PNG"
print("done")
`

const bigProgram = `
import os, numpy
print("ready", flush=True)
total = 0
for dir, _, files in os.walk("/srv/release"):
    for name in files:
        with open(os.path.join(dir, name), "rb") as f:
            total += int(numpy.frombuffer(f.read(), dtype=numpy.uint8)[::64].sum() > 0)
assert total == 4400, total
print("done")
`

const fillerLayers = 4

// layers are the shape's layers; counted keeps the number of files and bytes.
func (sh shape) layers(base string, counted *image) []func(*tar.Writer) error {
	all := []func(*tar.Writer) error{func(w *tar.Writer) error { return copyTar(w, base, counted) }}
	if sh.filler == 0 {
		return all
	}
	for layer := range fillerLayers {
		all = append(all, func(w *tar.Writer) error {
			from, to := layer*sh.filler/fillerLayers, (layer+1)*sh.filler/fillerLayers
			return fillLayer(w, from, to, counted)
		})
	}
	return all
}

// fillLayer writes files of random bytes, the same ones each time: from 1 KiB to 128 KiB, one in
// fifty 512 KiB. One in fifty is part of the release, which the program reads.
func fillLayer(w *tar.Writer, from, to int, counted *image) error {
	seed := [32]byte{'s', 'k', 'i', 'm', byte(from >> 16), byte(from >> 8), byte(from)}
	random := rand.NewChaCha8(seed)
	for n := from; n < to; n++ {
		size := int64(1<<10)<<(random.Uint64()%8) + int64(random.Uint64()%1024)
		if n%50 == 25 {
			size = 512 << 10
		}
		name := fmt.Sprintf("srv/filler/d%03d/f%06d", n/500, n)
		if n%50 == 0 {
			name = fmt.Sprintf("srv/release/d%02d/f%06d", n/5000, n)
		}
		if err := addFile(w, name, size, random); err != nil {
			return err
		}
		counted.files++
		counted.bytes += size
	}
	return nil
}

// copyTar writes the entries of a tar file.
func copyTar(w *tar.Writer, path string, counted *image) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for r := tar.NewReader(bufio.NewReaderSize(f, 1<<20)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		h.Format = tar.FormatUnknown // whichever holds it
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
		counted.files++
		counted.bytes += h.Size
	}
}

// works has one work: the program.
func (sh shape) works() []work {
	return []work{{name: "program", states: []state{cold, squid, cached}, program: sh.program}}
}

// measureShape makes a shape's image and measures it. The image is never unpacked but by the full pull.
func measureShape(s *scope, o options, sh shape, results *results) {
	if !o.wantedImage(sh.name, sh.works()) {
		return
	}
	var disk unix.Statfs_t
	s.check(unix.Statfs(os.TempDir(), &disk))
	if free := int64(disk.Bavail) * disk.Bsize; free < sh.disk {
		s.Fatalf("%s: needs %s of disk below %s, %s are free\nhint: -work DIR keeps images and caches below another directory",
			sh.name, byteText(sh.disk), os.TempDir(), byteText(free))
	}
	progress("%s: making the image", sh.name)
	i := &image{name: sh.name, works: sh.works()}
	i.layout = writeLayout(s, sh.layers(testkit.DebianTar(s, sh.packages), i))
	_, i.packed = measureTree(s, filepath.Join(i.layout, "blobs"))
	i.warm = func(s *scope, root string) { startProgram(s, root, sh.program) }
	results.describe(i)

	repository := newRepository(s)
	progress("%s: publishing", sh.name)
	results.add(sample{Image: i.name, Contestant: "skimfs", Load: loadNow()}, publishFirst, repository.publish(s, i.layout), usage{})
	_, results.Images[len(results.Images)-1].Repository = measureTree(s, repository.dir)

	// The big one is measured near only, and its layout goes as soon as a registry has it.
	i.discard = sh.filler > 0
	m := &measurement{o, i, link{}, results}
	s.within(func(s *scope) { m.rounds(s, i.works, repository) })
	if o.link != (link{}) && !i.discard {
		m.link = o.link
		s.within(func(s *scope) { m.rounds(s, distantWorks(i), repository) })
	}
}

// startProgram runs a shape's program in a root directory, with a /tmp of its own, and returns the
// seconds until it is ready and until it ends.
func startProgram(s *scope, root, program string) (ready, total float64) {
	cmd := command(s.ctx, testkit.Program(s, "bwrap"), "--ro-bind", root, "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp",
		"--die-with-parent", "/usr/bin/python3", "-c", program)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1", "MPLCONFIGDIR=/tmp"}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	s.check(err)
	start := time.Now()
	s.check(cmd.Start())
	last := ""
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if last = lines.Text(); last == "ready" {
			ready = time.Since(start).Seconds()
		}
	}
	err = cmd.Wait()
	total = time.Since(start).Seconds()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) || last != "done" || ready == 0 {
		s.check(fmt.Errorf("the program of the image ended with %q, %w\n%s", last, errors.Join(err), stderr.String()))
	}
	s.check(err)
	return ready, total
}
