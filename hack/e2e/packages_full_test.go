//go:build full

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
	"github.com/firstlight/firstlight/netconfig"
)

// TestPackages installs the Debian package on a Debian 12 with systemd: both
// units start, which they do when the server has said that it is ready, do their
// work in what the units leave them, and go with the package.
func TestPackages(t *testing.T) {
	out := filepath.Join(t.TempDir(), "packages")
	build := exec.Command("go", "run", "./hack/packages", "-version", "1.2.3", "-out", out)
	build.Dir = checkout
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	deb, err := os.ReadFile(filepath.Join(out, "firstlight_1.2.3_amd64.deb"))
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	disk, err := lab.MakeRootDisk(t.Context(), networkRoot(t, "networkd"), []netconfig.File{
		{Path: "root/firstlight.deb", Mode: 0o644, Data: deb},
		{Path: "etc/default/firstlight", Mode: 0o644, Data: []byte("FIRSTLIGHT_DHCP=off\nFIRSTLIGHT_KERNEL=/\n")},
		{Path: "etc/default/firstlight-imageserver", Mode: 0o644, Data: []byte("IMAGESERVER_INSECURE=true\nIMAGESERVER_LISTEN=:7971\n")},
	}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	accel, _ := probe.Accel(t.Context())
	lines := keepLines(t)
	c := qemu.Config{
		Dir: filepath.Join(dir, "m"), Accel: accel, MemoryMiB: 1024, Kernel: disk.Kernel, Initrd: disk.Initrd,
		CommandLine: "console=ttyS0,115200 root=/dev/vda rw quiet", Disks: []qemu.Disk{{Path: disk.Path}},
		Shell: true, Lines: lines.add, Log: filepath.Join(dir, "console.log"), NoReboot: true,
	}
	if err := os.Mkdir(c.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m, err := qemu.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	shell, err := lab.OpenShell(t.Context(), filepath.Join(c.Dir, qemu.ShellSocket))
	if err != nil {
		t.Fatalf("%v\n%s", err, m.Tail(40))
	}
	defer shell.Close()
	page := func(port string) string {
		return "bash -c 'exec 3<>/dev/tcp/127.0.0.1/" + port + "; printf \"GET / HTTP/1.0\\r\\n\\r\\n\" >&3; head -n 1 <&3 | cut -d\" \" -f2-'"
	}
	address := "ip link set eth0 up 2>/dev/null; for l in /sys/class/net/e*; do ip link set ${l##*/} up; ip address add 10.0.2.15/24 dev ${l##*/}; done 2>&1; echo done"
	// What takes long is begun, and then looked at until it is done.
	for _, step := range []struct{ begin, look, says string }{
		{address, "", "done"},
		{"(dpkg -i /root/firstlight.deb; echo installed $?) >/tmp/dpkg 2>&1 &", "cat /tmp/dpkg", "installed 0"},
		{"", "systemctl is-active firstlight firstlight-imageserver", "inactive\ninactive"},
		{"systemctl start --no-block firstlight-imageserver", "systemctl is-active firstlight-imageserver", "active"},
		{"", page("7971"), "200 OK"},
		{"", "stat -c owner-%U /var/lib/firstlight-imageserver", "owner-firstlight"},
		{"systemctl start --no-block firstlight", "systemctl is-active firstlight; journalctl -u firstlight --no-pager | tail -n 20", "active\n"},
		{"", page("8080"), "200 OK"},
		{"(dpkg -r firstlight; echo removed $?) >/tmp/dpkg 2>&1 &", "cat /tmp/dpkg; ls -d /var/lib/firstlight", "removed 0"},
		{"", "systemctl is-active firstlight firstlight-imageserver; ls -d /var/lib/firstlight", "inactive\ninactive\n/var/lib/firstlight"},
	} {
		said := ""
		if step.begin != "" {
			// Its exit status says less than what is looked at.
			said, _ = shell.Run(t.Context(), step.begin)
		}
		for end := time.Now().Add(4 * time.Minute); step.look != ""; time.Sleep(2 * time.Second) {
			said, _ = shell.Run(t.Context(), step.look)
			if answers(said, step.says) || time.Now().After(end) {
				break
			}
		}
		t.Logf("%s %s\n%s", step.begin, step.look, said)
		if !answers(said, step.says) {
			t.Fatalf("want %q", step.says)
		}
	}
}

// answers says whether a line of what was said begins with text: "inactive" is
// not "active".
func answers(said, text string) bool { return strings.Contains("\n"+said, "\n"+text) }
