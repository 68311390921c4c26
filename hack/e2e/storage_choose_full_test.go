//go:build full

package e2e

import (
	"context"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/qemu"
)

// stacksScript makes RAIDs of every format with mdadm and a LUKS volume in one of
// them, and leaves that one and its mapping active.
const stacksScript = heading + `set -e
mkdir -p /run/cryptsetup
make() { # name, format, disks
	name=$1 format=$2
	shift 2
	mdadm --create /dev/$name --run --level=1 --raid-devices=$# --metadata=$format --assume-clean --bitmap=none "$@"
}
make md90 1.2 /dev/vda /dev/vdb
make md91 0.90 /dev/vdc /dev/vdd
make md92 1.0 /dev/vde /dev/vdf
make md93 1.1 /dev/vdg /dev/vdh
for n in 91 92 93; do
	mkfs.ext4 -q /dev/md$n
	mdadm --stop /dev/md$n
done
head -c 64 /dev/urandom >/run/key
cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /run/key /dev/md90
cryptsetup open --key-file /run/key /dev/md90 busy
mkfs.ext4 -q /dev/mapper/busy
sync
echo faces/small/1 >/tftpdata/imagename
echo STACKS MADE
`

// TestStorageTakeDown installs onto disks on which a RAID and a LUKS mapping on
// it are active: they are taken down after the commit. Of what mdadm has made, in
// all four formats, nothing is recognised afterwards.
func TestStorageTakeDown(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	f := newFaces(t)
	dir := t.TempDir()
	var disks []qemu.Disk
	for n := range 8 {
		disks = append(disks, qemu.Disk{Path: diskWith(t, dir, string(rune('a'+n)), 1<<30), Serial: "old-" + string(rune('a'+n))})
	}
	config := f.config("10.0.2.2", "faces/never/1")
	files := onBoard(config)
	files["test/stacks"], files["test/shell"] = initFile{[]byte(stacksScript), 0o755}, initFile{[]byte(shellScript), 0o755}
	files["test/notifier"] = initFile{[]byte(holding), 0o755}
	m := f.machine(t, files, "installer.skipNetwork installer.shellCommand=/test/shell installer.completionNotifier=/test/notifier", func(c *qemu.Config) { c.Disks = disks })
	waitFor(ctx, t, m, failedLine)
	waitFor(ctx, t, m, pressEnter)
	shell(ctx, t, m, "/test/stacks")
	waitFor(ctx, t, m, regexp.MustCompile(`STACKS MADE\s*\n`))
	if err := m.Send("kill -HUP $(pidof installer); exit\n"); err != nil {
		t.Fatal(err)
	}
	waitFor(ctx, t, m, regexp.MustCompile(`finish: starting afresh\n`))
	found := waitFor(ctx, t, m, held)
	if found[1] != "" {
		t.Fatalf("it failed with %s: %s", found[1], found[2])
	}
	console := m.Text()
	first, second := strings.Index(console, "vda: take down dm-0"), strings.Index(console, "vda: take down md90")
	if first < 0 || second < first || strings.Index(console, "commit: point of no return") > first {
		t.Errorf("taken down in a wrong order: mapping at %d, RAID at %d", first, second)
	}
	if err := m.Stop(ctx); err != nil {
		t.Error(err)
	}
	for _, d := range disks {
		out, err := exec.Command("wipefs", "-n", "-O", "TYPE", "--noheadings", d.Path).Output()
		if err != nil {
			t.Fatal(err)
		}
		for kind := range strings.FieldsSeq(string(out)) {
			if kind != "gpt" && kind != "PMBR" {
				t.Errorf("%s still has a signature of %s", d.Serial, kind)
			}
		}
		if out, err := exec.Command("mdadm", "--examine", d.Path).CombinedOutput(); strings.Contains(string(out), "Magic : a92b4efc") {
			t.Errorf("mdadm still sees on %s (%v):\n%s", d.Serial, err, out)
		}
	}
}
