package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
	"github.com/firstlight/firstlight/installer/report"
	"github.com/firstlight/firstlight/storage/recovery"
)

// dracutRoot is the root file-system whose initrd opens volumes by TPM.
const dracutRoot = checkout + "/build/demo/debian-12-dracut.tar"

// vault is a machine with encrypted disks, and who keeps its recovery key.
type vault struct {
	dir      string
	machine  qemu.Config // with its disk, its TPM, its firmware; nothing to boot from but the disk
	identity *age.X25519Identity

	mu     sync.Mutex
	escrow []recovery.Escrow
	seen   []byte // what the installer's page showed
	site   *httptest.Server
	files  lab.Config
	tftp   string
	// volumes are the mount points of what is encrypted, in the order of the
	// partitions; first is the number of the first one's.
	volumes []string
	first   int
	// typed is told to who asks for it; nil where nobody may ask.
	typed func() []byte
}

// newVault prepares a machine and all that serves it. encryption is the field of
// that name of storage-layout.json, to which the recipients are added.
func newVault(t *testing.T, encryption map[string]any) *vault {
	t.Helper()
	v := &vault{dir: t.TempDir()}
	var err error
	if v.identity, err = age.GenerateX25519Identity(); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/machines/{machine}/recovery", report.RecoveryHandler(func(_ context.Context, machine string, e recovery.Escrow, _ []byte) error {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.escrow = append(v.escrow, e)
		return nil
	}))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }) // reports
	v.site = httptest.NewServer(mux)
	t.Cleanup(v.site.Close)

	server := serve(t, site, filepath.Join(t.TempDir(), "store"))
	if err := site.Add(t.Context(), server, "dracut/1", dracutRoot); err != nil {
		t.Fatalf("%v (make roots makes the image)", err)
	}
	if v.files, err = site.NewConfig(lab.InGuest(server.Port)); err != nil {
		t.Fatal(err)
	}
	encryption["RecoveryRecipients"] = []string{v.identity.Recipient().String()}
	v.lay(t, object{"Encryption": encryption})
	v.volumes, v.first = []string{"/", "/home"}, 3
	v.files["imagename"] = []byte("dracut/1\n")
	v.files["siteserver"] = []byte(strings.Replace(v.site.URL, "127.0.0.1", "10.0.2.2", 1) + "\n")
	v.tftp = filepath.Join(v.dir, "tftp")

	disk := filepath.Join(v.dir, "disk.raw")
	if err := qemu.CreateDisk(disk, 4<<30); err != nil {
		t.Fatal(err)
	}
	accel, _ := probe.Accel(t.Context())
	v.machine = qemu.Config{
		Accel: accel, Disks: []qemu.Disk{{Path: disk, Serial: "vault"}},
		Net: qemu.Net{TFTP: v.tftp}, TPM: filepath.Join(v.dir, "tpm"),
	}
	return v
}

// lay writes the layout: what all vaults have, and more.
func (v *vault) lay(t *testing.T, more object) {
	t.Helper()
	layout := object{
		"BootDriveLayout": []object{
			{"MountPoint": "/", "MinimumFreeBytes": 512 << 20},
			{"MountPoint": "/home", "MinimumFreeBytes": 128 << 20},
		},
		"Encrypt": true, "UseKexec": true,
	}
	maps.Copy(layout, more)
	var err error
	if v.files["storage-layout.json"], err = json.Marshal(layout); err != nil {
		t.Fatal(err)
	}
}

// mapping is the name below /dev/mapper of an encrypted volume.
func mapping(mountPoint string) string {
	if mountPoint == "/" {
		return "root"
	}
	return strings.ReplaceAll(strings.Trim(mountPoint, "/"), "/", "-")
}

// powerOn starts a machine, which ends with the test at the latest.
func powerOn(t *testing.T, c qemu.Config, lines *keptLines) *qemu.Machine {
	t.Helper()
	var err error
	if c.Dir, err = os.MkdirTemp("", "e2e-"); err != nil {
		t.Fatal(err)
	}
	c.Lines = lines.add
	m, err := qemu.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Kill()
		os.RemoveAll(c.Dir)
	})
	return m
}

