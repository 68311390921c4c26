package main

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
)

func TestTheLogGoesToTheLogServer(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	i, _ := testInstallation(t, "-dryRun=false", "-logServer=syslog://"+server.LocalAddr().String())
	i.model.Log(progress.Clock, "before it was known where to")
	i.model.Describe(func(f *progress.Facts) { f.Machine = "web1" })
	if err := i.forwardLog(); err != nil {
		t.Fatal(err)
	}
	i.model.Log(progress.Finish, "handing over to x by kexec")
	i.forwarded()
	i.forwarded() // after the end it does nothing
	for _, want := range []string{" web1 firstlight-installer - clock - before it was known where to", " web1 firstlight-installer - finish - handing over to x by kexec"} {
		buffer := make([]byte, 4096)
		if err := server.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, _, err := server.ReadFrom(buffer)
		if err != nil || !strings.HasSuffix(string(buffer[:n]), want) {
			t.Errorf("%v, message %q, want %q", err, buffer[:n], want)
		}
	}
}

func TestALogServerThatIsNoneIsAMistake(t *testing.T) {
	i, _ := testInstallation(t, "-dryRun=false", "-logServer=ftp://host")
	var usage usageError
	if err := i.forwardLog(); !errors.As(err, &usage) {
		t.Errorf("got %v", err)
	}
}

// A log server hears that the disks are wiped, before the machine is off.
func TestLogIsSentBeforeAWipedMachineIsOff(t *testing.T) {
	i, _ := testInstallation(t, "-dryRun=false")
	sent, off := false, false
	i.forwarded = func() { sent = true }
	i.env.powerOff = func() error { off = sent; return nil }
	if err := i.finishWipe(t.Context()); err != nil || !off {
		t.Errorf("%v; the machine is off after the last lines: %v", err, off)
	}
}
