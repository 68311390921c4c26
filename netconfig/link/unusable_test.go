package link_test

import (
	"io/fs"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/link"
)

// A device without a driver and one without its firmware are named by what
// they are; one with an interface is not, nor is what is no Ethernet device.
func TestUnusable(t *testing.T) {
	symlink := func(to string) *fstest.MapFile { return &fstest.MapFile{Mode: fs.ModeSymlink, Data: []byte(to)} }
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text + "\n")} }
	const bus = "bus/pci/devices/"
	sys := fstest.MapFS{
		"class/net/eth0":            symlink("../../devices/pci0000:00/0000:00:03.0/virtio0/net/eth0"),
		bus + "0000:00:03.0/class":  file("0x020000"),
		bus + "0000:00:03.0/vendor": file("0x1af4"),
		bus + "0000:00:03.0/device": file("0x1000"),
		bus + "0000:03:00.0/class":  file("0x020000"),
		bus + "0000:03:00.0/vendor": file("0x14e4"),
		bus + "0000:03:00.0/device": file("0x165f"),
		bus + "0000:04:00.0/class":  file("0x020000"),
		bus + "0000:04:00.0/vendor": file("0x14e4"),
		bus + "0000:04:00.0/device": file("0x163b"),
		bus + "0000:04:00.0/driver": symlink("../../drivers/bnx2"),
		bus + "0000:05:00.0/class":  file("0x028000"),
		bus + "0000:06:00.0/class":  file("0x010802"),
	}
	want := []netconfig.UnusableNIC{{PCI: "0000:03:00.0", ID: "14e4:165f"}, {PCI: "0000:04:00.0", ID: "14e4:163b", Driver: "bnx2"}}
	if diff := cmp.Diff(want, link.Unusable(sys)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{
		"the network device 0000:03:00.0 [14e4:165f] has no driver in this boot medium",
		"the network device 0000:04:00.0 [14e4:163b] has the driver bnx2 and no interface: its firmware may be missing from this boot medium",
	}, []string{want[0].String(), want[1].String()}); diff != "" {
		t.Error(diff)
	}
}