// await waits for what a machine says.
func await(t *testing.T, m *qemu.Machine, limit time.Duration, re *regexp.Regexp) []string {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("%s have passed", limit))
	defer cancel()
	found, err := m.WaitFor(ctx, re)
	if err != nil {
		t.Fatalf("%v; the console's last lines:\n%s", err, m.Tail(40))
	}
	return found
}

// installer is the machine as the installer runs on it: c with what boots it.
func (v *vault) installer(t *testing.T, c qemu.Config) qemu.Config {
	t.Helper()
	if err := site.WriteTFTP(v.tftp, v.files); err != nil {
		t.Fatal(err)
	}
	c.Kernel, c.Initrd, c.CommandLine = site.Kernel(), site.Initramfs(), lab.CommandLine
	return c
}

var (
	overOrFailed = regexp.MustCompile(`(?m)\] finish: handing over to (\S+) by (?:kexec|reboot)\n|FAILED ([A-Z]{3}-[0-9]{3}): (.*)\n`)
	loggedIn     = regexp.MustCompile(`(?m)^` + lab.Hostname + ` login: `)
	wantsMore    = regexp.MustCompile(`(?m)DEMO-REPORT done|Please enter (?:passphrase|recovery key)|\(initramfs\)|[Ee]mergency mode|dracut:/#`)
)

// awaitLogin waits for the prompt, which may have come before the report's end.
func awaitLogin(t *testing.T, m *qemu.Machine) {
	t.Helper()
	m.Rewind()
	await(t, m, 4*time.Minute, loggedIn)
}

// newSystem waits until the new system says what it is: everything was opened,
// and nobody was asked for anything, or the one asked has typed it.
func (v *vault) newSystem(t *testing.T, m *qemu.Machine) {
	t.Helper()
	from := len(m.Text())
	for asked := 0; ; asked++ {
		found := await(t, m, 12*time.Minute, wantsMore)
		if strings.Contains(found[0], "DEMO-REPORT") {
			if v.typed != nil && asked == 0 {
				t.Error("nobody asked for the recovery key")
			}
			break
		}
		if v.typed == nil || !strings.HasPrefix(found[0], "Please enter") || asked == len(v.volumes) {
			t.Fatalf("the new system stops: %q; the console's last lines:\n%s", found[0], m.Tail(60))
		}
		if err := m.Send(string(v.typed()) + "\n"); err != nil {
			t.Fatal(err)
		}
	}
	r := lab.ParseReport(m.Text()[from:])
	mounts := strings.Join(r["mount"], "\n") + "\n"
	for _, point := range v.volumes {
		if want := fmt.Sprintf("%s /dev/mapper/%s ext4\n", point, mapping(point)); !strings.Contains(mounts, want) {
			t.Errorf("the new system has not mounted %q:\n%s", strings.TrimSpace(want), mounts)
		}
	}
	for _, units := range r["failed"] {
		if strings.TrimSpace(units) != "" {
			t.Errorf("units of the new system failed: %s", units)
		}
	}
}

// install installs and follows the machine through kexec to the new system.
func (v *vault) install(t *testing.T, c qemu.Config, lines *keptLines) {
	t.Helper()
	page, err := lab.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	c.Net.Forwards = map[int]int{page: 6978}
	c.Log = filepath.Join(v.dir, "console-install.log")
	begin := time.Now()
	m := powerOn(t, c, lines)
	await(t, m, 10*time.Minute, regexp.MustCompile(`\] plan: plan sha256:`))
	for _, what := range []string{"", "api/v1/plan", "api/v1/status", "api/v1/inventory", "log"} {
		v.seen = append(v.seen, get(t.Context(), t, fmt.Sprintf("http://127.0.0.1:%d/%s", page, what))...)
	}
	if found := await(t, m, 15*time.Minute, overOrFailed); found[1] != "dracut/1" {
		t.Fatalf("not handed over: %q", found[0])
	}
	t.Logf("installed after %s", time.Since(begin).Round(time.Second))
	v.newSystem(t, m)
	t.Logf("the new system runs after %s", time.Since(begin).Round(time.Second))
	awaitLogin(t, m)
	if err := m.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// recoveryKey is what the escrow opens to.
func (v *vault) recoveryKey(t *testing.T) []byte {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.escrow) != 1 {
		t.Fatalf("the site server has %d recovery keys", len(v.escrow))
	}
	e := v.escrow[0]
	if e.Hostname != lab.Hostname || len(e.Volumes) != len(v.volumes) {
		t.Errorf("escrow %+v", e)
	}
	return v.unlock(t, e.Sealed)
}

