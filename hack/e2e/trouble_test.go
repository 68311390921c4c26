package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/docs"
	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
	"github.com/firstlight/firstlight/installer/progress"
)

// trouble is one thing that is wrong with a machine or its site.
type trouble struct {
	// code is the error that the installer must end with.
	code string
	// says are parts of the text that a person needs: what exactly is wrong.
	says []string
	// config changes the configuration.
	config func(lab.Config)
	// options are further words for the kernel's command line.
	options string
	// serve starts something in place of the site's own image server and
	// returns its port; whatever it starts ends with the test. It may add to
	// what the machine must say.
	serve func(t *testing.T, x *trouble) (port int)
	// disk is the size of the disk in bytes; 0 is lab.DiskBytes, less than 0
	// is no disk at all.
	disk int64
	// silent is a network on which nobody answers; the page cannot be looked
	// at then.
	silent bool
}

// troubles are all of them; the one that waits longest comes first, so that
// the others run beside it.
var troubles = []struct {
	name string
	trouble
}{
	{"no lease", trouble{code: "NET-003", silent: true}},
	{"malformed layout", trouble{
		code: "CFG-002", says: []string{"storage-layout.json"},
		config: func(c lab.Config) {
			c["storage-layout.json"] = bytes.TrimRight(c["storage-layout.json"], "}\n")
		},
	}},
	{"mistakes in two files", trouble{
		code: "CFG-003", says: []string{"storage-layout.json", "MountPiont", "MountPoint", "config.json", "Hostnam"},
		config: func(c lab.Config) {
			c["storage-layout.json"] = bytes.Replace(c["storage-layout.json"], []byte(`"MountPoint"`), []byte(`"MountPiont"`), 1)
			c["config.json"] = bytes.Replace(c["config.json"], []byte(`"Hostname"`), []byte(`"Hostnam"`), 1)
		},
	}},
	{"unknown image", trouble{
		code: "IMG-032", says: []string{"debian/12/never"},
		config: func(c lab.Config) { c["imagename"] = []byte("debian/12/never\n") },
	}},
	{"image server unreachable", trouble{
		code: "IMG-030", says: []string{"10.0.2.2"},
		serve: func(t *testing.T, _ *trouble) int {
			port, err := lab.FreePort()
			if err != nil {
				t.Fatal(err)
			}
			return port
		},
	}},
	{"image server of another CA", trouble{
		code: "TRU-001",
		serve: func(t *testing.T, _ *trouble) int {
			other := *site
			other.Dir = t.TempDir()
			if err := other.MakeKeys(t.Context()); err != nil {
				t.Fatal(err)
			}
			return serve(t, &other, filepath.Join(other.Dir, "store")).Port
		},
	}},
	{"image server dying midway", trouble{
		code: "IMG-082", options: "installer.imageServerPatience=20s",
		serve: func(t *testing.T, _ *trouble) int {
			server := serve(t, site, copyStore(t))
			relay, err := lab.NewRelay(server.Port, 20<<20, server.Kill)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { relay.Close() })
			return relay.Port
		},
	}},
	{"flipped bit in an object", trouble{
		code: "IMG-080", says: []string{"the content of /boot/"},
		serve: func(t *testing.T, x *trouble) int {
			store := copyStore(t)
			damaged, err := lab.DamageLargest(store)
			if err != nil {
				t.Fatal(err)
			}
			x.says = append(x.says, "sha256:"+strings.TrimSuffix(filepath.Base(damaged), ".zst"))
			// What looks for damage in the background would be the first to find it.
			return serve(t, site, store, "--scrub-rate=0").Port
		},
	}},
	{"disk too small", trouble{code: "STO-002", says: []string{"vda"}, disk: 2 << 30}},
	{"no disk", trouble{code: "STO-001", disk: -1}},
}

func serve(t *testing.T, s *lab.Site, store string, flags ...string) *lab.Server {
	t.Helper()
	server, err := s.Serve(t.Context(), store, flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Stop()
		if said, err := os.ReadFile(store + ".log"); t.Failed() && err == nil {
			t.Logf("the image server said:\n%s", said)
		}
	})
	return server
}

// copyStore copies the site's store to where hard links can reach it.
func copyStore(t *testing.T) string { return storeOf(t, site) }

