// Package early answers what the program is asked to do under the name of fusermount3 before the rest of it is initialised. It is
// imported for that alone. Go initialises a package as soon as all it imports is ready, so this one and what it imports must stay
// small: a test counts its imports.
package early

import (
	"os"

	"github.com/skimfs/skimfs/fusefs/direct"
)

func init() {
	if len(os.Args) > 0 && os.Args[0] == direct.HelperName && direct.Run(os.Args[1:]) {
		os.Exit(0)
	}
}
