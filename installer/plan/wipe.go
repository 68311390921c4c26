package plan

import (
	"slices"
	"strings"

	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/storage"
)

// NewWipe decides an erasure of the machine's disks, as thorough as
// c.Install.Wipe says: which disks, and what is lost. Nothing is installed, and
// the machine is switched off afterwards. Its error is a [Refusals].
//
// Volumes that the layout preserves are a refusal: somebody wanted them to
// outlive every installation.
func NewWipe(c config.Config, machine inventory.Document) (Plan, error) {
	d := &decision{config: c, machine: machine}
	d.plan = Plan{
		Format: Format, Machine: d.describeMachine(), Wipe: c.Install.Wipe, HandOver: PowerOff,
		RequireApproval: c.Install.RequireApproval,
		Lost:            []string{}, Kept: []string{},
		Warnings: slices.Concat([]string{}, c.Warnings, machine.Warnings),
	}
	d.plan.Network.Hostname = c.Network.Hostname
	d.plan.Layout.Lost = []string{}
	if keep := c.Storage.Preserve; len(keep) > 0 {
		d.refusals.add(storage.Errorf(storage.CodePreserve, "the machine is to be wiped, and storage-layout.json preserves %s: take Preserve out of it", strings.Join(keep, ", ")))
	}
	layout, err := storage.ResolveWipe(c.Install.Wipe, machine.Disks, machine.Selected)
	if err != nil {
		d.refusals.add(err)
	}
	if len(d.refusals) > 0 {
		return Plan{}, d.refusals
	}
	d.plan.Layout = layout
	d.plan.Lost = append(d.plan.Lost, layout.Lost...)
	for _, s := range layout.Skipped {
		d.plan.Kept = append(d.plan.Kept, s.Disk+": "+s.Reason)
	}
	d.plan.MemoryNeed, d.plan.MemoryHave = workingBytes, machine.MemoryAvailableBytes
	return d.plan, nil
}