func storeOf(t *testing.T, s *lab.Site) string {
	t.Helper()
	dir, err := os.MkdirTemp(s.Dir, "copy-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	store := filepath.Join(dir, "store")
	if err := s.CopyStore(store); err != nil {
		t.Fatal(err)
	}
	return store
}

// failedLine is how an installation ends badly.
var failedLine = regexp.MustCompile(`FAILED ([A-Z]{3}-[0-9]{3}): (.*)\n`)

// TestTrouble: whatever is wrong, the installation ends before the disk is
// touched, and says on console, page and log what is wrong and what to do.
func TestTrouble(t *testing.T) {
	t.Parallel()
	for _, x := range troubles {
		t.Run(strings.ReplaceAll(x.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			x.test(t)
		})
	}
}

func (x trouble) test(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	port := 0
	if x.serve != nil {
		port = x.serve(t, &x)
	} else {
		port = serve(t, site, copyStore(t)).Port
	}
	config, err := site.NewConfig(lab.InGuest(port))
	if err != nil {
		t.Fatal(err)
	}
	if x.config != nil {
		x.config(config)
	}
	dir := t.TempDir()
	tftp := filepath.Join(dir, "tftp")
	if err := site.WriteTFTP(tftp, config); err != nil {
		t.Fatal(err)
	}
	page, err := lab.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	accel, _ := probe.Accel(ctx)
	lines := keepLines(t)
	c := qemu.Config{
		Accel: accel, Kernel: site.Kernel(), Initrd: site.Initramfs(), CommandLine: strings.TrimSpace(lab.CommandLine + " " + x.options),
		Net:   qemu.Net{TFTP: tftp, Forwards: map[int]int{page: 6978}, Silent: x.silent},
		Lines: lines.add, Log: filepath.Join(dir, "console.log"), NoReboot: true,
	}
	var before [32]byte
	disk := filepath.Join(dir, "disk.raw")
	if x.disk >= 0 {
		before = oldDisk(t, disk, x.disk)
		c.Disks = []qemu.Disk{{Path: disk}}
	}
	// A socket's path must be short, and this test's name is long.
	if c.Dir, err = os.MkdirTemp("", "e2e-"); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(c.Dir)
	m, err := qemu.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()

	found, err := m.WaitFor(ctx, failedLine)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %s", found[1], found[2])
	if found[1] != x.code {
		t.Errorf("it failed with %s, want %s: %s", found[1], x.code, found[2])
	}
	if !strings.HasSuffix(found[2], "; disks untouched") {
		t.Errorf("the line does not end in “disks untouched”: %s", found[2])
	}
	for _, part := range x.says {
		if !strings.Contains(m.Text(), part) {
			t.Errorf("nothing says %q: %s", part, found[2])
		}
	}
	if !strings.Contains(m.Text(), ": what to do: ") {
		t.Error("the console does not say what to do")
	}
	if strings.Contains(m.Text(), "point of no return") {
		t.Error("the point of no return was passed")
	}
	if !x.silent {
		checkPage(ctx, t, fmt.Sprintf("http://127.0.0.1:%d", page), found[1])
	}
	writes, err := m.Writes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range writes {
		if !w.None() {
			t.Errorf("the disk was written to: %+v", w)
		}
	}
	if err := m.Stop(ctx); err != nil {
		t.Error(err)
	}
	if x.disk < 0 {
		return
	}
	after, err := lab.HashDisk(disk)
	if err != nil {
		t.Fatal(err)
	}
	if after != before {
		t.Error("the disk is not what it was")
	}
}

// oldDisk makes a disk with something on it, at both ends, and returns its
// hash.
func oldDisk(t *testing.T, path string, size int64) [32]byte {
	t.Helper()
	if size == 0 {
		size = lab.DiskBytes
	}
	if err := qemu.CreateDisk(path, size); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, 1<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, size / 2, size - int64(len(data))} {
		if _, err := f.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := lab.HashDisk(path)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// checkPage: page, API and log all tell the failure, and what to do about it.
func checkPage(ctx context.Context, t *testing.T, url, code string) {
	t.Helper()
	entry, ok := docs.Lookup(code)
	if !ok {
		t.Errorf("docs/errors.md does not know %s", code)
	}
	var status progress.Snapshot
	for range 20 { // what comes next is said a moment after the failure
		if err := json.Unmarshal(get(ctx, t, url+"/api/v1/status"), &status); err != nil {
			t.Fatal(err)
		}
		if status.Next != nil {
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	switch f := status.Failure; {
	case f == nil:
		t.Error("the API tells no failure")
	case f.Code != code || f.DisksChanged || f.Do != entry.Do || f.Do == "":
		t.Errorf("the API tells %+v, want %s with what to do", f, code)
	}
	if status.Next == nil || status.Next.Text != "reboot" {
		t.Errorf("the API does not say that a reboot is next: %+v", status.Next)
	}
	if p := get(ctx, t, url+"/"); !bytes.Contains(p, []byte(code)) || !bytes.Contains(p, []byte("disks untouched")) || !bytes.Contains(p, []byte("What to do")) {
		t.Errorf("the page does not show %s, that the disks are untouched, and what to do", code)
	}
	if l := get(ctx, t, url+"/log"); !bytes.Contains(l, []byte("FAILED "+code)) || !bytes.Contains(l, []byte("what to do: ")) {
		t.Error("the log has no FAILED line, or does not say what to do")
	}
	if m := get(ctx, t, url+"/metrics"); !bytes.Contains(m, []byte(`installer_errors_total{code="`+code+`"} 1`)) {
		t.Error("the metrics do not count the error")
	}
}

func get(ctx context.Context, t *testing.T, url string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Errorf("the page is not up: %v", err)
		return nil
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("%s: %s, %v", url, answer.Status, err)
	}
	return body
}
