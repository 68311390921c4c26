package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/firstlight/firstlight/hack/qemu"
	"github.com/firstlight/firstlight/installer/progress"
)

// How long each part may take. They are generous: a busy host with two
// processors translates every instruction of the machine.
const (
	toInstaller = 3 * time.Minute // from power-on to the installer's first line
	toHandOver  = 6 * time.Minute // from there to the hand-over
	toLogin     = 4 * time.Minute // from the hand-over, or power-on, to the login prompt
)

// What is waited for on the console.
var (
	phaseLine = regexp.MustCompile(`^\[ *(\d+\.\d{3})\] (clock|links|config|inventory|manifest|plan|stage|tools|prove|commit|storage|unpack|identity|network|boot|finish): (.*)$`)
	firstLine = regexp.MustCompile(`(?m)^\[ *\d+\.\d{3}\] clock: `)
	handOver  = regexp.MustCompile(`(?m)\[ *(\d+\.\d{3})\] finish: handing over to (\S+) by (kexec|reboot)\n|FAILED ([A-Z]{3}-[0-9]{3}): (.*)\n`)
	report    = regexp.MustCompile(`(?m)DEMO-REPORT done`)
	login     = regexp.MustCompile(`(?m)^` + Hostname + ` login: `)
)

// PhaseLine takes a line of the installer apart: seconds since it started,
// phase, text. Other lines of the console are not its own.
func PhaseLine(line string) (seconds float64, phase progress.Phase, text string, ok bool) {
	m := phaseLine.FindStringSubmatch(line)
	if m == nil {
		return 0, "", "", false
	}
	seconds, err := strconv.ParseFloat(m[1], 64)
	return seconds, progress.Phase(m[2]), m[3], err == nil
}

// Installation is a machine that is to be installed, twice booted.
type Installation struct {
	Site  *Site
	Probe *qemu.Probe
	// Dir is where its disk, the boot server's files and the console logs lie.
	Dir string
	// Step is told what is being done; Line gets every line of the console.
	Step func(format string, args ...any)
	Line func(line string)
	// Display shows the machine's screen in a window.
	Display bool
	// OldDisk takes the disk in Dir as an earlier installation left it,
	// instead of an empty one.
	OldDisk bool
	// Reboot installs with UseKexec false: the machine goes through its
	// firmware, and the only boot of the new system is that from its disk.
	Reboot bool
	// MemoryMiB is what the machine has for the installation; 0 is 2048.
	MemoryMiB int
	// Edit changes the configuration; nil leaves it.
	Edit func(Config)
	// Keep leaves the machine running in the end: Result.Machine.
	Keep bool
}

// Result is what an installation came to.
type Result struct {
	Status     progress.Snapshot // the last that port 6978 gave
	PeakMemory uint64            // bytes, of the whole machine; 0 if it was never told
	Phases     []PhaseTime
	Install    time.Duration // the installer's start to its hand-over
	First      Report        // of the new system after kexec
	Second     Report        // of the new system from its disk
	Took       []Took        // the whole way in parts
	Machine    *qemu.Machine // with Keep
	Socket     string        // with Keep: the console
}

// PhaseTime is how long a phase took.
type PhaseTime struct {
	Phase   progress.Phase
	Seconds float64
	Skipped bool
}

// Took is how long a part of the whole took.
type Took struct {
	What string
	Time time.Duration
}

