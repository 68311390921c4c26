package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"time"

	"github.com/firstlight/firstlight/hack/child"
)

// The firmware of Debian's package ovmf. Both programs measure into a TPM; the
// second one can do Secure Boot, and needs a machine with system management mode
// to keep its variables safe.
const (
	ovmfCode       = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfSecureCode = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	ovmfVars       = "/usr/share/OVMF/OVMF_VARS_4M.fd"
	ovmfEnrolled   = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"
	aavmfCode      = "/usr/share/AAVMF/AAVMF_CODE.fd" // of qemu-efi-aarch64
	aavmfVars      = "/usr/share/AAVMF/AAVMF_VARS.fd"
)

// CreateVars makes the memory of a UEFI firmware, Config.Vars, in place of what
// was there. With Secure Boot, Microsoft's keys are enrolled as in machines that
// are sold: what they have signed is started, shim among it, and nothing else.
func CreateVars(path string, secureBoot bool) error {
	from := ovmfVars
	if secureBoot {
		from = ovmfEnrolled
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("making a firmware's memory: %w", err)
	}
	return os.WriteFile(path, data, 0o600)
}

// CreateVarsARM64 makes the memory of a UEFI firmware for Config.ARM64.
func CreateVarsARM64(path string) error {
	data, err := os.ReadFile(aavmfVars)
	if err != nil {
		return fmt.Errorf("making a firmware's memory: %w", err)
	}
	return os.WriteFile(path, data, 0o600)
}

// firmware is what makes QEMU's machine start by UEFI, and its type.
func (c Config) firmware() (machine string, args []string) {
	if c.Vars == "" {
		return "pc", nil
	}
	code := ovmfCode
	machine = "q35"
	if c.ARM64 {
		code, machine = aavmfCode, "virt"
	} else if c.SecureBoot {
		code, machine = ovmfSecureCode, "q35,smm=on"
		// Only code in system management mode may write to the variables.
		args = append(args, "-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1")
	}
	return machine, append(args,
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+escape(code),
		"-drive", "if=pflash,unit=1,format=raw,file="+escape(c.Vars))
}

// tpmSocket is the name of the TPM's socket, in Config.Dir.
const tpmSocket = "tpm.sock"

// startTPM starts the TPM of software that the machine will have.
func (c Config) startTPM(stderr *os.File) (*child.Child, error) {
	if err := os.MkdirAll(c.TPM, 0o700); err != nil {
		return nil, fmt.Errorf("starting a TPM: %w", err)
	}
	if err := os.Remove(c.path(tpmSocket)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("starting a TPM: %w", err)
	}
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+c.TPM,
		"--ctrl", "type=unixio,path="+c.path(tpmSocket), "--flags", "startup-clear", "--terminate")
	cmd.Stdout, cmd.Stderr = stderr, stderr
	tpm, err := child.Start(cmd, c.Keep)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(c.path(tpmSocket)); err == nil {
			return tpm, nil
		}
		if time.Now().After(deadline) {
			tpm.Stop(0)
			return nil, errors.New("starting a TPM: swtpm has opened no socket")
		}
	}
}

func (c Config) tpmArguments() []string {
	if c.TPM == "" {
		return nil
	}
	return []string{
		"-chardev", "socket,id=tpm,path=" + escape(c.path(tpmSocket)),
		"-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0",
	}
}
