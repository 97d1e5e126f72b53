package publishd_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
	"github.com/skimfs/skimfs/publishd"
)

// tick is what the task manager of testdata says of a round of its loop.
type tick struct {
	Late, Took float64 // seconds
	Available  bool
	Submitted  []string
	Running    map[string]int // task → how often its state was updated
	Changes    []struct {
		WF     string `json:"wf_id"`
		Task   string `json:"task_id"`
		State  string
		Detail string
		Reason string
		Digest string
		Path   string
	}
}

// taskManager is one that has the driver for BEE, as a process of its own.
type taskManager struct {
	t       *testing.T
	in      io.WriteCloser
	ticks   *bufio.Scanner
	longest float64             // seconds that a tick was late or took
	states  map[string][]string // task → what it went through
	ready   map[string]int      // task → how often it was submitted
	path    map[string]string
	last    tick
}

const (
	tickLength = 50 * time.Millisecond
	tickLimit  = 1.0 // seconds; a tick that waits for a conversion takes the driver's whole budget of five
)

func startTaskManager(t *testing.T, socket string) *taskManager {
	t.Helper()
	cmd := exec.Command(testkit.Program(t, "python3"), filepath.Join("testdata", "taskmanager.py"), filepath.Join("..", "packaging", "bee"), socket, fmt.Sprint(tickLength.Seconds()))
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	m := &taskManager{t: t, in: in, ticks: bufio.NewScanner(out), states: map[string][]string{}, ready: map[string]int{}, path: map[string]string{}}
	m.ticks.Buffer(nil, 1<<20)
	return m
}

func (m *taskManager) say(format string, args ...any) {
	m.t.Helper()
	if _, err := fmt.Fprintf(m.in, format+"\n", args...); err != nil {
		m.t.Fatal(err)
	}
}

// until reads ticks until one satisfies cond.
func (m *taskManager) until(what string, cond func() bool) {
	m.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if !m.ticks.Scan() {
			m.t.Fatalf("waiting for %s: the task manager ended: %v", what, m.ticks.Err())
		}
		m.last = tick{}
		if err := json.Unmarshal(m.ticks.Bytes(), &m.last); err != nil {
			m.t.Fatalf("%v: %s", err, m.ticks.Bytes())
		}
		m.longest = max(m.longest, m.last.Late, m.last.Took)
		for _, c := range m.last.Changes {
			state := c.State
			if state == "BUILDING" {
				state, _, _ = strings.Cut(c.Detail, " ")
			}
			if s := m.states[c.Task]; len(s) == 0 || s[len(s)-1] != state {
				m.states[c.Task] = append(s, state)
			}
			if c.State == "READY" {
				m.path[c.Task] = c.Path
			}
		}
		for _, task := range m.last.Submitted {
			m.ready[task]++
		}
		if cond() {
			return
		}
	}
	m.t.Fatalf("waiting for %s: %+v", what, m.states)
}

func (m *taskManager) now(task string) string {
	if s := m.states[task]; len(s) > 0 {
		return s[len(s)-1]
	}
	return ""
}

