package imageserverv1_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestGeneratedCodeIsCurrent regenerates every .proto of the repository and
// compares with what is checked in.
func TestGeneratedCodeIsCurrent(t *testing.T) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	generate := exec.CommandContext(t.Context(), filepath.Join(root, "hack", "generate"), out)
	if output, err := generate.CombinedOutput(); err != nil {
		t.Fatalf("hack/generate: %v\n%s", err, output)
	}
	compared := 0
	err = filepath.WalkDir(filepath.Join(out, "proto"), func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(out, path)
		if err != nil {
			return err
		}
		fresh, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		checkedIn, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return err
		}
		if !bytes.Equal(fresh, checkedIn) {
			t.Errorf("%s is stale; run make generate", name)
		}
		compared++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// Code that no .proto makes any more would not have been compared.
	checkedIn := 0
	err = filepath.WalkDir(filepath.Join(root, "proto"), func(path string, _ os.DirEntry, err error) error {
		if strings.HasSuffix(path, ".pb.go") {
			checkedIn++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if compared != checkedIn || compared < 2 {
		t.Errorf("%d files were generated, %d are checked in", compared, checkedIn)
	}
}
