package main

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/mountd"
)

func TestParseOptions(t *testing.T) {
	id := func(n uint32) *uint32 { return &n }
	for _, row := range []struct {
		name  string
		lists []string
		want  mountOptions
	}{
		{"none", nil, mountOptions{}},
		{"several in a list and several lists", []string{"ro,uid=0,gid=7", "allow_other"},
			mountOptions{Options: mountd.Options{UID: id(0), GID: id(7), AllowOther: true}}},
		{"following the client", []string{"follow_client"}, mountOptions{Options: mountd.Options{FollowClient: true}}},
		{"a proxy list keeps its signs", []string{"proxy=http://a:3128|http://b;DIRECT"}, mountOptions{Options: mountd.Options{Proxy: "http://a:3128|http://b;DIRECT"}}},
		{"servers are separated by semicolons", []string{"server=http://a; http://b/x;"}, mountOptions{Options: mountd.Options{Servers: []string{"http://a", "http://b/x"}}}},
		{"a comma in a value is written with a backslash", []string{`cache=/a\,b`}, mountOptions{cache: "/a,b"}},
		{"sizes and times", []string{"quota=20G,deadline=5,timeout=1500ms,timeout_direct=2m"},
			mountOptions{quota: 20e9, Options: mountd.Options{Deadline: 5 * time.Second, Timeout: 1500 * time.Millisecond, Direct: 2 * time.Minute}}},
		{"empty items don't count", []string{",ro,, "}, mountOptions{}},
	} {
		if got, err := parseOptions(row.lists); err != nil || !reflect.DeepEqual(got, row.want) {
			t.Errorf("%s: %+v, %v, want %+v", row.name, got, err, row.want)
		}
	}
	for name, row := range map[string][2]string{
		"a near miss is suggested":         {"timout=5", `did you mean "timeout"?`},
		"a far one gets the list":          {"blubber", "there are pubkey, proxy, server"},
		"a hidden one isn't suggested":     {"idel=3", "there are pubkey"},
		"rw says why":                      {"rw", "can't be written to"},
		"one that is given twice":          {"uid=1,uid=2", "given twice"},
		"a value where there is none":      {"ro=yes", "takes no value"},
		"no value where one must be":       {"proxy=", "needs a value: proxy=LIST"},
		"a user's name":                    {"uid=root", "no number of a user"},
		"a number that is above all users": {"uid=4294967295", "no number of a user"},
		"a size without sense":             {"quota=-5", "no size"},
		"a negative time":                  {"deadline=-5s", "no time"},
		"a time of nothing":                {"deadline=0", "no time"},
	} {
		if got, err := parseOptions([]string{row[0]}); err == nil || !strings.Contains(err.Error(), row[1]) {
			t.Errorf("%s: %q gives %+v, %v, want %q", name, row[0], got, err, row[1])
		}
	}
}

func TestEachOptionIsInTheHelpWithItsDefault(t *testing.T) {
	help := optionsHelp()
	for _, o := range options {
		line := ""
		for l := range strings.SplitSeq(help, "\n") {
			if f := strings.Fields(l); len(f) > 0 && (f[0] == o.name || strings.HasPrefix(f[0], o.name+"=")) {
				line = l
			}
		}
		if (line == "") != o.hidden || !o.hidden && !strings.HasSuffix(line, "("+o.def+")") {
			t.Errorf("%s: %q", o.name, line)
		}
	}
}

func FuzzParseOptions(f *testing.F) {
	for _, s := range []string{"ro,uid=0", `cache=/a\,b`, "proxy=http://a|b;DIRECT,quota=1GB", "deadline=5,,=,\\"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, list string) {
		if strings.Contains(list, "pubkey") {
			return // reads files
		}
		o, err := parseOptions([]string{list})
		if err == nil && (o.quota < 0 || o.Deadline < 0 || o.idle < 0) {
			t.Errorf("%q gives %+v", list, o)
		}
	})
}
