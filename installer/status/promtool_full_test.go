//go:build full

package status_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// promtool is Prometheus's own, which hack/setup unpacks for make test-full.
func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	program, err := exec.LookPath("promtool")
	if err != nil {
		program, err = filepath.Abs("../../build/prometheus/usr/bin/promtool")
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdin, cmd.Env = "../../docs/monitoring", strings.NewReader(stdin), append(os.Environ(), "TZ=UTC")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %q: %v\n%s", args, err, out)
	}
}

func TestPromtool(t *testing.T) {
	promtool(t, everyMetric(t), "check", "metrics")
	promtool(t, "", "check", "rules", "installer.rules.yml")
	promtool(t, "", "test", "rules", "installer.rules.test.yml")
}
