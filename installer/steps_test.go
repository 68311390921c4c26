package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/mountspace"
	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage/mount"
)

func TestMain(m *testing.M) { os.Exit(mountspace.Run(m.Run)) }

func script(text string) []byte { return []byte("#!/bin/sh\n" + text + "\n") }

func TestStepsRunAroundTheirPhase(t *testing.T) {
	i, log := testInstallation(t, "-dryRun=false")
	out := filepath.Join(t.TempDir(), "out")
	i.config.Network.Hostname = "web1"
	i.inventory.DMI.Serial = "S1"
	say := func(what string) []byte {
		return script("cat >>" + out + "; echo " + what + " >>" + out + "; echo told; echo loud >&2")
	}
	minute := time.Minute
	i.config.Install.Steps = []config.Step{
		{Name: "second", Program: say("second"), Phase: "plan", After: true, In: config.InInstaller, Timeout: minute},
		{Name: "first", Program: say("first"), Phase: "plan", In: config.InInstaller, Timeout: minute},
		{Name: "other", Program: say("other"), Phase: "stage", In: config.InInstaller, Timeout: minute},
	}
	err := i.step(t.Context(), step{progress.Plan, func(context.Context) error {
		return os.WriteFile(out, append(mustRead(t, out), "phase\n"...), 0o600)
	}})
	if err != nil {
		t.Fatal(err)
	}
	text := string(mustRead(t, out))
	first, phase, second := strings.Index(text, "\nfirst\n"), strings.Index(text, "\nphase\n"), strings.Index(text, "\nsecond\n")
	if first < 0 || phase < first || second < phase || strings.Contains(text, "other") {
		t.Errorf("the order is\n%s", text)
	}
	var identity stepIdentity
	if err := json.Unmarshal([]byte(text[:strings.Index(text, "first")]), &identity); err != nil || identity.Hostname != "web1" || identity.Machine.Serial != "S1" || identity.When != "before plan" || identity.Root != "" {
		t.Errorf("%v, identity %+v", err, identity)
	}
	for _, want := range []string{"plan: running the step first in the installer", "plan: first: told", "plan: first: loud"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
	if left, err := filepath.Glob(filepath.Join(i.runDir, "*")); err != nil || len(left) > 0 {
		t.Errorf("%v, left behind: %q", err, left)
	}
}

func TestAStepThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		step config.Step
		want string // in the error; empty: the phase goes on
		log  string
	}{
		"stops":               {config.Step{Program: script("echo no cable >&2; exit 4")}, "exit status 4: no cable", "no cable"},
		"goes on":             {config.Step{Program: script("echo no cable >&2; exit 4"), GoOn: true}, "", "CFG-022: the step a before plan"},
		"takes long":          {config.Step{Program: script("sleep 60"), Timeout: 200 * time.Millisecond}, "it was ended after 200ms", "running the step"},
		"no such interpreter": {config.Step{Program: []byte("#!/no/such\n")}, "/steps/a", "running the step"},
	} {
		t.Run(name, func(t *testing.T) {
			i, log := testInstallation(t, "-dryRun=false")
			c.step.Name, c.step.Phase, c.step.In = "a", "plan", config.InInstaller
			if c.step.Timeout == 0 {
				c.step.Timeout = time.Minute
			}
			i.config.Install.Steps = []config.Step{c.step}
			ran := false
			err := i.step(t.Context(), step{progress.Plan, func(context.Context) error { ran = true; return nil }})
			if c.want == "" && (err != nil || !ran) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || progress.Code(err) != codeStep || ran) {
				t.Errorf("got %v, the phase ran: %v", err, ran)
			}
			if !strings.Contains(log.String(), c.log) {
				t.Errorf("the log lacks %q:\n%s", c.log, log)
			}
			if left, err := filepath.Glob(filepath.Join(i.runDir, "*", "*")); err != nil || len(left) > 0 {
				t.Errorf("%v, left behind: %q", err, left)
			}
		})
	}
}

// TestAStepThatFailsAfterASkippedPhase: that the phase had nothing to do must not
// hide what the site's own programme says.
func TestAStepThatFailsAfterASkippedPhase(t *testing.T) {
	i, _ := testInstallation(t, "-dryRun=false")
	i.config.Install.Steps = []config.Step{{Name: "a", Program: script("exit 4"), Phase: "prove", After: true, In: config.InInstaller, Timeout: time.Minute}}
	err := i.step(t.Context(), step{progress.Prove, func(context.Context) error { return skip{"nothing to try"} }})
	if progress.Code(err) != codeStep {
		t.Errorf("got %v, want the step's failure", err)
	}
	i.config.Install.Steps[0].Program = script("exit 0")
	if err := i.step(t.Context(), step{progress.Prove, func(context.Context) error { return skip{"nothing to try"} }}); err != nil {
		t.Errorf("a skipped phase with a step that is content: %v", err)
	}
}

