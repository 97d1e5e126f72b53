package main

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
)

// units copies the units, with the program where the test has it, and without man pages that nobody installed.
func units(t *testing.T) (dir string) {
	t.Helper()
	testkit.Program(t, "systemd-analyze")
	dir = t.TempDir()
	from := filepath.Join("..", "..", "packaging", "systemd")
	list, err := os.ReadDir(from)
	if err != nil || len(list) < 5 {
		t.Fatalf("%d units: %v", len(list), err)
	}
	for _, e := range list {
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		text := regexp.MustCompile(`(?m)^Documentation=.*\n`).ReplaceAllString(string(b), "")
		writeTest(t, filepath.Join(dir, e.Name()), strings.ReplaceAll(text, "/usr/bin/skimfs", testkit.Build(t)))
	}
	return dir
}

func TestSystemdFindsNothingWrongWithTheUnits(t *testing.T) {
	t.Parallel()
	dir := units(t)
	for _, unit := range []string{"skimfs-mountd.service", "skimfs-mountd.socket", "skimfs@opt-image.service", "skimfs-publishd.service", "skimfs.slice", "skimfs-convert.slice"} {
		cmd := exec.Command("systemd-analyze", "verify", "--man=no", filepath.Join(dir, unit))
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "skimfs") {
			t.Errorf("systemd-analyze verify %s: %v\n%s", unit, err, out)
		}
	}
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=50", filepath.Join(dir, "skimfs-mountd.service")).CombinedOutput()
	score := regexp.MustCompile(`Overall exposure level for skimfs-mountd.service: (\d\.\d)`).FindStringSubmatch(string(out))
	if err != nil || score == nil {
		t.Fatalf("systemd-analyze security: %v\n%s", err, out)
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "operate.md"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "exposure level " + score[1]; !strings.Contains(string(page), want) {
		t.Errorf("docs/operate.md doesn't say %q", want)
	}
}

// TestM03FstabLinesOfThePageBecomeUnits has systemd's generator read the lines that docs/operate.md gives.
func TestM03FstabLinesOfThePageBecomeUnits(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "operate.md"))
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile("(?m)^\\| by fstab, .*? \\| `([^`]*)`").FindAllStringSubmatch(string(page), -1)
	if len(lines) != 2 {
		t.Fatalf("%d lines for fstab", len(lines))
	}
	for i, want := range [][]string{{"skimfs-images.example.org.mount", "remote-fs.target.wants/skimfs-images.example.org.mount"}, {"skimfs-images.example.org.automount", "skimfs-images.example.org.mount"}} {
		dir := t.TempDir()
		fstab, options := filepath.Join(dir, "fstab"), strings.Fields(lines[i][1])[3]
		writeTest(t, fstab, lines[i][1]+"\n")
		cmd := exec.Command("/usr/lib/systemd/system-generators/systemd-fstab-generator", dir, dir, dir)
		cmd.Env = append(os.Environ(), "SYSTEMD_FSTAB="+fstab)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, name := range want {
			if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
				t.Error(err)
			}
		}
		unit, err := os.ReadFile(filepath.Join(dir, "skimfs-images.example.org.mount"))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"Type=skimfs\n", "Where=/skimfs/images.example.org\n", "After=skimfs-mountd.service\n", "Requires=skimfs-mountd.service\n"} {
			if !strings.Contains(string(unit), line) {
				t.Errorf("the unit of %q has no %q:\n%s", lines[i][1], line, unit)
			}
		}
		if _, err := parseFstab([]string{options}, false); err != nil {
			t.Errorf("%q: %v", options, err)
		}
	}
}

func TestTheSocketUnitListensWhereCommandsLook(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "packaging", "systemd", "skimfs-mountd.socket"))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("/var/cache/skimfs"))
	if want := "\nListenStream=/run/skimfs/mountd-" + hex.EncodeToString(sum[:6]) + ".sock\n"; !strings.Contains(string(b), want) {
		t.Errorf("the unit has no %q", want)
	}
}

func TestADaemonTakesTheSocketThatSystemdGives(t *testing.T) {
	t.Parallel()
	activate := testkit.Program(t, "systemd-socket-activate")
	w := published(t)
	s, n := serveWorld(t, w), newNode(t, w)
	run := filepath.Join(n.home, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	start := func(name string) *exec.Cmd {
		cmd := exec.Command(activate, "-l", filepath.Join(run, name), "-E", "SKIMFS_HOME="+n.home, testkit.Build(t), "mountd")
		cmd.Env = append(os.Environ(), "SKIMFS_HOME="+n.home)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n.await("the socket", func() bool { _, err := os.Stat(filepath.Join(run, name)); return err == nil })
		return cmd
	}
	sum := sha256.Sum256([]byte(filepath.Join(n.home, "cache")))
	cmd := start("mountd-" + hex.EncodeToString(sum[:6]) + ".sock")
	target := n.mount(s.image())
	if got := n.read(filepath.Join(target, "etc", "motd")); got != "skim\n" {
		t.Errorf("motd is %q", got)
	}
	st := n.status()
	if st.PID != cmd.Process.Pid || st.OnDemand {
		t.Errorf("pid %d, on demand %v: want the process that got the socket, %d", st.PID, st.OnDemand, cmd.Process.Pid)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
	if _, err := os.Stat(st.Socket); err != nil {
		t.Errorf("the given socket went with the daemon: %v", err)
	}
}
