package netswitch

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"github.com/u-root/mkuimage/cpio"

	"github.com/firstlight/firstlight/hack/qemu"
	"github.com/firstlight/firstlight/uinit/modules"
)

// Options are what a switch is started with.
type Options struct {
	// Kernel is Debian's kernel, KernelDir the directory with its lib/modules.
	Kernel, KernelDir string
	// Image is the file where the initramfs lies, see Build.
	Image string
	// Dir is an existing directory with a short path, for sockets.
	Dir string
	// Log gets the switch's console.
	Log string
	// Accel is what the emulator shall use.
	Accel qemu.Accel
	// Network is what it is set up as: one cable a port.
	Network Network
}

// Switch is a running switch.
type Switch struct {
	machine *qemu.Machine
	client  *http.Client
	control string // host:port
	sockets []string
}

// drivers are the kernel modules that the guest needs, besides what they need.
func drivers() []string {
	return []string{
		"virtio_pci", "virtio_net", "ipv6", "bridge", "8021q", "bonding", "veth", "af_packet",
		"sch_netem", "sch_ingress", "ifb", "cls_matchall", "act_mirred",
	}
}

// Build makes the switch's initramfs: the guest program and the modules, no
// more. It is quick when nothing has changed. It runs the Go tool in checkout,
// the top of the module.
func Build(ctx context.Context, checkout, kernelDir, out string) error {
	work, err := os.MkdirTemp("", "netswitch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	program := filepath.Join(work, "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./hack/netswitch/guest")
	cmd.Dir, cmd.Env = checkout, append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the switch: %w\n%s", err, said)
	}
	releases, err := filepath.Glob(filepath.Join(kernelDir, "lib", "modules", "*"))
	if err != nil || len(releases) != 1 {
		return fmt.Errorf("building the switch: the modules of one kernel below %s, found %d (%w)", kernelDir, len(releases), err)
	}
	index, err := modules.Read(os.DirFS(releases[0]))
	if err != nil {
		return err
	}
	records := []cpio.Record{cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1), cpio.Directory("modules", 0o755)}
	init, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	records = append(records, cpio.StaticFile("init", string(init), 0o755))
	seen := map[string]bool{}
	for _, name := range drivers() {
		if index.Builtin(name) {
			continue
		}
		steps, err := index.Order(name)
		if err != nil {
			return fmt.Errorf("building the switch: %w", err)
		}
		for _, step := range steps {
			if seen[step.Name] || step.File == "" {
				continue
			}
			seen[step.Name] = true
			data, err := os.ReadFile(filepath.Join(releases[0], step.File))
			if err != nil {
				return err
			}
			records = append(records, cpio.StaticFile(fmt.Sprintf("modules/%02d-%s.ko", len(seen), step.Name), string(data), 0o644))
		}
	}
	var raw bytes.Buffer
	w := cpio.Newc.Writer(&raw)
	for n := range records {
		records[n].Ino = uint64(n + 1)
	}
	if err := errors.Join(cpio.WriteRecords(w, records), cpio.WriteTrailer(w)); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	// Another test may be starting a switch from the old one.
	if err := os.WriteFile(out+".new", raw.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(out+".new", out)
}

