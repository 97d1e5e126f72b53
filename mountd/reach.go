package mountd

import (
	"context"
	"errors"

	"github.com/skimfs/skimfs/index"
)

// reach loads the catalogs on the way to a directory.
func reach(ctx context.Context, t *index.Tree, number uint32, load index.CatalogLoader) error {
	for {
		_, err := t.At(number)
		var missing *index.Missing
		if !errors.As(err, &missing) {
			if err != nil && t.Root().IsNameTree() {
				return reachName(ctx, t, number, load)
			}
			return err
		}
		c, err := load(ctx, missing.Ref)
		if err != nil {
			return err
		}
		if err := missing.Attach(c); err != nil {
			return err
		}
	}
}

// reachName loads catalogs of a name tree, which say nothing of the numbers below them, until the number is among theirs.
func reachName(ctx context.Context, t *index.Tree, number uint32, load index.CatalogLoader) error {
	for {
		parts, err := t.Parts()
		if err != nil {
			return err
		}
		if len(parts) == 0 {
			_, err := t.At(number)
			return err
		}
		for _, missing := range parts {
			c, err := load(ctx, missing.Ref)
			if err != nil {
				return err
			}
			if err := missing.Attach(c); err != nil {
				return err
			}
			if _, err := t.At(number); err == nil {
				return nil
			}
		}
	}
}
