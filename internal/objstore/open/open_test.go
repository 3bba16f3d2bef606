package open

import (
	"strings"
	"testing"

	"github.com/chromafs/chromafs/internal/exitcode"
)

func TestParseURL(t *testing.T) {
	for text, want := range map[string]Location{
		"s3://bucket":                {Scheme: "s3", Bucket: "bucket", Prefix: "chromadb"},
		"s3://bucket/":               {Scheme: "s3", Bucket: "bucket", Prefix: "chromadb"},
		"S3://bucket/p":              {Scheme: "s3", Bucket: "bucket", Prefix: "p"},
		"s3://bucket/a/b/":           {Scheme: "s3", Bucket: "bucket", Prefix: "a/b"},
		"s3://bucket/a%20b + c#d":    {Scheme: "s3", Bucket: "bucket", Prefix: "a%20b + c#d"},
		"file:///srv/backup":         {Scheme: "file", Dir: "/srv/backup"},
		"file:///srv/backup/":        {Scheme: "file", Dir: "/srv/backup"},
		"file:///srv/../mnt/b":       {Scheme: "file", Dir: "/mnt/b"},
		"file:///with space/100%25":  {Scheme: "file", Dir: "/with space/100%"},
		"file:///with%20space/ünï+c": {Scheme: "file", Dir: "/with space/ünï+c"},
	} {
		if got, err := ParseURL(text); err != nil || got != want {
			t.Errorf("ParseURL(%q) = %+v, %v; want %+v", text, got, err, want)
		}
	}
}

// Every refusal names the flag, says what to write, and is a wrong usage.
func TestParseURLRefuses(t *testing.T) {
	for text, hint := range map[string]string{
		"":                        "CHROMAFS_STORE",
		"/srv/backup":             "file:///srv/backup",
		"bucket":                  "s3://BUCKET/PREFIX",
		"file://backup":           "file:///",
		"file://":                 "file:///DIR",
		"file:///":                "file:///DIR",
		"file:///a?b":             "%3F",
		"file:///a#b":             "%23",
		"file:///100%":            "%25",
		"file:///a%00b":           "%25",
		"s3://":                   "s3://BUCKET/PREFIX",
		"s3:///prefix":            "s3://BUCKET/PREFIX",
		"s3://b/../x":             "chromadb",
		"s3://b/a//b":             "chromadb",
		"s3://b/p?region=x":       "--s3-region",
		"https://s3.example.com/": "--s3-endpoint",
		"gs://bucket/x":           "s3://BUCKET/PREFIX",
	} {
		_, err := ParseURL(text)
		if err == nil || exitcode.Of(err) != exitcode.Usage || !strings.Contains(err.Error(), "--store") ||
			!strings.Contains(exitcode.Hint(err), hint) {
			t.Errorf("ParseURL(%q): %v (exit code %d, hint %q), want a hint with %q", text, err, exitcode.Of(err), exitcode.Hint(err), hint)
		}
	}
	for _, text := range []string{
		"s3://key:topsecret@bucket/x", "s3://key:top/topsecret@bucket/x", "s3://key:topsecret/", "key:topsecret@bucket",
		"https://key:topsecret@host/bucket", "minio://key:topsecret@host/bucket", "file://key:topsecret@host/dir",
	} {
		_, err := ParseURL(text)
		if err == nil || exitcode.Of(err) != exitcode.Usage || strings.Contains(err.Error()+exitcode.Hint(err), "topsecret") {
			t.Errorf("credentials in a URL: %v", err)
		}
	}
}

func TestOpen(t *testing.T) {
	for text, name := range map[string]string{
		"file:///srv/with space": "file:///srv/with%20space",
		"s3://bucket":            "s3://bucket/chromadb",
		"s3://bucket/a/b/":       "s3://bucket/a/b",
	} {
		s, err := Open(text, Options{})
		if err != nil || s.String() != name {
			t.Errorf("Open(%q) = %v, %v; want %s", text, s, err, name)
		}
	}
	for _, o := range []Options{
		{Endpoint: "ftp://host"}, {Endpoint: "http://host/path"}, {Endpoint: "https://"}, {Endpoint: "host?x"}, {Endpoint: "http://a b"},
	} {
		_, err := Open("s3://bucket", o)
		if exitcode.Of(err) != exitcode.Usage || !strings.Contains(err.Error(), "--s3-endpoint") {
			t.Errorf("Open with %+v: %v", o, err)
		}
	}
	_, err := Open("s3://bucket", Options{Endpoint: "https://key:topsecret@host"})
	if err == nil || strings.Contains(err.Error(), "topsecret") {
		t.Errorf("credentials in an endpoint: %v", err)
	}
	if _, err := Open("s3://UPPER_case!", Options{}); exitcode.Of(err) != exitcode.Usage {
		t.Errorf("an impossible bucket: %v", err)
	}
}
