//go:build bench

package bench

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sync/errgroup"

	"github.com/chromafs/chromafs/internal/tree"
)

// How many requests chromafs has under way.
const (
	putParallel = 4
	getParallel = 8
)

// TestMain runs the raw limit instead of tests where the command line asks for it: as
// a process of its own, which is measured as those of the tools are.
func TestMain(m *testing.M) {
	if len(os.Args) != 6 || os.Args[1] != "raw" {
		os.Exit(m.Run())
	}
	if err := raw(context.Background(), os.Args[2], os.Args[3], os.Args[4], os.Args[5]); err != nil {
		fmt.Fprintln(os.Stderr, "raw limit:", err)
		os.Exit(1)
	}
}

// raw moves a folder's files to a bucket or back, in parts of chromafs's size and with
// as many requests at once, and does nothing else: nothing is hashed, compared or
// recorded. What it brings back is on disk when it ends.
func raw(ctx context.Context, action, endpoint, bucket, dir string) error {
	core, err := minio.NewCore(strings.TrimPrefix(endpoint, "http://"), &minio.Options{
		Creds: credentials.NewEnvAWS(), Region: os.Getenv("AWS_REGION"),
	})
	if err != nil {
		return err
	}
	r := rawStore{core, bucket, dir}
	if action == "put" {
		return r.put(ctx)
	}
	return r.get(ctx)
}

type rawStore struct {
	core        *minio.Core
	bucket, dir string
}

func (r rawStore) put(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(putParallel)
	err := filepath.WalkDir(r.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(r.dir, name)
		if err != nil {
			return err
		}
		f, err := os.Open(name) // open until the process ends
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err != nil {
			return err
		}
		return r.putFile(ctx, g, rel, f, info.Size())
	})
	return cmp.Or(g.Wait(), err)
}

func (r rawStore) putFile(ctx context.Context, g *errgroup.Group, key string, f io.ReaderAt, size int64) error {
	unhashed := minio.PutObjectOptions{DisableContentSha256: true}
	if size <= tree.MinPartSize {
		g.Go(func() error {
			_, err := r.core.PutObject(ctx, r.bucket, key, io.NewSectionReader(f, 0, size), size, "", "", unhashed)
			return err
		})
		return nil
	}
	id, err := r.core.NewMultipartUpload(ctx, r.bucket, key, minio.PutObjectOptions{})
	if err != nil {
		return err
	}
	parts := make([]minio.CompletePart, tree.PartCount(size, tree.MinPartSize))
	var left atomic.Int64
	left.Store(int64(len(parts)))
	for i := range parts {
		g.Go(func() error {
			off, length := tree.PartRange(size, tree.MinPartSize, i)
			part, err := r.core.PutObjectPart(ctx, r.bucket, key, id, i+1, io.NewSectionReader(f, off, length), length,
				minio.PutObjectPartOptions{DisableContentSha256: true})
			parts[i] = minio.CompletePart{PartNumber: i + 1, ETag: part.ETag}
			if err != nil || left.Add(-1) > 0 {
				return err
			}
			_, err = r.core.CompleteMultipartUpload(ctx, r.bucket, key, id, parts, minio.PutObjectOptions{})
			return err
		})
	}
	return nil
}

func (r rawStore) get(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(getParallel)
	folders := map[string]bool{r.dir: true}
	for o := range r.core.Client.ListObjects(ctx, r.bucket, minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			return o.Err
		}
		name := filepath.Join(r.dir, o.Key)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		folders[filepath.Dir(name)] = true
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		r.getFile(gctx, g, o.Key, f, o.Size)
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for folder := range folders {
		d, err := os.Open(folder)
		if err != nil {
			return err
		}
		if err := cmp.Or(d.Sync(), d.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (r rawStore) getFile(ctx context.Context, g *errgroup.Group, key string, f *os.File, size int64) {
	parts := tree.PartCount(size, tree.MinPartSize)
	if parts == 0 {
		g.Go(func() error { return cmp.Or(f.Sync(), f.Close()) })
	}
	var left atomic.Int64
	left.Store(int64(parts))
	for i := range parts {
		g.Go(func() error {
			off, length := tree.PartRange(size, tree.MinPartSize, i)
			var o minio.GetObjectOptions
			if err := o.SetRange(off, off+length-1); err != nil {
				return err
			}
			body, _, _, err := r.core.GetObject(ctx, r.bucket, key, o)
			if err != nil {
				return err
			}
			defer body.Close()
			n, err := io.CopyBuffer(io.NewOffsetWriter(f, off), onlyReader{body}, make([]byte, 256<<10))
			if err != nil || n != length {
				return fmt.Errorf("%s, part %d: %d of %d bytes: %w", key, i+1, n, length, err)
			}
			if left.Add(-1) > 0 {
				return nil
			}
			return cmp.Or(f.Sync(), f.Close())
		})
	}
}

// onlyReader hides all but Read, so that the buffer is used.
type onlyReader struct{ io.Reader }

// rawTool is the raw limit, as a tool: it can do no more than the first backup and
// the restore to an empty disk.
func rawTool(name string, direct bool) tool {
	self := func(action string) func(place bucketAt, dir string) []string {
		return func(b bucketAt, dir string) []string {
			return []string{os.Args[0], "raw", action, b.endpoint, b.name, dir}
		}
	}
	return tool{name: name, env: awsEnv, backup: self("put"), restore: self("get"), rows: []string{rowFirst, rowRestore}, direct: direct}
}

// does reports whether a tool takes part in a row.
func (t tool) does(row string) bool { return t.rows == nil || slices.Contains(t.rows, row) }
