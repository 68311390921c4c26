package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/imageserver/object/pack"
	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/lastwords"
	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/receipt"
	"github.com/firstlight/firstlight/installer/report"
	"github.com/firstlight/firstlight/installer/shell"
	"github.com/firstlight/firstlight/installer/target"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/dhcp"
	"github.com/firstlight/firstlight/storage/apply"
	"github.com/firstlight/firstlight/storage/keys"
	"github.com/firstlight/firstlight/storage/tpm2"
)

// installation is one run through the phases: what each of them found or
// decided, for those that follow.
type installation struct {
	env       env
	opt       options
	model     *progress.Model
	journal   *journal
	meter     *meter
	steering  *steering
	approval  approval
	shells    *shell.Server // nil where operators are refused
	closePage func()
	published published
	pagePort  int // where the page is
	// certificate is the installer's own, on the page's port; it signs the receipt.
	certificate tls.Certificate
	opened      unwinding // what must be undone, whatever happens
	runDir      string    // files of this run, in memory

	lease     *dhcp.Lease   // nil where no lease was needed
	nic       netconfig.NIC // over which the configuration came; empty where none is known
	files     fetch.Files
	media     []medium // nil: not looked for yet
	boardDir  *string  // nil: not looked for yet; empty: nothing is on board
	configDir string   // where custom programmes find the files
	config    config.Config
	inventory inventory.Document
	servers   *imageServers
	image     plan.Image
	plan      plan.Plan
	objects   *pack.Reader      // what is staged: every object of the image, unless memory is low
	freePack  func() error      // gives their memory back; nil: there are none
	toolsRoot string            // where programs are run from: "" or -tmpRoot
	site      *report.Site      // nil where none is told
	keys      *keys.Keys        // of the new system's volumes
	tpm       *tpm2.TPM         // nil where none is needed
	written   []receipt.Written // our own files in the new system
	secrets   []target.File     // that the site server gave to this machine's TPM
	escrowed  []byte            // the recovery key, encrypted to its recipients; nil where there is none
	disks     *apply.Applied
	root      *os.Root // the new root
	by        string   // plan.Kexec or plan.Reboot: how the new system is started

	switches neighbours // that were heard

	recorder      *lastwords.Recorder // of the log's end, for after a crash
	earlier       earlier             // what earlier starts left
	stopLastWords func()              // ends the keeping of it on the new disks
	forwarded     func()              // ends the forwarding of the log
	// started is what the clock said at the start, and begun the same moment by
	// the monotonic clock, which nobody sets.
	started, begun time.Time
	// saidUnsigned: the warning that nothing is signed has been given.
	saidUnsigned bool
	timeKnown    bool                      // a time server has confirmed or set the clock
	judgedAt     atomic.Pointer[time.Time] // when certificates of servers are judged; nil: now
}

// newInstallation is an installation that has done nothing yet; its files lie
// in runDir.
func newInstallation(opt options, model *progress.Model, runDir string) *installation {
	env := realEnv(opt)
	return &installation{
		env: env, opt: opt, model: model, runDir: runDir,
		started: env.now(), begun: time.Now(),
		meter:    &meter{proc: env.proc, sys: env.sys},
		steering: newSteering(model), closePage: func() {},
		recorder: lastwords.New(nil), stopLastWords: func() {}, forwarded: func() {},
	}
}

// step is one phase and the method that does it.
type step struct {
	phase progress.Phase
	run   func(context.Context) error
}

// run does what the configuration asks for: an installation, unless it says
// otherwise. What is before commit reads, decides and gathers; only what follows
// it changes a disk.
func (i *installation) run(ctx context.Context) error {
	defer i.leave(ctx)
	first := []step{
		{progress.Clock, i.setClock},
		{progress.Links, i.raiseLinks},
		{progress.Config, i.readConfig},
	}
	if err := i.steps(ctx, first); err != nil {
		return err
	}
	switch {
	case i.config.Install.Rescue:
		return i.rescue(ctx)
	case i.config.Install.Wipe != "":
		return i.wipe(ctx)
	}
	return i.install(ctx)
}

