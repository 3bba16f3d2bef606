package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"

	"github.com/minio/minio-go/v7"

	"github.com/chromafs/chromafs/internal/objstore"
)

// codeAnonymous is the error code of a refusal to someone without credentials.
const codeAnonymous = "ChromafsNoCredentials"

// callerError is an error of what a caller gave to store, not of the store.
type callerError struct{ err error }

func (e *callerError) Error() string { return e.err.Error() }
func (e *callerError) Unwrap() error { return e.err }

// fail makes an error of an operation one of objstore's.
func (s *Store) fail(ctx context.Context, op, key string, err error) error {
	if err == nil {
		return nil
	}
	e := &objstore.Error{Op: op, Store: s.String(), Key: key, Err: err}
	var caller *callerError
	switch ended := objstore.Ended(ctx); {
	case ended != nil:
		e.Err = ended
	case errors.As(err, &caller):
	default:
		e.Next, e.Kind = kindOf(err)
		var busy *busyError
		if errors.As(err, &busy) {
			e.Busy, e.RetryAfter = busy.slowDown, busy.retryAfter
		}
		if hasCode(err, minio.NoSuchUpload) {
			e.Err = fmt.Errorf("%w: %w", objstore.ErrNoUpload, err)
		}
	}
	return e
}

// byCode are the codes of S3 whose kind does not follow from the status of the
// answer, or that have a way out.
var byCode = map[string]struct {
	kind error
	next string
}{
	codeForeign:                    {objstore.ErrRefused, "this address is no object store, or not the one of this bucket: check --s3-endpoint and --store"},
	codeAnonymous:                  {objstore.ErrRefused, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or fill in ~/.aws/credentials"},
	"NoSuchKey":                    {objstore.ErrNotFound, ""},
	"NoSuchBucket":                 {objstore.ErrRefused, "check the bucket's name in --store, and --s3-endpoint; chromafs makes no buckets"},
	minio.NoSuchUpload:             {objstore.ErrUnavailable, ""},
	"PreconditionFailed":           {objstore.ErrPrecondition, ""},
	"ConditionalRequestConflict":   {objstore.ErrPrecondition, ""},
	"Conflict":                     {objstore.ErrPrecondition, ""}, // minio-go's name of a 409 without a body
	"OperationAborted":             {objstore.ErrUnavailable, ""},
	"InvalidRange":                 {objstore.ErrRange, ""},
	"BadDigest":                    {objstore.ErrDamaged, ""},
	"InvalidDigest":                {objstore.ErrDamaged, ""},
	"XAmzContentSHA256Mismatch":    {objstore.ErrDamaged, ""},
	"XAmzContentChecksumMismatch":  {objstore.ErrDamaged, ""},
	"IncompleteBody":               {objstore.ErrUnavailable, ""},
	"RequestTimeout":               {objstore.ErrUnavailable, ""},
	"InternalError":                {objstore.ErrUnavailable, ""},
	"SlowDown":                     {objstore.ErrUnavailable, ""},
	"NotImplemented":               {objstore.ErrUnsupported, ""},
	"MethodNotAllowed":             {objstore.ErrUnsupported, ""},
	"APINotSupported":              {objstore.ErrUnsupported, ""},
	codeSkewed:                     {objstore.ErrRefused, "set this machine's clock (timedatectl set-ntp true)"},
	"AccessDenied":                 {objstore.ErrRefused, "the key needs s3:GetObject, PutObject, DeleteObject, AbortMultipartUpload on the prefix, and ListBucket, ListBucketMultipartUploads on the bucket"},
	"InvalidAccessKeyId":           {objstore.ErrRefused, "the store does not know this access key: check AWS_ACCESS_KEY_ID, and that --s3-endpoint is the store that gave it"},
	"SignatureDoesNotMatch":        {objstore.ErrRefused, "check AWS_SECRET_ACCESS_KEY"},
	"ExpiredToken":                 {objstore.ErrRefused, "the session's credentials have expired: renew them"},
	"InvalidToken":                 {objstore.ErrRefused, "check AWS_SESSION_TOKEN"},
	"AuthorizationHeaderMalformed": {objstore.ErrRefused, "set --s3-region to the bucket's region"},
	"InvalidRegion":                {objstore.ErrRefused, "set --s3-region to the bucket's region"},
	"PermanentRedirect":            {objstore.ErrRefused, "set --s3-region, or --s3-endpoint, to that of the bucket"},
}

// kindOf returns what to do about an error, and its kind.
func kindOf(err error) (next string, kind error) {
	if kind := objstore.KindOf(err); kind != nil {
		return "", kind
	}
	var resp minio.ErrorResponse
	if errors.As(err, &resp) {
		if known, ok := byCode[resp.Code]; ok {
			return known.next, known.kind
		}
		if kind := kindOfStatus(resp.StatusCode); kind != objstore.ErrRefused {
			return "", kind
		}
		return "check --store, --s3-endpoint, and the credentials", objstore.ErrRefused
	}
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var verification *tls.CertificateVerificationError
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return "this server speaks plain HTTP: write http:// before --s3-endpoint", objstore.ErrRefused
	case errors.As(err, &authority), errors.As(err, &hostname), errors.As(err, &verification):
		return "the server's certificate is not trusted: check --s3-endpoint, or name the authority's file in SSL_CERT_FILE", objstore.ErrRefused
	}
	return "", objstore.ErrUnavailable
}

func kindOfStatus(status int) error {
	switch {
	case status == http.StatusNotModified:
		return objstore.ErrNotModified
	case status == http.StatusPreconditionFailed:
		return objstore.ErrPrecondition
	case status == http.StatusRequestedRangeNotSatisfiable:
		return objstore.ErrRange
	case status == http.StatusNotImplemented || status == http.StatusMethodNotAllowed:
		return objstore.ErrUnsupported
	case status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status == 499 || status >= 500:
		return objstore.ErrUnavailable
	}
	return objstore.ErrRefused
}

// hasCode reports whether err is the store's error with this code.
func hasCode(err error, code string) bool {
	var resp minio.ErrorResponse
	return errors.As(err, &resp) && resp.Code == code
}
