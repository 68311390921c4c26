package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/inventory/probe"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/dhcp"
	"github.com/firstlight/firstlight/netconfig/link"
	"github.com/firstlight/firstlight/storage"
)

// setClock moves a clock that is behind the boot image forward to its time:
// certificates would not be valid yet.
func (i *installation) setClock(context.Context) error {
	if !i.env.inMemory {
		return skip{"this system runs from a disk: its clock is left alone"}
	}
	floor, err := clockFloor(buildTimestamp)
	if err != nil {
		return err
	}
	moved, err := advanceClock(i.env.now(), floor, i.env.setClock)
	if err != nil {
		return err
	}
	if moved > 0 {
		i.model.Logf(progress.Clock, "the clock was %s behind the boot image and is now %s", moved.Round(time.Second), floor.UTC().Format(time.RFC3339))
	}
	return nil
}

// raiseLinks turns every Ethernet link on. A machine without any may still
// have its configuration and image on board.
func (i *installation) raiseLinks(ctx context.Context) error {
	if !i.env.inMemory {
		return skip{"this system runs from a disk: its links are left alone"}
	}
	i.model.Wait(progress.Links, "a link on any network interface")
	nics, err := link.Up(ctx, i.env.sys, link.Options{})
	for _, nic := range nics {
		state := "no link"
		if nic.Carrier {
			state = "link"
			if nic.SpeedMbps > 0 {
				state = fmt.Sprintf("link, %d Mbit/s", nic.SpeedMbps)
			}
		}
		i.model.Logf(progress.Links, "%s %s %s: %s", nic.Name, nic.MAC, nic.Driver, state)
		i.debugf(progress.Links, "%s: %+v", nic.Name, nic)
	}
	if err == nil {
		return nil
	}
	directory, boardErr := i.onBoard(ctx)
	if boardErr != nil || directory == "" {
		return errors.Join(err, boardErr)
	}
	i.model.Warn(progress.Links, err.Error())
	return nil
}

// readConfig fetches the configuration from the first place that has it, and
// reads it whole.
func (i *installation) readConfig(ctx context.Context) error {
	files, err := i.fetchConfig(ctx)
	if err != nil {
		return err
	}
	i.files = files
	for _, name := range slices.Sorted(maps.Keys(files)) {
		i.debugf(progress.Config, "%s: %d bytes", name, len(files[name]))
	}
	if i.config, err = config.Parse(files, uint16(i.opt.imageServerPort)); err != nil {
		return err
	}
	for _, warning := range i.config.Warnings {
		i.model.Warn(progress.Config, warning)
	}
	i.model.Describe(func(f *progress.Facts) { f.Machine = i.config.Network.Hostname })
	if *i.boardDir != "" {
		if err := i.useConfiguredAddress(ctx); err != nil {
			return err
		}
	}
	i.startReporting()
	return i.stirRandomness()
}

// fetchConfig asks the places of the configuration in their order: what is on
// board (and then no DHCP packet is sent), -configurationLoader,
// -configurationBaseUrl, TFTP.
func (i *installation) fetchConfig(ctx context.Context) (fetch.Files, error) {
	directory, err := i.onBoard(ctx)
	if err != nil {
		return nil, err
	}
	if directory != "" {
		i.configDir = directory
		i.model.Logf(progress.Config, "the configuration is in %s; no DHCP lease is asked for", directory)
		return fetch.All(ctx, fetch.Directory(directory))
	}
	if err := i.leaseAndConfigure(ctx); err != nil {
		return nil, err
	}
	i.configDir = filepath.Join(i.runDir, "config")
	if err := os.RemoveAll(i.configDir); err != nil { // an earlier start's
		return nil, err
	}
	files, err := i.filesFromNetwork(ctx)
	if err != nil {
		return nil, err
	}
	return files, writeConfigDir(i.configDir, files)
}

func (i *installation) filesFromNetwork(ctx context.Context) (fetch.Files, error) {
	var source fetch.Source
	switch {
	case i.opt.configurationLoader != "":
		i.model.Log(progress.Config, "running "+i.opt.configurationLoader)
		var err error
		if source, err = fetch.Programme(ctx, i.env.runner, i.opt.configurationLoader, i.configDir, i.nic.Name); err != nil {
			return nil, err
		}
	case i.opt.configurationBaseURL != "":
		web, err := fetch.HTTP(i.opt.configurationBaseURL, i.nic.MAC, i.serial())
		if err != nil {
			return nil, err
		}
		config, err := i.clientTLS()
		if err != nil {
			return nil, err
		}
		if config != nil {
			web.Client = &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
		}
		source = web
	default:
		return i.filesFromTFTP(ctx)
	}
	i.model.Logf(progress.Config, "fetching from %s", source)
	return fetch.All(ctx, source)
}