// Run installs the machine through the network, waits until the new system
// reports itself, power-cycles it with no network boot, and waits again. It
// returns what it knows also when it fails; whatever it started is gone
// then, and without Keep in any case.
func (i *Installation) Run(ctx context.Context) (*Result, error) {
	result := &Result{}
	directory, err := filepath.Abs(i.Dir)
	if err != nil {
		return result, fmt.Errorf("preparing an installation: %w", err)
	}
	server, err := i.Site.Serve(ctx, i.Site.store())
	if err != nil {
		return result, err
	}
	defer server.Stop()
	config, err := i.Site.NewConfig(InGuest(server.Port))
	if err != nil {
		return result, err
	}
	if i.Reboot {
		config["storage-layout.json"] = bytes.Replace(config["storage-layout.json"], []byte(`"UseKexec": true`), []byte(`"UseKexec": false`), 1)
	}
	if i.Edit != nil {
		i.Edit(config)
	}
	tftp := filepath.Join(directory, "tftp")
	if err := i.Site.WriteTFTP(tftp, config); err != nil {
		return result, err
	}
	disk := filepath.Join(directory, "disk.raw")
	if !i.OldDisk {
		if err := qemu.CreateDisk(disk, DiskBytes); err != nil {
			return result, err
		}
	}
	accel, why := i.Probe.Accel(ctx)
	i.Step("machine: %s (%s)", accel, why)

	port, err := FreePort()
	if err != nil {
		return result, err
	}
	c := qemu.Config{
		Accel: accel, MemoryMiB: i.MemoryMiB, CPUs: 2, Display: i.Display, Lines: i.Line,
		Disks:       []qemu.Disk{{Path: disk, Serial: "lab-0"}},
		Net:         qemu.Net{TFTP: tftp, BootFile: bootFile, Forwards: map[int]int{port: 6978}},
		FromNetwork: true, NoReboot: i.Reboot,
		Log: filepath.Join(directory, "console-install.log"),
	}
	i.Step("power on: PXE, a disk of %d GiB", DiskBytes>>30)
	if err := i.install(ctx, c, port, result); err != nil {
		return result, err
	}
	i.Step("power cycle: the same disk, no network boot")
	c.MemoryMiB = 0
	c.FromNetwork, c.NoReboot, c.Net.TFTP, c.Net.BootFile, c.Net.Forwards = false, false, "", "", nil
	c.Log, c.Keep = filepath.Join(directory, "console-disk.log"), i.Keep
	return result, i.coldBoot(ctx, c, result)
}

// install is the first boot, up to the new system's report after kexec.
func (i *Installation) install(ctx context.Context, c qemu.Config, port int, result *Result) error {
	var lines phaseTimes
	c.Lines = func(line string) {
		lines.add(line)
		i.Line(line)
	}
	start := time.Now()
	m, cleanup, err := i.start(ctx, c)
	if err != nil {
		return err
	}
	defer cleanup()
	if _, err := waitFor(ctx, m, toInstaller, firstLine); err != nil {
		return fmt.Errorf("the installer did not start: %w", err)
	}
	result.took("power-on to installer", &start)
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	i.Step("status page: %s", url)
	poll := pollStatus(ctx, url)
	found, err := waitFor(ctx, m, toHandOver, handOver)
	result.Status, result.PeakMemory = poll()
	result.Phases = lines.phases(result.Status)
	if err != nil {
		return fmt.Errorf("the installer did not finish: %w", err)
	}
	if found[4] != "" {
		return &Failure{Code: found[4], Text: found[5], Console: m.Tail(40)}
	}
	way := "kexec"
	if i.Reboot {
		way = "reboot"
	}
	if found[3] != way || found[2] != i.Site.Image {
		return fmt.Errorf("the installer handed over to %s by %s, wanted %s by %s", found[2], found[3], i.Site.Image, way)
	}
	result.Install = lines.last()
	result.took("installer to hand-over", &start)
	if i.Reboot {
		ended, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		return m.Wait(ended) // where it would restart
	}
	if result.First, err = newSystem(ctx, m); err != nil {
		return fmt.Errorf("the new system after kexec: %w", err)
	}
	result.took("kexec to login", &start)
	i.Step("login prompt after kexec; %s", result.First)
	return m.Stop(ctx)
}

// coldBoot is the second boot, from the disk alone.
func (i *Installation) coldBoot(ctx context.Context, c qemu.Config, result *Result) error {
	start := time.Now()
	m, cleanup, err := i.start(ctx, c)
	if err != nil {
		return err
	}
	kept := false
	defer func() {
		if !kept {
			cleanup()
		}
	}()
	if result.Second, err = newSystem(ctx, m); err != nil {
		return fmt.Errorf("the new system from its disk: %w", err)
	}
	result.took("power-on to login from disk", &start)
	i.Step("login prompt from disk; %s", result.Second)
	if i.Keep {
		kept = true
		result.Machine, result.Socket = m, m.Socket()
		return nil
	}
	return m.Stop(ctx)
}

// start starts a machine with its sockets in a short directory of their own;
// cleanup makes sure that both are gone.
func (i *Installation) start(ctx context.Context, c qemu.Config) (m *qemu.Machine, cleanup func(), err error) {
	if c.Dir, err = os.MkdirTemp("", "firstlight-"); err != nil {
		return nil, nil, fmt.Errorf("starting a machine: %w", err)
	}
	m, err = qemu.Start(ctx, c)
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(c.Dir))
	}
	return m, func() {
		m.Kill()
		_ = os.RemoveAll(c.Dir) // sockets in /tmp; the logs lie elsewhere
	}, nil
}

