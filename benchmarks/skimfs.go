package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/skimfs/skimfs/internal/testkit"
)

// skimfs is the real program: a daemon in a home of its own, a real squid, a real nginx. Two squids
// serve: one that has everything already, one that is emptied before each cold row.
type skimfs struct {
	source string // of skimfs mount
	pubkey string
	empty  *testkit.Squid
	// Addresses of the two squids as the daemon sees them, over the link.
	emptyURL, fullURL string
	warm              *node // its cache has everything

	now   *node
	proxy string
}

// node is a daemon with its cache.
type node struct {
	home   string
	daemon *exec.Cmd
}

func newSkimfs(s *scope, i *image, r *repository, l link) *skimfs {
	origin := testkit.StartNginx(s, r.dir)
	// Room for a whole image, and for its large files' chunks.
	room := fmt.Sprintf("cache_mem %d MB", 256+min(2*i.packed, 2e9)>>20)
	full, empty := testkit.StartSquid(s, room), testkit.StartSquid(s, room)
	k := &skimfs{
		source: origin.URL + "#" + imageName, pubkey: filepath.Join(r.keys, repoName+".pub"),
		empty: empty, emptyURL: "http://" + l.to(s, empty.Addr), fullURL: "http://" + l.to(s, full.Addr),
	}
	k.warm = startNode(s)
	k.now, k.proxy = k.warm, full.URL
	s.within(func(s *scope) {
		root := k.mount(s)
		if i.warm != nil {
			i.warm(s, root)
		} else {
			cat(8)(s, i, root)
		}
	})
	return k
}

func (k *skimfs) name() string    { return "skimfs" }
func (k *skimfs) states() []state { return []state{cold, squid, cached} }

func (k *skimfs) enter(s *scope, st state) {
	switch st {
	case cold:
		k.empty.Stop()
		k.empty.Start()
		k.now, k.proxy = startNode(s), k.emptyURL
	case squid:
		k.now, k.proxy = startNode(s), k.fullURL
	default:
		k.now, k.proxy = k.warm, k.fullURL
	}
}

func (k *skimfs) mount(s *scope) string {
	target := filepath.Join(k.now.home, "mnt")
	output(s, k.now.command(s.ctx, "mount", k.source, target, "-o", "pubkey="+k.pubkey+",proxy="+k.proxy))
	n := k.now
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), 30*time.Second)
		defer cancel()
		if out, err := n.command(ctx, "umount", target).CombinedOutput(); err != nil {
			s.Errorf("skimfs umount: %v\n%s", err, out)
		}
	})
	return target
}

func (k *skimfs) usage(s *scope) usage {
	var status struct {
		PID   int
		Fetch struct{ Requests, Bytes int64 }
	}
	out := output(s, k.now.command(s.ctx, "status", "--json"))
	if err := json.Unmarshal(out, &status); err != nil || status.PID != k.now.daemon.Process.Pid {
		s.Fatalf("skimfs status --json: %v in %s", err, out)
	}
	return usage{cpuSeconds(s, status.PID), status.Fetch.Requests, status.Fetch.Bytes}
}

func (k *skimfs) pid() int { return k.now.daemon.Process.Pid }

func (k *skimfs) memory(s *scope) int64 { return anonymous(s, k.now.daemon.Process.Pid) }

// startNode starts a daemon with an empty cache and returns when it is ready.
func startNode(s *scope) *node {
	n := &node{home: testkit.Home(s)} // its end ends the daemon
	ready, report, err := os.Pipe()
	s.check(err)
	defer ready.Close()
	log, err := os.Create(filepath.Join(n.home, "log"))
	s.check(err)
	defer log.Close()
	n.daemon = exec.Command(testkit.Build(s), "mountd", "--ready-fd", "3")
	n.daemon.Env = append(os.Environ(), "SKIMFS_HOME="+n.home)
	n.daemon.Stderr, n.daemon.ExtraFiles = log, []*os.File{report}
	// In a group of its own: ^C is for us, who unmount first.
	n.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	err = n.daemon.Start()
	report.Close()
	s.check(err)
	go n.daemon.Wait()
	if line, err := bufio.NewReader(ready).ReadString('\n'); err != nil || line != "{}\n" {
		said, _ := os.ReadFile(log.Name())
		s.check(fmt.Errorf("skimfs mountd is not ready: %q, %w\n%s", line, err, said))
	}
	return n
}

// command prepares a skimfs command on this node.
func (n *node) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, n.daemon.Path, args...)
	cmd.Env = n.daemon.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd
}
