package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// job runs a script of packaging/ as a batch system runs it.
func (n *node) job(script, id string, env ...string) result {
	n.t.Helper()
	bin := filepath.Join(n.home, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Symlink(testkit.Build(n.t), filepath.Join(bin, "skimfs")); err != nil && !os.IsExist(err) {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.Command("../../packaging/" + script)
	// Slurm gives a prolog little more than this.
	cmd.Env = append([]string{"PATH=" + bin + ":/usr/bin:/bin", "SKIMFS_HOME=" + n.home, "SLURM_JOB_ID=" + id,
		"SKIMFS_JOB_MOUNTS=" + filepath.Join(n.home, "job-mounts")}, env...)
	return runCommand(ctx, n.t, cmd)
}

func TestSlurmJobsShareMountsUntilTheLastOneEnds(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := filepath.Join(n.home, "mnt", "jobs")
	other := n.target("other")
	writeTest(t, filepath.Join(n.home, "job-mounts"), "# for all jobs\n\n"+testName+" "+target+" server="+s.URL+"\n"+testName+"/"+testImage+" "+other+" server="+s.URL+"\n")
	n.ok("mount", testName+"/"+testImage, other, "-o", "server="+s.URL) // an administrator's, without a lease
	for _, id := range []string{"71", "72", "71"} {
		if r := n.job("slurm/prolog.sh", id); r.status != 0 {
			t.Fatalf("prolog of job %s: %d %s", id, r.status, r.stderr)
		}
	}
	leases := func(target string) (names []string) {
		for _, m := range n.status().Mounts {
			for _, l := range m.Leases {
				if m.Target == target {
					names = append(names, l.Name)
				}
			}
		}
		return names
	}
	if got := leases(target); !slices.Equal(got, []string{"slurm-71", "slurm-72"}) {
		t.Errorf("leases are %q", got)
	}
	if r := n.job("slurm/epilog.sh", "71"); r.status != 0 || !mounted(t, target) {
		t.Errorf("the first job's epilog: status %d, mounted %v", r.status, mounted(t, target))
	}
	if got := n.read(filepath.Join(target, testImage, "etc/motd")); got != "skim\n" {
		t.Errorf("the second job reads %q", got)
	}
	// Leases outlive a crash.
	n.kill(n.status().PID)
	if got := leases(target); !slices.Equal(got, []string{"slurm-72"}) {
		t.Errorf("after a crash the leases are %q", got)
	}
	if r := n.job("htcondor/condor-probe", ""); r.status != 0 || r.stdout != "HasSkimfs = true\nSkimfsRepositories = \""+testName+"\"\n" {
		t.Errorf("condor-probe: %d %q %s", r.status, r.stdout, r.stderr)
	}
	hold, err := os.Open(filepath.Join(target, "docker.io"))
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	for range 2 { // the second has nothing to do
		if r := n.job("slurm/epilog.sh", "72"); r.status != 0 {
			t.Errorf("the last job's epilog: %d %s", r.status, r.stderr)
		}
	}
	if mounted(t, target) || !mounted(t, other) {
		t.Errorf("after the last job the jobs' mount is there: %v, the administrator's: %v, want false and true", mounted(t, target), mounted(t, other))
	}
	if r := n.job("htcondor/condor-probe", ""); !strings.HasPrefix(r.stdout, "HasSkimfs = false\n") {
		t.Errorf("condor-probe: %q", r.stdout)
	}
	if r := n.job("slurm/prolog.sh", "73", "SKIMFS_REQUIRED=yes", "PATH=/usr/bin:/bin"); r.status != 1 {
		t.Errorf("a prolog that must mount and can't: status %d, want 1", r.status)
	}
	if r := n.job("slurm/prolog.sh", "73", "PATH=/usr/bin:/bin"); r.status != 0 {
		t.Errorf("a prolog that need not: status %d, want 0", r.status)
	}
}

func TestALeaseThatIsOverIsSwept(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := n.mount(s.image(), "--lease", "short", "--lease-time", "1s")
	stays := n.target("stays")
	n.ok("mount", s.image(), stays, "--lease", "long")
	n.ok("mount", s.image(), target, "--lease", "short", "--lease-time", "1s") // renewed
	until := n.status().Mounts[0].Leases[0].Expires
	n.await("the lease to be over", func() bool { return time.Now().After(until) })
	// The daemon looks once a minute, and at its start.
	n.kill(n.status().PID)
	n.await("the sweep", func() bool { n.status(); return !mounted(t, target) })
	if !mounted(t, stays) {
		t.Error("the lease that goes on is swept, too")
	}
	if r := n.run("mount", s.image(), n.target("bad"), "--lease", "a b"); r.status != exitMountUsage {
		t.Errorf("a lease with a space: status %d, want %d", r.status, exitMountUsage)
	}
	if got := n.ok("release", "--lease", "long"); got != "unmounted "+stays+"\n" || mounted(t, stays) {
		t.Errorf("release prints %q", got)
	}
}
