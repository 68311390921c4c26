package site

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSecretsStayInTheirDirectory(t *testing.T) {
	s := open(t)
	write(t, s, map[string]string{
		"machines/web1/machine.yaml": "endorsement-key: abcd\n", "secrets/machines/web1/etc/token": "secret", "secrets/ca-key.pem": "KEY",
	})
	if err := os.Symlink("../../../ca-key.pem", filepath.Join(s.Dir(), "secrets/machines/web1/etc/link")); err != nil {
		t.Fatal(err)
	}
	key, files, err := s.Secrets("web1", []string{"/etc/token", "/etc/none", "/../../ca-key.pem"})
	if err != nil || key != "abcd" || len(files) != 1 || string(files["/etc/token"]) != "secret" {
		t.Errorf("%v: key %q, files %q", err, key, files)
	}
	if _, files, err := s.Secrets("web1", []string{"/etc/link"}); err == nil {
		t.Errorf("a link leads to %q", files)
	}
	if _, _, err := s.Secrets("other", nil); err == nil {
		t.Error("a machine that there is not has secrets")
	}
}

func TestFilesHaveTheSteps(t *testing.T) {
	s := open(t)
	write(t, s, map[string]string{
		"machines/web1/config.json": `{"Machine": {"Hostname": "web1"}, "Install": {"Steps": [{"Programme": "a.sh", "After": "plan"}]}}`, "machines/web1/steps/a.sh": "#!/bin/sh\n",
	})
	files, err := s.Files("web1")
	if err != nil || string(files["steps/a.sh"]) != "#!/bin/sh\n" {
		t.Errorf("%v, %q", err, files)
	}
}

func TestReceiptsAreChecked(t *testing.T) {
	s := open(t)
	if err := s.KeepReceipt("web1", []byte("{}")); err == nil {
		t.Error("something else is kept as a receipt")
	}
	if _, err := s.Receipt("../web1"); err == nil {
		t.Error("a path is a machine")
	}
}
