package main

import (
	"testing"

	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/storage"
)

// Who finds the document years later types the key for the volumes in it: one
// that is kept does not know it.
func TestEscrowNamesWhatTheKeyOpens(t *testing.T) {
	volume := func(number int, mountPoint string, kept bool, slots ...storage.Slot) storage.Partition {
		return storage.Partition{
			Number: number, MountPoint: mountPoint, FileSystem: storage.Ext4, Kept: kept,
			LUKS: &storage.LUKS{UUID: "uuid of " + mountPoint, Slots: slots},
		}
	}
	i := &installation{plan: plan.Plan{Layout: storage.Layout{Disks: []storage.DiskLayout{{
		Name: "vda", Path: "/dev/vda", Serial: "S1", Partitions: []storage.Partition{
			volume(1, "/", false, storage.SlotTPM2, storage.SlotRecovery),
			volume(2, "/home", true, storage.SlotKeyFile),
		},
	}}}}}
	got := i.escrow([]byte("sealed")).Volumes
	if len(got) != 1 || got[0].MountPoint != "/" || got[0].UUID != "uuid of /" || got[0].Disk != "/dev/vda, serial S1" {
		t.Errorf("%+v", got)
	}
}