// Start starts a switch and sets it up. Stop ends it.
func Start(ctx context.Context, o Options) (*Switch, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting a switch: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return nil, fmt.Errorf("starting a switch: %w", err)
	}
	s := &Switch{control: fmt.Sprintf("127.0.0.1:%d", port), client: &http.Client{Timeout: 30 * time.Second}}
	c := qemu.Config{
		Dir: filepath.Join(o.Dir, "sw"), Log: o.Log, Accel: o.Accel, MemoryMiB: 192, CPUs: 1,
		Kernel: o.Kernel, Initrd: o.Image, CommandLine: "console=ttyS0,115200 quiet net.ifnames=0 panic=-1",
		NoReboot: true, Net: qemu.Net{MAC: "52:54:00:ff:00:ff", Forwards: map[int]int{port: ControlPort}},
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("starting a switch: %w", err)
	}
	for n := range o.Network.Ports {
		socket := filepath.Join(o.Dir, fmt.Sprintf("c%d", n))
		s.sockets = append(s.sockets, socket)
		c.Cables = append(c.Cables, qemu.Cable{MAC: fmt.Sprintf("52:54:00:ff:00:%02x", n), Socket: socket, Listen: true})
	}
	if s.machine, err = qemu.Start(ctx, c); err != nil {
		return nil, fmt.Errorf("starting a switch: %w", err)
	}
	waiting, cancel := context.WithTimeout(ctx, 5*time.Minute) // a busy host
	defer cancel()
	if _, err := s.machine.WaitFor(waiting, regexp.MustCompile(Ready)); err != nil {
		s.Stop()
		return nil, fmt.Errorf("starting a switch: %w", err)
	}
	if err := s.ask(ctx, http.MethodPut, "/network", o.Network, nil); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

// Stop ends the switch.
func (s *Switch) Stop() { s.machine.Kill() }

// Cable is the machine's end of the cable to port n.
func (s *Switch) Cable(n int, mac string) qemu.Cable {
	return qemu.Cable{MAC: mac, Socket: s.sockets[n]}
}

// Plug plugs the switch's end of the cable at port n in or out. The machine
// has its own end, see qemu.Machine.
func (s *Switch) Plug(ctx context.Context, n int, in bool) error { return s.machine.Plug(ctx, n, in) }

// SetPort changes port n; its group stays.
func (s *Switch) SetPort(ctx context.Context, n int, p Port) error {
	return s.ask(ctx, http.MethodPut, fmt.Sprintf("/port/%d", n), p, nil)
}

// State is what the switch saw so far.
func (s *Switch) State(ctx context.Context) (State, error) {
	var state State
	err := s.ask(ctx, http.MethodGet, "/state", nil, &state)
	return state, err
}

// Probe lets a station look once.
func (s *Switch) Probe(ctx context.Context, p Probe) (Answer, error) {
	var a Answer
	err := s.ask(ctx, http.MethodPost, "/probe", p, &a)
	return a, err
}

// Until probes again and again until there is an answer, or limit has passed:
// then the last error.
func (s *Switch) Until(ctx context.Context, limit time.Duration, p Probe) (Answer, error) {
	for end := time.Now().Add(limit); ; {
		a, err := s.Probe(ctx, p)
		if err != nil || a.OK {
			return a, err
		}
		if time.Now().After(end) {
			return a, fmt.Errorf("%s of %s from %s, for %s: %s", p.Kind, p.Target, p.Station, limit, a.Error)
		}
		select {
		case <-ctx.Done():
			return a, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Dial connects to address (host:port) as seen from a station.
func (s *Switch) Dial(ctx context.Context, station, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.control)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nStation: %s\r\n\r\n", address, address, station); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	r := bufio.NewReader(conn)
	answer, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if answer.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(answer.Body) // more than the status line, if it can be had
		return nil, errors.Join(fmt.Errorf("%s from %s: %s %s", address, station, answer.Status, bytes.TrimSpace(said)), conn.Close())
	}
	return &tunnel{conn, r}, nil
}

// tunnel is a connection whose first bytes may have been read already.
type tunnel struct {
	net.Conn
	r *bufio.Reader
}

func (t *tunnel) Read(p []byte) (int, error) { return t.r.Read(p) }

// Console is the last lines of the switch's own console.
func (s *Switch) Console(lines int) string { return s.machine.Tail(lines) }

// ask sends one request to the control.
func (s *Switch) ask(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("switch: %s %s: %w", method, path, err)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+s.control+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("switch: %s %s: %w", method, path, err)
	}
	answer, err := s.client.Do(request)
	if err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		return fmt.Errorf("switch: %s %s: %w", method, path, err)
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("switch: %s %s: %s: %s", method, path, answer.Status, bytes.TrimSpace(data))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(data, out)
}
