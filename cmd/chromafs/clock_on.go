//go:build failpoints

package main

import (
	"os"
	"strings"
	"time"
)

// clock returns the time of day that everything in this process is given. In this
// build a test can step it: CHROMAFS_TEST_CLOCK names a file that holds how far
// the clock is off, such as "-48h", and is read at every call. Only the wall clock
// steps, as on a real machine, so the monotonic reading is dropped with it.
func clock(getenv func(string) string) func() time.Time {
	file := getenv("CHROMAFS_TEST_CLOCK")
	if file == "" {
		return time.Now
	}
	return func() time.Time {
		text, err := os.ReadFile(file)
		if err != nil {
			panic("CHROMAFS_TEST_CLOCK: " + err.Error())
		}
		offset, err := time.ParseDuration(strings.TrimSpace(string(text)))
		if err != nil {
			panic("CHROMAFS_TEST_CLOCK: " + err.Error())
		}
		return time.Now().Round(0).Add(offset)
	}
}

// leaseTimes returns how often a holder looks at the lease and how long a waiter waits
// for its answer; 0 is the default. In this build a test can shorten both:
// CHROMAFS_TEST_LEASE is "LOOK,ANSWER", such as "200ms,1s".
func leaseTimes(getenv func(string) string) (look, answer time.Duration) {
	text := getenv("CHROMAFS_TEST_LEASE")
	if text == "" {
		return 0, 0
	}
	for i, part := range strings.SplitN(text, ",", 2) {
		d, err := time.ParseDuration(part)
		if err != nil {
			panic("CHROMAFS_TEST_LEASE: " + err.Error())
		}
		if i == 0 {
			look = d
		} else {
			answer = d
		}
	}
	return look, answer
}