func waitFor(ctx context.Context, m *qemu.Machine, limit time.Duration, re *regexp.Regexp) ([]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s have passed", limit))
	defer cancel()
	return m.WaitFor(ctx, re)
}

// newSystem waits for the report and the login prompt of the installed
// system, whichever comes first, and checks the report.
func newSystem(ctx context.Context, m *qemu.Machine) (Report, error) {
	from := len(m.Text())
	if _, err := waitFor(ctx, m, toLogin, report); err != nil {
		return Report{}, err
	}
	if !login.MatchString(m.Text()[from:]) {
		if _, err := waitFor(ctx, m, toLogin, login); err != nil {
			return Report{}, err
		}
	}
	r := ParseReport(m.Text()[from:])
	if err := r.Check(); err != nil {
		return r, fmt.Errorf("%w; the console's last lines:\n%s", err, m.Tail(40))
	}
	return r, nil
}

func (r *Result) took(what string, since *time.Time) {
	now := time.Now()
	r.Took = append(r.Took, Took{what, now.Sub(*since)})
	*since = now
}

// Failure is an installation that ended with FAILED.
type Failure struct {
	Code, Text string
	Console    string // its last lines
}

func (f *Failure) Error() string {
	return fmt.Sprintf("the installer says: FAILED %s: %s; the console's last lines:\n%s", f.Code, f.Text, f.Console)
}

// pollStatus asks the status page once a second until the function that it
// returns is called, which returns the last answer.
func pollStatus(ctx context.Context, url string) func() (progress.Snapshot, uint64) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	var status progress.Snapshot
	var peak uint64
	go func() {
		defer close(done)
		client := &http.Client{Timeout: 5 * time.Second}
		for {
			// The page may not be up yet, or no longer: the last answer stands.
			if body, err := get(ctx, client, url+"api/v1/status"); err == nil {
				var s progress.Snapshot
				if json.Unmarshal(body, &s) == nil {
					status = s
				}
			}
			if body, err := get(ctx, client, url+"metrics"); err == nil {
				peak = max(peak, metric(body, "installer_memory_peak_bytes"))
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	}()
	return func() (progress.Snapshot, uint64) {
		cancel()
		<-done
		return status, peak
	}
}

func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, answer.Status)
	}
	return io.ReadAll(answer.Body)
}

// metric is the value of a metric without labels, 0 if it is not there.
func metric(page []byte, name string) uint64 {
	for s := bufio.NewScanner(bytes.NewReader(page)); s.Scan(); {
		if value, ok := strings.CutPrefix(s.Text(), name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err == nil {
				return uint64(v)
			}
		}
	}
	return 0
}

// phaseTimes notes when each phase spoke first and when anything spoke last.
type phaseTimes struct {
	mu    sync.Mutex
	first map[progress.Phase]float64
	end   float64
}

func (p *phaseTimes) add(line string) {
	seconds, phase, _, ok := PhaseLine(line)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.first == nil {
		p.first = make(map[progress.Phase]float64)
	}
	if _, spoke := p.first[phase]; !spoke {
		p.first[phase] = seconds
	}
	p.end = seconds
}

func (p *phaseTimes) last() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Duration(p.end * float64(time.Second))
}

// phases puts together what the last status said and what the console says
// about the phases that ended after it.
func (p *phaseTimes) phases(status progress.Snapshot) []PhaseTime {
	p.mu.Lock()
	defer p.mu.Unlock()
	said := make(map[progress.Phase]progress.PhaseStatus)
	for _, s := range status.Phases {
		said[s.Phase] = s
	}
	var all []PhaseTime
	order := progress.Phases()
	for n, phase := range order {
		s, known := said[phase]
		switch {
		case known && (s.State == progress.Done || s.State == progress.Skipped):
			all = append(all, PhaseTime{phase, s.Seconds, s.State == progress.Skipped})
		default:
			begin, spoke := p.first[phase]
			if !spoke {
				continue
			}
			end := p.end
			for _, later := range order[n+1:] {
				if t, ok := p.first[later]; ok && later != progress.Unpack {
					end = t
					break
				}
			}
			all = append(all, PhaseTime{phase, end - begin, false})
		}
	}
	return all
}
