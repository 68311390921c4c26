package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/installer/progress"
)

func TestTheInstallationWaitsForExactlyItsPlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, log := testInstallation(t)
		if err := i.approve("sha256:aa", "anna"); err == nil {
			t.Error("approved before there was a plan")
		}
		i.plan.RequireApproval = true
		i.approval.need("sha256:aa")
		done := make(chan error, 1)
		go func() { done <- i.awaitApproval(t.Context()) }()
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if s := i.model.Snapshot(); s.Approval == nil || s.Approval.Plan != "sha256:aa" || s.Approval.By != "" {
			t.Errorf("the page shows %+v", s.Approval)
		}
		for _, other := range []string{"", "sha256:ab", "aa", "sha256:AA", "sha256:aaa"} {
			if err := i.approve(other, "anna"); err == nil || !strings.Contains(err.Error(), "not the hash of the plan") {
				t.Errorf("approving %q: %v", other, err)
			}
		}
		select {
		case err := <-done:
			t.Fatalf("it went on without approval: %v", err)
		default:
		}
		if err := i.approve("sha256:aa", "anna"); err != nil {
			t.Fatal(err)
		}
		if err := i.approve("sha256:aa", "bert"); err != nil {
			t.Errorf("approving again: %v", err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if s := i.model.Snapshot(); s.Approval == nil || s.Approval.By != "anna" {
			t.Errorf("the page shows %+v", s.Approval)
		}
		if !strings.Contains(log.String(), "waiting for approval: firstlight installer-shell HOST approve sha256:aa") || !strings.Contains(log.String(), "anna approves the plan sha256:aa") {
			t.Errorf("the log says\n%s", log)
		}
	})
}

func TestApprovalMayComeBeforeCommitAndTheWaitEnds(t *testing.T) {
	i, log := testInstallation(t)
	i.plan.RequireApproval = true
	i.approval.need("sha256:aa")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errReboot)
	if err := i.awaitApproval(ctx); !errors.Is(err, errReboot) {
		t.Errorf("got %v", err)
	}
	if err := i.approve("sha256:aa", "anna"); err != nil {
		t.Fatal(err)
	}
	if err := i.awaitApproval(t.Context()); err != nil {
		t.Fatal(err)
	}
	if strings.Count(log.String(), "waiting for approval") != 1 {
		t.Errorf("the log says\n%s", log)
	}
}

// A machine that lets no operator in does not wait for one for ever.
func TestApprovalThatNobodyCanGiveIsRefused(t *testing.T) {
	i, _ := testInstallation(t, "-dryRun=false")
	if err := i.showPlan(plan.Plan{RequireApproval: true}); progress.Code(err) != "TRU-042" {
		t.Errorf("got %v", err)
	}
	i.shells = i.newShells(func(error) {})
	if err := i.showPlan(plan.Plan{RequireApproval: true}); err != nil {
		t.Error(err)
	}
}
