package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/u-root/mkuimage/cpio"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// TestFaces: what the installer can do besides the main job, in two machines.
// Its images hold one small program, so nothing takes long.
func TestFaces(t *testing.T) {
	t.Parallel() // beside the installation
	f := newFaces(t)
	t.Run("commands-signals-programmes", f.commands)
	t.Run("configuration-on-board", f.onBoard)
}

// faces are the images and their server.
type faces struct {
	dir     string
	server  *lab.Server
	port    int    // of the image server, on the host's loopback
	program []byte // testdata/newsystem
}

// The names of the images.
const (
	smallImage    = "faces/small/1" // can be installed
	toolsImage    = "faces/tools/1" // a mark only
	memoryImage   = "faces/memory/1"
	kernelVersion = "6.1.0-faces"
)

func newFaces(t *testing.T) *faces {
	f := &faces{dir: t.TempDir()}
	file := filepath.Join(f.dir, "newsystem")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", file, "./testdata/newsystem")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f.program = readFile(t, file)
	server := serve(t, site, filepath.Join(f.dir, "store"))
	f.server, f.port = server, server.Port

	small := archive(t, nil, initramfs{
		"init": {f.program, 0o755}, "dev/console": {},
	})
	// An installer in memory that finds its configuration on board, and fails
	// at once.
	config := f.config("", smallImage)
	config["config.json"] = bytes.Replace(config["config.json"], []byte("3600"), []byte("2"), 1)
	again := archive(t, readFile(t, site.Initramfs()), onBoard(config))
	for name, files := range map[string]map[string][]byte{
		smallImage:  f.system(t, small),
		memoryImage: f.system(t, again),
		toolsImage:  {"etc/tools-mark": []byte("of the tools image\n"), "bin/sh": f.program},
	} {
		source := filepath.Join(f.dir, strings.ReplaceAll(name, "/", "-")+".tar")
		f.writeImage(t, source, files)
		if err := site.Add(t.Context(), server, name, source); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// system is a root file-system that can be installed: kernel, initrd and, by
// their names only, the programs that the plan looks for.
func (f *faces) system(t *testing.T, initrd []byte) map[string][]byte {
	files := map[string][]byte{
		"etc/os-release":                      []byte("ID=faces\nVERSION_ID=1\nPRETTY_NAME=\"Faces 1\"\n"),
		"boot/vmlinuz-" + kernelVersion:       readFile(t, site.Kernel()),
		"boot/initrd.img-" + kernelVersion:    initrd,
		"usr/lib/grub/i386-pc/kernel.img":     []byte("not GRUB\n"),
		"lib/modules/" + kernelVersion + "/x": []byte("x\n"),
	}
	for name := range strings.FieldsSeq("bin/sh bin/look usr/sbin/grub-install usr/sbin/grub-mkconfig usr/sbin/ifup usr/sbin/mkfs.ext4 usr/sbin/fsck.ext4") {
		files[name] = f.program
	}
	return files
}

// writeImage writes a tar; a file that is the program is written once, the
// others are links to it.
func (f *faces) writeImage(t *testing.T, path string, files map[string][]byte) {
	t.Helper()
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w := tar.NewWriter(out)
	program := ""
	for _, name := range slices.Sorted(maps.Keys(files)) {
		header := &tar.Header{Name: name, Mode: 0o755, ModTime: time.Unix(1e9, 0)}
		data := files[name]
		switch {
		case !bytes.Equal(data, f.program):
		case program == "":
			program = name
		default:
			header.Typeflag, header.Linkname, data = tar.TypeLink, program, nil
		}
		header.Size = int64(len(data))
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// config is a configuration whose failure would be shown for an hour. The
// image server is named without its port.
func (f *faces) config(imageServer, image string) lab.Config {
	encode := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			panic(err) // strings and numbers only
		}
		return append(data, '\n')
	}
	type object = map[string]any
	c := lab.Config{
		"config.json": encode(object{
			"Machine": object{"Hostname": lab.Hostname, "HostIpAddress": lab.Address, "HostMacAddress": "52:54:00:12:34:56"},
			"Subnets": []object{{"Id": "lab", "IpGateway": lab.Gateway, "IpMask": lab.Netmask, "DomainName": lab.Domain, "DomainNameServers": []string{lab.Nameserver}}},
			"Install": object{"WaitAfterFailureSeconds": 3600},
		}),
		"storage-layout.json": encode(object{
			"BootDriveLayout":          []object{{"FileSystemType": "ext4", "MountPoint": "/", "MinimumFreeBytes": 64 << 20}},
			"ExtraMountPointsBasename": "/data/", "Encrypt": false, "UseKexec": true,
		}),
		"imagename":       []byte(image + "\n"),
		"tools-imagename": []byte(toolsImage + "\n"),
	}
	if imageServer != "" {
		c["imageserver"] = []byte(imageServer + "\n")
	}
	return c
}

// initramfs is what is put over the installer's own: files by their names.
type initramfs map[string]initFile

type initFile struct {
	data []byte
	mode uint64
}

func onBoard(c lab.Config) initramfs {
	files := initramfs{}
	for name, data := range c {
		files["tftpdata/"+name] = initFile{data, 0o600}
	}
	return files
}

// buildTime is what /build-timestamp of the tests' boot media says.
func buildTime() time.Time { return time.Now().UTC().Truncate(24 * time.Hour) }

// archive is base with a further archive behind it.
func archive(t *testing.T, base []byte, files initramfs) []byte {
	t.Helper()
	var records []cpio.Record
	for name, file := range files {
		for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
			records = append(records, cpio.Directory(dir, 0o755))
		}
		switch name {
		case "dev/console":
			records = append(records, cpio.CharDev(name, 0o600, 5, 1))
		default:
			records = append(records, cpio.StaticFile(name, string(file.data), file.mode))
		}
	}
	stamp := cpio.StaticFile("build-timestamp", "", 0o644)
	stamp.MTime = uint64(buildTime().Unix())
	slices.SortFunc(records, func(a, b cpio.Record) int { return strings.Compare(a.Name, b.Name) })
	records = slices.CompactFunc(append(records, stamp), func(a, b cpio.Record) bool { return a.Name == b.Name })
	var out bytes.Buffer
	out.Write(base)
	for out.Len()%4 != 0 {
		out.WriteByte(0)
	}
	w := cpio.Newc.Writer(&out)
	if err := cpio.WriteRecords(w, records); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// machine starts the installer with files put over its initramfs.
func (f *faces) machine(t *testing.T, files initramfs, flags string, change func(*qemu.Config)) *qemu.Machine {
	t.Helper()
	dir := t.TempDir()
	initrd := filepath.Join(dir, "initramfs")
	if err := os.WriteFile(initrd, archive(t, readFile(t, site.Initramfs()), files), 0o600); err != nil {
		t.Fatal(err)
	}
	accel, _ := probe.Accel(t.Context())
	lines := keepLines(t)
	c := qemu.Config{
		Accel: accel, Kernel: site.Kernel(), Initrd: initrd,
		CommandLine: lab.CommandLine + fmt.Sprintf(" installer.imageServerPortNum=%d %s", f.port, flags),
		Lines:       lines.add, Log: filepath.Join(dir, "console.log"), NoReboot: true,
	}
	change(&c)
	var err error
	// A socket's path must be short, and this test's name is long.
	if c.Dir, err = os.MkdirTemp("", "e2e-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(c.Dir) })
	m, err := qemu.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Kill)
	return m
}

// The operator's programmes. Each notes its arguments, a line for each time.
const (
	heading = "#!/bin/sh\nexport PATH=/usr/sbin:/usr/bin:/sbin:/bin:/bbin\n"

	loaderScript       = heading + "echo \"$@\" >>/test/said/loader\ncp /test/now/* $1/\n"
	selectorScript     = heading + "echo \"$@\" >>/test/said/selector\necho /dev/vdb\n"
	configuratorScript = heading + "echo \"$@\" >>/test/said/configurator\ncp $4/etc/tools-mark $2/etc/network-by-programme\n"
	notifierScript     = heading + "echo \"$@\" >>/test/said/notifier\nkill -TSTP $(pidof installer)\nsleep 1\n"
	shellScript        = heading + "echo FACES SHELL\nexec /bin/sh\n"
)

// commandsScript runs every command. What each says stands between marks.
const commandsScript = heading + `
run() {
	echo "@@ $1"
	shift
	"$@"
	echo "@@ exit $?"
}
network() {
	ip addr | grep 'inet '
	ip route
	cat /etc/resolv.conf
}
decode() { echo aGVsbG8gd29ybGQ= | installer decode-base64; }
random() { installer generate-random | head -c 100000 | wc -c; }
request() {
	ip addr del 10.0.2.15/24 dev eth0
	network >/tmp/before
	installer dhcp-request 2>/dev/null
	network >/tmp/after
	cat /tmp/after
	cmp /tmp/before /tmp/after && echo nothing changed
}
plan() { installer -tftpDirectory=/tmp/fetched plan 2>/dev/null; }
image() {
	touch /tmp/mark
	installer load-image faces/small /tmp/image && chroot /tmp/image /bin/look
}
tree() {
	mkdir -p /tmp/tree/etc /tmp/empty
	timeout -t 60s installer -skipStorage -skipNetwork -mountPoint=/tmp/tree -tmpRoot=/tmp/tools -networkConfigurator= -completionNotifier= -portNum=7001 || return 1
	cat /tmp/tree/etc/hostname
	ls /tmp/tree/etc /tmp/tree/var/log/installer
}
dry() { installer -dryRun -configurationLoader= -configurationBaseUrl=http://10.0.2.2:$(cat /test/http)/site -portNum=7001; }

run decode-base64 decode
run generate-random random
run dhcp-request request
run list-images installer -imageServerHostname=10.0.2.2 list-images
run list-drives installer list-drives
run load-configuration installer -tftpDirectory=/tmp/fetched load-configuration-from-tftp
run plan plan
run dryRun dry
run load-image image
cp /test/good/* /test/now/
run skipStorage tree
run sysfsDirectory installer -sysfsDirectory=/tmp/empty list-drives
echo @@ end
`

var (
	pressEnter = regexp.MustCompile(`Press Enter for a shell on ttyS0`)
	facesShell = regexp.MustCompile(`FACES SHELL`)
	section    = regexp.MustCompile(`(?s)@@ (\S+)\n(.*?)@@ exit (\d+)`)
)

// shell presses Enter, as a person would at a machine that has said so, and
// types a line.
func shell(ctx context.Context, t *testing.T, m *qemu.Machine, line string) {
	t.Helper()
	if err := m.Send("\n"); err != nil {
		t.Fatal(err)
	}
	waitFor(ctx, t, m, facesShell)
	if err := m.Send(line + "\n"); err != nil {
		t.Fatal(err)
	}
}

func waitFor(ctx context.Context, t *testing.T, m *qemu.Machine, re *regexp.Regexp) []string {
	t.Helper()
	found, err := m.WaitFor(ctx, re)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// commands is a machine whose installation fails because of an unknown image.
// On its console every command is tried; then SIGHUP starts afresh, with a
// configuration that is right now, and the machine is installed: with all four
// programmes, a tools image, a clock that was wrong, and a hand-over that is
// held.
func (f *faces) commands(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	good := f.config("10.0.2.2", smallImage)
	asked, httpPort := configServer(t, good)
	files := initramfs{
		"test/loader": {[]byte(loaderScript), 0o755}, "test/selector": {[]byte(selectorScript), 0o755},
		"test/configurator": {[]byte(configuratorScript), 0o755}, "test/notifier": {[]byte(notifierScript), 0o755},
		"test/shell": {[]byte(shellScript), 0o755}, "test/commands": {[]byte(commandsScript), 0o755},
		"test/http": {fmt.Appendln(nil, httpPort), 0o644}, "test/said/none": {},
	}
	for name, data := range good {
		files["test/good/"+name] = initFile{data, 0o644}
	}
	for name, data := range f.config("10.0.2.2", "faces/never/1") {
		files["test/now/"+name] = initFile{data, 0o644}
	}
	dir := t.TempDir()
	tftp := filepath.Join(dir, "tftp")
	if err := site.WriteTFTP(tftp, good); err != nil {
		t.Fatal(err)
	}
	disks := []qemu.Disk{{Path: filepath.Join(dir, "first")}, {Path: filepath.Join(dir, "second")}}
	for _, disk := range disks {
		if err := qemu.CreateDisk(disk.Path, 1<<30); err != nil {
			t.Fatal(err)
		}
	}
	page, err := lab.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	m := f.machine(t, files, "installer.portNum=7000 installer.logDebugLevel=0 installer.shellCommand=/test/shell installer.tmpRoot=/tools"+
		" installer.configurationLoader=/test/loader installer.driveSelector=/test/selector"+
		" installer.networkConfigurator=/test/configurator installer.completionNotifier=/test/notifier", func(c *qemu.Config) {
		c.Disks, c.Net = disks, qemu.Net{TFTP: tftp, Forwards: map[int]int{page: 7000}}
		c.Args = []string{"-rtc", "base=2001-01-01T00:00:00"}
	})

	if found := waitFor(ctx, t, m, failedLine); found[1] != "IMG-032" {
		t.Fatalf("it failed with %s: %s", found[1], found[2])
	}
	first := m.Text()
	for _, text := range []string{"behind the boot image and is now " + buildTime().Format(time.RFC3339), "debug: config.json: ", "debug: -driveSelector [\"/dev/vda\" \"/dev/vdb\"]"} {
		if !strings.Contains(first, text) {
			t.Errorf("the console lacks %q", text)
		}
	}
	waitFor(ctx, t, m, pressEnter)
	shell(ctx, t, m, "/test/commands")
	waitFor(ctx, t, m, regexp.MustCompile(`@@ end\n`))
	f.checkCommands(t, m.Text()[len(first):])
	checkAsked(t, asked())
	writes, err := m.Writes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for n, w := range writes {
		if !w.None() {
			t.Errorf("disk %d was written to: %+v", n, w)
		}
	}
	if err := m.Send("kill -HUP $(pidof installer); exit\n"); err != nil {
		t.Fatal(err)
	}
	waitFor(ctx, t, m, regexp.MustCompile(`finish: starting afresh\n`))
	waitFor(ctx, t, m, regexp.MustCompile(`commit: point of no return\n`))
	if found := waitFor(ctx, t, m, regexp.MustCompile(`finish: the hand-over is held|FAILED.*`)); strings.HasPrefix(found[0], "FAILED") {
		t.Fatal(found[0])
	}
	time.Sleep(2 * time.Second)
	if strings.Contains(m.Text(), "handing over to") || strings.Contains(m.Text(), "NEW SYSTEM") {
		t.Error("the hand-over was held, and happened")
	}
	if p := get(ctx, t, fmt.Sprintf("http://127.0.0.1:%d/api/v1/status", page)); !bytes.Contains(p, []byte("the hand-over is held")) {
		t.Error("the page does not say that the hand-over is held")
	}
	checkEphemeral(t, fmt.Sprintf("127.0.0.1:%d", page))
	held := len(m.Text())
	// Since the first shell was left, the console offers another.
	shell(ctx, t, m, "for f in loader selector configurator notifier; do echo said $f: $(tail -n 1 /test/said/$f); done; kill -CONT $(pidof installer); exit")
	date := waitFor(ctx, t, m, regexp.MustCompile(`NEW SYSTEM date=(\S+)\s*\n`))[1]
	if date < buildTime().Format(time.DateOnly) {
		t.Errorf("the real-time clock says %s, the boot image is of %s", date, buildTime())
	}
	for _, line := range []string{
		"said loader: /run/installer/config eth0", "said selector: /dev/vda /dev/vdb",
		"said configurator: /run/installer/config /mnt eth0 /tools", "said notifier: /run/installer/config eth0",
	} {
		if !strings.Contains(m.Text()[held:], line+"\n") {
			t.Errorf("the console lacks %q", line)
		}
	}
	writes, err = m.Writes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !writes[0].None() || writes[1].None() {
		t.Errorf("the second disk was chosen, written were %+v", writes)
	}
	m.Kill()
	f.checkInstalled(t, disks[1].Path)
}

func (f *faces) checkCommands(t *testing.T, console string) {
	t.Helper()
	said := map[string]string{}
	for _, found := range section.FindAllStringSubmatch(console, -1) {
		said[found[1]] = found[2]
		if found[3] != "0" && found[1] != "sysfsDirectory" {
			t.Errorf("%s ended with %s:\n%s", found[1], found[3], found[2])
		}
	}
	for name, texts := range map[string][]string{
		"decode-base64":      {"hello world"},
		"generate-random":    {"100000"},
		"dhcp-request":       {`"10.0.2.15/24"`, "nothing changed"},
		"list-images":        {smallImage + "\n", toolsImage + "\n", memoryImage + "\n"},
		"list-drives":        {"/dev/vda\t1.0 GiB", "/dev/vdb\t1.0 GiB"},
		"load-configuration": {"/tmp/fetched/config.json\n", "/tmp/fetched/imagename\n", "/tmp/fetched/storage-layout.json\n"},
		"dryRun":             {"plan: dry run: stopping here, nothing was changed", "plan: plan sha256:"},
		"load-image":         {"everything is there"},
		"skipStorage":        {lab.Hostname + "\n", "summary.json", "plan.json", "events.jsonl"},
	} {
		for _, text := range texts {
			if !strings.Contains(said[name], text) {
				t.Errorf("%s does not say %q but\n%s", name, text, said[name])
			}
		}
	}
	for name, text := range map[string]string{
		"skipStorage":    "\nnetwork\n", // /etc/network
		"sysfsDirectory": "/dev/vda",
		"dhcp-request":   "inet 10.0.2.15",
	} {
		if strings.Contains(said[name], text) {
			t.Errorf("%s says %q:\n%s", name, text, said[name])
		}
	}
	var plan struct {
		Image struct{ Name string }
	}
	if err := json.Unmarshal([]byte(said["plan"]), &plan); err != nil || !strings.Contains(said["plan"], smallImage) || !strings.Contains(said["plan"], "/dev/vdb") {
		t.Errorf("the plan is no JSON, or not of %s on /dev/vdb: %v\n%s", smallImage, err, said["plan"])
	}
}

// checkEphemeral: the certificate that the installer made while its clock was
// wrong is valid by the clock as it is now.
func checkEphemeral(t *testing.T, address string) {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true}) // its time is what is checked
	if err != nil {
		t.Errorf("the page speaks no TLS: %v", err)
		return
	}
	defer conn.Close()
	if c := conn.ConnectionState().PeerCertificates[0]; time.Now().After(c.NotAfter) || time.Now().Before(c.NotBefore) {
		t.Errorf("the page's certificate is valid from %s to %s", c.NotBefore, c.NotAfter)
	}
}

// checkInstalled looks at the file-system that was made, with debugfs(8).
func (f *faces) checkInstalled(t *testing.T, disk string) {
	t.Helper()
	table, err := exec.Command("sfdisk", "--json", disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	var parsed struct {
		PartitionTable struct {
			Partitions []struct {
				Start int64
				Type  string
			}
		}
	}
	if err := json.Unmarshal(table, &parsed); err != nil {
		t.Fatal(err)
	}
	const linuxRoot = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
	at := int64(-1)
	for _, p := range parsed.PartitionTable.Partitions {
		if p.Type == linuxRoot {
			at = p.Start * 512
		}
	}
	if at < 0 {
		t.Fatalf("there is no partition for the root: %s", table)
	}
	debugfs := func(request string) string {
		out, err := exec.Command("debugfs", "-R", request, fmt.Sprintf("%s?offset=%d", disk, at)).Output()
		if err != nil {
			t.Errorf("debugfs %s: %v", request, err)
		}
		return string(out)
	}
	for request, want := range map[string]string{
		"cat /etc/hostname":                   lab.Hostname + "\n",
		"cat /etc/network-by-programme":       "of the tools image\n",
		"cat /var/log/installer/imagename":    smallImage + "\n",
		"cat /var/log/installer/summary.json": "kexec",
		"cat /var/log/installer/log":          "commit: point of no return",
		"cat /var/log/installer/plan.json":    smallImage,
		"cat /var/log/installer/config.json":  lab.Hostname,
		"cat /var/log/installer/events.jsonl": "\"phase\":\"boot\"",
		"ls -p /var/log/installer/dhcp":       "eth0.json",
	} {
		if got := debugfs(request); !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q in it", request, got, want)
		}
	}
	if got := debugfs("cat /etc/network/interfaces"); got != "" {
		t.Errorf("the renderer wrote too: %s", got)
	}
}

// configServer serves files below /site/ and keeps the queries.
func configServer(t *testing.T, files lab.Config) (asked func() []string, port int) {
	var mu sync.Mutex
	var queries []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		queries = append(queries, r.URL.Path+"?"+r.URL.RawQuery)
		data, there := files[strings.TrimPrefix(r.URL.Path, "/site/")]
		if !there {
			http.NotFound(w, r)
			return
		}
		if _, err := w.Write(data); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(queries)
	}, server.Listener.Addr().(*net.TCPAddr).Port
}

