//go:build !failpoints

package main

import "time"

// clock returns the time of day that everything in this process is given.
func clock(func(string) string) func() time.Time { return time.Now }
