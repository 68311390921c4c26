// Package netconfigtest is what the tests of all renderers share: the resolved
// networks that the tests of netconfig keep, and the comparison of the files
// made from them with golden ones.
package netconfigtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/netconfig"
)

// Configs are the resolved networks in ../testdata, by name. The test runs in
// the folder of a package right below netconfig.
func Configs(t testing.TB) map[string]netconfig.Config {
	t.Helper()
	paths, err := filepath.Glob("../testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]netconfig.Config{}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".json")
		if name == "config" { // the example's own file
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var config netconfig.Config
		if err := json.Unmarshal(data, &config); err != nil {
			t.Fatal(err)
		}
		out[name] = config
	}
	if len(out) < 15 {
		t.Fatalf("only %d resolved networks in ../testdata", len(out))
	}
	return out
}

// Golden compares all files of each of the Configs with testdata/<name>.golden
// whole: those for resolv.conf, then those that systemd-resolved has instead.
// UPDATE_GOLDEN=1 writes testdata.
func Golden(t *testing.T, render func(netconfig.Config, netconfig.Resolver) []netconfig.File) {
	t.Helper()
	for name, config := range Configs(t) {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			first := map[string]string{}
			for _, file := range render(config, netconfig.ResolvConf) {
				fmt.Fprintf(&got, "==> %s %#o\n%s", file.Path, file.Mode, file.Data)
				first[file.Path] = string(file.Data)
			}
			for _, file := range render(config, netconfig.Resolved) {
				if first[file.Path] != string(file.Data) {
					fmt.Fprintf(&got, "==> with systemd-resolved: %s %#o\n%s", file.Path, file.Mode, file.Data)
				}
			}
			path := filepath.Join("testdata", name+".golden")
			if os.Getenv("UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("%s differs (-want +got):\n%s", path, diff)
			}
		})
	}
}

// Write writes files below a new temporary directory and returns it.
func Write(t testing.TB, files []netconfig.File) string {
	t.Helper()
	root := t.TempDir()
	for _, file := range files {
		path := filepath.Join(root, file.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, file.Data, os.FileMode(file.Mode)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}