func checkAsked(t *testing.T, queries []string) {
	t.Helper()
	if !slices.ContainsFunc(queries, func(q string) bool {
		return strings.HasPrefix(q, "/site/config.json?") && strings.Contains(q, "mac=52%3A54%3A00%3A12%3A34%3A56") && strings.Contains(q, "serial_number=")
	}) {
		t.Errorf("the web server was not asked as the model does: %q", queries)
	}
}

// onBoard is a machine with its configuration in the initramfs: it sends no
// DHCP packet, also when kexec-image starts another one in memory, whose
// installation fails and, two seconds later, reboots.
func (f *faces) onBoard(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	files := onBoard(f.config("10.0.2.2", "faces/never/1"))
	files["test/shell"] = initFile{[]byte(shellScript), 0o755}
	dump := filepath.Join(t.TempDir(), "packets")
	m := f.machine(t, files, "installer.shellCommand=/test/shell", func(c *qemu.Config) {
		c.Args = []string{"-object", "filter-dump,id=packets,netdev=n0,file=" + dump}
	})
	if found := waitFor(ctx, t, m, failedLine); found[1] != "IMG-032" {
		t.Fatalf("it failed with %s: %s", found[1], found[2])
	}
	if !strings.Contains(m.Text(), "no DHCP lease is asked for") {
		t.Error("the console does not say that no lease is asked for")
	}
	waitFor(ctx, t, m, pressEnter)
	shell(ctx, t, m, "installer kexec-image "+memoryImage)
	waitFor(ctx, t, m, regexp.MustCompile(`Linux version`))
	if found := waitFor(ctx, t, m, failedLine); found[1] != "CFG-020" {
		t.Errorf("in memory it failed with %s: %s", found[1], found[2])
	}
	waitFor(ctx, t, m, regexp.MustCompile(`finish: rebooting in 2s; the page stays up until then\n`))
	if err := m.Wait(ctx); err != nil { // QEMU ends where the machine would restart
		t.Errorf("it did not reboot: %v", err)
	}
	total, dhcp := countPackets(t, dump)
	if total < 20 || dhcp != 0 {
		t.Errorf("of %d packets %d are DHCP requests; wanted many, and none", total, dhcp)
	}
}

// countPackets counts the frames in a file of libpcap's format, and those to
// UDP port 67.
func countPackets(t *testing.T, file string) (total, dhcp int) {
	t.Helper()
	r := bytes.NewReader(readFile(t, file))
	header := make([]byte, 24)
	if _, err := io.ReadFull(r, header); err != nil || binary.LittleEndian.Uint32(header) != 0xa1b2c3d4 {
		t.Fatalf("%s is no packet dump: %v", file, err)
	}
	for {
		record := make([]byte, 16)
		if _, err := io.ReadFull(r, record); err != nil {
			return total, dhcp
		}
		frame := make([]byte, binary.LittleEndian.Uint32(record[8:]))
		if _, err := io.ReadFull(r, frame); err != nil {
			return total, dhcp // QEMU was ended in the middle
		}
		total++
		if len(frame) < 34 || binary.BigEndian.Uint16(frame[12:]) != 0x0800 || frame[23] != 17 {
			continue // not UDP over IPv4
		}
		if udp := frame[14+4*int(frame[14]&15):]; len(udp) >= 4 && binary.BigEndian.Uint16(udp[2:]) == 67 {
			dhcp++
		}
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
