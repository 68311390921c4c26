//go:build full

package e2e

import (
	"context"
	"regexp"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// TestStorageAfresh: an operator stands in the new system when the installer is
// told to start afresh. He is sent away, the disks are let go of, and the next
// installation gets them.
func TestStorageAfresh(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	port, err := lab.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	b := &bootable{image: tinyImage, layout: plain(object{"Encrypt": true, "ExtraMountPointsBasename": "/data/"}), machine: qemu.Config{
		MemoryMiB: 1024, Disks: []qemu.Disk{newDisk(t, 2<<30, qemu.Disk{Serial: "afresh"})},
		Net: qemu.Net{Forwards: map[int]int{port: 6978}},
	}}
	m := b.installer(t)
	fingerprint, err := shownFingerprint(ctx, port)
	if err != nil {
		t.Fatal(err)
	}
	operator := func(args ...string) int {
		t.Helper()
		_, _, code := installerShell(ctx, t, port, append([]string{"--fingerprint", fingerprint, "127.0.0.1"}, args...)...)
		return code
	}
	if code := operator("hold", "network"); code != 0 {
		t.Fatalf("hold: exit %d", code)
	}
	await(t, m, 5*time.Minute, regexp.MustCompile(`network: held by admin`))
	sentAway := make(chan int, 1)
	go func() { sentAway <- operator("--", "sh", "-c", "cd /mnt && echo standing-in-it && exec sleep 600") }()
	// Once his shell is there.
	await(t, m, time.Minute, regexp.MustCompile(`has opened shell 1: `))
	if code := operator("--", "sh", "-c", "kill -HUP $(pidof installer); sleep 60"); code == 0 {
		t.Error("the second shell was not ended")
	}
	if code := <-sentAway; code == 0 {
		t.Error("the shell in the new system was not ended")
	}
	await(t, m, 2*time.Minute, regexp.MustCompile(`finish: starting afresh\n`))
	over := await(t, m, 5*time.Minute, overOrFailed)
	if over[2] != "" {
		t.Errorf("the next installation failed: %s", over[0])
	}
	m.Kill()
}
