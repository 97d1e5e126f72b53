package mountd_test

import (
	"strings"
	"testing"

	"github.com/skimfs/skimfs/mountd"
)

func TestParseSource(t *testing.T) {
	for _, row := range []struct {
		name, text string
		want       mountd.Source
	}{
		{"a URL is a whole repository", "http://host:8580/repo/", mountd.Source{URL: "http://host:8580/repo"}},
		{"the path follows the first hash as it is", "https://h#docker.io/a/b:1@linux-arm64#%41", mountd.Source{URL: "https://h", Path: "docker.io/a/b:1@linux-arm64#%41"}},
		{"slashes around a path don't count", "http://h#//a//b/./", mountd.Source{URL: "http://h", Path: "a/b"}},
		{"a name is a whole repository", "images.example.org", mountd.Source{Name: "images.example.org"}},
		{"the path follows a name's first slash", "images.example.org/docker.io/x:1", mountd.Source{Name: "images.example.org", Path: "docker.io/x:1"}},
	} {
		got, err := mountd.ParseSource(row.text)
		if err != nil || got != row.want {
			t.Errorf("%s: %q is %+v, %v, want %+v", row.name, row.text, got, err, row.want)
		}
	}
	for name, text := range map[string]string{
		"an empty one": "", "one label": "debian", "a path": "/srv/images", "upper case": "Images.Example.org", "another scheme": "ftp://h/x",
		"no host": "http:///x", "credentials": "http://user:secret@h/", "a query": "http://h/?x=1", "not a URL": "http://[::1",
	} {
		got, err := mountd.ParseSource(text)
		if err == nil || mountd.KindOf(err) != mountd.Usage {
			t.Errorf("%s: %q is %+v, %v, want a usage error", name, text, got, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error shows a password: %v", name, err)
		}
	}
}

func FuzzParseSource(f *testing.F) {
	for _, s := range []string{"http://h#a/b", "images.example.org/x", "://", "http://h:80/a#", "a.b/../..", "http://h/%zz#x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := mountd.ParseSource(text)
		if err != nil {
			return
		}
		again, err := mountd.ParseSource(s.String())
		if err != nil || again != s {
			t.Errorf("%q is %+v, which is written %q and read as %+v, %v", text, s, s.String(), again, err)
		}
	})
}

func TestFindHome(t *testing.T) {
	env := func(pairs ...string) func(string) string {
		return func(name string) string {
			for i := 0; i < len(pairs); i += 2 {
				if pairs[i] == name {
					return pairs[i+1]
				}
			}
			return ""
		}
	}
	for _, row := range []struct {
		name       string
		uid        int
		env        func(string) string
		cache, run string
		keys       string
		onDemand   bool
	}{
		{"root has the system's, whose daemon isn't started", 0, env(), "/var/cache/skimfs", "/run/skimfs", "/etc/skimfs/keys", false},
		{"SKIMFS_HOME holds everything, also for root", 0, env("SKIMFS_HOME", "/h/"), "/h/cache", "/h/run", "/h/etc/keys", true},
		{"a user has /var/tmp", 7, env("HOME", "/home/u"), "/var/tmp/skimfs-7/cache", "/var/tmp/skimfs-7/run", "/home/u/.config/skimfs/keys /etc/skimfs/keys", true},
		{"a user has $TMPDIR", 7, env("TMPDIR", "/local"), "/local/skimfs-7/cache", "/local/skimfs-7/run", "/etc/skimfs/keys", true},
		{"each batch job has its own", 7, env("TMPDIR", "/local", "SLURM_JOB_ID", "99"), "/local/skimfs-7-job-99/cache", "/local/skimfs-7-job-99/run", "/etc/skimfs/keys", true},
		{"a job's name can't leave the directory", 7, env("TMPDIR", "/l", "PBS_JOBID", "1.../../x"), "/l/skimfs-7-job-1_______x/cache", "/l/skimfs-7-job-1_______x/run", "/etc/skimfs/keys", true},
		{"a relative TMPDIR is none", 7, env("TMPDIR", "tmp"), "/var/tmp/skimfs-7/cache", "/var/tmp/skimfs-7/run", "/etc/skimfs/keys", true},
	} {
		h, err := mountd.FindHome(row.uid, row.env)
		if err != nil || h.Cache != row.cache || h.Run != row.run || strings.Join(h.Keys, " ") != row.keys || h.OnDemand != row.onDemand {
			t.Errorf("%s: %+v, %v", row.name, h, err)
		}
	}
	if h, err := mountd.FindHome(7, env("SKIMFS_HOME", "relative")); err == nil {
		t.Errorf("a relative SKIMFS_HOME is taken: %+v", h)
	}
}
