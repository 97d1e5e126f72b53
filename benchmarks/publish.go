package main

// Rows of the publisher; they have no state.
const (
	publishFirst   = "publish first"
	publishAgain   = "publish again"
	publishChanged = "publish, one file changed"
)

var publishRows = []string{publishFirst, publishAgain, publishChanged}
