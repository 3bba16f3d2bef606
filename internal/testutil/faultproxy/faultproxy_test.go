package faultproxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// backend answers with what it was sent, twice, and counts what it carried out.
func backend(t *testing.T) (url string, done *atomic.Int64) {
	t.Helper()
	done = &atomic.Int64{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		done.Add(1)
		w.Write(bytes.Repeat(body, 2))
	}))
	t.Cleanup(s.Close)
	return s.URL, done
}

var sent = bytes.Repeat([]byte("chromafs"), 1000)

func put(client *http.Client, url string) (status int, body []byte, err error) {
	req, err := http.NewRequest(http.MethodPut, url+"/k", bytes.NewReader(sent))
	if err != nil {
		return 0, nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// Each fault is what its name says, hits the request that was chosen and no other, and
// the server has carried out what the package says.
func TestFaults(t *testing.T) {
	whole := bytes.Repeat(sent, 2)
	at := func(int) int { return 1000 }
	timedOut := func(err error) bool {
		var timeout interface{ Timeout() bool }
		return errors.As(err, &timeout) && timeout.Timeout()
	}
	wrong := func(body []byte) bool { return len(body) == len(whole) && !bytes.Equal(body, whole) }
	for name, c := range map[string]struct {
		fault   Fault
		effect  bool
		expects func(status int, body []byte, err error) bool
	}{
		"ResetRequest":   {ResetRequest, false, func(_ int, _ []byte, err error) bool { return errors.Is(err, syscall.ECONNRESET) }},
		"ResetAnswer":    {ResetAnswer, true, func(s int, b []byte, err error) bool { return s == 200 && err != nil && bytes.HasPrefix(whole, b) }},
		"LoseAnswer":     {LoseAnswer, true, func(s int, _ []byte, err error) bool { return s == 0 && err != nil }},
		"Stall":          {Stall, false, func(s int, _ []byte, err error) bool { return s == 0 && timedOut(err) }},
		"StallAnswer":    {StallAnswer, true, func(s int, b []byte, err error) bool { return s == 200 && len(b) == len(sent) && timedOut(err) }},
		"InternalError":  {InternalError, false, func(s int, b []byte, err error) bool { return s == 500 && bytes.Contains(b, []byte("InternalError")) }},
		"SlowDown":       {SlowDown, false, func(s int, b []byte, err error) bool { return s == 503 && bytes.Contains(b, []byte("SlowDown")) }},
		"ErrorInSuccess": {ErrorInSuccess, false, func(s int, b []byte, err error) bool { return s == 200 && bytes.Contains(b, []byte("<Error>")) }},
		"CutAnswer": {CutAnswer, true, func(s int, b []byte, err error) bool {
			return errors.Is(err, io.ErrUnexpectedEOF) && len(b) == len(sent)
		}},
		"ShortenAnswer": {ShortenAnswer, true, func(s int, b []byte, err error) bool { return err == nil && bytes.Equal(b, sent) }},
		"FlipAnswer": {FlipAnswer(at), true, func(s int, b []byte, err error) bool {
			return err == nil && wrong(b) && bytes.Equal(b[:125], whole[:125])
		}},
		"FlipRequest": {FlipRequest(at), true, func(s int, b []byte, err error) bool {
			return err == nil && wrong(b) && bytes.Equal(b[:len(sent)], b[len(sent):])
		}},
		"Drip": {Drip(5, 10*time.Millisecond), true, func(s int, b []byte, err error) bool { return err == nil && bytes.Equal(b, whole) }},
	} {
		t.Run(name, func(t *testing.T) {
			url, done := backend(t)
			p := Start(t, url)
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			p.Spoil(2, c.fault)
			for n := 1; n <= 3; n++ {
				before, timeout := done.Load(), 10*time.Second
				if n == 2 {
					timeout = time.Second // a stall lasts that long
				}
				status, body, err := put(&http.Client{Transport: transport, Timeout: timeout}, p.URL)
				switch effect := done.Load() > before; {
				case n != 2 && (err != nil || !bytes.Equal(body, whole)):
					t.Fatalf("request %d: %d, %d bytes, %v", n, status, len(body), err)
				case n == 2 && !c.expects(status, body, err):
					t.Errorf("%d, %d bytes, %v", status, len(body), err)
				case n == 2 && effect != c.effect:
					t.Errorf("carried out: %v", effect)
				}
			}
			if p.Spoiled() != 1 || len(p.Requests()) != 3 || p.Requests()[1].Size != int64(len(sent)) {
				t.Errorf("%d of %v were spoiled", p.Spoiled(), p.Requests())
			}
		})
	}
}

// While the proxy is down connections are refused, and the port stays its own.
func TestRefuse(t *testing.T) {
	url, done := backend(t)
	p := Start(t, url)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	p.Spoil(1, Refuse(time.Second))
	if _, _, err := put(client, p.URL); err == nil {
		t.Fatal("the request was answered")
	}
	if _, _, err := put(client, p.URL); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("while it is down: %v", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, body, err := put(client, p.URL)
		if err == nil && len(body) == 2*len(sent) && done.Load() == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(fmt.Errorf("it does not come back: %w", err))
		}
		time.Sleep(10 * time.Millisecond)
	}
}
