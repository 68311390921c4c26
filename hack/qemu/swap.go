package qemu

import (
	"context"
	"encoding/json"
	"fmt"
)

// Swap takes the n-th disk of a machine, which must be on SCSI, out and puts
// another one in its place. The machine sees both as soon as it runs.
func (m *Machine) Swap(ctx context.Context, n int, other Disk) error {
	if m.config.Disks[n].Bus != SCSI || other.Bus != SCSI {
		return fmt.Errorf("swapping disk %d: only those on SCSI can be", n)
	}
	type arguments = map[string]any
	if err := m.qmp.execute(ctx, "device_del", arguments{"id": diskName(n)}, nil); err != nil {
		return err
	}
	node := diskName(n) + "-other"
	nodes, _, err := other.nodes(node)
	if err != nil {
		return err
	}
	for _, encoded := range nodes {
		if err := m.qmp.execute(ctx, "blockdev-add", json.RawMessage(encoded), nil); err != nil {
			return err
		}
	}
	return m.qmp.execute(ctx, "device_add", arguments{
		"driver": "scsi-hd", "bus": fmt.Sprintf("scsi%d.0", n), "drive": node, "id": node, "serial": other.Serial,
	}, nil)
}
