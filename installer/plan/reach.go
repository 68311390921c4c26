package plan

import (
	"slices"
	"strings"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/netconfig"
)

// checkNetworkMeans refuses a network that the new OS has no means to make: it
// would come up where nobody reaches it, and only after its disk was erased.
func (d *decision) checkNetworkMeans() {
	n := d.plan.Network
	asks := slices.ContainsFunc(n.Interfaces, func(i netconfig.Interface) bool { return i.DHCP4 })
	if asks && n.Renderer == "ifupdown" && !slices.ContainsFunc(dhcpClients(), func(name string) bool { return hasProgram(d.image.Manifest, name) }) {
		d.refuse(CodeNoClient, "the network asks for its address by DHCP, and image %s has ifupdown but none of the clients that it knows: install one of %s in the image",
			d.image.Name, strings.Join(dhcpClients(), ", "))
	}
	if lacks := d.missingDrivers(); len(lacks) > 0 {
		d.refuse(CodeNoDriver, "the network needs %s, and the kernel of image %s has no such module: install a kernel with it in the image",
			strings.Join(lacks, ", "), d.image.Name)
	}
}

// dhcpClients are those that ifupdown's method dhcp tries, interfaces(5).
func dhcpClients() []string { return []string{"dhclient", "udhcpc", "dhcpcd"} }

// missingDrivers are the kernel modules of bonds, VLANs and bridges that the
// network has and the image's kernel does not. An image that was added before
// these were noted has no such attribute; nothing is known then.
func (d *decision) missingDrivers() []string {
	attribute, known := d.image.Manifest.Attributes[image.AttrKernelNetwork]
	if !known {
		return nil
	}
	has := strings.Split(attribute, ",")
	var lacks []string
	for _, i := range d.plan.Network.Interfaces {
		var driver string
		switch i.Kind {
		case netconfig.Ethernet:
			continue
		case netconfig.Bond:
			driver = "bonding"
		case netconfig.VLAN:
			driver = "8021q"
		case netconfig.Bridge:
			driver = "bridge"
		}
		if !slices.Contains(has, driver) && !slices.Contains(lacks, driver) {
			lacks = append(lacks, driver)
		}
	}
	return lacks
}
