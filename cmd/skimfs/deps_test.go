package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/skimfs/skimfs/"

// mayImport is the picture of the house: which of our packages a package may import, and why not more.
var mayImport = map[string]struct {
	packages []string
	reason   string
}{
	"index":            {nil, "the formats are pure: bytes in, values out"},
	"fetch":            {[]string{"index"}, "fetch knows what an object is, not who keeps or shows it"},
	"cachedb":          {[]string{"index"}, "the cache takes a fill function and knows no network"},
	"fusefs":           {[]string{"index", "fusefs/direct"}, "the filesystem declares the source of chunks it needs"},
	"fusefs/direct":    {nil, "it runs before other packages are initialised"},
	"publish":          {[]string{"index"}, "the publisher shares formats with the node, nothing else"},
	"publishd":         {[]string{"publish", "internal/peer"}, "the queue knows what a publish is and nothing of objects or nodes"},
	"mountd":           {[]string{"index", "fetch", "cachedb", "fusefs", "internal/peer"}, "mountd joins the three siblings"},
	"cmd/skimfs":       {[]string{"index", "fetch", "cachedb", "fusefs", "publish", "publishd", "mountd", "cmd/skimfs/early"}, "the command line may call everything"},
	"cmd/skimfs/early": {[]string{"fusefs/direct"}, "it runs before other packages are initialised"},
	"internal/e2e":     {nil, "tests only: they run the program"},
	"internal/peer":    {nil, "it asks the kernel"},
	"internal/testkit": {nil, "the test kit runs the real program and never links it"},
	"benchmarks":       {[]string{"index", "fetch", "cachedb", "fusefs", "publish", "publishd", "mountd", "internal/testkit"}, "benchmarks measure anything, and nothing imports them"},
	"benchmarks/soak":  {nil, "tests only: they drive a daemon by its client"},
}

// doors are modules from outside that only the named packages may import, so that each stays replaceable.
var doors = map[string][]string{
	"bazil.org/fuse":                         {"fusefs", "benchmarks"},
	"github.com/dgraph-io/badger":            {"cachedb", "benchmarks"},
	"github.com/hashicorp/golang-lru":        {"cachedb"},
	"github.com/google/go-containerregistry": {"publish", "internal/testkit"},
	"github.com/nats-io":                     {"publishd"},
	"gocloud.dev":                            {"publish"},
	"github.com/spf13/cobra":                 {"cmd/skimfs"},
	"github.com/vbauerster/mpb":              {"cmd/skimfs"},
	"golang.org/x/term":                      {"cmd/skimfs"},
}

type goPackage struct {
	ImportPath, Doc string
	Imports         []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Imports", module+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestImportsGoOneWay(t *testing.T) {
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		rule, known := mayImport[name]
		if !known {
			t.Errorf("package %s is not in the picture: say in mayImport what it may import, and why", name)
		}
		for _, imp := range p.Imports {
			if own, ok := strings.CutPrefix(imp, module); ok && !slices.Contains(rule.packages, own) {
				t.Errorf("%s imports %s: %s", name, own, rule.reason)
			}
			for door, who := range doors {
				if (imp == door || strings.HasPrefix(imp, door+"/")) && !slices.Contains(who, name) {
					t.Errorf("%s imports %s, whose door is %v", name, imp, who)
				}
			}
		}
	}
}

func TestEveryPackageHasAComment(t *testing.T) {
	for _, p := range listPackages(t) {
		if p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// TestEarlyPackagesImportLittle: whatever these packages import is initialised first, and with it all that then is ready.
func TestEarlyPackagesImportLittle(t *testing.T) {
	allowed := []string{"errors", "os", "syscall", module + "fusefs/direct"}
	for _, p := range listPackages(t) {
		if name := strings.TrimPrefix(p.ImportPath, module); name != "cmd/skimfs/early" && name != "fusefs/direct" {
			continue
		}
		for _, imp := range p.Imports {
			if !slices.Contains(allowed, imp) {
				t.Errorf("%s imports %s, which takes time at the start of each mount", p.ImportPath, imp)
			}
		}
	}
}
