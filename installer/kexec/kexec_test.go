package kexec_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/installer/kexec"
)

// What is no kernel is refused, by this or by the kernel, with a code that
// says what to do; a real hand-over is tried in a VM.
func TestLoadRefuses(t *testing.T) {
	name := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(name, []byte("no kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, c := range []struct {
		initrd      *os.File
		commandLine string
		says        string
	}{
		{nil, "root=UUID=x ro", name},
		{f, "root=UUID=x ro", name},
		{nil, strings.Repeat("x", 2048), "2048 bytes"},
	} {
		err := kexec.Load(f, c.initrd, c.commandLine)
		var coded *kexec.Error
		if !errors.As(err, &coded) || coded.Code() != kexec.CodeLoad && coded.Code() != kexec.CodeRefused {
			t.Errorf("error %v", err)
			continue
		}
		if !strings.Contains(err.Error(), c.says) {
			t.Errorf("the error does not say %q: %v", c.says, err)
		}
	}
	if kexec.Loaded() {
		t.Error("something is loaded")
	}
}
