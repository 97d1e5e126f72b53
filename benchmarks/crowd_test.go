package main

import (
	"archive/tar"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/skimfs/skimfs/internal/testkit"
)

// TestACrowdCostsTheOriginOneRequestAnObject: ten clients that start the same image at the same moment through one squid, each with an empty cache, have each object
// fetched from the origin exactly once.
func TestACrowdCostsTheOriginOneRequestAnObject(t *testing.T) {
	testkit.NeedRoot(t)
	const clients, files = 10, 40
	if err := inScope(context.Background(), func(s *scope) {
		layout := writeLayout(s, []func(*tar.Writer) error{func(w *tar.Writer) error {
			for f := range files {
				content := fmt.Sprint(f) + strings.Repeat("content\n", 1+f*f)
				if err := addFile(w, fmt.Sprint("f", f), int64(len(content)), strings.NewReader(content)); err != nil {
					return err
				}
			}
			return nil
		}})
		r := newRepository(s)
		r.publish(s, layout)
		row := newCrowd(s, r, nil).run(s, clients)
		if row.objects <= files || row.asked < clients*row.objects {
			t.Errorf("%d objects, asked for %d times: nothing is measured", row.objects, row.asked)
		}
		if row.origin != row.objects || row.most != 1 {
			t.Errorf("the origin had %d requests for %d objects, %d for one of them, want one for each", row.origin, row.objects, row.most)
		}
	}); err != nil {
		t.Fatal(err)
	}
}
