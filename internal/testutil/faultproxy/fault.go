package faultproxy

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"time"
)

// Fault is what happens to a request instead of passing it on.
type Fault func(x *Exchange)

// Exchange is a request and the connection that it came by.
type Exchange struct {
	W http.ResponseWriter
	R *http.Request
	p *Proxy
}

// Pass passes the request on, and its answer back.
func (x *Exchange) Pass() { x.p.forward.ServeHTTP(x.W, x.R) }

// Answer passes the request on and keeps the answer. It ends the handler where the
// server did not answer.
func (x *Exchange) Answer() *httptest.ResponseRecorder {
	answer := httptest.NewRecorder()
	x.p.forward.ServeHTTP(answer, x.R)
	if x.R.Method == http.MethodHead {
		return answer
	}
	answer.Header().Set("Content-Length", strconv.Itoa(answer.Body.Len()))
	return answer
}

// Reply sends an answer that was kept.
func (x *Exchange) Reply(a *httptest.ResponseRecorder) {
	maps.Copy(x.W.Header(), a.Header())
	x.W.WriteHeader(a.Code)
	_, _ = x.W.Write(a.Body.Bytes()) // the client may have gone
}

// Conn takes the client's connection over.
func (x *Exchange) Conn() net.Conn {
	conn, _, err := http.NewResponseController(x.W).Hijack()
	if err != nil {
		panic(err)
	}
	return conn
}

// Reset breaks the connection.
func (x *Exchange) Reset() { reset(x.Conn()) }

// S3Error answers as S3 does.
func (x *Exchange) S3Error(status int, code, message string) {
	x.W.Header().Set("Content-Type", "application/xml")
	x.W.WriteHeader(status)
	fmt.Fprintf(x.W, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>%s</Message><RequestId>1</RequestId></Error>`, code, message)
}

// send writes the head of an answer, as it is, and that much of its body.
func send(conn net.Conn, a *httptest.ResponseRecorder, body []byte) {
	// A client that has gone away meanwhile is what this is all about.
	_, _ = conn.Write(append(head(a), body...))
}

func head(a *httptest.ResponseRecorder) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", a.Code, http.StatusText(a.Code))
	if err := a.Header().Write(&b); err != nil {
		panic(err)
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// Refuse resets all connections and lets new ones be refused for some time, as a
// server does that is started again.
func Refuse(down time.Duration) Fault {
	return func(x *Exchange) {
		x.p.down.Add(1)
		x.p.goDown()
		time.AfterFunc(down, func() {
			defer x.p.down.Done()
			if err := x.p.listen(); err != nil {
				x.p.t.Errorf("faultproxy: listen again: %v", err)
			}
		})
		panic(http.ErrAbortHandler)
	}
}

// ResetRequest resets the connection in the middle of the request's body.
func ResetRequest(x *Exchange) {
	_, _ = io.CopyN(io.Discard, x.R.Body, max(x.R.ContentLength, 0)/2) // the client may have gone
	x.Reset()
}

// ResetAnswer resets it in the middle of the answer's.
func ResetAnswer(x *Exchange) {
	a := x.Answer()
	conn := x.Conn()
	send(conn, a, a.Body.Bytes()[:a.Body.Len()/2])
	reset(conn)
}

// LoseAnswer lets the request take effect and breaks the connection.
func LoseAnswer(x *Exchange) {
	x.Answer()
	x.Reset()
}

// Stall reads nothing and says nothing.
func Stall(x *Exchange) { x.p.hold(x.Conn()) }

// StallAnswer stops in the middle of the answer's body.
func StallAnswer(x *Exchange) {
	a := x.Answer()
	conn := x.Conn()
	send(conn, a, a.Body.Bytes()[:a.Body.Len()/2])
	x.p.hold(conn)
}

// InternalError is a 500.
func InternalError(x *Exchange) {
	x.S3Error(http.StatusInternalServerError, "InternalError", "We encountered an internal error. Please try again.")
}

// SlowDown is a 503 that asks for patience.
func SlowDown(x *Exchange) {
	x.W.Header().Set("Retry-After", "1")
	x.S3Error(http.StatusServiceUnavailable, "SlowDown", "Please reduce your request rate.")
}

// ErrorInSuccess is a 200 that says in its body that nothing was done, and is right.
func ErrorInSuccess(x *Exchange) {
	_, _ = io.Copy(io.Discard, x.R.Body) // the client may have gone
	x.S3Error(http.StatusOK, "InternalError", "We encountered an internal error. Please try again.")
}

// CutAnswer ends the answer after half of the body that its head promises.
func CutAnswer(x *Exchange) {
	a := x.Answer()
	conn := x.Conn()
	send(conn, a, a.Body.Bytes()[:a.Body.Len()/2])
	conn.Close()
}

// ShortenAnswer does so with a head that promises no more.
func ShortenAnswer(x *Exchange) {
	a := x.Answer()
	conn := x.Conn()
	body := a.Body.Bytes()[:a.Body.Len()/2]
	a.Header().Set("Content-Length", strconv.Itoa(len(body)))
	a.Header().Set("Connection", "close")
	send(conn, a, body)
	conn.Close()
}

// FlipAnswer changes one bit of the answer's body, which at chooses among n.
func FlipAnswer(at func(n int) int) Fault {
	return func(x *Exchange) {
		a := x.Answer()
		conn := x.Conn()
		flip(a.Body.Bytes(), at)
		a.Header().Set("Connection", "close")
		send(conn, a, a.Body.Bytes())
		conn.Close()
	}
}

// FlipRequest does so with the request's body on its way to the server.
func FlipRequest(at func(n int) int) Fault {
	return func(x *Exchange) {
		body, err := io.ReadAll(x.R.Body)
		if err != nil {
			x.Reset()
			return
		}
		flip(body, at)
		x.R.Body = io.NopCloser(bytes.NewReader(body))
		x.Pass()
	}
}

func flip(b []byte, at func(n int) int) {
	if len(b) > 0 {
		i := at(8 * len(b))
		b[i/8] ^= 1 << (i % 8)
	}
}

// Drip sends the answer in pieces, with pauses between them.
func Drip(pieces int, pause time.Duration) Fault {
	return func(x *Exchange) {
		a := x.Answer()
		conn := x.Conn()
		defer conn.Close()
		a.Header().Set("Connection", "close")
		all := append(head(a), a.Body.Bytes()...)
		for i := range pieces {
			if i > 0 {
				<-time.After(pause)
			}
			if _, err := conn.Write(all[i*len(all)/pieces : (i+1)*len(all)/pieces]); err != nil {
				return // the client gave it up, and will say so
			}
		}
	}
}
