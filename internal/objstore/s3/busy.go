package s3

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// busyError is an answer that says: not now. It is an error already below minio-go,
// which would drop the header that says when.
type busyError struct {
	status, code, message string
	slowDown              bool // it gets too many requests
	retryAfter            time.Duration
}

// Error implements error.
func (e *busyError) Error() string {
	msg := "the store answered " + e.status
	if e.code != "" {
		msg += ", " + e.code
	}
	if e.message != "" {
		msg += fmt.Sprintf(": %q", e.message)
	}
	if e.retryAfter > 0 {
		msg += fmt.Sprintf("; it wants to be asked again in %v", e.retryAfter)
	}
	return msg
}

// passing reports whether a status says that the same request may succeed later.
func passing(status int) bool {
	return status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status == 499 ||
		status >= 500 && status != http.StatusNotImplemented
}

// busy makes an error of an answer whose status is passing. The message is free of
// secrets.
func (g *guard) busy(resp *http.Response, code, message string) *busyError {
	e := &busyError{status: resp.Status, code: code, message: message, retryAfter: g.retryAfter(resp.Header.Get("Retry-After"))}
	switch code {
	case "SlowDown", "RequestLimitExceeded", "TooManyRequests", "Throttling", "ThrottlingException", "RequestThrottled":
		e.slowDown = true
	}
	e.slowDown = e.slowDown || resp.StatusCode == http.StatusTooManyRequests
	return e
}

// maxRetryAfter bounds what a server can ask for.
const maxRetryAfter = time.Hour

// retryAfter reads the header of that name: seconds, or a date by the server's
// clock, which is taken for ours.
func (g *guard) retryAfter(text string) time.Duration {
	text = strings.TrimSpace(text)
	var d time.Duration
	if seconds, err := strconv.Atoi(text); err == nil {
		d = time.Duration(min(seconds, int(maxRetryAfter/time.Second))) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		d = at.Sub(g.now())
	}
	return min(max(d, 0), maxRetryAfter)
}
