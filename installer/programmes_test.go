package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/netconfig"
)

// programme writes a shell script that keeps its arguments in a file, and
// returns the paths of both.
func programme(t *testing.T, body string) (script, arguments string) {
	t.Helper()
	dir := t.TempDir()
	script, arguments = filepath.Join(dir, "programme"), filepath.Join(dir, "arguments")
	text := "#!/bin/sh\nfor a in \"$@\"; do echo \"$a\"; done >" + arguments + "\n" + body + "\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return script, arguments
}

func wantArguments(t *testing.T, file string, want ...string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Split(strings.TrimSpace(string(data)), "\n"); !slices.Equal(got, want) {
		t.Errorf("arguments: got %q, want %q", got, want)
	}
}

func testInstallation(t *testing.T, args ...string) (*installation, *strings.Builder) {
	t.Helper()
	opt, err := parseOptions(args, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	log := &strings.Builder{}
	return newInstallation(opt, progress.New(time.Now, progress.LineWriter(log)), t.TempDir()), log
}

func TestDriveSelectorChoosesAmongTheDisksItIsGiven(t *testing.T) {
	script, arguments := programme(t, "echo choosing >&2; echo /dev/vdb; echo; echo /dev/vdb")
	i, log := testInstallation(t, "-driveSelector="+script)
	selected, err := i.selectDisks(t.Context(), []string{"/dev/vda", "/dev/vdb"})
	if err != nil || !slices.Equal(selected, []string{"/dev/vdb"}) {
		t.Fatalf("got %v, %v; want /dev/vdb once", selected, err)
	}
	wantArguments(t, arguments, "/dev/vda", "/dev/vdb")
	if !strings.Contains(log.String(), "choosing") {
		t.Errorf("its standard error is not in the log:\n%s", log)
	}
}

func TestDriveSelectorThatNamesAnotherDiskIsRefused(t *testing.T) {
	script, _ := programme(t, "echo /dev/sdz")
	i, _ := testInstallation(t, "-driveSelector="+script)
	if _, err := i.selectDisks(t.Context(), []string{"/dev/vda"}); progress.Code(err) != "STO-051" {
		t.Errorf("got %v, want STO-051", err)
	}
}

func TestDriveSelectorThatFailsChoosesNothing(t *testing.T) {
	script, _ := programme(t, "echo /dev/vda; echo no idea >&2; exit 3")
	i, _ := testInstallation(t, "-driveSelector="+script)
	selected, err := i.selectDisks(t.Context(), []string{"/dev/vda"})
	if err == nil || selected != nil || !strings.Contains(err.Error(), "no idea") {
		t.Errorf("got %v, %v; want an error with its last words", selected, err)
	}
}

func TestNetworkConfiguratorReplacesTheRenderer(t *testing.T) {
	script, arguments := programme(t, "")
	root := t.TempDir()
	i, _ := testInstallation(t, "-networkConfigurator="+script, "-mountPoint="+root, "-tmpRoot=/tools")
	i.configDir, i.nic = "/the/config", netconfig.NIC{Name: "eth3"}
	if err := i.writeNetwork(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantArguments(t, arguments, "/the/config", root, "eth3", "/tools")
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("the renderer wrote %v, %v as well", left, err)
	}
}

func TestCompletionNotifierIsToldDirectoryAndInterface(t *testing.T) {
	script, arguments := programme(t, "")
	i, _ := testInstallation(t, "-completionNotifier="+script)
	i.configDir, i.nic = "/the/config", netconfig.NIC{Name: "eth0"}
	if err := i.notifyCompletion(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantArguments(t, arguments, "/the/config", "eth0")
}
