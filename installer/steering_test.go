package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/tools/pki"
	"github.com/firstlight/firstlight/tools/shell"
)

func TestHoldBeforeAPhase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, log := testInstallation(t)
		if err := i.steering.hold("storage", "anna"); err != nil {
			t.Fatal(err)
		}
		var ran []string
		of := func(phase progress.Phase) step {
			return step{phase, func(context.Context) error { ran = append(ran, string(phase)); return nil }}
		}
		done := make(chan error, 1)
		go func() {
			done <- i.steps(t.Context(), []step{of(progress.Commit), of(progress.Storage), of(progress.Unpack)})
		}()
		time.Sleep(time.Hour)
		synctest.Wait()
		if !slices.Equal(ran, []string{"commit"}) {
			t.Fatalf("while held, %q ran", ran)
		}
		s := i.model.Snapshot()
		if len(s.Holds) != 1 || s.Holds[0].By != "anna" || s.Holds[0].Before != "storage" {
			t.Errorf("the page shows %+v", s.Holds)
		}
		if current := s.Current(); len(current) != 1 || !strings.Contains(current[0].WaitingFor, "anna") {
			t.Errorf("the page shows %+v", current)
		}
		if err := i.steering.hold("commit", "anna"); err == nil || !strings.Contains(err.Error(), "has begun") {
			t.Errorf("holding what has begun: %v", err)
		}
		if err := i.steering.hold("lunch", "anna"); err == nil || !strings.Contains(err.Error(), "hand-over") {
			t.Errorf("holding what there is not: %v", err)
		}
		released, err := i.steering.resume("bert")
		if err != nil || !slices.Equal(released, []string{"storage"}) {
			t.Errorf("released %q, %v", released, err)
		}
		if err := <-done; err != nil || len(ran) != 3 {
			t.Errorf("afterwards %q ran, %v", ran, err)
		}
		if _, err := i.steering.resume("bert"); err == nil {
			t.Error("something was held still")
		}
		if !strings.Contains(log.String(), "anna holds the installation before storage") || !strings.Contains(log.String(), "bert lets go on: storage") {
			t.Errorf("the log says\n%s", log)
		}
	})
}

func TestHeldPhaseEndsWithTheInstallation(t *testing.T) {
	i, _ := testInstallation(t)
	if err := i.steering.hold("commit", "anna"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errReboot)
	if err := i.steering.begin(ctx, progress.Commit); !errors.Is(err, errReboot) {
		t.Errorf("got %v", err)
	}
}

