package s3

import (
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/storetest"
	"github.com/chromafs/chromafs/internal/testutil/faultproxy"
	"github.com/chromafs/chromafs/internal/testutil/versitygw"
)

// credentialsOf sets the environment to these credentials and no others.
func credentialsOf(t *testing.T, access, secret string) {
	t.Helper()
	for _, name := range []string{"MINIO_ROOT_USER", "MINIO_ACCESS_KEY", "AWS_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SESSION_TOKEN",
		"AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
		"AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_WEB_IDENTITY_TOKEN_FILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_ACCESS_KEY_ID", access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
}

func newStore(t *testing.T, o Options) *Store {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestConformance runs the suite on a real server: each test in a bucket of its own,
// beside objects of another prefix.
func TestConformance(t *testing.T) {
	server := versitygw.Start(t)
	credentialsOf(t, server.AccessKey, server.SecretKey)
	buckets := 0
	open := func(o Options) func(t *testing.T) objstore.Store {
		return func(t *testing.T) objstore.Store {
			buckets++
			o.Bucket = fmt.Sprintf("bucket-%d", buckets)
			server.CreateBucket(o.Bucket)
			for _, prefix := range []string{"chromadb-other", "another"} {
				beside := newStore(t, Options{Endpoint: server.Endpoint, Bucket: o.Bucket, Prefix: prefix})
				if _, err := beside.Put(t.Context(), "manifest.json", strings.NewReader("{}"), 2, objstore.PutOptions{}); err != nil {
					t.Fatal(err)
				}
				if _, err := beside.NewUpload(t.Context(), "pending"); err != nil {
					t.Fatal(err)
				}
			}
			return newStore(t, o)
		}
	}
	t.Run("http", func(t *testing.T) {
		storetest.Run(t, open(Options{Endpoint: server.Endpoint, Prefix: "chromadb"}))
	})
	t.Run("https, copies by parts", func(t *testing.T) {
		storetest.Run(t, open(Options{
			Endpoint: tlsProxy(t, server.Endpoint), Prefix: "deep/prefix", CopyLimit: 1000, CopyPart: storetest.MinPart,
		}))
	})
}

// tlsProxy puts TLS, with a certificate that SSL_CERT_FILE names, before a server.
func tlsProxy(t *testing.T, endpoint string) string {
	t.Helper()
	front := httptest.NewTLSServer(faultproxy.Start(t, endpoint))
	t.Cleanup(front.Close)
	trust(t, front)
	return strings.TrimPrefix(front.URL, "https://")
}

// trust makes the certificate of a test server a trusted one.
func trust(t *testing.T, server *httptest.Server) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", file)
}