// install is the way to a new system.
func (i *installation) install(ctx context.Context) error {
	before := []step{
		{progress.Inventory, i.takeInventory},
		{progress.Manifest, i.getManifest},
		{progress.Plan, i.makePlan},
		{progress.Stage, i.stageObjects},
		{progress.Tools, i.unpackTools},
		{progress.Prove, i.proveNetwork},
		{progress.Commit, i.commit},
	}
	after := []step{
		{progress.Identity, i.writeIdentity},
		{progress.Network, i.writeNetwork},
		{progress.Boot, i.installBootLoader},
		{progress.Finish, i.finish},
	}
	if err := i.steps(ctx, before); err != nil {
		return stopped(err)
	}
	if err := i.buildAndUnpack(ctx); err != nil {
		return err
	}
	if err := i.freeStage(); err != nil {
		return err
	}
	return i.steps(ctx, after)
}

// buildAndUnpack makes the volumes and writes the image side by side: an
// entry waits only for the volume that it lies on. Before volumes are taken
// down again, the unpacking into them has ended.
func (i *installation) buildAndUnpack(ctx context.Context) error {
	both, ctx := errgroup.WithContext(ctx)
	ready := newVolumes(i.plan.Layout)
	unpacking, stopUnpacking := context.WithCancel(ctx)
	defer stopUnpacking()
	unpacked := make(chan struct{})
	if !i.opt.skipStorage {
		i.stopLastWords = i.keepLastWords(context.WithoutCancel(ctx), ready)
	}
	mounts := &targetMounts{leave: func() error {
		stopUnpacking()
		<-unpacked
		i.stopLastWords()
		return i.closeRoot()
	}}
	both.Go(func() error {
		return i.step(ctx, step{progress.Storage, func(ctx context.Context) error { return i.buildStorage(ctx, mounts, ready) }})
	})
	both.Go(func() error {
		defer close(unpacked)
		return i.step(unpacking, step{progress.Unpack, func(ctx context.Context) error { return i.unpackImage(ctx, ready) }})
	})
	return both.Wait()
}

// freeStage gives back the memory of the staged objects, which are on the
// disk now: programs of the new system and its kernel want some.
func (i *installation) freeStage() error {
	if i.freePack == nil {
		return nil
	}
	i.objects = nil
	debug.FreeOSMemory()
	return i.freePack()
}

func (i *installation) steps(ctx context.Context, steps []step) error {
	for _, s := range steps {
		if err := i.step(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// step runs one phase and tells the model how it went. A phase that is
// interrupted because another one failed, or because a restart was asked for,
// has not failed itself.
func (i *installation) step(ctx context.Context, s step) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	i.model.Start(s.phase)
	err := i.steering.begin(ctx, s.phase)
	if err == nil {
		err = i.withSteps(ctx, s)
	}
	var skipped skip
	switch {
	case err == nil:
		i.model.Done(s.phase)
	case errors.As(err, &skipped):
		i.model.Skip(s.phase, skipped.why)
		return nil
	case errors.Is(err, errDryRun):
		i.model.Done(s.phase)
	case ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx))):
	default:
		i.model.Fail(s.phase, err)
	}
	return err
}

// skip is returned by a phase that has nothing to do.
type skip struct{ why string }

func (s skip) Error() string { return "skipped: " + s.why }

// errDryRun ends a dry run after the plan.
var errDryRun = errors.New("dry run: nothing is changed")

// stopped turns the end of a dry run into success.
func stopped(err error) error {
	if errors.Is(err, errDryRun) {
		return nil
	}
	return err
}

// refusal is an error of the pipeline itself with its stable code.
type refusal struct {
	code string
	err  error
}

func refuse(code, format string, args ...any) error {
	return &refusal{code, fmt.Errorf(format, args...)}
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// Code is the stable code, explained in docs/errors.md.
func (r *refusal) Code() string { return r.code }