func TestADryRunRunsNoStep(t *testing.T) {
	i, _ := testInstallation(t, "-dryRun=true")
	mark := filepath.Join(t.TempDir(), "mark")
	i.config.Install.Steps = []config.Step{{Name: "a", Program: script("touch " + mark), Phase: "plan", In: config.InInstaller, Timeout: time.Minute}}
	if err := i.runSteps(t.Context(), progress.Plan, false); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("it has run")
	}
}

// smallSystem is a root with the programs of this machine.
func smallSystem(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts: run it as root")
	}
	root := t.TempDir()
	for _, dir := range []string{"usr", "run", "etc", "root", "boot", "var", "dev", "proc", "sys"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []string{"bin", "lib", "lib64", "sbin"} {
		if err := os.Symlink("usr/"+link, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	var usr mount.Stack
	if err := usr.Bind("/usr", filepath.Join(root, "usr")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := usr.Close(); err != nil {
			t.Error(err)
		}
	})
	return root
}

// TestExampleSteps runs the steps of docs/examples in a chroot, and looks for
// what they leave and what they must not.
func TestExampleSteps(t *testing.T) {
	root := smallSystem(t)
	i, log := testInstallation(t, "-dryRun=false", "-mountPoint="+root)
	i.config.Network = netconfig.Spec{Hostname: "web1.example.com"}
	i.inventory.DMI.Serial = "S1"
	i.model.Describe(func(f *progress.Facts) { f.Plan = "sha256:abcd" })
	run := func(name string, program []byte) {
		t.Helper()
		step := config.Step{Name: name, Program: program, Phase: "identity", After: true, In: config.InSystem, Timeout: time.Minute}
		if err := i.siteStep(t.Context(), progress.Identity, step); err != nil {
			t.Errorf("%v\n%s", err, log)
		}
	}
	for _, name := range []string{"nocloud.sh", "ignition.sh", "authorized-keys.sh", "openvox.sh"} {
		run(name, mustRead(t, filepath.Join("..", "docs", "examples", "steps", name)))
	}
	for file, want := range map[string]string{
		"var/lib/cloud/seed/nocloud/meta-data":      "instance-id: sha256:abcd\nlocal-hostname: web1.example.com\n",
		"var/lib/cloud/seed/nocloud/user-data":      "#cloud-config\n",
		"boot/ignition/config.ign":                  `"version": "3.4.0"`,
		"root/.ssh/authorized_keys":                 "ssh-ed25519 ",
		"etc/puppetlabs/puppet/csr_attributes.yaml": `pp_instance_id: "S1"`,
	} {
		if text := string(mustRead(t, filepath.Join(root, file))); !strings.Contains(text, want) {
			t.Errorf("%s: %q lacks %q", file, text, want)
		}
	}
	var seed any
	if err := json.Unmarshal(mustRead(t, filepath.Join(root, "boot/ignition/config.ign")), &seed); err != nil {
		t.Error(err)
	}
	// In the tools image, whose /run is the installer's.
	tools := smallSystem(t)
	var system mount.Stack
	t.Cleanup(func() {
		if err := system.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := system.System(tools); err != nil {
		t.Fatal(err)
	}
	runDir, err := os.MkdirTemp("/run", "installer-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(runDir)
	i.runDir, i.opt.tmpRoot = runDir, tools
	if err := i.siteStep(t.Context(), progress.Prove, config.Step{Name: "where", Program: script("test ! -e /home; echo in-$(ls / | tr '\\n' ' ')"),
		Phase: "prove", In: config.InTools, Timeout: time.Minute}); err != nil {
		t.Errorf("%v\n%s", err, log)
	}
	if !strings.Contains(log.String(), "prove: where: in-bin boot dev etc lib lib64 proc root run sbin sys usr var") {
		t.Errorf("the tools root is not what the step saw:\n%s", log)
	}
	if left, err := os.ReadDir(runDir); err != nil || len(left) > 0 {
		t.Errorf("%v, left behind: %v", err, left)
	}
	// A process that a step leaves ends with it; /run is as empty as before.
	run("lingering", script("touch /run/trace; setsid sleep 3600 >/dev/null 2>&1 </dev/null & exit 0"))
	for _, dir := range []string{"run", "proc", "dev", "sys"} {
		if entries, err := os.ReadDir(filepath.Join(root, dir)); err != nil || len(entries) > 0 {
			t.Errorf("%s: %v, %d entries are left", dir, err, len(entries))
		}
	}
	var left []string
	err = filepath.WalkDir(root, func(name string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && name == filepath.Join(root, "usr") {
			return filepath.SkipDir
		}
		if err == nil && d.Type().IsRegular() {
			left = append(left, strings.TrimPrefix(name, root))
		}
		return err
	})
	slices.Sort(left)
	want := []string{"/boot/ignition/config.ign", "/etc/puppetlabs/puppet/csr_attributes.yaml", "/root/.ssh/authorized_keys",
		"/var/lib/cloud/seed/nocloud/meta-data", "/var/lib/cloud/seed/nocloud/user-data"}
	if err != nil || !slices.Equal(left, want) {
		t.Errorf("%v, files %q", err, left)
	}
}

func mustRead(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return data
}
