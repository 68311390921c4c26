package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/offline"
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

// TestVolumeWithAnOpenJournalIsLeftAlone: no disk is written to before the
// commit, and mounting for reading alone would replay a journal.
func TestVolumeWithAnOpenJournalIsLeftAlone(t *testing.T) {
	directory := t.TempDir()
	if err := os.WriteFile(filepath.Join(directory, fetch.ConfigJSON), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	labelled, file := volume(t, "FIRSTLIGHT", directory)
	program(t, "/usr/sbin/debugfs", "-w", "-R", "feature needs_recovery", "/dev/"+labelled)
	program(t, "/usr/bin/sync", "/dev/"+labelled)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	i, _ := testInstallation(t, "-tftpDirectory="+t.TempDir())
	withDisks(i, labelled)
	if found, err := i.onBoard(t.Context()); err != nil || found == "" {
		t.Errorf("%q, %v", found, err)
	}
	if err := i.opened.close(); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("the volume has changed, or cannot be read: %v", err)
	}
}

func TestTwoLabelledVolumesAreRefused(t *testing.T) {
	directory := t.TempDir()
	if err := os.WriteFile(filepath.Join(directory, fetch.ConfigJSON), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	first, _ := volume(t, "FIRSTLIGHT", directory)
	second, _ := volume(t, "FIRSTLIGHT", directory)
	i, _ := testInstallation(t, "-tftpDirectory="+t.TempDir())
	withDisks(i, first, second)
	_, err := i.onBoard(t.Context())
	if progress.Code(err) != "CFG-021" || !strings.Contains(err.Error(), first) || !strings.Contains(err.Error(), second) {
		t.Errorf("got %v, want CFG-021 with both volumes", err)
	}
	if err := i.opened.close(); err != nil {
		t.Error(err)
	}
}

// TestImageOnAVolume: an image that a volume carries is found by its name, and
// its objects are there; what is damaged is refused.
func TestImageOnAVolume(t *testing.T) {
	content := []byte("the content of a file, long enough to be an object")
	manifest := &image.Manifest{Attributes: map[string]string{image.AttrArch: "amd64"}, Entries: []image.Entry{
		{Path: ".", Type: image.Dir, Mode: 0o755},
		{Path: "file", Type: image.File, Mode: 0o644, Size: uint64(len(content)), Digest: object.Of(content)},
	}}
	raw, err := image.Encode(manifest)
	if err != nil {
		t.Fatal(err)
	}
	list, err := offline.List{Images: []offline.Image{{Name: "debian/12/1", Digest: object.Of(raw), Manifest: "m"}}, Packs: []string{"p"}}.JSON()
	if err != nil {
		t.Fatal(err)
	}
	good, bad, config := t.TempDir(), t.TempDir(), t.TempDir()
	for name, data := range map[string][]byte{
		filepath.Join(good, offline.ListName): list, filepath.Join(good, "m"): raw,
		filepath.Join(bad, offline.ListName): list, filepath.Join(bad, "m"): append(raw[:len(raw):len(raw)], 0), filepath.Join(bad, "p"): nil,
		filepath.Join(config, fetch.ConfigJSON): []byte("{}"),
	} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.Create(filepath.Join(good, "p"))
	if err != nil {
		t.Fatal(err)
	}
	writer, err := pack.NewWriter(file, pack.Options{})
	if err == nil {
		_, err = writer.AppendUnpacked(object.Of(content), content)
	}
	if err == nil {
		_, err = writer.Finish()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}

	images, _ := volume(t, "FIRSTLIGHT", good)
	files, _ := volume(t, "FIRSTLIGHT", config)
	i, _ := testInstallation(t, "-tftpDirectory="+t.TempDir())
	withDisks(i, images, files)
	if directory, err := i.onBoard(t.Context()); err != nil || directory == "" {
		t.Fatalf("beside a volume with an image, one with a configuration: %q, %v", directory, err)
	}
	found, ok, err := i.imageOnMedium(t.Context(), "debian/12")
	if err != nil || !ok || found.Name != "debian/12/1" || len(found.Manifest.Entries) != 2 {
		t.Errorf("got %+v, %v, %v", found, ok, err)
	}
	if _, ok, err := i.imageOnMedium(t.Context(), "debian/13"); ok || err != nil {
		t.Errorf("an image that is not there: %v, %v", ok, err)
	}
	if held := i.carriedObjects(); held == nil || !held.Has(object.Of(content)) {
		t.Error("the object is not on the volume")
	}
	if err := i.opened.close(); err != nil {
		t.Fatal(err)
	}

	damaged, _ := volume(t, "FIRSTLIGHT", bad)
	i, _ = testInstallation(t, "-tftpDirectory="+t.TempDir())
	withDisks(i, damaged)
	if _, err := i.onBoard(t.Context()); progress.Code(err) != "IMG-085" {
		t.Errorf("an empty pack: got %v, want IMG-085", err)
	}
	if err := i.opened.close(); err != nil {
		t.Error(err)
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