func (v *vault) unlock(t *testing.T, sealed string) []byte {
	t.Helper()
	r, err := age.Decrypt(armor.NewReader(strings.NewReader(sealed)), v.identity)
	if err != nil {
		t.Fatal(err)
	}
	key, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSuffix(key, []byte("\n"))
}

// loopPartition gives a partition of a disk's file as a device of the host's; of
// a member of a RAID 1, its data.
func loopPartition(t *testing.T, disk string, number int) string {
	t.Helper()
	var table struct {
		Partitiontable struct {
			Sectorsize int64
			Partitions []struct{ Start, Size int64 }
		}
	}
	out, err := exec.Command("sfdisk", "--json", disk).Output()
	if err == nil {
		err = json.Unmarshal(out, &table)
	}
	if err != nil {
		t.Fatal(err)
	}
	p, sector := table.Partitiontable.Partitions[number-1], table.Partitiontable.Sectorsize
	device := loop(t, disk, p.Start*sector, p.Size*sector)
	// mdadm fails where there is no member.
	examined, _ := exec.Command("mdadm", "--examine", device).Output()
	if found := regexp.MustCompile(`Data Offset : (\d+) sectors`).FindSubmatch(examined); found != nil {
		skip, err := strconv.ParseInt(string(found[1]), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return loop(t, disk, p.Start*sector+skip*512, p.Size*sector-skip*512)
	}
	return device
}

// loop gives a part of a file, in bytes, as a device of the host's until the
// test ends.
func loop(t *testing.T, file string, offset, size int64) (device string) {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", "--read-only", "--offset", fmt.Sprint(offset), "--sizelimit", fmt.Sprint(size), file).Output()
	if err != nil {
		t.Fatal(err)
	}
	device = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return device
}

// volumeKey reads, with the recovery key, the key that a volume's data are
// encrypted with; cryptsetup shows it to who has a passphrase.
func volumeKey(t *testing.T, device string, recoveryKey []byte) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	cmd := exec.Command("cryptsetup", "luksDump", "--batch-mode", "--dump-volume-key", "--volume-key-file", file, "--key-file=-", device)
	cmd.Stdin = bytes.NewReader(recoveryKey)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the recovery key from the escrow does not open %s: %v: %s", device, err, out)
	}
	key, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(key) != 64 {
		t.Errorf("the volume's key has %d bytes, XTS with AES-256 has 64", len(key))
	}
	return key
}

// spellings are the ways in which a key could stand somewhere.
func spellings(key []byte) map[string][]byte {
	modhex := strings.NewReplacer("0", "c", "1", "b", "2", "d", "3", "e", "4", "f", "5", "g", "6", "h", "7", "i",
		"8", "j", "9", "k", "a", "l", "b", "n", "c", "r", "d", "t", "e", "u", "f", "v")
	all := map[string][]byte{
		"raw": key, "hexadecimal": []byte(hex.EncodeToString(key)), "HEXADECIMAL": []byte(strings.ToUpper(hex.EncodeToString(key))),
		"modhex": []byte(modhex.Replace(hex.EncodeToString(key))),
	}
	for shift := range 3 { // wherever it begins in a longer text
		text := base64.RawStdEncoding.EncodeToString(append(make([]byte, shift), key...))
		all[fmt.Sprint("base64, shifted by ", shift)] = []byte(text[4 : len(text)-4])
	}
	// A part of a key is as bad as the whole one.
	for name, text := range all {
		all[name] = text[:min(len(text), 24)]
	}
	return all
}