func (i *installation) filesFromTFTP(ctx context.Context) (fetch.Files, error) {
	server := i.tftpServer()
	if server == "" {
		return nil, refuse("NET-020", "nobody names a TFTP server: not -tftpServerHostname, nor tftpserver= on the kernel command line, nor the DHCP server (next server, options 66 and 150)")
	}
	source := fetch.TFTP(server, i.nic.MAC, i.serial())
	i.model.Logf(progress.Config, "fetching from %s", source)
	return fetch.All(ctx, source)
}

// tftpServer is the first that is named, or empty.
func (i *installation) tftpServer() string {
	named := []string{i.opt.tftpServerHostname, i.opt.kernel.value("tftpserver")}
	if i.lease != nil {
		named = append(named, i.lease.TFTPServers()...)
	}
	for _, server := range named {
		if server != "" {
			return server
		}
	}
	return ""
}

// onBoard is the directory with a configuration that came with the machine
// rather than over its network: -tftpDirectory, else a volume labelled
// FIRSTLIGHT; empty where there is none.
func (i *installation) onBoard(ctx context.Context) (string, error) {
	if i.boardDir == nil {
		directory := i.opt.tftpDirectory
		if _, err := os.Stat(filepath.Join(directory, fetch.ConfigJSON)); err != nil {
			if directory, err = i.mountMedium(ctx); err != nil {
				return "", err
			}
		}
		i.boardDir = &directory
	}
	return *i.boardDir, nil
}

// leaseAndConfigure asks for a lease and uses it until the installation ends.
// On a system that runs from a disk the network is somebody else's: it is used
// as it is.
func (i *installation) leaseAndConfigure(ctx context.Context) error {
	if !i.env.inMemory {
		return i.useNetworkAsItIs()
	}
	if asked, err := i.useCommandLine(ctx); asked || err != nil {
		return err
	}
	lease, err := i.askForLease(ctx)
	if err != nil {
		return err
	}
	if err := i.useLease(lease); err != nil {
		return err
	}
	i.keepLease(lease)
	return nil
}

// useNetworkAsItIs takes the first NIC with a link for the machine's name at
// the configuration server.
func (i *installation) useNetworkAsItIs() error {
	i.model.Log(progress.Config, "this system runs from a disk: its network is used as it is, no DHCP lease is asked for")
	nics, err := link.List(i.env.sys)
	if err != nil {
		return err
	}
	for _, nic := range nics {
		if nic.Carrier {
			i.nic = nic
			return nil
		}
	}
	return nil
}

// askForLease asks on every NIC with carrier at once, and changes nothing.
func (i *installation) askForLease(ctx context.Context) (dhcp.Lease, error) {
	nics, err := link.List(i.env.sys)
	if err != nil {
		return dhcp.Lease{}, err
	}
	linked := link.Linked(nics)
	i.model.Logf(progress.Config, "asking for a DHCP lease on %s", strings.Join(linked, ", "))
	i.model.Wait(progress.Config, "a DHCP server's answer")
	defer i.model.Wait(progress.Config, "")
	return dhcp.Acquire(ctx, linked, i.dhcpOptions())
}

func (i *installation) dhcpOptions() dhcp.Options {
	return dhcp.Options{
		Prefer: bootInterface(i.opt.kernel),
		Report: func(text string) { i.model.Log(progress.Config, text) },
	}
}

// bootInterface is the MAC address in BOOTIF=01-aa-bb-…, which PXELINUX and
// iPXE hand over; zero where it is not there. The first byte is the hardware
// type (RFC 1700: 1 is Ethernet).
func bootInterface(kernel kernelArguments) netconfig.MAC {
	_, address, _ := strings.Cut(kernel.value("BOOTIF"), "-")
	mac, err := netconfig.ParseMAC(address)
	if err != nil {
		return netconfig.MAC{}
	}
	return mac
}

// useLease gives the interface its address and the installer its name
// servers.
func (i *installation) useLease(lease dhcp.Lease) error {
	if err := link.Configure(lease); err != nil {
		return err
	}
	return i.rememberLease(lease)
}

// rememberLease is useLease for addresses that the interface has already.
func (i *installation) rememberLease(lease dhcp.Lease) error {
	if data := link.ResolvConf(lease); data != nil {
		if err := os.WriteFile("/etc/resolv.conf", data, 0o644); err != nil {
			return fmt.Errorf("writing /etc/resolv.conf: %w", err)
		}
	}
	short := lease
	short.Summary = "" // it has many lines
	i.debugf(progress.Config, "lease: %+v", short)
	i.lease, i.nic = &lease, netconfig.NIC{Name: lease.Interface, MAC: lease.MAC}
	i.model.Logf(progress.Config, "%s has the address %s; the status page is http://%s:%d/", lease.Interface, lease.Address, lease.Address.Addr(), i.opt.port)
	return nil
}

// keepLease renews the lease until the installation ends.
func (i *installation) keepLease(lease dhcp.Lease) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- dhcp.Keep(ctx, lease, i.dhcpOptions(), func(renewed dhcp.Lease) error { return link.Configure(renewed) })
	}()
	i.opened.push("the DHCP lease", func() error {
		cancel()
		return <-done
	})
}

