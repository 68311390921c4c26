package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/report"
	"github.com/firstlight/firstlight/installer/trust"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/apply"
	"github.com/firstlight/firstlight/storage/block"
	"github.com/firstlight/firstlight/storage/sanitize"
)

// wipe erases the disks instead of installing something: the phases that an
// erasure has, with the same line between reading and writing. Steps of the
// site's own belong to installations and are not run.
func (i *installation) wipe(ctx context.Context) error {
	i.config.Install.Steps = nil
	steps := []step{
		{progress.Inventory, i.takeInventory},
		{progress.Plan, i.planWipe},
		{progress.Commit, i.commit},
		{progress.Storage, i.wipeDisks},
		{progress.Finish, i.finishWipe},
	}
	return stopped(i.steps(ctx, steps))
}

func (i *installation) planWipe(context.Context) error {
	if i.opt.skipStorage {
		return refuse("CFG-023", "the configuration asks for a wipe, and -skipStorage forbids to touch a disk")
	}
	p, err := plan.NewWipe(i.config, i.inventory)
	if err != nil {
		return err
	}
	return i.showPlan(p)
}

// wipeDisks erases every disk of the plan.
func (i *installation) wipeDisks(ctx context.Context) error {
	var committed atomic.Bool
	return apply.Wipe(ctx, apply.Seams{
		Runner: i.storageRunner(), OpenDisk: block.Open, Identify: i.identifyDisk, Sys: i.env.sys,
		Sanitize: func(ctx context.Context, d storage.DiskLayout) error { return sanitize.Run(ctx, d.Path, d.CryptoErase) },
	}, i.plan.Layout, apply.Options{
		Commit: func() error {
			committed.Store(true)
			i.model.PointOfNoReturn()
			i.model.DisksChanged()
			return nil
		},
		Progress: func(disk, _, text string) {
			phase := progress.Commit
			if committed.Load() {
				phase = progress.Storage
			}
			i.model.Logf(phase, "%s: %s", disk, text)
		},
	})
}

// finishWipe tells those who want to know, and switches the machine off: there
// is nothing left that it could start.
func (i *installation) finishWipe(ctx context.Context) error {
	if err := i.letShellsEnd(ctx, time.Now().Add(shellsAfterSuccess)); err != nil {
		return err
	}
	if err := i.notifyCompletion(ctx); err != nil {
		return err
	}
	if err := i.steering.handOver.pass(ctx, func() {
		i.model.Log(progress.Finish, "switching off is held (SIGCONT lets it go)")
		i.model.Wait(progress.Finish, "SIGCONT: switching off is held")
	}); err != nil {
		return err
	}
	if i.shells != nil {
		i.shells.Close("the machine was wiped, and is switched off")
	}
	i.model.Logf(progress.Finish, "wiped by %s: %d disks; switching off", i.plan.Wipe, len(i.plan.Layout.Disks))
	i.model.Done(progress.Finish) // for those who are told: this does not return
	i.forwarded()
	i.opened.unwind(i.model)
	return i.env.powerOff()
}

// rescue does nothing but look, and waits for operators until one of them
// restarts the machine.
func (i *installation) rescue(ctx context.Context) error {
	i.config.Install.Steps = nil
	return i.steps(ctx, []step{
		{progress.Inventory, i.takeInventory},
		{progress.Commit, func(ctx context.Context) error {
			if i.opt.dryRun {
				i.model.Log(progress.Commit, "dry run: the installer would wait for operators, and touch nothing")
				return nil
			}
			i.model.Log(progress.Commit, "rescue: nothing will be touched; firstlight installer-shell HOST opens a shell, installer-shell HOST reboot ends this")
			i.model.Wait(progress.Commit, "operators (rescue): nothing will be touched")
			<-ctx.Done()
			return context.Cause(ctx)
		}},
	})
}

// filesForWipe is the configuration of a wipe that the site server asks for. It
// is made here: whatever else the machine's files say is of no importance, or
// even wrong. Where only what is signed is believed, the signed configuration
// itself has to ask for this wipe.
func (i *installation) filesForWipe(ctx context.Context, site *report.Site, c report.Configuration) (fetch.Files, error) {
	policy, err := trust.ReadPolicy(os.DirFS(i.env.trust.keys))
	if err != nil {
		return nil, err
	}
	var files fetch.Files
	if policy.Signed() {
		files, err = i.filesFrom(ctx, fetch.Given(site.String(), c.Files))
	} else {
		i.model.Warn(progress.Config, "there is no trust key in "+i.env.trust.keys+" of the boot medium: the wipe is believed unsigned, whoever asks for it")
		var asked []byte
		asked, err = json.Marshal(map[string]any{"Install": map[string]any{"Wipe": c.Wipe}})
		files = fetch.Files{config.MachineFile: asked}
	}
	if err != nil {
		return nil, fmt.Errorf("the site server asks for a wipe: %w", err)
	}
	read, err := config.Parse(files, config.DefaultPort)
	if err != nil {
		return nil, err
	}
	if string(read.Install.Wipe) != c.Wipe {
		return nil, refuse("SRV-031", "the site server %s asks for a wipe (%s), and what is signed for this machine does not: Install.Wipe in config.json says %q", site, c.Wipe, read.Install.Wipe)
	}
	return files, nil
}
