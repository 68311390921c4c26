package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/firstlight/firstlight/installer/efiboot"
	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/report"
	"github.com/firstlight/firstlight/netconfig/dhcp"
	"github.com/firstlight/firstlight/netconfig/link"
)

// siteServerFirst is the site server that is known before there is a
// configuration: it is asked for it.
func (i *installation) siteServerFirst() string {
	if i.opt.siteServer != "" {
		return i.opt.siteServer
	}
	return i.opt.kernel.value("siteserver")
}

// errNotAtSite says that the site server has no configurations.
var errNotAtSite = errors.New("the site server has no configurations")

// filesFromSite asks the site server for the configuration, and waits for as
// long as the server says so: until somebody has approved this machine. While it
// waits it tells the server what it has found, and touches nothing. A server that
// takes reports only is errNotAtSite. One that does not answer at all is a
// failure: it may well know that this machine must be left alone.
func (i *installation) filesFromSite(ctx context.Context, attempt attempt) (fetch.Files, error) {
	certificates, err := i.clientTLS()
	if err != nil {
		return nil, err
	}
	site, err := report.New(i.siteServerFirst(), i.nic.MAC, certificates)
	if err != nil {
		return nil, err
	}
	i.model.Logf(progress.Config, "asking %s what to do", site)
	w := &siteWait{installation: i, site: site, who: i.asker(), patience: siteSilence}
	if p := attempt.patience(); p > 0 {
		w.patience = p
	}
	defer i.model.Wait(progress.Config, "")
	c, err := w.answer(ctx)
	if err != nil {
		return nil, err
	}
	i.startReporting() // whatever comes of these files, the server shall know
	if c.Wipe != "" {
		i.model.Logf(progress.Config, "the site server asks for a wipe (%s) of this machine, %s", c.Wipe, c.Machine)
		return i.filesForWipe(ctx, site, c)
	}
	i.model.Logf(progress.Config, "the site server has a configuration for this machine, %s", c.Machine)
	return i.filesFrom(ctx, fetch.Given(site.String(), c.Files))
}

// asker are the marks of this machine. In a dry run there is no boot: who only
// looks does not use an approval up.
func (i *installation) asker() report.Asker {
	var who report.Asker
	if nics, err := link.List(i.env.sys); err == nil {
		for _, nic := range nics {
			who.MACs = append(who.MACs, nic.MAC)
			if !nic.PermanentMAC.IsZero() && nic.PermanentMAC != nic.MAC {
				who.MACs = append(who.MACs, nic.PermanentMAC)
			}
		}
	}
	if found, err := inventory.Read(i.env.sys); err == nil { // takeInventory reports what is wrong
		who.Serial, who.UUID = found.DMI.Serial, found.DMI.UUID
	}
	if i.opt.dryRun {
		return who
	}
	if id, err := fs.ReadFile(i.env.proc, "sys/kernel/random/boot_id"); err == nil {
		who.Boot = strings.TrimSpace(string(id))
	}
	if who.Boot == "" {
		// Without any it would be taken for a look, which needs no approval.
		who.Boot = "unknown-" + rand.Text()
	}
	return who
}

// siteSilence is how long a site server may be silent before the first answer;
// later ones are waited for without end: a machine that waits for approval waits
// for its server too.
const siteSilence = time.Minute

// siteWait is a machine that asks its site server again and again.
type siteWait struct {
	*installation
	site     *report.Site
	who      report.Asker
	patience time.Duration
	posted   []byte // the inventory, as the server has it
	looked   time.Time
	seed     inventory.Seed // of the first look
	said     string         // the last that stands in the log
}

