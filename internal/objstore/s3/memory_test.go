package s3

import (
	"testing"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/storetest"
	"github.com/chromafs/chromafs/internal/testutil/fakes3"
)

// onFake returns a store on a server in memory.
func onFake(t *testing.T, server *fakes3.Server, change ...func(*Options)) *Store {
	t.Helper()
	credentialsOf(t, "TESTACCESSKEY", "TESTSECRETKEY")
	o := Options{Endpoint: server.URL, Bucket: fakes3.Bucket, Prefix: "chromadb", Region: "us-east-1"}
	for _, c := range change {
		c(&o)
	}
	return newStore(t, o)
}

// TestConformanceInMemory shows that the server in memory is a store like others, so
// that tests against its switches mean something.
func TestConformanceInMemory(t *testing.T) {
	storetest.Run(t, func(t *testing.T) objstore.Store {
		return onFake(t, fakes3.New(t, fakes3.Options{Page: 500, EqualParts: true}))
	})
}
