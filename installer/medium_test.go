package main

import (
	"context"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/progress"
)

func program(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// volume makes an ext4 volume with that label and the directory's files in
// it, and returns the name of its block device and the file below it.
func volume(t *testing.T, label, directory string) (disk, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "volume")
	program(t, "/usr/bin/truncate", "--size=16M", file)
	program(t, "/usr/sbin/mkfs.ext4", "-q", "-F", "-L", label, "-d", directory, file)
	device := program(t, "/usr/sbin/losetup", "--find", "--show", file)
	t.Cleanup(func() { program(t, "/usr/sbin/losetup", "--detach", device) })
	return path.Base(device), file
}

func withDisks(i *installation, disks ...string) {
	sys := fstest.MapFS{}
	for _, disk := range disks {
		sys["block/"+disk+"/device/model"] = &fstest.MapFile{}
	}
	i.env.sys, i.env.inMemory = sys, true
}

func TestConfigurationOnALabelledVolumeIsReadAndTheVolumeLeftAlone(t *testing.T) {
	directory := t.TempDir()
	for name, text := range map[string]string{fetch.ConfigJSON: `{"Machine":{"Hostname":"web1"}}`, fetch.ImageName: "debian/12\n"} {
		if err := os.WriteFile(filepath.Join(directory, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	labelled, file := volume(t, "FIRSTLIGHT", directory)
	other, _ := volume(t, "data", directory)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	i, log := testInstallation(t, "-tftpDirectory="+t.TempDir())
	withDisks(i, labelled, other)
	found, err := i.onBoard(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := i.configFromBoard(t.Context(), found); err != nil {
		t.Fatal(err)
	}
	if got := string(i.files[fetch.ImageName]); got != "debian/12\n" {
		t.Errorf("imagename: got %q", got)
	}
	if !strings.Contains(log.String(), "/dev/"+labelled) || strings.Contains(log.String(), "asking for a") {
		t.Errorf("the log does not name the volume, or a lease was asked for:\n%s", log)
	}
	if err := i.opened.close(); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("the volume has changed, or cannot be read: %v", err)
	}
}

func TestTwoLabelledVolumesAreRefused(t *testing.T) {
	first, _ := volume(t, "FIRSTLIGHT", t.TempDir())
	second, _ := volume(t, "FIRSTLIGHT", t.TempDir())
	i, _ := testInstallation(t, "-tftpDirectory="+t.TempDir())
	withDisks(i, first, second)
	_, err := i.onBoard(t.Context())
	if progress.Code(err) != "CFG-021" || !strings.Contains(err.Error(), first) || !strings.Contains(err.Error(), second) {
		t.Errorf("got %v, want CFG-021 with both volumes", err)
	}
}

func TestWithoutALabelledVolumeNothingIsOnBoard(t *testing.T) {
	other, _ := volume(t, "data", t.TempDir())
	i, _ := testInstallation(t, "-tftpDirectory="+t.TempDir())
	withDisks(i, other, "no-such-disk")
	directory, err := i.onBoard(context.Background())
	if err != nil || directory != "" {
		t.Errorf("got %q, %v", directory, err)
	}
}
