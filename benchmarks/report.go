package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sample is one measurement.
type sample struct {
	Image      string  `json:"image"`
	Link       string  `json:"link,omitempty"` // "20ms, 100 Mbit/s"; empty for the machine's own loopback
	Row        string  `json:"row"`
	State      state   `json:"state,omitempty"`
	Contestant string  `json:"contestant"`
	Round      int     `json:"round"`
	Seconds    float64 `json:"seconds"`
	CPU        float64 `json:"cpu_seconds"` // of the contestant's server
	Requests   int64   `json:"requests"`    // over the network
	Bytes      int64   `json:"bytes"`       // received over the network
	Load       float64 `json:"load"`        // of the machine over the last minute, as it began
}

// memorySample is what a server has in memory after some work on a mount of its own.
type memorySample struct {
	Image      string `json:"image"`
	After      string `json:"after"`
	State      state  `json:"state"`
	Contestant string `json:"contestant"`
	Round      int    `json:"round"`
	Anonymous  int64  `json:"anonymous_bytes"`
}

// imageFacts are the sizes of an image in its different forms.
type imageFacts struct {
	Name       string `json:"name"`
	Files      int64  `json:"files"`       // with directories
	Bytes      int64  `json:"bytes"`       // of its regular files
	Small      int64  `json:"small_files"` // of at most 64 KiB
	Packed     int64  `json:"packed"`      // bytes of its layers as shipped
	Repository int64  `json:"repository"`  // bytes of the skimfs repository that holds it alone
}

// machine is where and when the measurements were made.
type machine struct {
	Time   time.Time `json:"time"`
	End    time.Time `json:"end"`
	Kernel string    `json:"kernel"`
	CPU    string    `json:"cpu"`
	CPUs   int       `json:"cpus"`
	Memory int64     `json:"memory"` // bytes
	Go     string    `json:"go"`
	Commit string    `json:"commit"`
	Load   float64   `json:"load"` // over the minute before
}

// results is all that was measured.
type results struct {
	Machine machine        `json:"machine"`
	Rounds  int            `json:"rounds"`
	Images  []*imageFacts  `json:"images"`
	Samples []sample       `json:"samples"`
	Memory  []memorySample `json:"memory"`
}

func newResults(o options) *results { return &results{Rounds: o.rounds, Machine: thisMachine()} }

// thisMachine begins a measurement.
func thisMachine() machine {
	return machine{
		Time: time.Now().UTC().Truncate(time.Second), Kernel: kernel(), CPU: procField("/proc/cpuinfo", "model name"), CPUs: runtime.NumCPU(),
		Memory: memTotal(), Go: runtime.Version(), Commit: commit(), Load: loadNow(),
	}
}

// end notes that the measurement has ended.
func (m *machine) end() { m.End = time.Now().UTC().Truncate(time.Second) }

// markdown writes where and when the measurement was made, as the beginning of a sentence.
func (m machine) markdown(w io.Writer) {
	fmt.Fprintf(w, "Measured %s to %s (UTC), commit %s, %s, %d × %s, %s of memory, kernel %s, load %.1f at the start",
		m.Time.Format("2006-01-02 15:04"), m.End.Format("15:04"), m.Commit, m.Go, m.CPUs, m.CPU, byteText(m.Memory), m.Kernel, m.Load)
}

func (r *results) describe(i *image) {
	r.Images = append(r.Images, &imageFacts{Name: i.name, Files: i.files, Bytes: i.bytes, Small: i.smallFiles, Packed: i.packed})
}

func (r *results) add(s sample, row string, seconds float64, u usage) {
	s.Row, s.Seconds, s.CPU, s.Requests, s.Bytes = row, seconds, math.Max(u.cpu, 0), u.requests, u.bytes
	r.Samples = append(r.Samples, s)
}

func (r *results) remember(s sample, after string, anonymous int64) {
	if s.Link == "" {
		r.Memory = append(r.Memory, memorySample{s.Image, after, s.State, s.Contestant, s.Round, anonymous})
	}
}

// save writes the files that the options name.
func (r *results) save(o options) error {
	if o.md != "" {
		var text bytes.Buffer
		r.markdown(&text)
		if err := savePage(o.md, text.Bytes(), o.block); err != nil {
			return err
		}
	}
	if o.json != "" {
		data, err := json.MarshalIndent(r, "", " ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.json, append(data, '\n'), 0o644); err != nil {
			return err
		}
	}
	if o.png != "" {
		data, err := r.png()
		if err != nil {
			return err
		}
		return os.WriteFile(o.png, data, 0o644)
	}
	return nil
}

// Between these lines a page holds figures that a run may replace.
func figuresLines(block string) (begin, end string) {
	return "<!-- " + block + " -->\n", "<!-- end of " + block + " -->\n"
}

