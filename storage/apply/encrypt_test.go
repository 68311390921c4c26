package apply

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/keys"
	"github.com/firstlight/firstlight/storage/tpm2/tpm2test"
)

// TestEncrypt makes volumes that a TPM, key files and a recovery key open, with
// the real programs and a TPM of software, and has cryptsetup say what came out.
// An error in any slot is found before anyone depends on it.
func TestEncrypt(t *testing.T) {
	s := storage.Spec{
		Volumes: []storage.VolumeSpec{
			{MountPoint: "/", MinimumFreeBytes: 20 * storage.MiB},
			{MountPoint: "/boot", MinimumFreeBytes: 20 * storage.MiB},
			{MountPoint: "/firstlight-test-home", MinimumFreeBytes: 16 * storage.MiB},
		},
		Encrypt: true,
		Encryption: storage.Encryption{
			Root: true, Unlock: []storage.Unlock{storage.UnlockTPM2, storage.UnlockKeyFile}, RecoveryRecipients: []string{"age1"},
		},
	}
	disk := create(t, 320<<20)
	l := resolve(t, s, storage.BIOS, loop(t, disk, 512))
	seams, r := seams(t)
	r.aside = func(string) string { return loop(t, create(t, 128<<20), 512) }
	chip := tpm2test.Measured(t)
	ring := made(t, l)
	if err := ring.Seal(t.Context(), chip); err != nil {
		t.Fatal(err)
	}
	var secrets [][]byte
	for _, v := range l.Encrypted() {
		for _, slot := range ring.Slots(v.Partition.LUKS.Mapping) {
			secrets = append(secrets, bytes.Clone(slot.Key))
		}
	}
	if len(secrets) != 5 {
		t.Fatalf("%d keys", len(secrets))
	}
	root := t.TempDir()
	a, err := Run(t.Context(), seams, l, Options{Root: root, Keys: ring})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}()
	tree, err := os.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if err := a.WriteKeys(tree); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadDir(filepath.Join(root, "etc/keys")); err != nil || len(got) != 1 {
		t.Errorf("key files %v, %v: the root file system has none", got, err)
	}
	for _, v := range l.Encrypted() {
		checkHeader(t, v)
	}
	if err := a.Prove(t.Context(), root, chip); err != nil {
		t.Error(err)
	}
	if n := len(slices.DeleteFunc(slices.Clone(r.ran), func(c string) bool { return !strings.Contains(c, "--test-passphrase") })); n != len(secrets) {
		t.Errorf("%d slots were opened, there are %d", n, len(secrets))
	}
	for _, command := range r.ran {
		if strings.HasPrefix(command, "cryptsetup") && strings.Contains(command, root) {
			t.Errorf("%q names a file of the new root, which a program of the tools image does not see", command)
		}
		for _, key := range secrets {
			if strings.Contains(command, string(key[:8])) {
				t.Errorf("a key stands in %q", command)
			}
		}
	}
	// The headers, and all else that was written to the disk itself.
	raw, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range secrets {
		if bytes.Contains(raw, key[:12]) {
			t.Error("a key stands on the disk")
		}
	}

	wrong := func(name, text string, err error) {
		t.Helper()
		var coded *storage.Error
		if !errors.As(err, &coded) || coded.Code() != storage.CodeProof || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	wrong("no TPM", "/firstlight-test-home, tpm2: there is no TPM", a.Prove(t.Context(), root, nil))
	home := l.Encrypted()[slices.IndexFunc(l.Encrypted(), func(v storage.Volume) bool { return v.MountPoint() != "/" })]
	file := filepath.Join(root, home.Partition.LUKS.KeyFile)
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	wrong("damaged key file", "/firstlight-test-home, keyfile: opening", a.Prove(t.Context(), root, chip))
	sh(t, "/usr/sbin/cryptsetup", "luksKillSlot", "--batch-mode", home.Disk.Node(home.Partition), "2")
	wrong("no recovery slot", "/firstlight-test-home, recovery: opening", a.Prove(t.Context(), root, chip))
	chip.Extend(t, 7, "something else")
	wrong("another PCR", "/, tpm2: the TPM does not release the key: PCR 7", a.Prove(t.Context(), root, chip))
}

// checkHeader compares a LUKS2 header with the layout, as cryptsetup and systemd
// show it.
func checkHeader(t *testing.T, v storage.Volume) {
	t.Helper()
	l := v.Partition.LUKS
	listed := strings.Fields(sh(t, "/usr/bin/systemd-cryptenroll", v.Disk.Node(v.Partition)))
	want := []string{"SLOT", "TYPE"}
	for n, kind := range l.Slots {
		name := string(kind)
		if kind == storage.SlotKeyFile {
			name = "password" // a slot without a token
		}
		want = append(want, strconv.Itoa(n), name)
	}
	if !slices.Equal(listed, want) {
		t.Errorf("%s: systemd-cryptenroll lists %q, want %q", v.MountPoint(), listed, want)
	}
	out, err := exec.Command("/usr/sbin/cryptsetup", "luksDump", "--dump-json-metadata", v.Disk.Node(v.Partition)).Output()
	if err != nil {
		t.Fatal(err)
	}
	var header struct {
		Keyslots map[string]struct {
			Size int `json:"key_size"`
			KDF  struct {
				Type       string
				Iterations int
			}
		}
		Tokens map[string]struct {
			Type     string
			Keyslots []string
		}
		Segments map[string]struct{ Encryption string }
	}
	if err := json.Unmarshal(out, &header); err != nil {
		t.Fatal(err)
	}
	if len(header.Keyslots) != len(l.Slots) || header.Segments["0"].Encryption != "aes-xts-plain64" {
		t.Errorf("%s: %s", v.MountPoint(), out)
	}
	for n, kind := range l.Slots {
		number := strconv.Itoa(n)
		if slot := header.Keyslots[number]; slot.Size != 64 || slot.KDF.Type != "pbkdf2" || slot.KDF.Iterations != 1000 {
			t.Errorf("%s, slot %d: %+v", v.MountPoint(), n, slot)
		}
		token := header.Tokens[number]
		want := map[storage.Slot]string{storage.SlotTPM2: "systemd-tpm2", storage.SlotRecovery: "systemd-recovery"}[kind]
		if token.Type != want || want != "" && !slices.Equal(token.Keyslots, []string{number}) {
			t.Errorf("%s, slot %d: token %+v", v.MountPoint(), n, token)
		}
	}
}

var _ keys.TPM = (*tpm2test.Chip)(nil)