// answer returns once the server says go.
func (w *siteWait) answer(ctx context.Context) (report.Configuration, error) {
	silentSince, answered := time.Now(), false
	defer w.keepLeaseMeanwhile()()
	for {
		c, err := w.site.Configuration(ctx, w.who)
		again := c.Again
		switch {
		case ctx.Err() != nil:
			return c, context.Cause(ctx)
		case err != nil && !answered && time.Since(silentSince) > w.patience:
			return c, err
		case err != nil:
			again = 2 * time.Second
			w.say(fmt.Sprintf("the site server (%s: %v)", progress.Code(err), err))
		case c.Word == report.Go:
			return c, nil
		case c.Word == report.NotHere && !answered:
			return c, errNotAtSite
		case c.Word == report.NotHere:
			// It had configurations a moment ago, and said that this machine must be
			// left alone: nobody else is asked.
			again = 2 * time.Second
			w.say("the site server (it answers that it has no configurations)")
		case c.Word == report.BootDisk:
			answered = true
			w.bootDisk(c.Reason)
		default:
			answered = true
			w.say("the site server: " + c.Reason)
			w.tell(ctx)
		}
		if w.opt.dryRun && (c.Word == report.Wait || c.Word == report.BootDisk) {
			return c, refuse("SRV-032", "the site server has no configuration for this machine: %s", c.Reason)
		}
		select {
		case <-ctx.Done():
			return c, context.Cause(ctx)
		case <-time.After(again):
		}
	}
}

// lookInterval is the time between two looks at the hardware of a machine that
// waits: disks appear late, and links come up.
const lookInterval = 30 * time.Second

// keepLeaseMeanwhile renews the lease by which the server is asked, for people may
// take days to approve a machine; the function that it returns ends that.
func (w *siteWait) keepLeaseMeanwhile() (end func()) {
	if w.lease == nil || !w.env.inMemory {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := dhcp.Keep(ctx, *w.lease, w.dhcpOptions(), func(renewed dhcp.Lease) error { return link.Configure(renewed) })
		if err != nil && ctx.Err() == nil {
			w.model.Warn(progress.Config, "keeping the lease: "+oneLine(err))
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// say shows what is waited for, and logs it when it is new.
func (w *siteWait) say(text string) {
	w.model.Wait(progress.Config, text)
	if text != w.said {
		w.said = text
		w.model.Log(progress.Config, "waiting for "+text)
	}
}

// tell posts what the machine is, once, and again when more is known of it, and
// where it stands. A server that cannot be told is asked again all the same.
func (w *siteWait) tell(ctx context.Context) {
	if time.Since(w.looked) > lookInterval {
		found, err := w.lookAtMachine(ctx)
		if err != nil {
			w.model.Warn(progress.Config, "looking at the machine: "+oneLine(err))
			return
		}
		if w.looked.IsZero() {
			w.seed = found.Seed
		}
		found.Seed = w.seed // what has not changed is not told again
		w.looked = time.Now()
		w.publishInventory(found)
	}
	if now := w.inventoryNow(); !bytes.Equal(now, w.posted) && w.site.Post(ctx, report.Inventory, now) == nil {
		w.posted = now
	}
	r := &reporter{installation: w.installation, site: w.site, warned: true}
	r.postState(ctx)
}

// bootDisk is done when the site server says that this machine is installed: it
// starts what is on its disk. Through the network the boot server sees to that,
// and with UEFI the firmware is told. Otherwise somebody has to take the medium
// away; until then nothing is done.
func (w *siteWait) bootDisk(reason string) {
	if !w.env.inMemory || w.opt.dryRun {
		w.say("the site server to say reinstall: " + reason)
		return
	}
	booted := w.opt.kernel.value("BOOTIF") != "" // over the network
	next, err := efiboot.Next(efiboot.Directory)
	if err != nil && !booted {
		w.say(fmt.Sprintf("somebody to take the boot medium away and restart the machine, or for the site server to say reinstall: %s", reason))
		return
	}
	if err == nil {
		w.model.Logf(progress.Config, "the firmware starts %s next", next)
	}
	w.model.Logf(progress.Config, "the site server says: boot your disk (%s); restarting, nothing was touched", reason)
	w.forwarded()
	w.opened.unwind(w.model)
	w.closePage()
	if err := w.env.reboot(); err != nil {
		w.model.Warn(progress.Config, "restarting: "+err.Error())
	}
}