// savePage writes a report into a page, as insertFigures does.
func savePage(path string, report []byte, block string) error {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, insertFigures(old, report, block), 0o644)
}

// insertFigures puts a report between the two lines of a page, or in the place of one without them.
func insertFigures(page, report []byte, block string) []byte {
	figuresBegin, figuresEnd := figuresLines(block)
	before, rest, begin := bytes.Cut(page, []byte(figuresBegin))
	_, after, end := bytes.Cut(rest, []byte(figuresEnd))
	if !begin || !end {
		return report
	}
	return slices.Concat(before, []byte(figuresBegin), []byte("\n"), report, []byte("\n"), []byte(figuresEnd), after)
}

// stats are the median, the extremes and the number of some values.
type stats struct {
	median, min, max float64
	n                int
}

func statsOf(values []float64) stats {
	if len(values) == 0 {
		return stats{median: math.NaN(), min: math.NaN(), max: math.NaN()}
	}
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return stats{(v[(n-1)/2] + v[n/2]) / 2, v[0], v[n-1], n}
}

// pick returns one figure of all samples that fit; an empty contestant fits all.
func (r *results) pick(image, link, row string, st state, contestant string, value func(sample) float64) stats {
	var values []float64
	for _, s := range r.Samples {
		if s.Image == image && s.Link == link && s.Row == row && s.State == st && s.Contestant == contestant {
			values = append(values, value(s))
		}
	}
	return statsOf(values)
}

func seconds(s sample) float64  { return s.Seconds }
func cpu(s sample) float64      { return s.CPU }
func requests(s sample) float64 { return float64(s.Requests) }
func received(s sample) float64 { return float64(s.Bytes) }

// rowKey is a row of a table.
type rowKey struct {
	row   string
	state state
}

// tables returns the pairs of image and link in the order in which they were measured.
func (r *results) tables() (all [][2]string) {
	for _, s := range r.Samples {
		if key := [2]string{s.Image, s.Link}; s.State != "" && !slices.Contains(all, key) {
			all = append(all, key)
		}
	}
	return all
}

// rows returns a table's rows in the order of their works and states, and its contestants.
func (r *results) rows(image, link string) (rows []rowKey, contestants []string) {
	var names []string
	for _, s := range r.Samples {
		if s.Image != image || s.Link != link || s.State == "" {
			continue
		}
		if !slices.Contains(names, s.Row) {
			names = append(names, s.Row)
		}
		if key := (rowKey{s.Row, s.State}); !slices.Contains(rows, key) {
			rows = append(rows, key)
		}
		if !slices.Contains(contestants, s.Contestant) {
			contestants = append(contestants, s.Contestant)
		}
	}
	order := func(k rowKey) int {
		return slices.Index(names, k.row)*len(everyState) + slices.Index(everyState, k.state)
	}
	slices.SortFunc(rows, func(a, b rowKey) int { return order(a) - order(b) })
	slices.SortFunc(contestants, func(a, b string) int {
		return slices.Index(contestantNames, a) - slices.Index(contestantNames, b)
	})
	return rows, contestants
}

// markdown writes the report.
func (r *results) markdown(w io.Writer) {
	r.Machine.markdown(w)
	fmt.Fprintf(w, "; %d rounds.\n", r.Rounds)
	fmt.Fprint(w, "\nSeconds: median (minimum–maximum). Requests and MB: what the node fetched. CPU: seconds of the server's processes.\nWhat takes more than 8 s is measured twice, more than 30 s once: a single figure has no spread.\n")
	for _, t := range r.tables() {
		r.table(w, t[0], t[1])
	}
	r.memoryTable(w)
	r.publishTable(w)
	r.targetTable(w)
}

