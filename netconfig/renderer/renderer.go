// Package renderer is the one list of the programs for which a network
// configuration can be written, and of what keeps others from writing theirs.
package renderer

import (
	"slices"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/ifupdown"
	"github.com/firstlight/firstlight/netconfig/netplan"
	"github.com/firstlight/firstlight/netconfig/networkd"
	"github.com/firstlight/firstlight/netconfig/networkmanager"
)

// Render makes the files of the installed system; each writes all of them.
type Render func(netconfig.Config, netconfig.Resolver) []netconfig.File

type entry struct {
	name   string
	render Render
}

func table() []entry {
	return []entry{
		{"ifupdown", ifupdown.Render},
		{"networkd", networkd.Render},
		{"netplan", netplan.Render},
		{"networkmanager", networkmanager.Render},
	}
}

// Names are those of all renderers, as config.json and an image's attributes
// spell them.
func Names() []string {
	var names []string
	for _, e := range table() {
		names = append(names, e.name)
	}
	return names
}

// Named is the renderer of that name; ok is false when there is none.
func Named(name string) (render Render, ok bool) {
	all := table()
	i := slices.IndexFunc(all, func(e entry) bool { return e.name == name })
	if i < 0 {
		return nil, false
	}
	return all[i].render, true
}

// WithoutCloudInit keeps cloud-init from writing a network configuration of its
// own at first boot, which would be a second one beside ours
// (cloudinit.readthedocs.io, "Disabling network configuration").
func WithoutCloudInit() netconfig.File {
	return netconfig.File{
		Path: "/etc/cloud/cloud.cfg.d/99-firstlight-network.cfg", Mode: 0o644,
		Data: []byte(netconfig.Header + "network: {config: disabled}\n"),
	}
}