// What BEE's issue 1154 asks for: while images are converted, one of them is held up, one can't be had and one is cancelled, and while
// the service dies and comes back, the loop goes on at its pace, and each task is submitted when its image is ready, once.
func TestATaskManagersLoopNeverWaitsForAConversion(t *testing.T) {
	t.Parallel()
	registry := testkit.StartRegistry(t)
	registry.Push(layout(t), "quick/image:1")
	other := testkit.Oddities(t, testkit.Gzip) // layers that were converted before are not asked for again
	registry.Push(other, "held/image:1")
	registry.Push(other, "held/other:1")
	g := newGate(t, registry.Addr)
	release := make(chan struct{})
	config := configOf(t, registry.Addr, "held/image", "1")
	g.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/held/") && strings.Contains(r.URL.Path, "/blobs/") && !strings.HasSuffix(r.URL.Path, config) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
		return false
	})
	s := newService(t, "--jobs", "3", "--backoff", "20ms")
	m := startTaskManager(t, s.socket())
	const each = 10 // tasks that want the same image
	for i := range each {
		m.say("want wf1 quick%d %s", i, g.ref("quick/image:1"))
		m.say("want wf2 held%d %s", i, g.ref("held/image:1"))
	}
	m.say("want wf1 missing %s", g.ref("quick/none:1"))
	m.say("want wf2 unwanted %s", g.ref("held/other:1"))
	m.say("want wf2 nonsense UPPER/x:1")

	m.until("the quick ones to be submitted, the held ones to be converted", func() bool {
		return len(m.ready) == each && m.now("held0") == "RUNNING" && m.now("unwanted") == "RUNNING" && m.now("missing") == "BUILD_FAIL"
	})
	for i := range each {
		if task := fmt.Sprintf("quick%d", i); m.now(task) != "READY" || m.last.Running[task] == 0 {
			t.Errorf("%s went through %q and was updated %d times", task, m.states[task], m.last.Running[task])
		}
	}
	updates := m.last.Running["quick0"]
	m.say("cancel wf2 unwanted")
	m.until("the cancel", func() bool { return m.now("unwanted") == "CANCELLED" })
	s.await("the cancelled conversion to end", func() bool {
		o, err := s.Find(t.Context(), g.ref("held/other:1"))
		return err == nil && o.Metadata.State == publishd.Cancelled
	})

	s.kill()
	away := 0
	m.until("ticks without the service", func() bool {
		if !m.last.Available {
			away++
		}
		return away == 5
	})
	s.start()
	m.until("the held ones to be converted again", func() bool { return m.last.Available && m.now("held0") == "RUNNING" })
	if len(m.ready) != each {
		t.Errorf("submitted before the image was there: %v", m.ready)
	}
	if got := m.last.Running["quick0"]; got <= updates+5 {
		t.Errorf("a task that runs was updated %d times, and %d before", got, updates)
	}
	close(release)
	m.until("the held ones to be submitted", func() bool {
		for _, task := range m.last.Submitted {
			if o, err := s.Find(t.Context(), g.ref("held/image:1")); err != nil || o.Metadata.State != publishd.Succeeded {
				t.Errorf("%s is submitted while its image is %s (%v)", task, o.Metadata.State, err)
			}
		}
		return len(m.ready) == 2*each
	})
	m.say("end")

	if m.longest > tickLimit {
		t.Errorf("a tick was late or took %.2f s, want at most %v", m.longest, tickLimit)
	}
	for task, n := range m.ready {
		if n != 1 {
			t.Errorf("%s was submitted %d times", task, n)
		}
	}
	for task, want := range map[string]string{
		"quick": `^(QUEUED )?(RUNNING )?READY$`, "held": `^(QUEUED )?RUNNING (QUEUED )?(RUNNING )?READY$`, "missing": `^(QUEUED )?(RUNNING )?BUILD_FAIL$`,
		"unwanted": `^(QUEUED )?RUNNING CANCELLED$`, "nonsense": `^BUILD_FAIL$`,
	} {
		for name, states := range m.states {
			if strings.HasPrefix(name, task) && !regexp.MustCompile(want).MatchString(strings.Join(states, " ")) {
				t.Errorf("%s went through %q, want %s", name, states, want)
			}
		}
	}
	if got, want := m.path["held0"], "/skimfs/"+g.ref("held/image:1")+".sqfs"; got != want {
		t.Errorf("nodes find the image at %q, want %q", got, want)
	}
}

// In a shell script, too, what needs the image begins when it is ready, and not at all if it can't be had.
func TestAShellScriptSubmitsItsJobWhenTheImageIsReady(t *testing.T) {
	t.Parallel()
	registry := testkit.StartRegistry(t)
	registry.Push(layout(t), "a/image:1")
	g := newGate(t, registry.Addr)
	s := newService(t, "--backoff", "20ms")
	bin := t.TempDir()
	// It notes whether the image was there when the job was handed in.
	write(t, filepath.Join(bin, "sbatch"), fmt.Sprintf("#!/bin/sh\n%s repo ls %s --keys %s >%s/\"$1\"\n", testkit.Build(t), s.repo, s.keys, bin))
	if err := os.Chmod(filepath.Join(bin, "sbatch"), 0o755); err != nil {
		t.Fatal(err)
	}
	script := func(name, job string) (status int) {
		cmd := exec.Command("sh", "-c", `"$0" submit "$1" >/dev/null && "$0" wait "$1" --timeout 60s >/dev/null && sbatch "$2"`, testkit.Build(t), g.ref(name), job)
		cmd.Env = append(os.Environ(), "SKIMFS_HOME="+s.home, "PATH="+bin+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); cmd.ProcessState == nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return cmd.ProcessState.ExitCode()
	}
	if status := script("a/image:1", "job.sh"); status != 0 {
		t.Errorf("status %d", status)
	}
	if b, err := os.ReadFile(filepath.Join(bin, "job.sh")); err != nil || !strings.Contains(string(b), g.ref("a/image:1")) {
		t.Errorf("when the job was handed in the repository had %q (%v)", b, err)
	}
	if status := script("a/none:1", "never.sh"); status != 1 {
		t.Errorf("without an image: status %d, want 1", status)
	}
	if _, err := os.Stat(filepath.Join(bin, "never.sh")); err == nil {
		t.Error("the job was handed in without its image")
	}
}
