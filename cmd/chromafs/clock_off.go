//go:build !failpoints

package main

import "time"

// clock returns the time of day that everything in this process is given.
func clock(func(string) string) func() time.Time { return time.Now }

// leaseTimes returns how often a holder looks at the lease and how long a waiter waits
// for its answer; 0 is the default.
func leaseTimes(func(string) string) (look, answer time.Duration) { return 0, 0 }