// useConfiguredAddress gives the machine the address that config.json has for
// it, where no lease was asked for and no address is there yet; what the kernel
// command line asks for goes before it.
func (i *installation) useConfiguredAddress(ctx context.Context) error {
	if !i.env.inMemory {
		return i.useNetworkAsItIs()
	}
	if asked, err := i.useCommandLine(ctx); asked || err != nil {
		return err
	}
	nics, err := link.List(i.env.sys)
	if err != nil {
		return err
	}
	resolved, err := netconfig.Resolve(i.config.Network, nics)
	if err != nil {
		return err
	}
	for _, wanted := range resolved.Interfaces {
		if wanted.NIC == "" || len(wanted.Addresses) == 0 {
			continue
		}
		lease := dhcp.Lease{
			Interface: wanted.NIC, MAC: wanted.MAC, Address: wanted.Addresses[0], MTU: wanted.MTU,
			DNS: wanted.DNS, Search: wanted.Search, Duration: dhcp.Infinite,
		}
		if wanted.Gateway.IsValid() {
			lease.Routes = []dhcp.Route{{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: wanted.Gateway}}
		}
		return i.useLease(lease)
	}
	i.model.Log(progress.Config, "config.json names no address for an interface of this machine: the network is used as it is")
	return nil
}

// stirRandomness adds the site's seed to the kernel's pool; it is not
// credited as entropy (random(4)).
func (i *installation) stirRandomness() (err error) {
	if len(i.config.RandomSeed) == 0 || !i.env.inMemory {
		return nil
	}
	pool, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("using random-seed: %w", err)
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	if _, err := pool.Write(i.config.RandomSeed); err != nil {
		return fmt.Errorf("using random-seed: %w", err)
	}
	return nil
}

// takeInventory looks at the machine, and lets -driveSelector choose.
func (i *installation) takeInventory(ctx context.Context) error {
	var seed inventory.Seed
	if _, err := io.ReadFull(i.env.random, seed[:]); err != nil {
		return fmt.Errorf("making the seed: %w", err)
	}
	found, err := probe.Run(ctx, probe.Seams{Sys: i.env.sys, Proc: i.env.proc, Dev: "/dev"}, seed)
	if err != nil {
		return err
	}
	for n := range found.NICs {
		found.NICs[n].Lease = i.lease != nil && found.NICs[n].Name == i.nic.Name
	}
	if i.opt.driveSelector != "" {
		i.model.Log(progress.Inventory, "running "+i.opt.driveSelector)
		if found.Selected, err = i.selectDisks(ctx, found.Usable()); err != nil {
			return err
		}
	}
	for _, warning := range found.Warnings {
		i.model.Warn(progress.Inventory, warning)
	}
	for _, disk := range found.Disks {
		i.model.Logf(progress.Inventory, "%s %s %s %s: %d things on it", disk.Path, storage.Bytes(disk.Size), disk.Model, disk.Serial, len(disk.Contents))
	}
	i.inventory = found
	i.publishInventory(found)
	return nil
}

// serial is the machine's serial number by DMI, empty where it has none.
func (i *installation) serial() string {
	found, err := inventory.Read(i.env.sys)
	if err != nil {
		return "" // takeInventory reports it
	}
	return found.DMI.Serial
}

// imageServerAddress is host:port; -imageServerHostname overrides the file.
func (i *installation) imageServerAddress() string {
	if host := i.opt.imageServerHostname; host != "" {
		return joinHostPort(host, i.opt.imageServerPort)
	}
	return i.config.ImageServer
}

// joinHostPort adds port to a host that names none.
func joinHostPort(host string, port uint) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), strconv.FormatUint(uint64(port), 10))
}

// hasAddress says whether the machine has an IPv4 address that is not its own
// loopback's. An IPv6 address makes itself wherever there is a router, and says
// nothing about a lease.
func hasAddress() bool {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return false // one is asked for then
	}
	return slices.ContainsFunc(addresses, func(a net.Addr) bool {
		network, ok := a.(*net.IPNet)
		return ok && network.IP.To4() != nil && network.IP.IsGlobalUnicast()
	})
}

// reachServer is what a command needs that speaks to the image server: an
// address of its own where the machine has none yet, and the server's name.
func (i *installation) reachServer(ctx context.Context) error {
	named := i.imageServerAddress() != ""
	if named && hasAddress() {
		return i.connect(ctx, progress.Manifest)
	}
	if err := i.raiseLinks(ctx); err != nil {
		return err
	}
	directory, err := i.onBoard(ctx)
	if err != nil {
		return err
	}
	configure := i.readConfig
	if named && directory == "" {
		configure = i.leaseAndConfigure
	}
	if err := configure(ctx); err != nil {
		return err
	}
	return i.connect(ctx, progress.Manifest)
}
