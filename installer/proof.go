package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/receipt"
	"github.com/firstlight/firstlight/installer/report"
	"github.com/firstlight/firstlight/installer/target"
)

// leaveReceipt signs what was done, leaves it in the new system and sends it to
// the site server. One that does not arrive is a warning: it lies on the disk.
func (i *installation) leaveReceipt(ctx context.Context) error {
	if i.opt.skipStorage {
		return nil
	}
	document, err := i.signReceipt()
	if err != nil {
		return fmt.Errorf("making the receipt: %w", err)
	}
	if err := target.Write(i.root, logFile(path.Base(receipt.File), document)); err != nil {
		return err
	}
	if i.site == nil {
		return nil
	}
	if err := i.site.Post(ctx, report.Installed, document); err != nil {
		i.model.Warn(progress.Finish, fmt.Sprintf("%s: the receipt: %v; it lies in %s", progress.Code(err), err, receipt.File))
		return nil
	}
	i.model.Log(progress.Finish, "the site server has the receipt")
	return nil
}

func (i *installation) signReceipt() ([]byte, error) {
	pair := i.certificate
	if len(pair.Certificate) == 0 { // the page speaks no TLS
		var err error
		if pair, err = ephemeralCertificate(i.env.now()); err != nil {
			return nil, err
		}
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("the installer's key cannot sign")
	}
	return i.receipt().Sign(pair.Certificate[0], key)
}

// receipt is what was done so far, which is all that is done to disks.
func (i *installation) receipt() receipt.Receipt {
	now, seen := i.env.now().UTC(), i.model.Snapshot()
	r := receipt.Receipt{
		Installer: version(), Machine: i.plan.Machine, Image: i.plan.Image, Plan: seen.Facts.Plan, Signed: seen.Facts.Signed,
		Objects: seen.Objects, Disks: receipt.Disks(i.plan.Layout), Steps: i.plan.Steps, Files: slices.Clone(i.written), HandOver: i.by,
		// By the monotonic clock: the wall clock may have been set in between.
		Began: now.Add(-time.Duration(seen.Seconds * float64(time.Second))).Truncate(time.Millisecond), Ended: now.Truncate(time.Millisecond),
		Phases: map[progress.Phase]float64{},
	}
	if seen.Approval != nil {
		r.Approved = seen.Approval.By
	}
	for _, p := range seen.Phases {
		if p.State == progress.Done || p.State == progress.Running {
			r.Phases[p.Phase] = p.Seconds
		}
	}
	return r
}
