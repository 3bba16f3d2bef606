package s3

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7/pkg/encrypt"
)

// SSE says how the server is to encrypt what is stored. The zero value says nothing:
// then the bucket's own setting counts.
type SSE struct {
	kind  encrypt.Type
	keyID string // with KMS; "" is the account's default key
}

// ParseSSE reads "", "none", "s3", "kms" or "kms:KEY", or these as S3 itself calls
// them: "AES256", "aws:kms", "aws:kms:KEY".
func ParseSSE(text string) (SSE, error) {
	kind, keyID, hasKey := strings.Cut(strings.TrimPrefix(text, "aws:"), ":")
	switch {
	case text == "" || text == "none":
		return SSE{}, nil
	case text == "s3" || text == "AES256":
		return SSE{kind: encrypt.S3}, nil
	case kind == "kms" && (!hasKey || keyID != "") && !strings.ContainsFunc(keyID, func(r rune) bool { return r <= ' ' || r > '~' }):
		return SSE{kind: encrypt.KMS, keyID: keyID}, nil
	}
	return SSE{}, fmt.Errorf("%q is none of none, s3, kms and kms:KEY", text)
}

// header returns it as minio-go wants it; nil for the zero value.
func (e SSE) header() encrypt.ServerSide {
	switch e.kind {
	case encrypt.S3:
		return encrypt.NewSSE()
	case encrypt.KMS:
		kms, err := encrypt.NewSSEKMS(e.keyID, nil)
		if err != nil { // it fails for contexts only
			panic(err)
		}
		return kms
	}
	return nil
}

// add puts it among the headers of a copy, which takes the encryption of its source
// for nothing.
func (e SSE) add(headers map[string]string) {
	if sse := e.header(); sse != nil {
		h := http.Header{}
		sse.Marshal(h)
		for name := range h {
			headers[name] = h.Get(name)
		}
	}
}

// NotEncrypted returns an error where encryption is asked for, and the store did not say
// of the object that was read last that it is encrypted. Some take any header.
func (s *Store) NotEncrypted() error {
	if s.clear.Load() {
		return fmt.Errorf("what was stored with %s is not said to be encrypted when it is read: the store ignores what it was asked for", s.o.SSE.kind)
	}
	return nil
}

// ClockAhead returns how far the store's clock was ahead of this machine's when it
// answered last; known is false before that.
func (s *Store) ClockAhead() (ahead time.Duration, known bool) {
	if a := s.guard.ahead.Load(); a != nil {
		return *a, true
	}
	return 0, false
}
