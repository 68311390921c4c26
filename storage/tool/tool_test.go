package tool

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/storage"
)

func TestExec(t *testing.T) {
	out, err := Exec{}.Run(t.Context(), Cmd{Name: "cat", Stdin: []byte("secret\x00")})
	if err != nil || string(out.Stdout) != "secret\x00" {
		t.Errorf("%q, %v", out.Stdout, err)
	}
	// Nothing to read, a fixed environment, and the working directory.
	t.Setenv("SURPRISE", "yes")
	out, err = Exec{}.Run(t.Context(), Cmd{Name: "/bin/sh", Args: []string{"-c", "cat; pwd; env | sort; echo warned >&2"}, Env: []string{"EXTRA=1"}})
	if err != nil {
		t.Fatal(err)
	}
	got := string(out.Stdout)
	if !strings.HasPrefix(got, "/\n") || !strings.Contains(got, "EXTRA=1\n") || !strings.Contains(got, "LC_ALL=C\n") || strings.Contains(got, "SURPRISE") {
		t.Errorf("output %q", got)
	}
	if string(out.Stderr) != "warned\n" {
		t.Errorf("errors %q", out.Stderr)
	}
}

func TestExecFails(t *testing.T) {
	_, err := Exec{}.Run(t.Context(), Cmd{Name: "sh", Args: []string{"-c", "echo 1 >&2; echo 2 >&2; echo 3 >&2; echo 4 >&2; exit 7"}, Stdin: []byte("secret")})
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Status != 7 || exit.Code() != storage.CodeProgram || exit.Last != "2; 3; 4" {
		t.Errorf("%#v", err)
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the input stands in the error: %v", err)
	}
	_, err = Exec{}.Run(t.Context(), Cmd{Name: "no-such-program"})
	var coded *storage.Error
	if !errors.As(err, &coded) || coded.Code() != storage.CodeNoProgram {
		t.Errorf("%v", err)
	}
}

// A context that ends takes the whole process group with it, and does not wait
// for those that hold the pipes.
func TestExecCancelled(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err := Exec{}.Run(ctx, Cmd{Name: "sh", Args: []string{"-c", "(sleep 2; touch " + mark + ") & sleep 60"}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("took %s", took)
	}
	time.Sleep(2200*time.Millisecond - time.Since(begin))
	if _, err := os.Stat(mark); err == nil {
		t.Error("the grandchild lived on")
	}
}

func TestExecInRoot(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("usr/bin", filepath.Join(root, "bin")); err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(t.TempDir(), "hello.go")
	if err := os.WriteFile(source, []byte("package main\nimport \"os\"\nfunc main() { d, _ := os.Getwd(); os.Stdout.WriteString(d); if _, err := os.Stat(\"/usr/bin/hello\"); err != nil { os.Exit(9) } }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(root, "usr/bin/real"), source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	// Absolute links are meant from the root.
	if err := os.Symlink("/usr/bin/real", filepath.Join(root, "usr/bin/hello")); err != nil {
		t.Fatal(err)
	}
	out, err := Exec{}.Run(t.Context(), Cmd{Name: "hello", Root: root, Dir: "/usr"})
	if err != nil || string(out.Stdout) != "/usr" {
		t.Errorf("%q, %v", out.Stdout, err)
	}
	if _, err := Look(root, "sh"); err == nil {
		t.Error("found a program of the host in the root")
	}
}

// The programs that the initramfs carries are those of Debian's packages.
func TestPrograms(t *testing.T) {
	for _, p := range Programs() {
		if _, err := Look("", p.Name); err != nil {
			t.Errorf("%s (package %s): %v", p.Name, p.Package, err)
		}
		for _, f := range p.Files {
			if _, err := os.Stat(f); err != nil {
				t.Error(err)
			}
		}
	}
}
