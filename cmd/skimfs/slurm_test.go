package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

const slurmConf = `ClusterName=test
SlurmctldHost=%[1]s(127.0.0.1)
SlurmctldPort=%[2]s
SlurmdPort=%[3]s
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation=%[4]s/state
SlurmdSpoolDir=%[4]s/spool
SlurmctldPidFile=%[4]s/slurmctld.pid
SlurmdPidFile=%[4]s/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/linear
MpiDefault=none
ReturnToService=2
NodeName=%[1]s NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=test Nodes=%[1]s Default=YES State=UP OverSubscribe=FORCE:4
Prolog=%[4]s/prolog
Epilog=%[4]s/epilog
PrologFlags=Alloc
`

// slurm starts a cluster of one node, this one, that runs our prolog and epilog for the home. It returns how to run a job in it.
func (n *node) slurm(jobMounts string) (srun func(script string) *exec.Cmd) {
	n.t.Helper()
	host, err := os.Hostname()
	if err != nil {
		n.t.Fatal(err)
	}
	host, _, _ = strings.Cut(host, ".")
	dir := filepath.Join(n.home, "slurm")
	for _, sub := range []string{"state", "spool", "bin"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := os.Symlink(testkit.Build(n.t), filepath.Join(dir, "bin", "skimfs")); err != nil {
		n.t.Fatal(err)
	}
	scripts, err := filepath.Abs("../../packaging/slurm")
	if err != nil {
		n.t.Fatal(err)
	}
	mounts := filepath.Join(dir, "job-mounts")
	writeTest(n.t, mounts, jobMounts)
	for _, name := range []string{"prolog", "epilog"} {
		path := filepath.Join(dir, name)
		writeTest(n.t, path, fmt.Sprintf("#!/bin/sh\nexport SKIMFS_HOME=%s SKIMFS_JOB_MOUNTS=%s PATH=%s/bin:/usr/bin:/bin\nexec %s/%s.sh\n", n.home, mounts, dir, scripts, name))
		if err := os.Chmod(path, 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	conf := filepath.Join(dir, "slurm.conf")
	_, controller, _ := net.SplitHostPort(freeAddress(n.t))
	_, daemon, _ := net.SplitHostPort(freeAddress(n.t))
	writeTest(n.t, conf, fmt.Sprintf(slurmConf, host, controller, daemon, dir))
	env := append(os.Environ(), "SLURM_CONF="+conf)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	for _, args := range [][]string{{"slurmctld", "-D", "-f", conf}, {"slurmd", "-D", "-f", conf, "-N", host}} {
		cmd := exec.Command(testkit.Program(n.t, args[0]), args[1:]...)
		cmd.Env, cmd.Stdout, cmd.Stderr = env, log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			n.t.Fatal(err)
		}
		n.t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() })
	}
	said := func() string { b, _ := os.ReadFile(log.Name()); return string(b) }
	n.await("slurm", func() bool {
		cmd := exec.Command(testkit.Program(n.t, "sinfo"), "-h", "-o", "%T")
		cmd.Env = env
		out, err := cmd.Output()
		return err == nil && string(out) == "idle\n"
	})
	n.t.Cleanup(func() {
		if n.t.Failed() {
			n.t.Log(said())
		}
	})
	return func(script string) *exec.Cmd {
		cmd := exec.Command(testkit.Program(n.t, "srun"), "sh", "-c", script)
		cmd.Env = env
		return cmd
	}
}

// TestSlurmMountsForJobs has Debian's slurmctld and slurmd run jobs: the first one's prolog mounts, the last one's epilog unmounts.
func TestSlurmMountsForJobs(t *testing.T) {
	t.Parallel()
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	target := filepath.Join(n.home, "mnt", "jobs")
	srun := n.slurm(testName + " " + target + " server=" + s.URL + "\n")
	end := filepath.Join(n.home, "end")
	read := "cat " + filepath.Join(target, testImage, "etc/motd")
	long, short := srun(read+"; while [ ! -e "+end+" ]; do sleep 0.1; done"), srun(read)
	var out strings.Builder
	long.Stdout, long.Stderr = &out, &out
	if err := long.Start(); err != nil {
		t.Fatal(err)
	}
	leases := func() (names []string) {
		for _, m := range n.status().Mounts {
			for _, l := range m.Leases {
				names = append(names, l.Name)
			}
		}
		return names
	}
	n.await("the first job's mount", func() bool { return slices.Equal(leases(), []string{"slurm-1"}) })
	if got, err := short.CombinedOutput(); err != nil || string(got) != "skim\n" {
		t.Errorf("the second job: %q, %v", got, err)
	}
	n.await("the second job's epilog", func() bool { return slices.Equal(leases(), []string{"slurm-1"}) })
	if !mounted(t, target) {
		t.Error("the mount went with the second job, the first one is still there")
	}
	writeTest(t, end, "")
	inTime(t, 30*time.Second, func() {
		if err := long.Wait(); err != nil || out.String() != "skim\n" {
			t.Errorf("the first job: %q, %v", out.String(), err)
		}
	})
	n.await("the last epilog", func() bool { return !mounted(t, target) })
}
