// Package link raises the Ethernet interfaces of the machine it runs on, waits
// for their carrier, describes them, and gives one of them the addresses and
// routes of a lease. It is the installer's own network; the installed system's
// is netconfig's.
package link

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/netconfig"
)

// Options say how long to wait for carrier; the zero value is usable.
type Options struct {
	// Deadline to wait for the first carrier; 0 means 120 s. Some NICs take
	// ten seconds to negotiate, and some switches keep a new port down for a
	// minute.
	Deadline time.Duration
	// Grace for the other NICs once one has carrier; 0 means 3 s.
	Grace time.Duration
}

const (
	defaultDeadline = 120 * time.Second
	defaultGrace    = 3 * time.Second
	poll            = 100 * time.Millisecond
)

// List describes the Ethernet NICs, in the order of the kernel's indexes. sys
// is /sys (os.DirFS in production); it adds driver, PCI address and speed, and
// what it lacks is left empty.
func List(sys fs.FS) ([]netconfig.NIC, error) {
	links, err := ethernet()
	if err != nil {
		return nil, err
	}
	nics := make([]netconfig.NIC, 0, len(links))
	for _, l := range links {
		nics = append(nics, describe(sys, l.Attrs()))
	}
	return nics, nil
}

// Up raises every Ethernet interface and returns all NICs as soon as all have
// carrier, or Grace after the first has, or at the Deadline. A NIC that appears
// meanwhile (USB) is raised too. Errors are *netconfig.Error: NET-001 when
// there is no NIC, NET-002 when none has carrier; both with the NICs found.
func Up(ctx context.Context, sys fs.FS, options Options) ([]netconfig.NIC, error) {
	if options.Deadline == 0 {
		options.Deadline = defaultDeadline
	}
	if options.Grace == 0 {
		options.Grace = defaultGrace
	}
	end := time.Now().Add(options.Deadline)
	waiting := false // for the others, since one has carrier
	refused := map[string]error{}
	for first := true; ; first = false {
		if !first {
			select {
			case <-ctx.Done():
				return nil, fmt.Errorf("waiting for a network link: %w", ctx.Err())
			case <-time.After(poll):
			}
		}
		links, err := ethernet()
		if err != nil {
			return nil, err
		}
		linked := 0
		for _, l := range links {
			if l.Attrs().RawFlags&unix.IFF_UP == 0 {
				refused[l.Attrs().Name] = netlink.LinkSetUp(l) // tried again at the next poll
			}
			if carrier(l.Attrs()) {
				linked++
			}
		}
		done := len(links) > 0 && linked == len(links)
		if grace := time.Now().Add(options.Grace); linked > 0 && !waiting && grace.Before(end) {
			end, waiting = grace, true
		}
		if !done && time.Now().Before(end) {
			continue
		}
		nics, err := List(sys)
		if err != nil {
			return nil, err
		}
		switch {
		case linked > 0:
			return nics, nil
		case len(nics) == 0:
			return nics, netconfig.NewError("NET-001", "this machine has no network interface that the kernel knows: %s", orNone(Unusable(sys)))
		}
		var names []string
		for _, nic := range nics {
			name := strings.TrimSpace(fmt.Sprintf("%s (%s) %s", nic.Name, nic.MAC, nic.PCI))
			if err := refused[nic.Name]; err != nil {
				name += ": cannot be raised: " + err.Error()
			}
			names = append(names, name)
		}
		for _, unusable := range Unusable(sys) {
			names = append(names, unusable.String())
		}
		return nics, netconfig.NewError("NET-002", "no network interface has a link after %v: %s", options.Deadline, strings.Join(names, ", "))
	}
}

// Linked are the names of the NICs with carrier.
func Linked(nics []netconfig.NIC) []string {
	var names []string
	for _, nic := range nics {
		if nic.Carrier {
			names = append(names, nic.Name)
		}
	}
	return names
}

// ethernet lists real NICs: no bridges, bonds, VLANs, tunnels or ifb, and no
// wireless ones, which never come up by themselves. veth is what a container
// has for a NIC.
func ethernet() ([]netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, netconfig.NewError("NET-004", "listing the network interfaces: %w", err)
	}
	var out []netlink.Link
	for _, l := range links {
		kind := l.Type()
		if l.Attrs().EncapType == "ether" && (kind == "device" || kind == "veth") && len(l.Attrs().HardwareAddr) == 6 {
			out = append(out, l)
		}
	}
	return out, nil
}

