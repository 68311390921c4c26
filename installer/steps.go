package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage/mount"
	"github.com/firstlight/firstlight/storage/tool"
)

// codeStep: a programme of the site's own failed, or took too long.
const codeStep = "CFG-022"

// stepIdentity is what a step reads on its standard input: which machine this
// is, and what is made of it. Nothing in it is secret.
type stepIdentity struct {
	Format int    `json:"format"`
	When   string `json:"when"` // "after identity"
	// Root is where the new system's root is, as the step sees it; empty while it
	// is not there.
	Root      string            `json:"root,omitempty"`
	Hostname  string            `json:"hostname"`
	Domain    string            `json:"domain,omitempty"`
	Location  string            `json:"location,omitempty"`
	Tags      map[string]string `json:"tags,omitempty"`
	Machine   inventory.DMI     `json:"machine"`
	Arch      string            `json:"arch,omitempty"`
	Firmware  string            `json:"firmware,omitempty"`
	TPM       *inventory.TPM    `json:"tpm,omitempty"`
	NICs      []netconfig.NIC   `json:"nics"`
	Network   []stepInterface   `json:"network,omitempty"`
	Image     string            `json:"image,omitempty"`
	Digest    string            `json:"imageDigest,omitempty"`
	Plan      string            `json:"plan,omitempty"`
	Installer string            `json:"installer"`
}

// stepInterface is an interface that the new system will have.
type stepInterface struct {
	Name      string        `json:"name"`
	MAC       netconfig.MAC `json:"mac,omitzero"`
	Addresses []string      `json:"addresses,omitempty"`
}

// withSteps runs a phase between the site's own programmes for it.
func (i *installation) withSteps(ctx context.Context, s step) error {
	if err := i.runSteps(ctx, s.phase, false); err != nil {
		return err
	}
	err := s.run(ctx)
	var skipped skip
	if err != nil && !errors.As(err, &skipped) {
		return err
	}
	// A step that fails has the last word, also where the phase had nothing to do.
	if failed := i.runSteps(ctx, s.phase, true); failed != nil {
		return failed
	}
	return err
}

func (i *installation) runSteps(ctx context.Context, phase progress.Phase, after bool) error {
	for _, s := range i.config.Install.Steps {
		if s.Phase != string(phase) || s.After != after {
			continue
		}
		switch err := i.siteStep(ctx, phase, s); {
		case err == nil:
		case ctx.Err() != nil:
			return err
		case s.GoOn:
			i.model.Warn(phase, fmt.Sprintf("%s: %v; the installation goes on", codeStep, err))
		default:
			return &refusal{codeStep, err}
		}
	}
	return nil
}

// siteStep runs one programme, and leaves nothing of it behind.
func (i *installation) siteStep(ctx context.Context, phase progress.Phase, s config.Step) (err error) {
	if i.opt.dryRun {
		i.model.Logf(phase, "dry run: the step %s is not run", s.Name)
		return nil
	}
	if s.In == config.InSystem && i.opt.skipStorage {
		i.model.Logf(phase, "-skipStorage: the step %s is not run, as there is no new system", s.Name)
		return nil
	}
	identity, err := json.MarshalIndent(i.identityFor(s), "", "  ")
	if err != nil {
		return err
	}
	i.model.Logf(phase, "running the step %s in the %s", s.Name, s.In)
	i.model.Wait(phase, fmt.Sprintf("the step %s, at most %s", s.Name, s.Timeout))
	defer i.model.Wait(phase, "")
	limited, cancel := context.WithTimeoutCause(ctx, s.Timeout, fmt.Errorf("it was ended after %s", s.Timeout))
	defer cancel()
	out, err := i.runIn(limited, s, append(identity, '\n'))
	i.logStep(phase, s.Name, out)
	if err != nil {
		return fmt.Errorf("the step %s %s: %w", s.Name, s.When(), err)
	}
	return nil
}

