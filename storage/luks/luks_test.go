package luks

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/tool"
)

const volumeUUID = "8e644386-0e1c-84ae-a4aa-f77c61a8920f"

func file(t testing.TB, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	return name
}

func key(t testing.TB) []byte {
	t.Helper()
	k := make([]byte, KeySize)
	rand.Read(k)
	// The key is no text: these bytes would end one.
	k[3], k[10], k[20] = 0, '\n', 0xff
	return k
}

func TestFormat(t *testing.T) {
	f, k := file(t, 32<<20), key(t)
	cmd := Format(f, storage.LUKS{UUID: volumeUUID, Mapping: "home"}, "firstlight:/home", k)
	for _, arg := range cmd.Args {
		if bytes.Contains([]byte(arg), k[:8]) {
			t.Fatal("the key stands in an argument")
		}
	}
	if _, err := (tool.Exec{}).Run(t.Context(), cmd); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("/usr/sbin/cryptsetup", "luksDump", f).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"Version:       \t2", volumeUUID, "firstlight:/home", "aes-xts-plain64", "PBKDF:      pbkdf2", "Iterations: 1000", "Key:        512 bits"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	test := exec.Command("/usr/sbin/cryptsetup", "open", "--test-passphrase", "--key-file=-", f)
	test.Stdin = bytes.NewReader(k)
	if out, err := test.CombinedOutput(); err != nil {
		t.Errorf("the key does not open it: %v %s", err, out)
	}
}

// Each status as the real cryptsetup gives it.
func TestExplain(t *testing.T) {
	f, k := file(t, 32<<20), key(t)
	l := storage.LUKS{UUID: volumeUUID}
	if _, err := (tool.Exec{}).Run(t.Context(), Format(f, l, "", k)); err != nil {
		t.Fatal(err)
	}
	wrongKey := Open(f, "x", key(t))
	wrongKey.Args = append(wrongKey.Args, "--test-passphrase")
	badUUID := Format(f, storage.LUKS{UUID: "no uuid"}, "", k)
	cases := []struct {
		name string
		cmd  tool.Cmd
		err  error
		code string
	}{
		{"wrong key", wrongKey, ErrKey, storage.CodeLUKSKey},
		{"no such device", Open("/nonexistent/device", "x", k), ErrDevice, storage.CodeLUKSDevice},
		{"wrong parameters", badUUID, nil, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := (tool.Exec{}).Run(t.Context(), c.cmd)
			err = Explain("trying", err)
			var coded *storage.Error
			if !errors.As(err, &coded) || !strings.HasPrefix(coded.Code(), "LUK-") {
				t.Fatalf("%v", err)
			}
			if c.err != nil && (!errors.Is(err, c.err) || coded.Code() != c.code) {
				t.Errorf("%s: %v", coded.Code(), err)
			}
			if bytes.Contains([]byte(err.Error()), k[:8]) {
				t.Error("the key stands in the error")
			}
		})
	}
	for status, want := range map[int]error{1: ErrParameters, 2: ErrKey, 3: ErrMemory, 4: ErrDevice, 5: ErrBusy, 9: ErrFailed, -1: ErrFailed} {
		if err := Explain("trying", &tool.ExitError{Status: status}); !errors.Is(err, want) {
			t.Errorf("status %d: %v", status, err)
		}
	}
	if err := Explain("trying", context.Canceled); err != context.Canceled {
		t.Errorf("%v", err)
	}
}

// BenchmarkLUKS3 formats three volumes at once, as an installation with the
// default layout does, and reports the CPU time of cryptsetup for all of them.
func BenchmarkLUKS3(b *testing.B) { benchmarkAtOnce(b, 3) }

// BenchmarkLUKS8 is the same for a machine with many volumes.
func BenchmarkLUKS8(b *testing.B) { benchmarkAtOnce(b, 8) }

func benchmarkAtOnce(b *testing.B, volumes int) {
	var files []string
	for range volumes {
		files = append(files, file(b, 64<<20))
	}
	before := childCPU(b)
	for b.Loop() {
		var g errgroup.Group
		for i, f := range files {
			cmd := Format(f, storage.LUKS{UUID: volumeUUID}, fmt.Sprint("v", i), key(b))
			g.Go(func() error { _, err := (tool.Exec{}).Run(b.Context(), cmd); return err })
		}
		if err := g.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric((childCPU(b)-before).Seconds()/float64(b.N), "cpu-s/op")
}

func childCPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
