//go:build race

package testkit

import "os"

const raceEnabled = true

// Every program under the race detector sleeps for a second when it ends, so that other threads may still be caught. Tests start programs by the
// hundred, and some measure what a program waits for: those they start don't sleep. (https://go.dev/doc/articles/race_detector, Options.)
func init() {
	if os.Getenv("GORACE") == "" {
		os.Setenv("GORACE", "atexit_sleep_ms=0")
	}
}
