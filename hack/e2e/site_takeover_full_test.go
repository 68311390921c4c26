//go:build full

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// debianStart is the first process of a machine with a few programs of Debian,
// which lets people in by ssh.
const debianStart = `#!/usr/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /run
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
for module in /drivers/*.ko; do insmod "$module"; done
for try in $(seq 50); do [ -e /sys/class/net/eth0 ] && break; sleep 0.2; done
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
echo "this is Debian with kernel $(uname -r)"
dropbear -F -E -r /hostkey -p 22
echo "sshd has ended"
exec sleep infinity
`

// debianFiles are programs of this host with what they load, at their places.
func debianFiles(t *testing.T, programs ...string) initramfs {
	t.Helper()
	files := initramfs{}
	add := func(path string) {
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			t.Fatal(err)
		}
		data := readFile(t, real)
		files[strings.TrimPrefix(path, "/")] = initFile{data, 0o755}
	}
	loads := regexp.MustCompile(`(/[^ ]+) \(0x`)
	for _, name := range programs {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatalf("%v (hack/setup installs it)", err)
		}
		if real, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
			path = filepath.Join(real, filepath.Base(path)) // /bin is a link on Debian
		}
		add(path)
		out, err := exec.Command("ldd", path).CombinedOutput()
		if err != nil && !bytes.Contains(out, []byte("not a dynamic executable")) {
			t.Fatalf("ldd %s: %v\n%s", path, err, out)
		}
		for _, found := range loads.FindAllSubmatch(out, -1) {
			add(string(found[1]))
		}
	}
	return files
}

// drivers are the modules of the network card, named in the order in which they
// have to be loaded.
func drivers(t *testing.T, into initramfs) {
	t.Helper()
	wanted := []string{"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "failover", "net_failover", "virtio_net"}
	found := 0
	err := filepath.WalkDir(filepath.Join(filepath.Dir(site.Kernel()), "lib", "modules"), func(path string, e os.DirEntry, err error) error {
		if n := slices.Index(wanted, strings.TrimSuffix(filepath.Base(path), ".ko")); err == nil && n >= 0 && strings.HasSuffix(path, ".ko") {
			into[fmt.Sprintf("drivers/%d-%s", n, filepath.Base(path))] = initFile{readFile(t, path), 0o644}
			found++
		}
		return err
	})
	if err != nil || found != len(wanted) {
		t.Fatalf("%d of %d drivers are beside %s: %v", found, len(wanted), site.Kernel(), err)
	}
}

// TestSiteTakeover: a machine that runs Debian is taken over by ssh, and the
// installer starts on it with the configuration that it was given.
func TestSiteTakeover(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	files := debianFiles(t, "bash", "cat", "chmod", "cut", "df", "dropbear", "head", "id", "ip", "mkdir", "mktemp", "insmod",
		"mount", "rm", "sed", "seq", "sha256sum", "sleep", "sync", "tr", "uname")
	files["usr/bin/sh"] = files["usr/bin/bash"]
	drivers(t, files)
	files["start"] = initFile{[]byte(debianStart), 0o755}
	dir := t.TempDir()
	identity, hostKey := filepath.Join(dir, "identity"), filepath.Join(dir, "hostkey")
	command(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", identity)
	shown := command(t, "dropbearkey", "-t", "ed25519", "-f", hostKey)
	public := regexp.MustCompile(`ssh-ed25519 \S+`).FindString(shown)
	files["hostkey"] = initFile{readFile(t, hostKey), 0o600}
	files["root/.ssh/authorized_keys"] = initFile{readFile(t, identity+".pub"), 0o600}
	files["etc/passwd"] = initFile{[]byte("root:x:0:0:root:/root:/usr/bin/bash\n"), 0o644}
	files["etc/group"] = initFile{[]byte("root:x:0:\n"), 0o644}
	files["etc/shells"] = initFile{[]byte("/usr/bin/bash\n"), 0o644}
	files["etc/os-release"] = initFile{[]byte("PRETTY_NAME=\"Debian GNU/Linux 12 (a few programs of it)\"\n"), 0o644}

	port, err := lab.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	disk := diskWith(t, dir, "disk", 64<<20, "mkfs.ext4", "-q", "-F", "-L", "old")
	m := (&faces{port: 1}).machine(t, files, "rdinit=/start", func(c *qemu.Config) {
		c.Disks, c.Net, c.MemoryMiB = []qemu.Disk{{Path: disk}}, qemu.Net{Forwards: map[int]int{port: 22}}, 1024
	})
	if _, err := m.WaitFor(ctx, regexp.MustCompile(`this is Debian`)); err != nil {
		t.Fatal(err)
	}

	// The site, with what firstlight serve would have made.
	here := t.TempDir()
	write := func(name string, data []byte) {
		t.Helper()
		file := filepath.Join(here, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("state/boot/amd64/vmlinuz", readFile(t, site.Kernel()))
	write("state/boot/amd64/initramfs", readFile(t, site.Initramfs()))
	for name, data := range (&faces{}).config("10.0.2.2:1", "debian/12") {
		write("machines/web1/"+name, data)
	}
	known := filepath.Join(dir, "known_hosts")
	if err := os.WriteFile(known, fmt.Appendf(nil, "[127.0.0.1]:%d %s\n", port, public), 0o600); err != nil {
		t.Fatal(err)
	}
	firstlight := func(args ...string) (string, int) {
		t.Helper()
		cmd := exec.CommandContext(ctx, filepath.Join(checkout, "bin", "firstlight"), append([]string{"--site", here}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	takeover := []string{"machine", "takeover", fmt.Sprintf("root@127.0.0.1:%d", port), "--identity", identity, "--known-hosts", known}
	if out, code := firstlight(append(takeover, "--yes")...); code != 6 || !strings.Contains(out, "which is waiting") {
		t.Fatalf("a machine that nobody has approved: exit %d\n%s", code, out)
	}
	if out, code := firstlight("machine", "approve", "web1"); code != 0 {
		t.Fatalf("approve: exit %d\n%s", code, out)
	}
	if out, code := firstlight(takeover...); code != 6 || !strings.Contains(out, "say --yes") {
		t.Fatalf("nobody said yes: exit %d\n%s", code, out)
	}
	if out, code := firstlight(append(takeover, "--yes")...); code != 0 {
		t.Fatalf("exit %d\n%s", code, out)
	}
	for _, line := range []string{`clock: Firstlight installer`, `config: the configuration is in /tftpdata`, `inventory: /dev/vda`} {
		if _, err := m.WaitFor(ctx, regexp.MustCompile(line)); err != nil {
			t.Fatalf("the installer was not started: %v", err)
		}
	}
	if out, code := firstlight("machine", "show", "web1"); code != 0 || !strings.Contains(out, "installing") {
		t.Errorf("exit %d\n%s", code, out)
	}
}