func carrier(attrs *netlink.LinkAttrs) bool {
	const up = unix.IFF_UP | unix.IFF_LOWER_UP // LOWER_UP stays set on some drivers while down
	return attrs.RawFlags&up == up
}

// describe adds what /sys knows (Documentation/ABI/testing/sysfs-class-net).
func describe(sys fs.FS, attrs *netlink.LinkAttrs) netconfig.NIC {
	nic := netconfig.NIC{Name: attrs.Name, MTU: attrs.MTU, Carrier: carrier(attrs)}
	copy(nic.MAC[:], attrs.HardwareAddr)
	if len(attrs.PermHWAddr) == len(nic.PermanentMAC) {
		copy(nic.PermanentMAC[:], attrs.PermHWAddr)
	}
	dir := path.Join("class/net", attrs.Name)
	if target, err := fs.ReadLink(sys, path.Join(dir, "device/driver")); err == nil {
		nic.Driver = path.Base(target)
	}
	if target, err := fs.ReadLink(sys, dir); err == nil {
		// ../../devices/pci0000:00/0000:00:03.0/virtio0/net/eth0: the last
		// PCI address is the NIC's own.
		for part := range strings.SplitSeq(target, "/") {
			if isPCI(part) {
				nic.PCI = part
			}
		}
	}
	if nic.Carrier {
		// Reading the speed fails or gives -1 where there is none to tell.
		if text, err := fs.ReadFile(sys, path.Join(dir, "speed")); err == nil {
			if speed, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && speed > 0 {
				nic.SpeedMbps = speed
			}
		}
	}
	nic.Counters = counters(sys, path.Join(dir, "statistics"))
	return nic
}

// counters are those of Documentation/ABI/testing/sysfs-class-net-statistics,
// nil where there are none.
func counters(sys fs.FS, dir string) *netconfig.Counters {
	if _, err := fs.Stat(sys, dir); err != nil {
		return nil
	}
	read := func(name string) uint64 {
		text, err := fs.ReadFile(sys, path.Join(dir, name))
		if err != nil {
			return 0
		}
		n, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64) // the kernel writes numbers
		return n
	}
	return &netconfig.Counters{
		ReceivedBytes: read("rx_bytes"), ReceivedPackets: read("rx_packets"), ReceiveErrors: read("rx_errors"), ReceiveDropped: read("rx_dropped"),
		SentBytes: read("tx_bytes"), SentPackets: read("tx_packets"), SendErrors: read("tx_errors"), SendDropped: read("tx_dropped"),
	}
}

// Unusable are the network devices on PCI that have no interface: nothing in
// the boot medium drives them, or what does lacks their firmware.
func Unusable(sys fs.FS) []netconfig.UnusableNIC {
	devices, err := fs.Glob(sys, "bus/pci/devices/*")
	if err != nil {
		return nil // only a malformed pattern fails
	}
	inUse := map[string]bool{}
	names, _ := fs.Glob(sys, "class/net/*") // as above
	for _, name := range names {
		if target, err := fs.ReadLink(sys, name); err == nil {
			for part := range strings.SplitSeq(target, "/") {
				inUse[part] = inUse[part] || isPCI(part)
			}
		}
	}
	var out []netconfig.UnusableNIC
	for _, device := range devices {
		read := func(name string) string {
			text, err := fs.ReadFile(sys, path.Join(device, name))
			if err != nil {
				return ""
			}
			return strings.TrimPrefix(strings.TrimSpace(string(text)), "0x")
		}
		// PCI Code and ID Assignment: class 02 is a network controller; its
		// subclass 80 is "other", such as wireless ones.
		if class := read("class"); !strings.HasPrefix(class, "02") || strings.HasPrefix(class, "0280") || inUse[path.Base(device)] {
			continue
		}
		nic := netconfig.UnusableNIC{PCI: path.Base(device), ID: read("vendor") + ":" + read("device")}
		if target, err := fs.ReadLink(sys, path.Join(device, "driver")); err == nil {
			nic.Driver = path.Base(target)
		}
		out = append(out, nic)
	}
	return out
}

// orNone says what was found that is of no use.
func orNone(unusable []netconfig.UnusableNIC) string {
	if len(unusable) == 0 {
		return "nothing on PCI is a network device either"
	}
	var list []string
	for _, one := range unusable {
		list = append(list, one.String())
	}
	return strings.Join(list, ", ")
}

// isPCI recognises domain:bus:device.function.
func isPCI(s string) bool {
	colon := strings.Split(s, ":")
	return len(colon) == 3 && len(colon[0]) >= 4 && len(colon[1]) == 2 && len(colon[2]) == 4 && colon[2][2] == '.'
}
