package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/storetest"
)

// TestStalls: a connection on which nothing moves is given up: before the answer, in
// the middle of a body, in the middle of an upload.
func TestStalls(t *testing.T) {
	release := make(chan struct{})
	f := newFake(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/bucket/chromadb/half":
			w.Header().Set("ETag", `"e"`)
			w.Header().Set("Last-Modified", "Mon, 23 Nov 2026 10:00:00 GMT")
			w.Header().Set("Content-Length", "100000")
			w.Write(make([]byte, 50_000))
			http.NewResponseController(w).Flush()
		case "/bucket/chromadb/upload":
			io.CopyN(io.Discard, r.Body, 1000)
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	t.Cleanup(func() { close(release) })
	s := f.store(func(o *Options) {
		o.Timeouts = Timeouts{Idle: 300 * time.Millisecond, Header: 200 * time.Millisecond}
	})
	patient := f.store(func(o *Options) {
		o.Timeouts = Timeouts{Idle: time.Minute, Header: 200 * time.Millisecond}
	})
	within(t, 20*time.Second, func() {
		for _, s := range []*Store{s, patient} {
			_, _, err := s.Get(t.Context(), "silent", objstore.GetOptions{})
			if objstore.KindOf(err) != objstore.ErrUnavailable {
				t.Errorf("no answer: %v", err)
			}
		}
		body, _, err := s.Get(t.Context(), "half", objstore.GetOptions{})
		if err != nil {
			t.Errorf("half: %v", err)
			return
		}
		defer body.Close()
		n, err := io.Copy(io.Discard, body)
		if n != 50_000 || objstore.KindOf(err) != objstore.ErrUnavailable {
			t.Errorf("a body that stalls: %d bytes, %v", n, err)
		}
		data := make([]byte, 32<<20) // more than the sockets' buffers hold
		_, err = s.Put(t.Context(), "upload", bytes.NewReader(data), int64(len(data)), objstore.PutOptions{})
		if objstore.KindOf(err) != objstore.ErrUnavailable {
			t.Errorf("an upload that stalls: %v", err)
		}
	})
}

// TestStallsAreRepeated: what was given up because nothing moved is asked again, and
// a body goes on where it stood.
func TestStallsAreRepeated(t *testing.T) {
	data := storetest.Bytes(1, 100_000)
	release := make(chan struct{})
	stall := func(r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}
	f := newFake(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			if n%2 == 0 {
				io.CopyN(io.Discard, r.Body, 1000)
				stall(r)
				return
			}
			io.Copy(io.Discard, r.Body)
			w.Header().Set("ETag", `"e"`)
			return
		}
		var from int
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
		if from > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
		}
		w.Header().Set("ETag", `"e"`)
		w.Header().Set("Last-Modified", "Mon, 23 Nov 2026 10:00:00 GMT")
		w.Header().Set("Content-Length", strconv.Itoa(len(data)-from))
		if from > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		if w.Write(data[from:min(from+40_000, len(data))]); from+40_000 < len(data) {
			http.NewResponseController(w).Flush()
			stall(r)
		}
	})
	t.Cleanup(func() { close(release) })
	s := repeating(f.store(func(o *Options) {
		o.Timeouts = Timeouts{Idle: 300 * time.Millisecond, Header: 200 * time.Millisecond}
	}))
	within(t, 20*time.Second, func() {
		big := make([]byte, 32<<20)
		if _, err := s.Put(t.Context(), "upload", bytes.NewReader(big), int64(len(big)), objstore.PutOptions{}); err != nil {
			t.Errorf("put: %v", err)
		}
		body, _, err := s.Get(t.Context(), "k", objstore.GetOptions{})
		if err != nil {
			t.Errorf("get: %v", err)
			return
		}
		defer body.Close()
		if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, data) {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
	})
}

// TestSlowIsNotStalled: a connection that moves, slowly, is not given up, in neither
// direction.
func TestSlowIsNotStalled(t *testing.T) {
	f := newFake(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"e"`)
		w.Header().Set("Last-Modified", "Mon, 23 Nov 2026 10:00:00 GMT")
		for err := error(nil); r.Method == http.MethodPut && err == nil; {
			_, err = io.CopyN(io.Discard, r.Body, 1<<20)
			<-time.After(50 * time.Millisecond)
		}
		if r.Method == http.MethodPut {
			return
		}
		w.Header().Set("Content-Length", "20")
		for range 20 {
			w.Write([]byte("x"))
			http.NewResponseController(w).Flush()
			<-time.After(50 * time.Millisecond)
		}
	})
	s := f.store(func(o *Options) { o.Timeouts.Idle = 700 * time.Millisecond })
	body, _, err := s.Get(t.Context(), "k", objstore.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || len(got) != 20 {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	data := make([]byte, 24<<20)
	if _, err := s.Put(t.Context(), "k", bytes.NewReader(data), int64(len(data)), objstore.PutOptions{}); err != nil {
		t.Errorf("a slow upload: %v", err)
	}
}

// TestDeadline: the end of the caller's own time is not the store's fault.
func TestDeadline(t *testing.T) {
	f := newFake(t, func(_ int, _ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s := f.store()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	within(t, 10*time.Second, func() {
		_, _, err := s.Get(ctx, "k", objstore.GetOptions{})
		if !errors.Is(err, context.DeadlineExceeded) || objstore.KindOf(err) != nil {
			t.Errorf("get: %v", err)
		}
	})
}
