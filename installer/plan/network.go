package plan

import (
	"slices"
	"strings"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/renderer"
)

// decideNetwork settles what the new OS's network is, and which program of the
// image is told.
func (d *decision) decideNetwork() {
	resolved, err := netconfig.Resolve(d.config.Network, d.machine.NICs)
	if err != nil {
		d.refusals.add(err)
	}
	attributes := d.image.Manifest.Attributes
	d.plan.Network = Network{
		Config:           resolved,
		Renderer:         d.chooseRenderer(),
		Resolver:         netconfig.Resolver(attributes[image.AttrResolver]),
		WithoutCloudInit: attributes[image.AttrCloudInit] != "",
	}
	d.checkNameServers()
	d.checkNetworkMeans()
	d.decideProof()
}

// decideProof tries the network out where the site says so, and where it does
// not say, unless the installer's own lease has shown already that it works.
func (d *decision) decideProof() {
	segments := netconfig.Segments(d.config.Network, d.plan.Network.Config)
	wanted := d.config.Install.ProveNetwork
	if wanted == nil && !netconfig.OnlyLease(segments, d.machine.NICs) || wanted != nil && *wanted {
		d.plan.Network.Prove = segments
		d.plan.Network.ProveAll = wanted != nil
	}
}

// chooseRenderer is Install.NetworkRenderer, else the first that the image
// starts; there is one writer only.
func (d *decision) chooseRenderer() string {
	have := list(d.image.Manifest.Attributes[image.AttrNetwork])
	enabled := list(d.image.Manifest.Attributes[image.AttrNetworkEnabled])
	wanted := d.config.Install.NetworkRenderer
	known := slices.DeleteFunc(slices.Clone(have), func(name string) bool {
		_, ok := renderer.Named(name)
		return !ok
	})
	switch {
	case len(known) == 0:
		d.refuse(CodeNoRenderer, "image %s has no program that configures a network: install one of %s in the image, or use -skipNetwork",
			d.image.Name, strings.Join(renderer.Names(), ", "))
		return ""
	case wanted == "":
		wanted = known[0] // enabled ones come first
	case !slices.Contains(known, wanted):
		d.refuse(CodeNoRenderer, "Install.NetworkRenderer is %s, and image %s has %s: install %s in the image, or leave NetworkRenderer out",
			wanted, d.image.Name, strings.Join(have, ", "), wanted)
		return ""
	}
	if !slices.Contains(enabled, wanted) {
		d.refuse(CodeNotEnabled, "the network would be configured for %s, which image %s has but does not start: enable it in the image%s",
			wanted, d.image.Name, orElse(enabled))
		return ""
	}
	for _, other := range enabled {
		// netplan has systemd-networkd do its work.
		if other != wanted && !(wanted == "netplan" && other == "networkd") {
			d.warn("the image starts %s as well as %s, for which the network is written: see that it has no configuration of its own for these interfaces", other, wanted)
		}
	}
	return wanted
}

func orElse(enabled []string) string {
	if len(enabled) == 0 {
		return ""
	}
	return ", or set Install.NetworkRenderer to " + strings.Join(enabled, " or ")
}

// checkNameServers warns where name servers that come by DHCP reach nobody.
func (d *decision) checkNameServers() {
	n := d.plan.Network
	byDHCP := slices.ContainsFunc(n.Interfaces, func(i netconfig.Interface) bool { return i.DHCP4 })
	if byDHCP && len(n.DNS) == 0 && n.Resolver != netconfig.Resolved && (n.Renderer == "networkd" || n.Renderer == "netplan") {
		d.warn("the image's systemd-networkd gets name servers by DHCP and can hand them to systemd-resolved only, which the image does not use: enable systemd-resolved in the image")
	}
}

// list splits an attribute.
func list(attribute string) []string {
	return slices.DeleteFunc(strings.Split(attribute, ","), func(s string) bool { return s == "" })
}
