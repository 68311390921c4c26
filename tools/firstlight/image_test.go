package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
)

// grow changes a tree as a new version would.
func grow(t *testing.T, root, packages string) {
	t.Helper()
	for name, data := range map[string]string{
		"var/lib/dpkg/status": packages, "etc/new": "new\n", "etc/hostname": "host2\n", "boot/vmlinuz-6.1": "k", "boot/initrd.img-6.1": "i", "lib/modules/6.1/m": "m",
	} {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func paragraph(name, version string) string {
	return "Package: " + name + "\nStatus: install ok installed\nArchitecture: amd64\nVersion: " + version + "\n\n"
}

func TestDiff(t *testing.T) {
	l := newLab(t)
	root := tree(t)
	grow(t, root, paragraph("a", "1")+paragraph("b", "1"))
	l.must(t, "image", "add", "d/1", root, "--quiet")
	grow(t, root, paragraph("b", "2")+paragraph("c", "1"))
	if err := os.Remove(filepath.Join(root, "etc/new")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(root, "usr/big"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.must(t, "image", "add", "d/2", root, "--quiet")
	var d compared
	decode(t, l.must(t, "image", "diff", "d/1", "d/2", "--json"), &d)
	if !d.PackagesKnown || len(d.Packages) != 3 || d.Packages[1] != (packageChange{"b", "amd64", "1", "2"}) || d.FetchObjects != 1 || len(d.Removed) != 1 || d.Removed[0] != "etc/new" {
		t.Errorf("%+v", d)
	}
	text := l.must(t, "image", "diff", "d/1", "d", "--files")
	for _, want := range []string{"1 added, 1 removed, 1 changed", "- file", "usr/big", "mode", "1 → 2"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if _, _, code := l.run(t, "image", "diff", "d/1", "d/3"); code != exitNotFound {
		t.Errorf("exit %d", code)
	}
}

// An image goes out as a tar and as a container, and comes back the same.
func TestExport(t *testing.T) {
	l := newLab(t)
	root := tree(t)
	grow(t, root, paragraph("a", "1"))
	var first, second added
	decode(t, l.must(t, "image", "add", "d/1", root, "--quiet", "--json"), &first)
	out := filepath.Join(t.TempDir(), "out.tar")
	l.must(t, "image", "export", "d/1", "--file", out, "--quiet")
	stdout := l.must(t, "image", "export", "d/1", "--file", "-", "--quiet")
	if data, err := os.ReadFile(out); err != nil || string(data) != stdout {
		t.Error("the file and stdout differ", err)
	}
	decode(t, l.must(t, "image", "add", "e/1", out, "--quiet", "--json"), &second)
	if first.Digest != second.Digest || second.NewObjects != 0 {
		t.Errorf("%+v", second)
	}
	oci := filepath.Join(t.TempDir(), "out.oci")
	l.must(t, "image", "export", "d/1", "--format", "oci", "--file", oci, "--quiet")
	decode(t, l.must(t, "image", "add", "f/1", "oci-archive:"+oci+":d/1", "--quiet", "--json"), &second)
	if first.Digest != second.Digest || second.NewObjects != 0 {
		t.Errorf("%+v", second)
	}
	for _, args := range []string{"image export d/1", "image export d/1 --format zip --file x"} {
		if _, _, code := l.run(t, strings.Fields(args)...); code != exitUsage {
			t.Errorf("%s: exit %d", args, code)
		}
	}
}

// A container without a kernel is added with a warning, or with another image's
// kernel.
func TestKernelImage(t *testing.T) {
	l := newLab(t)
	root := tree(t)
	container := tree(t)
	grow(t, root, paragraph("a", "1"))
	l.must(t, "image", "add", "debian/12/1", root, "--quiet")
	_, stderr, code := l.run(t, "image", "add", "c/1", container, "--quiet")
	if code != 0 || !strings.Contains(stderr, "--kernel-image") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	stdout, stderr, code := l.run(t, "image", "add", "c/2", container, "--kernel-image", "debian/12", "--quiet", "--json")
	var result added
	decode(t, stdout, &result)
	if code != 0 || stderr != "" || result.Attributes["kernel"] != "boot/vmlinuz-6.1" || len(result.Warnings) > 0 {
		t.Errorf("exit %d: %s%+v", code, stderr, result)
	}
	l.must(t, "image", "verify", "c/2", "--quiet")
	if got := l.must(t, "image", "get", "c/2", "lib/modules/6.1/m"); got != "m" {
		t.Error(got)
	}
	if _, _, code := l.run(t, "image", "add", "c/3", root, "--kernel-image", "debian/12", "--quiet"); code != exitFailed {
		t.Errorf("two kernels: exit %d", code)
	}
	if _, _, code := l.run(t, "image", "add", "c/3", container, "--kernel-image", "nothing", "--quiet"); code != exitNotFound {
		t.Errorf("no such image: exit %d", code)
	}
}

// Every damaged and every missing object is named.
func TestVerify(t *testing.T) {
	l := newLab(t)
	root := tree(t)
	noise := objecttest.Noise(1, 3<<20)
	if err := os.WriteFile(filepath.Join(root, "noise"), noise, 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		if err := os.WriteFile(filepath.Join(root, "etc", "f"+string(rune('a'+i%26))+string(rune('0'+i/26))), bytes.Repeat([]byte{byte(i)}, 100+i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l.must(t, "image", "add", "d/1", root, "--quiet")
	var v verified
	decode(t, l.must(t, "image", "verify", "d/1", "--json", "--quiet"), &v)
	if len(v.Bad) != 0 || v.Objects != 44 {
		t.Errorf("%+v", v)
	}
	// Two are gone, and of the large one, which has a file of its own, a bit is
	// wrong.
	for _, i := range []int{3, 7} {
		if err := l.objects.Delete(t.Context(), object.Of(bytes.Repeat([]byte{byte(i)}, 100+i))); err != nil {
			t.Fatal(err)
		}
	}
	spoiled := 0
	err := filepath.WalkDir(l.data, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.Contains(path, object.Of(noise).Hex()) {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		data[len(data)/2] ^= 1
		spoiled++
		return os.WriteFile(path, data, 0o644)
	})
	if err != nil || spoiled != 1 {
		t.Fatal(spoiled, err)
	}
	stdout, stderr, code := l.run(t, "image", "verify", "d/1", "--json", "--quiet")
	if code != exitDamaged {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	decode(t, stdout, &v)
	if len(v.Bad) != 3 || v.Objects != 41 || len(v.Bad[0].Paths) == 0 || v.Bad[0].State == "" {
		t.Errorf("%+v", v)
	}
}

// TestLife promotes, expires, retains and collects.
func TestLife(t *testing.T) {
	l := newLab(t)
	for i, name := range []string{"d/1", "d/2", "d/3"} {
		root := tree(t)
		if err := os.WriteFile(filepath.Join(root, "version"), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		l.must(t, "image", "add", name, root, "--quiet")
		if i == 0 {
			l.must(t, "image", "promote", "d/1", "stable")
		}
	}
	show := func(name string) (one client.Image) {
		t.Helper()
		decode(t, l.must(t, "image", "show", name, "--json"), &one)
		return one
	}
	if one := show("stable"); one.Name != "d/1" || strings.Join(one.Aliases, " ") != "stable" {
		t.Errorf("%+v", one)
	}
	if show("d").Name != "d/3" {
		t.Error("the stream is not its newest image")
	}
	for args, want := range map[string]int{
		"image delete d/1 --yes":           exitFailed, // stable means it
		"image promote d/9 stable":         exitNotFound,
		"image promote d/1 d/2":            exitFailed,
		"image promote d/1 d":              exitFailed,
		"image add stable x":               exitUsage,
		"image expire d/1":                 exitUsage,
		"image expire d/1 --in tomorrow":   exitUsage,
		"image expire d/1 --in 1d --never": exitUsage,
		"image expire d --in 1d":           exitUsage,
		"image expire d/2 --in 0s":         exitRefused,
		"image expire d --keep 1":          exitRefused,
		"image gc --grace 0s":              exitOK, // nothing to do
	} {
		if _, stderr, code := l.run(t, strings.Fields(args)...); code != want {
			t.Errorf("%s: exit %d, want %d\n%s", args, code, want, stderr)
		}
	}
	l.must(t, "image", "expire", "d/1", "--at", "2026-01-01", "--yes") // an alias means it: stays
	l.must(t, "image", "expire", "d/3", "--in", "30d")
	if at := time.Until(show("d/3").Expires); at < 29*24*time.Hour || at > 31*24*time.Hour {
		t.Error(at)
	}
	l.must(t, "image", "expire", "d/3", "--never")
	if !show("d/3").Expires.IsZero() {
		t.Error("it still expires")
	}
	var kept retained
	decode(t, l.must(t, "image", "expire", "d", "--keep", "1", "--yes", "--json"), &kept)
	if len(kept.Due) != 1 || kept.Due[0].Name != "d/2" {
		t.Errorf("%+v", kept)
	}
	if _, stderr, code := l.run(t, "image", "gc", "--grace", "0s"); code != exitRefused || !strings.Contains(stderr, "d/2") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	var dry, all, young collected
	decode(t, l.must(t, "image", "gc", "--grace", "0s", "--dry-run", "--json", "--quiet"), &dry)
	decode(t, l.must(t, "image", "gc", "--yes", "--json", "--quiet"), &young)
	if len(young.Images) != 1 || young.Objects != 0 || young.Recent != 2 {
		t.Errorf("young: %+v", young) // its manifest and its file stay for an hour
	}
	decode(t, l.must(t, "image", "gc", "--grace", "0s", "--yes", "--json", "--quiet"), &all)
	if dry.Objects != 2 || all.Objects != 2 || !dry.DryRun || len(dry.Images) != 1 || dry.Bytes != all.Bytes {
		t.Errorf("dry %+v\nall %+v", dry, all)
	}
	for _, name := range []string{"d/1", "d/3"} {
		l.must(t, "image", "verify", name, "--quiet")
	}
	l.must(t, "image", "promote", "d/3", "stable")
	if show("stable").Name != "d/3" {
		t.Error("the alias did not move")
	}
	l.must(t, "image", "delete", "stable", "--yes")
	if _, _, code := l.run(t, "image", "show", "stable"); code != exitNotFound {
		t.Errorf("exit %d", code)
	}
	l.must(t, "image", "show", "d/3")
}

// TestSources: what a source is, is seen by its bytes.
func TestSources(t *testing.T) {
	l := newLab(t)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	manifest, err := json.Marshal([]map[string]any{{"Config": "c.json", "RepoTags": []string{"x:1"}, "Layers": []string{"l.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	inner := tar.NewWriter(&layer)
	if err := inner.WriteHeader(&tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	if err := inner.Close(); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"manifest.json": manifest, "c.json": []byte("{}"), "l.tar": layer.Bytes()} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "with:colon.tar")
	if err := os.WriteFile(file, b.Bytes(), fs.FileMode(0o644)); err != nil {
		t.Fatal(err)
	}
	l.must(t, "image", "add", "c/1", "docker-archive:"+file+":x:1", "--quiet")
	l.must(t, "image", "add", "c/2", "docker-archive:"+file, "--quiet")
	for args, want := range map[string]int{
		"image add c/3 oci:/nonexistent --quiet":               exitUsage,
		"image add c/3 docker-archive:" + file + ":y --quiet":  exitDamaged,
		"image add c/3 oci:" + filepath.Dir(file) + " --quiet": exitDamaged,
	} {
		if _, stderr, code := l.run(t, strings.Fields(args)...); code != want {
			t.Errorf("%s: exit %d, want %d\n%s", args, code, want, stderr)
		}
	}
}

// TestExportDiskRefused: what cannot become a disk is refused before a machine is
// started.
func TestExportDiskRefused(t *testing.T) {
	l := newLab(t)
	l.must(t, "image", "add", "a/1", tree(t), "--quiet")
	out := filepath.Join(t.TempDir(), "disk")
	for _, test := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--format", "raw"}, exitRefused, "cannot be made a bootable disk"},
		{[]string{"--format", "qcow2", "--firmware", "uefi"}, exitRefused, "cannot be made a bootable disk"},
		{[]string{"--format", "raw", "--firmware", "openboot"}, exitUsage, "bios or uefi"},
		{[]string{"--format", "raw", "--accel", "xen"}, exitUsage, "kvm or tcg"},
		{[]string{"--format", "vmdk"}, exitUsage, "tar, oci, raw or qcow2"},
	} {
		_, stderr, code := l.run(t, append([]string{"image", "export", "a/1", "--file", out}, test.args...)...)
		if code != test.code || !strings.Contains(stderr, test.says) {
			t.Errorf("%v: exit %d: %s", test.args, code, stderr)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(out)); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"8GiB": 8 << 30, "8G": 8 << 30, "20GB": 20e9 / 512 * 512, "1TiB": 1 << 40, "8589934592": 8 << 30, "100MiB": 100 << 20} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "GiB", "-1GiB", "8 GiB", "8XiB", "9223372036854775807GiB", "0", "1e9"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
}
