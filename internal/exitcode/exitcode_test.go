package exitcode

import (
	"errors"
	"fmt"
	"testing"
)

func TestCodeAndHintComeThroughWrapping(t *testing.T) {
	cause := errors.New("cause")
	err := fmt.Errorf("outer: %w", New(NoSpace, cause, "make room"))
	if Of(err) != NoSpace || Hint(err) != "make room" || !errors.Is(err, cause) {
		t.Errorf("%d %q", Of(err), Hint(err))
	}
	if Of(nil) != Done || Of(cause) != Failed || Hint(cause) != "" {
		t.Error("plain errors")
	}
}
