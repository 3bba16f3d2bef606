package harness

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

//go:embed chroma.py
var chromaPy string

// Documents says how many documents each collection holds.
type Documents map[string]int

// ID returns the id of document i.
func ID(i int) string { return fmt.Sprintf("id-%07d", i) }

// Vector returns the embedding of document i, the same as chroma.py's.
func Vector(i int) []float64 {
	state, values := uint64(i), make([]float64, 16)
	for d := range values {
		state += 0x9E3779B97F4A7C15
		z := state
		z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
		z = (z ^ (z >> 27)) * 0x94D049BB133111EB
		values[d] = float64((z^(z>>31))>>40) / (1 << 24)
	}
	return values
}

func script(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "chroma.py")
	if err := os.WriteFile(file, []byte(chromaPy), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// AddArgs is the command line of Add.
func AddArgs(t testing.TB, path, collection string, first, count int) []string {
	t.Helper()
	return []string{Python(t), script(t), "add", path, collection, strconv.Itoa(first), strconv.Itoa(count)}
}

// Add adds documents first … first+count-1 with a PersistentClient on path.
func Add(t testing.TB, path, collection string, first, count int) {
	t.Helper()
	args := AddArgs(t, path, collection, first, count)
	r := run(t, nil, args[0], args[1:]...)
	if r.Code != 0 {
		t.Fatalf("add documents in %s: %s", path, r.Output())
	}
}

// Report is what a ChromaDB holds, by its own answers.
type Report struct {
	Integrity   string // of SQLite: "ok"
	Collections map[string]Found
}

// Found is what one collection holds.
type Found struct {
	Count     int      `json:"count"`      // as ChromaDB counts
	IDs       int      `json:"ids"`        // as it lists
	Gap       int      `json:"gap"`        // the first missing number below a present one, or -1
	Lost      []string `json:"lost"`       // some ids that their own vector does not find
	LostCount int      `json:"lost_count"` // how many
}

// Inspect opens the database at path with a PersistentClient.
func Inspect(t testing.TB, path string) Report {
	t.Helper()
	report, err := tryInspect(t, path)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// tryInspect is Inspect of a database that may be broken: then it returns what
// ChromaDB or SQLite said.
func tryInspect(t testing.TB, path string) (Report, error) {
	t.Helper()
	r := run(t, nil, Python(t), script(t), "verify", path)
	if r.Code != 0 {
		return Report{}, fmt.Errorf("open the database in %s: %s", path, r.Output())
	}
	lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
	var report Report
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &report); err != nil {
		t.Fatalf("%v in %s", err, r.Output())
	}
	return report, nil
}

// Verify fails the test unless the database at path holds exactly want.
func Verify(t testing.TB, path string, want Documents) {
	t.Helper()
	report := Inspect(t, path)
	report.whole(t, path)
	got := Documents{}
	for name, f := range report.Collections {
		got[name] = f.Count
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("%s holds %v documents, want %v", path, got, want)
	}
}

// VerifyAtLeast fails the test if the database at path lost anything of want; more
// is fine, as long as it is whole.
func VerifyAtLeast(t testing.TB, path string, want Documents) Report {
	t.Helper()
	report, err := checkAtLeast(t, path, want)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// CheckAtLeast is VerifyAtLeast of a database that may be broken: what it lacks is
// an error.
func CheckAtLeast(t testing.TB, path string, want Documents) error {
	t.Helper()
	_, err := checkAtLeast(t, path, want)
	return err
}

func checkAtLeast(t testing.TB, path string, want Documents) (Report, error) {
	t.Helper()
	report, err := tryInspect(t, path)
	if err == nil {
		err = report.broken(path)
	}
	for name, n := range want {
		if got := report.Collections[name].Count; err == nil && got < n {
			err = fmt.Errorf("%s: %s holds %d documents, %d were acknowledged", path, name, got, n)
		}
	}
	return report, err
}

func (r Report) whole(t testing.TB, path string) {
	t.Helper()
	if err := r.broken(path); err != nil {
		t.Fatal(err)
	}
}

func (r Report) broken(path string) error {
	if r.Integrity != "ok" {
		return fmt.Errorf("%s: SQLite says: %s", path, r.Integrity)
	}
	for name, f := range r.Collections {
		if f.Gap >= 0 || f.LostCount > 0 || f.IDs != f.Count {
			return fmt.Errorf("%s: collection %s is broken: %+v", path, name, f)
		}
	}
	return nil
}
