package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/firstlight/firstlight/hack/child"
)

// Accel is how QEMU runs a machine's instructions: its value for -accel.
type Accel string

const (
	// AccelTCG translates; it works everywhere, and is slow.
	AccelTCG Accel = "tcg"
	// AccelKVM has the host's processor run them.
	AccelKVM Accel = "kvm"
)

// CPU is the processor model that makes machines fastest: the host's own under
// KVM, everything that QEMU can translate but AES instructions under TCG.
//
// Measured in a guest (QEMU 7.2, two CPUs): with them Go's TLS chooses AES-GCM
// and moves 14 MB/s between two ends; without them it chooses ChaCha20-Poly1305
// and moves 29, because a translated vector instruction is cheap and a
// translated AES round is not (72 against 24 MB/s of the bare cipher). The
// kernel's AES-XTS falls from 60 to 23 MB/s, which matters less: an
// installation receives an order of magnitude more than it writes to encrypted
// volumes. AVX2 stays, for SHA-256 (60 MB/s with it, 38 without); PCLMULQDQ
// stays because Linux's aesni-intel takes it for granted.
// SVM must stay: without it (QEMU 7.2) a guest's systemd finds none of the
// file-systems that it mounted.
func (a Accel) CPU() string {
	if a == AccelKVM {
		return "host"
	}
	return "max,aes=off,vaes=off"
}

// Probe finds out, once, whether KVM can be used: the device alone says
// little, as a host may offer it and then not get a real kernel booted.
type Probe struct {
	kernel string
	once   sync.Once
	accel  Accel
	reason string
}

// NewProbe returns a probe that will try the Linux kernel in that file.
func NewProbe(kernel string) *Probe { return &Probe{kernel: kernel} }

// probeDeadline is how long a kernel may take to come to its end under KVM,
// where it needs a second or two.
const probeDeadline = 8 * time.Second

// Accel is AccelKVM if a kernel came all the way up under KVM within a few
// seconds, AccelTCG otherwise; the second result says why. The first call
// tries it out, later ones repeat its answer.
func (p *Probe) Accel(ctx context.Context) (Accel, string) {
	p.once.Do(func() {
		if err := p.try(ctx); err != nil {
			p.accel, p.reason = AccelTCG, "no KVM: "+err.Error()
			return
		}
		p.accel, p.reason = AccelKVM, "a kernel booted under KVM"
	})
	return p.accel, p.reason
}

// reachedEnd is what a kernel says that has found its devices and now looks
// for a root file-system; none is given to it.
var reachedEnd = regexp.MustCompile(`VFS: (Cannot open root device|Unable to mount root fs)`)

func (p *Probe) try(ctx context.Context) error {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := kvm.Close(); err != nil {
		return err
	}
	if _, err := os.Stat(p.kernel); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "firstlight-kvm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(ctx, probeDeadline)
	defer cancel()
	// A machine of the simplest kind, its console in a file: a KVM that is
	// broken can leave QEMU in a state where it opens no socket.
	log := filepath.Join(dir, "console.log")
	cmd := exec.Command(Program, "-nodefaults", "-no-user-config", "-machine", "pc", "-accel", string(AccelKVM),
		"-cpu", AccelKVM.CPU(), "-smp", "2", "-m", "512", "-display", "none", "-vga", "none", "-no-reboot",
		"-serial", "file:"+escape(log), "-kernel", p.kernel, "-append", "console=ttyS0 panic=-1")
	proc, err := child.Start(cmd, false)
	if err != nil {
		return err
	}
	defer proc.Stop(0)
	for {
		select {
		case <-proc.Done():
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
		said, err := os.ReadFile(log)
		if err == nil && reachedEnd.Match(said) {
			return nil
		}
		select {
		case <-proc.Done():
			return fmt.Errorf("QEMU ended before the kernel was up: %v", proc.Wait(ctx))
		case <-ctx.Done():
			return fmt.Errorf("a kernel was not up after %s", probeDeadline)
		default:
		}
	}
}
