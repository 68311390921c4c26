//go:build full

package e2e

import (
	"path/filepath"
	"testing"

	"github.com/firstlight/firstlight/hack/qemu"
)

// TestStorageDone is `make demo-storage`: all that protects a machine, in one. A
// machine with Secure Boot, a TPM and a pair of NVMe disks gets a mirrored system
// whose root and data are encrypted, and is started by kexec, then from its disks;
// one of them is pulled, and it starts all the same; its board is changed, so that
// the TPM is another, and the recovery key that the site server keeps opens it.
func TestStorageDone(t *testing.T) {
	v := newVault(t, object{})
	v.lay(t, object{
		"Mirror": true, "ExtraMountPointsBasename": "/data/",
		"Encryption": object{
			"Root": true, "Unlock": []string{"tpm2"}, "RecoveryRequired": true,
			"RecoveryRecipients": []string{v.identity.Recipient().String()},
		},
	})
	v.volumes = []string{"/", "/home", "/data/0"}
	v.machine.Disks = []qemu.Disk{
		newDisk(t, 5<<30, qemu.Disk{Bus: qemu.NVMe, Serial: "first"}),
		newDisk(t, 5<<30, qemu.Disk{Bus: qemu.NVMe, Serial: "second"}),
	}
	v.machine.Vars, v.machine.SecureBoot = filepath.Join(v.dir, "vars.fd"), true
	if err := qemu.CreateVars(v.machine.Vars, true); err != nil {
		t.Fatal(err)
	}
	lines := keepLines(t)
	start := func(step string) {
		t.Helper()
		t.Log(step)
		m := powerOn(t, v.machine, lines)
		v.newSystem(t, m)
		awaitLogin(t, m)
		if err := m.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}

	t.Log("installing, and kexec into the new system")
	v.install(t, v.started(t), lines)
	deposited, commit, over := lines.index("the site server keeps the recovery key"), lines.index("commit: point of no return"), lines.index("handing over to dracut/1 by kexec")
	if deposited < 0 || deposited > commit || commit > over {
		t.Errorf("the recovery key was deposited in line %d, disks were touched from line %d, kexec came in line %d", deposited, commit, over)
	}
	if lines.index("UEFI firmware, Secure Boot on") < 0 || lines.index("every key slot of 3 encrypted volumes was opened once") < 0 {
		t.Error("the installer did not see Secure Boot, or did not try the key slots")
	}
	start("cold boot: the TPM opens everything")
	t.Log("the recovery key opens the volumes where the disks are, and no key stands anywhere")
	v.checkSecrets(t)
	v.machine.Disks = v.machine.Disks[1:]
	start("the first disk is pulled: cold boot, the TPM opens everything")
	v.machine.TPM = filepath.Join(v.dir, "other-tpm")
	v.typed = func() []byte { return v.recoveryKey(t) }
	start("another board: who types the recovery key gets in")
}
