package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// built stands for what make build initramfs makes: a program that writes what
// it is asked for.
func built(t *testing.T) options {
	t.Helper()
	t.Chdir("../..")
	dir := t.TempDir()
	script := "#!/bin/sh\nset -e\ncase $1 in\ncompletion) echo \"completion for $2\" ;;\nman) mkdir -p $3; echo .TH x >$3/firstlight.1; echo .TH x >$3/firstlight-serve.1 ;;\nesac\n"
	for name, text := range map[string]string{"firstlight": script, "imageserver": script, "initramfs-amd64.cpio.zst": "initramfs"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return options{version: "1.2.3", arch: "amd64", programs: dir, here: filepath.Join(dir, "firstlight"), build: dir, out: filepath.Join(t.TempDir(), "out"), date: 1700000000}
}

func TestPackages(t *testing.T) {
	o := built(t)
	if err := o.run(); err != nil {
		t.Fatal(err)
	}
	deb, rpm := filepath.Join(o.out, "firstlight_1.2.3_amd64.deb"), filepath.Join(o.out, "firstlight-1.2.3-1.x86_64.rpm")
	root := t.TempDir()
	run(t, "dpkg-deb", "-x", deb, root)
	for _, name := range []string{
		"usr/bin/firstlight", "usr/bin/imageserver", "usr/share/firstlight/initramfs-amd64.cpio.zst",
		"usr/lib/systemd/system/firstlight.service", "usr/lib/systemd/system/firstlight-imageserver.service",
		"usr/share/man/man1/firstlight-serve.1.gz", "usr/share/bash-completion/completions/firstlight",
		"usr/share/doc/firstlight/LICENSE", "usr/share/doc/firstlight/imageserver.md",
	} {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Error(err)
		}
	}
	if control := run(t, "dpkg-deb", "-f", deb, "Package", "Version", "Architecture"); control != "Package: firstlight\nVersion: 1.2.3\nArchitecture: amd64\n" {
		t.Errorf("the package says of itself:\n%s", control)
	}
	lead, err := os.ReadFile(rpm)
	if err != nil || !bytes.HasPrefix(lead, []byte("\xed\xab\xee\xdb")) {
		t.Errorf("%s is no RPM package: %v", rpm, err)
	}
	before, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.run(); err != nil {
		t.Fatal(err)
	}
	again, err := os.ReadFile(deb)
	lead2, err2 := os.ReadFile(rpm)
	if err != nil || err2 != nil || !bytes.Equal(before, again) || !bytes.Equal(lead, lead2) {
		t.Errorf("the same files made other packages: %v %v", err, err2)
	}
}

// TestUnits: systemd finds nothing wrong with the units, and they leave little
// to an attacker. 10 is a unit without any protection.
func TestUnits(t *testing.T) {
	for _, unit := range []string{"firstlight.service", "firstlight-imageserver.service"} {
		dir := t.TempDir()
		file, err := embedded(dir, unit)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "\nType=notify\n") {
			t.Errorf("%s does not wait until the server is ready", unit)
		}
		// The programs need not be installed here.
		text = bytes.ReplaceAll(text, []byte("ExecStart=/usr/bin/"), []byte("ExecStart=/bin/true --"))
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
		run(t, "systemd-analyze", "verify", "--man=no", file)
		run(t, "systemd-analyze", "security", "--offline=yes", "--threshold=30", file)
	}
}

func TestWhatIsNotBuiltIsNamed(t *testing.T) {
	o := built(t)
	if err := os.Remove(filepath.Join(o.build, "initramfs-amd64.cpio.zst")); err != nil {
		t.Fatal(err)
	}
	if err := o.run(); err == nil || !strings.Contains(err.Error(), "make initramfs") {
		t.Errorf("got %v", err)
	}
}
