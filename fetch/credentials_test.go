package fetch_test

import (
	"testing"

	"github.com/skimfs/skimfs/fetch"
)

func TestWithoutCredentials(t *testing.T) {
	for _, test := range []struct{ list, want string }{
		{"", ""},
		{"DIRECT", "DIRECT"},
		{"http://a:3128|http://b:3128;DIRECT", "http://a:3128|http://b:3128;DIRECT"},
		{"http://me:secret@a:3128|http://you:word@b:3128;DIRECT", "http://…@a:3128|http://…@b:3128;DIRECT"},
		{"me:secret@a:3128", "…@a:3128"},
		{"http://me:sec@ret@a/x", "http://…@a/x"},
	} {
		if got := fetch.WithoutCredentials(test.list); got != test.want {
			t.Errorf("%q is shown as %q, want %q", test.list, got, test.want)
		}
	}
}