// keysOfASite are CA, an installer's certificate and an admin's.
func keysOfASite(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "secrets")
	if _, err := pki.Init(dir, time.Now, pki.Options{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	authority, err := pki.Open(dir, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := authority.Issue(pki.Request{Name: "installer", Server: true, Addresses: []string{"127.0.0.1"}}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// steered serves a test installation to operators.
func steered(t *testing.T, files trustFiles, args ...string) (*installation, func(fingerprint string) shell.Options, *strings.Builder, <-chan error, string) {
	t.Helper()
	dir := keysOfASite(t)
	for _, name := range []*string{&files.ca, &files.cert, &files.key} {
		if *name != "" && !filepath.IsAbs(*name) {
			*name = filepath.Join(dir, *name)
		}
	}
	i, log := testInstallation(t, append(args, "-portNum=0", "-dryRun=false")...)
	i.env.trust, i.env.inMemory = files, true
	i.env.reboot = func() error { return nil }
	causes := make(chan error, 9)
	closePage, err := i.openPage(t.Context(), func(cause error) { causes <- cause })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(closePage)
	config, err := auth.ClientTLS(filepath.Join(dir, pki.CAFile), filepath.Join(dir, pki.AdminFile), filepath.Join(dir, pki.AdminKeyFile), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return i, func(fingerprint string) shell.Options {
		return shell.Options{Host: "127.0.0.1", Port: uint16(i.pagePort), TLS: config, Fingerprint: fingerprint, Wait: 5 * time.Second}
	}, log, causes, dir
}

func TestOperatorsSteerOverTheGivenCertificateAndOverAnEphemeralOne(t *testing.T) {
	for name, files := range map[string]trustFiles{
		"given":     {ca: pki.CAFile, cert: "installer.pem", key: "installer-key.pem"},
		"ephemeral": {ca: pki.CAFile, cert: "absent.pem", key: "absent-key.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			i, options, _, _, _ := steered(t, files)
			fingerprint := i.model.Snapshot().Facts.Fingerprint
			if fingerprint != "" {
				_, err := shell.Dial(t.Context(), options(""))
				if line := "--fingerprint " + fingerprint + " 127.0.0.1"; progress.Code(err) != shell.CodeUnknownServer || !strings.Contains(err.Error(), line) {
					t.Errorf("without the pin: %v; the line to type is %s", err, line)
				}
			}
			client, err := shell.Dial(t.Context(), options(fingerprint))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if err := client.Hold(t.Context(), "commit"); err != nil {
				t.Fatal(err)
			}
			page := get(t, http.DefaultClient, "http://"+options("").Host+":"+portOf(i)+"/")
			if !strings.Contains(page, "before commit, by admin since") {
				t.Error("the page does not show who holds")
			}
			if released, err := client.Resume(t.Context()); err != nil || len(released) != 1 {
				t.Errorf("released %q, %v", released, err)
			}
			if err := client.Approve(t.Context(), "sha256:1"); progress.Code(err) != shell.CodeNotNow || !strings.Contains(err.Error(), "no plan that waits for approval") {
				t.Errorf("got %v", err)
			}
			if _, _, err := client.Plan(t.Context()); progress.Code(err) != shell.CodeNotNow {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestEveryoneIsRefused, and the page says why.
func TestEveryoneIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		files     trustFiles
		page      string
		code, why string
	}{
		"no CA":                   {trustFiles{ca: "absent.pem", cert: "absent.pem", key: "absent.pem"}, "there is no ", shell.CodeNotAllowed, "absent.pem"},
		"no CA, a certificate":    {trustFiles{ca: "absent.pem", cert: "installer.pem", key: "installer-key.pem"}, "there is no ", shell.CodeNotAllowed, "absent.pem"},
		"a CA that is none":       {trustFiles{ca: "installer-key.pem", cert: "absent.pem", key: "absent.pem"}, "holds no PEM certificate", shell.CodeNoTLS, ""},
		"a certificate of no use": {trustFiles{ca: pki.CAFile, cert: "installer.pem", key: pki.AdminKeyFile}, "is not used, nor another one in its place", shell.CodeNoTLS, ""},
	} {
		t.Run(name, func(t *testing.T) {
			i, options, _, _, _ := steered(t, test.files)
			page := get(t, http.DefaultClient, "http://127.0.0.1:"+portOf(i)+"/")
			if !strings.Contains(page, "installer-shell is refused") || !strings.Contains(page, test.page) {
				t.Errorf("the page does not say why: %q", i.model.Snapshot().Warnings)
			}
			client, err := shell.Dial(t.Context(), options(i.model.Snapshot().Facts.Fingerprint))
			if err == nil {
				defer client.Close()
				err = client.Reboot(t.Context())
			}
			if progress.Code(err) != test.code || !strings.Contains(err.Error(), test.why) {
				t.Errorf("got %s (%v), want %s", progress.Code(err), err, test.code)
			}
		})
	}
}

func TestShellHoldsUpTheHandOver(t *testing.T) {
	i, options, log, causes, _ := steered(t, trustFiles{ca: pki.CAFile, cert: "installer.pem", key: "installer-key.pem"})
	in := make(blocking)
	ended := make(chan error, 1)
	go func() {
		_, err := shell.Run(t.Context(), options(""), shell.Session{Term: "xterm", In: in, Out: discard{}, Err: discard{}})
		ended <- err
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if busy, _ := i.shells.Busy(); len(busy) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no session")
		}
	}
	if page := get(t, http.DefaultClient, "http://127.0.0.1:"+portOf(i)+"/"); !strings.Contains(page, "1: admin, since") {
		t.Error("the page does not show the shell")
	}
	i.model.Start(progress.Finish)
	begun := time.Now()
	if err := i.letShellsEnd(t.Context(), begun.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < time.Second {
		t.Errorf("the hand-over waited for %s only", took)
	}
	if !strings.Contains(log.String(), "the hand-over waits for the end of shell 1 of admin, at most until ") {
		t.Errorf("the log says\n%s", log)
	}
	if err := <-ended; err != nil { // it was told
		t.Error(err)
	}
	client, err := shell.Dial(t.Context(), options(""))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if cause := <-causes; !errors.Is(cause, errReboot) {
		t.Errorf("the installation was ended with %v", cause)
	}
}

func portOf(i *installation) string { return fmt.Sprint(i.pagePort) }

// blocking is an operator who types nothing.
type blocking chan struct{}

func (b blocking) Read([]byte) (int, error) { <-b; return 0, nil }

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