// noKeys looks for keys in a file, sparse or not, in every spelling.
func noKeys(t *testing.T, name string, r io.Reader, secrets map[string][]byte) {
	t.Helper()
	needles := make(map[string][]byte)
	for what, key := range secrets {
		for how, text := range spellings(key) {
			needles[what+", "+how] = text
		}
	}
	const block, overlap = 8 << 20, 256
	buf := make([]byte, block+overlap)
	zeros := make([]byte, len(buf))
	kept := 0
	for {
		n, err := io.ReadFull(r, buf[kept:])
		data := buf[:kept+n]
		if !bytes.Equal(data, zeros[:len(data)]) {
			for what, needle := range needles {
				if bytes.Contains(data, needle) {
					t.Errorf("%s has a key: %s", name, what)
				}
			}
		}
		if err != nil {
			if err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Fatal(err)
			}
			return
		}
		kept = copy(buf, data[len(data)-overlap:])
	}
}

// checkSecrets has the recovery key open every volume, and looks for all keys
// that can be known everywhere.
func (v *vault) checkSecrets(t *testing.T) {
	t.Helper()
	text := v.recoveryKey(t)
	if len(text) != recovery.KeyLength {
		t.Errorf("the recovery key has %d letters", len(text))
	}
	raw, err := hex.DecodeString(strings.NewReplacer("-", "", "c", "0", "b", "1", "d", "2", "e", "3", "f", "4", "g", "5", "h", "6", "i", "7",
		"j", "8", "k", "9", "l", "a", "n", "b", "r", "c", "t", "d", "u", "e", "v", "f").Replace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string][]byte{"the recovery key as it is typed": text, "the recovery key": raw}
	for n, point := range v.volumes {
		secrets["the key of "+point] = volumeKey(t, loopPartition(t, v.machine.Disks[0].Path, v.first+n), text)
	}
	files := []string{filepath.Join(v.dir, "console-install.log")}
	for _, d := range v.machine.Disks {
		files = append(files, d.Path)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		noKeys(t, name, f, secrets)
		f.Close()
	}
	noKeys(t, "the page", bytes.NewReader(v.seen), secrets)
}

// TestStorageEncryption installs with an encrypted root that the TPM opens: after
// kexec, and after a power cycle. The site server has the recovery key before a
// disk is touched, and it opens the volumes; no key stands anywhere. Another TPM
// opens nothing.
func TestStorageEncryption(t *testing.T) {
	v := newVault(t, map[string]any{
		"Root": true, "Unlock": []string{"tpm2"}, "RecoveryRequired": true, "AllowWithoutSecureBoot": true,
	})
	lines := keepLines(t)
	v.install(t, v.installer(t, v.machine), lines)
	deposited, commit := lines.index("the site server keeps the recovery key"), lines.index("commit: point of no return")
	if deposited < 0 || deposited > commit {
		t.Errorf("the recovery key was deposited in line %d, disks were touched from line %d", deposited, commit)
	}
	if lines.index("every key slot of 2 encrypted volumes was opened once") < 0 {
		t.Error("nothing says that the key slots were tried")
	}

	m := powerOn(t, v.machine, lines)
	v.newSystem(t, m)
	if err := m.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	v.checkSecrets(t)

	t.Run("another-TPM", func(t *testing.T) {
		c := v.installer(t, v.machine)
		c.TPM = filepath.Join(t.TempDir(), "tpm")
		lines := v.searched(t, c)
		if lines.index("the TPM does not know the key") < 0 || lines.index(", decrypted (") >= 0 {
			t.Error("another TPM opens the disk, or nothing says that it does not")
		}
	})
}

// searched runs the installer up to the end of its search of the old disks.
func (v *vault) searched(t *testing.T, c qemu.Config) *keptLines {
	t.Helper()
	lines := keepLines(t)
	m := powerOn(t, c, lines)
	await(t, m, 12*time.Minute, regexp.MustCompile(`\] stage: from server: |\] commit: |FAILED`))
	m.Kill()
	return lines
}