func (r *results) table(w io.Writer, image, link string) {
	rows, contestants := r.rows(image, link)
	title := image
	for _, i := range r.Images {
		if i.Name == image {
			title = fmt.Sprintf("%s: %d files, %s (%s as shipped)", image, i.Files, byteText(i.Bytes), byteText(i.Packed))
		}
	}
	if link != "" {
		title += ", servers " + link + " away"
	}
	fmt.Fprintf(w, "\n### %s\n\n| | state | %s |", title, strings.Join(contestants, " | "))
	ours := slices.Contains(contestants, "skimfs")
	limited := ours && slices.Contains(contestants, "limit")
	if limited {
		fmt.Fprint(w, " ÷ limit |")
	}
	if ours {
		fmt.Fprint(w, " requests | MB | CPU |")
	}
	if limited {
		fmt.Fprint(w, " limit's CPU |")
	}
	fmt.Fprint(w, "\n|---|---|", strings.Repeat("--:|", len(contestants)))
	if ours {
		fmt.Fprint(w, strings.Repeat("--:|", 3))
	}
	if limited {
		fmt.Fprint(w, "--:|--:|")
	}
	fmt.Fprintln(w)
	for _, k := range rows {
		fmt.Fprintf(w, "| %s | %s |", k.row, k.state)
		for _, c := range contestants {
			fmt.Fprintf(w, " %s |", secondsText(r.pick(image, link, k.row, k.state, c, seconds)))
		}
		if ours {
			if limited {
				us, limit := r.pick(image, link, k.row, k.state, "skimfs", seconds), r.pick(image, link, k.row, k.state, "limit", seconds)
				fmt.Fprintf(w, " %s |", numberText("%.2f", us.median/limit.median))
			}
			if k.row == readyRow { // what was used is only known at the end
				fmt.Fprintln(w, " | | |")
				continue
			}
			fmt.Fprintf(w, " %s |", numberText("%.0f", r.pick(image, link, k.row, k.state, "skimfs", requests).median))
			fmt.Fprintf(w, " %s |", numberText("%.1f", r.pick(image, link, k.row, k.state, "skimfs", received).median/1e6))
			fmt.Fprintf(w, " %s |", numberText("%.2f", r.pick(image, link, k.row, k.state, "skimfs", cpu).median))
			if limited {
				fmt.Fprintf(w, " %s |", numberText("%.2f", r.pick(image, link, k.row, k.state, "limit", cpu).median))
			}
		}
		fmt.Fprintln(w)
	}
}

// memoryTable lists what the servers held.
func (r *results) memoryTable(w io.Writer) {
	type key struct {
		image, after string
		state        state
		contestant   string
	}
	var keys []key
	values := map[key][]float64{}
	for _, m := range r.Memory {
		k := key{m.Image, m.After, m.State, m.Contestant}
		if values[k] == nil {
			keys = append(keys, k)
		}
		values[k] = append(values[k], float64(m.Anonymous))
	}
	if len(keys) == 0 {
		return
	}
	slices.SortStableFunc(keys, func(a, b key) int { return strings.Compare(a.contestant, b.contestant) })
	fmt.Fprint(w, "\n### Memory of the servers\n\nAnonymous resident memory after the work, MB: median (minimum–maximum).\n\n| | image | after | state | MB |\n|---|---|---|---|--:|\n")
	for _, k := range keys {
		s := statsOf(values[k])
		fmt.Fprintf(w, "| %s | %s | %s | %s | %.0f (%.0f–%.0f) |\n", k.contestant, k.image, k.after, k.state, s.median/1e6, s.min/1e6, s.max/1e6)
	}
}

// publishTable lists times of publishing and sizes.
func (r *results) publishTable(w io.Writer) {
	if !slices.ContainsFunc(r.Samples, func(s sample) bool { return s.State == "" }) {
		return
	}
	fmt.Fprint(w, "\n### Publishing\n\n| image | as shipped | repository | first | again | one file changed |\n|---|--:|--:|--:|--:|--:|\n")
	for _, i := range r.Images {
		size := "–"
		if i.Repository > 0 {
			size = byteText(i.Repository)
		}
		fmt.Fprintf(w, "| %s | %s | %s |", i.Name, byteText(i.Packed), size)
		for _, row := range publishRows {
			fmt.Fprintf(w, " %s |", secondsText(r.pick(i.Name, "", row, "", "skimfs", seconds)))
		}
		fmt.Fprintln(w)
	}
}

func secondsText(s stats) string {
	switch s.n {
	case 0:
		return ""
	case 1:
		return shortSeconds(s.median)
	}
	return fmt.Sprintf("**%s** (%s–%s)", shortSeconds(s.median), shortSeconds(s.min), shortSeconds(s.max))
}

func shortSeconds(v float64) string {
	switch {
	case v < 0.1:
		return strconv.FormatFloat(v, 'f', 4, 64)
	case v < 1:
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

func numberText(format string, v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return ""
	}
	return fmt.Sprintf(format, v)
}

func byteText(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%d kB", n/1000)
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func memTotal() int64 {
	kib, _ := strconv.ParseInt(strings.TrimSuffix(procField("/proc/meminfo", "MemTotal"), " kB"), 10, 64)
	return kib << 10
}

// procField returns the value of the first line "name: value".
func procField(path, name string) string {
	data, _ := os.ReadFile(path)
	for line := range bytes.Lines(data) {
		key, value, ok := strings.Cut(string(line), ":")
		if ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func loadNow() float64 {
	data, _ := os.ReadFile("/proc/loadavg")
	load, _ := strconv.ParseFloat(strings.SplitN(string(data), " ", 2)[0], 64)
	return load
}

func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
