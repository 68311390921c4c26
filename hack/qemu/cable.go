package qemu

import (
	"context"
	"fmt"
)

// Cable is a virtio NIC of 10 Gbit/s, full duplex, with a cable to that of
// another machine: one end listens, and is started first.
type Cable struct {
	MAC    string
	Socket string // the path of a Unix socket, at most 107 bytes
	Listen bool
}

// arguments are QEMU's for the cable n of a machine.
func (c Cable) arguments(n int) []string {
	server := "off"
	if c.Listen {
		server = "on"
	}
	return []string{
		"-netdev", fmt.Sprintf("stream,id=c%d,server=%s,addr.type=unix,addr.path=%s", n, server, escape(c.Socket)),
		// Without speed and duplex no LACP: a bond would not know them.
		"-device", fmt.Sprintf("virtio-net-pci,id=nic%d,netdev=c%d,mac=%s,speed=10000,duplex=full,romfile=", n, n, c.MAC),
	}
}

// Plug plugs this machine's end of the cable n of Config.Cables in or out: this
// machine sees its carrier come or go, the other one does not.
func (m *Machine) Plug(ctx context.Context, n int, in bool) error {
	return m.qmp.execute(ctx, "set_link", struct {
		Name string `json:"name"`
		Up   bool   `json:"up"`
	}{fmt.Sprintf("nic%d", n), in}, nil)
}