// runIn puts the programme where its root sees it, runs it, and takes it away.
func (i *installation) runIn(ctx context.Context, s config.Step, stdin []byte) (out tool.Output, err error) {
	directory, root := filepath.Join(i.runDir, config.StepsDirectory), ""
	switch s.In {
	case config.InTools:
		root = i.opt.tmpRoot // its /run is the installer's own
	case config.InSystem:
		root = i.opt.mountPoint
		var system mount.Stack
		defer func() {
			killBelow(i.env.proc, root)
			err = errors.Join(err, system.Close())
		}()
		if err := mountForStep(&system, root); err != nil {
			return out, err
		}
		directory = filepath.Join(root, "run", "firstlight-step")
	}
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(directory)) }()
	file := filepath.Join(directory, s.Name)
	if err := os.WriteFile(file, s.Program, 0o700); err != nil {
		return out, err
	}
	if s.In == config.InSystem {
		file = strings.TrimPrefix(file, root)
	}
	return i.env.runner.Run(ctx, tool.Cmd{Name: file, Root: root, Stdin: stdin})
}

// mountForStep gives the new root what programs expect: the running system's
// /dev, /proc and /sys, and a /run of its own, which goes with all that is in it.
// Where the image's resolver is systemd-resolved, /etc/resolv.conf leads there:
// the installer's name servers are there meanwhile.
func mountForStep(system *mount.Stack, root string) error {
	if err := system.System(root, "/dev", "/proc", "/sys"); err != nil {
		return err
	}
	run := filepath.Join(root, "run")
	if info, err := os.Lstat(run); err != nil || !info.IsDir() {
		return fmt.Errorf("the new system has no directory /run")
	}
	if err := system.Mount("tmpfs", run, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=64m"); err != nil {
		return err
	}
	servers, err := os.ReadFile("/etc/resolv.conf")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	resolve := filepath.Join(run, "systemd", "resolve")
	if err := errors.Join(err, os.MkdirAll(resolve, 0o755)); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(resolve, "resolv.conf"), servers, 0o644),
		os.WriteFile(filepath.Join(resolve, "stub-resolv.conf"), servers, 0o644))
}

// killBelow ends what a step has left running in a root: it would keep it
// mounted, and go on in a machine that is about to change.
func killBelow(proc fs.FS, root string) {
	roots, _ := fs.Glob(proc, "[0-9]*/root") // the pattern is good
	for _, link := range roots {
		if seen, err := fs.ReadLink(proc, link); err != nil || seen != root {
			continue // gone, or somebody else's
		}
		var pid int
		if _, err := fmt.Sscanf(link, "%d/", &pid); err == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have gone meanwhile
		}
	}
}

// stepPhasesWithRoot are those around which the new root is whole.
var stepPhasesWithRoot = []progress.Phase{progress.Identity, progress.Network, progress.Boot, progress.Finish}

func (i *installation) identityFor(s config.Step) stepIdentity {
	d := stepIdentity{
		Format: 1, When: s.When(),
		Hostname: i.config.Network.Hostname, Location: i.config.Machine.Location, Tags: i.config.Machine.Tags,
		Machine: i.inventory.DMI, Arch: i.inventory.Arch, Firmware: string(i.inventory.Firmware), TPM: i.inventory.TPM, NICs: i.inventory.NICs,
		Domain: i.plan.Network.Domain, Image: i.image.Name, Plan: i.model.Snapshot().Facts.Plan, Installer: version(),
	}
	if i.image.Name != "" {
		d.Digest = i.image.Digest.String()
	}
	for _, one := range i.plan.Network.Interfaces {
		made := stepInterface{Name: one.Name, MAC: one.MAC}
		for _, address := range one.Addresses {
			made.Addresses = append(made.Addresses, address.String())
		}
		d.Network = append(d.Network, made)
	}
	switch {
	case s.In == config.InSystem:
		d.Root = "/"
	case s.In == config.InInstaller && slices.Contains(stepPhasesWithRoot, progress.Phase(s.Phase)):
		d.Root = i.opt.mountPoint
	}
	return d
}

// mostStepOutput is how much of what a step says goes to the log, in bytes.
const mostStepOutput = 16 << 10

func (i *installation) logStep(phase progress.Phase, name string, out tool.Output) {
	for _, text := range [][]byte{out.Stdout, out.Stderr} {
		text = bytes.TrimSpace(text)
		cut := len(text) > mostStepOutput
		if cut {
			text = text[len(text)-mostStepOutput:]
		}
		if len(text) == 0 {
			continue
		}
		if cut {
			i.model.Logf(phase, "%s: … (its output is longer than is shown)", name)
		}
		for line := range strings.Lines(string(text)) {
			i.model.Logf(phase, "%s: %s", name, strings.TrimRight(line, "\n"))
		}
	}
}
