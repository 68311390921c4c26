package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
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
	"github.com/firstlight/firstlight/installer/trust"
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
	i.listenToNeighbours()
	i.model.Wait(progress.Links, "a link on any network interface")
	nics, err := link.Up(ctx, i.env.sys, link.Options{})
	for _, nic := range nics {
		i.model.Log(progress.Links, describeNIC(nic))
		i.debugf(progress.Links, "%s: %+v", nic.Name, nic)
	}
	for _, unusable := range link.Unusable(i.env.sys) {
		i.model.Warn(progress.Links, unusable.String())
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

// readConfig gets the configuration from the first place that has it, and reads
// it whole: what is on board (and then no DHCP packet is sent, unless it asks
// for one), else through the network.
func (i *installation) readConfig(ctx context.Context) error {
	directory, err := i.onBoard(ctx)
	if err != nil {
		return err
	}
	if directory == "" {
		err = i.configure(ctx, i.configFromNetwork)
	} else if err = i.configFromBoard(ctx, directory); err == nil {
		err = i.addressForBoard(ctx)
	}
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(i.files)) {
		i.debugf(progress.Config, "%s: %d bytes", name, len(i.files[name]))
	}
	for _, warning := range i.config.Warnings {
		i.model.Warn(progress.Config, warning)
	}
	i.model.Describe(func(f *progress.Facts) { f.Machine = i.config.Network.Hostname })
	i.startReporting()
	return i.stirRandomness()
}

// addressForBoard gives the machine an address. Where a medium carries the
// image, none is needed: a machine without a network is installed too.
func (i *installation) addressForBoard(ctx context.Context) error {
	_, needless, err := i.imageOnMedium(ctx, i.config.Image)
	if err != nil {
		return err
	}
	if !needless {
		return i.useConfiguredAddress(ctx)
	}
	short, cancel := context.WithTimeout(ctx, offlineNetwork)
	defer cancel()
	if err := i.useConfiguredAddress(short); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		i.model.Warn(progress.Config, "there is no network, and the image is on the medium: "+oneLine(err))
	}
	return nil
}

// offlineNetwork is how long a machine that needs no network looks for one.
const offlineNetwork = 20 * time.Second

// configFromBoard reads the configuration in directory.
func (i *installation) configFromBoard(ctx context.Context, directory string) error {
	i.configDir = directory
	i.model.Logf(progress.Config, "the configuration is in %s", directory)
	files, err := i.filesFrom(ctx, fetch.Directory(directory))
	if err != nil {
		return err
	}
	return i.parse(files)
}

// configFromNetwork fetches and reads the configuration through the network as
// it is configured now.
func (i *installation) configFromNetwork(ctx context.Context, attempt attempt) error {
	i.configDir = filepath.Join(i.runDir, "config")
	if err := os.RemoveAll(i.configDir); err != nil { // an earlier attempt's
		return err
	}
	files, err := i.filesFromNetwork(ctx, attempt)
	if err != nil {
		return err
	}
	if err := writeConfigDir(i.configDir, files); err != nil {
		return err
	}
	if err := i.parse(files); err != nil {
		return err
	}
	return i.checkSource(ctx, attempt)
}

// parse reads the files; they count only if all of them are good.
func (i *installation) parse(files fetch.Files) error {
	read, err := config.Parse(files, uint16(i.opt.imageServerPort))
	if err == nil {
		i.files, i.config = files, read
		i.config.SiteServer = i.siteServerURL()
		i.nameByLease()
	}
	return err
}

// nameByLease gives a machine that config.json has no name for that of its
// lease (RFC 2132, 3.14), unless only what is signed may be believed.
func (i *installation) nameByLease() {
	if i.config.Network.Hostname == "" && i.lease != nil && i.lease.HostName != "" && i.saidUnsigned {
		i.config.Network.Hostname = i.lease.HostName
		i.model.Logf(progress.Config, "config.json has no Hostname: the machine is called %s, as its lease says", i.lease.HostName)
	}
}

func (i *installation) filesFromNetwork(ctx context.Context, attempt attempt) (fetch.Files, error) {
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
			i.agreeOnTimeOf(ctx, i.opt.configurationBaseURL, config)
		}
		web.Patience = attempt.patience()
		source = web
	case i.siteServerFirst() != "":
		files, err := i.filesFromSite(ctx, attempt)
		if !errors.Is(err, errNotAtSite) {
			return files, err
		}
		i.model.Log(progress.Config, "the site server takes reports only: the configuration comes by TFTP")
		return i.filesFromTFTP(ctx, attempt)
	default:
		return i.filesFromTFTP(ctx, attempt)
	}
	i.model.Logf(progress.Config, "fetching from %s", source)
	return i.filesFrom(ctx, source)
}

// filesFromTFTP asks the servers in the order in which they are named; the
// first that has the configuration counts.
func (i *installation) filesFromTFTP(ctx context.Context, attempt attempt) (fetch.Files, error) {
	servers := i.tftpServers()
	if len(servers) == 0 {
		return nil, refuse("NET-020", "nobody names a TFTP server: not -tftpServerHostname, nor tftpserver= on the kernel command line, nor the DHCP server (next server, options 66 and 150)")
	}
	var failures []error
	for n, server := range servers {
		source := fetch.TFTP(server, i.nic.MAC, i.serial())
		hurry := attempt
		hurry.others = attempt.others || n < len(servers)-1
		source.Patience = hurry.patience()
		i.model.Logf(progress.Config, "fetching from %s", source)
		files, err := i.filesFrom(ctx, source)
		if err == nil {
			return files, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		failures = append(failures, err)
		if n < len(servers)-1 {
			i.model.Warn(progress.Config, err.Error()+"; the next TFTP server is asked")
		}
	}
	return nil, errors.Join(failures...)
}

// tftpServers are those that the operator names, or else those of the lease.
func (i *installation) tftpServers() []string {
	for _, server := range []string{i.opt.tftpServerHostname, i.opt.kernel.value("tftpserver")} {
		if server != "" {
			return []string{server}
		}
	}
	if i.lease == nil {
		return nil
	}
	return i.lease.TFTPServers()
}

// onBoard is the directory with a configuration that came with the machine
// rather than over its network: -tftpDirectory, else a volume labelled
// FIRSTLIGHT; empty where there is none.
func (i *installation) onBoard(ctx context.Context) (string, error) {
	if i.boardDir == nil {
		directory := i.opt.tftpDirectory
		there, err := i.hasConfiguration(directory)
		if err == nil && !there {
			directory, err = i.configurationOnMedium(ctx)
		}
		if err != nil {
			return "", err
		}
		i.boardDir = &directory
	}
	return *i.boardDir, nil
}

// hasConfiguration says whether a configuration lies in directory: config.json,
// or the bundle that carries it where only what is signed is believed.
func (i *installation) hasConfiguration(directory string) (bool, error) {
	policy, err := trust.ReadPolicy(os.DirFS(i.env.trust.keys))
	if err != nil {
		return false, err
	}
	names := []string{fetch.ConfigJSON}
	if policy.Signed() {
		names = append(names, trust.BundleFile)
	}
	return slices.ContainsFunc(names, func(name string) bool {
		_, err := os.Stat(filepath.Join(directory, name))
		return err == nil
	}), nil
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

// hardware names a machine as a person in front of it would find it.
func hardware(d inventory.DMI) string {
	text := strings.Join(strings.Fields(d.Vendor+" "+d.Product), " ")
	if d.Serial != "" {
		text += ", serial " + d.Serial
	}
	return strings.TrimPrefix(text, ", ")
}

// takeInventory looks at the machine, and lets -driveSelector choose.
func (i *installation) takeInventory(ctx context.Context) error {
	if err := i.awaitDisks(ctx); err != nil {
		return err
	}
	found, err := i.lookAtMachine(ctx)
	if err != nil {
		return err
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
	i.model.Describe(func(f *progress.Facts) { f.Hardware = hardware(found.DMI) })
	i.inventory = found
	i.publishInventory(found)
	return nil
}

// lookAtMachine is the inventory as it is now. It only reads.
func (i *installation) lookAtMachine(ctx context.Context) (inventory.Document, error) {
	var seed inventory.Seed
	if _, err := io.ReadFull(i.env.random, seed[:]); err != nil {
		return inventory.Document{}, fmt.Errorf("making the seed: %w", err)
	}
	found, err := probe.Run(ctx, probe.Seams{Sys: i.env.sys, Proc: i.env.proc, Dev: "/dev"}, seed)
	if err != nil {
		return found, err
	}
	for n := range found.NICs {
		if found.NICs[n].Lease = i.lease != nil && found.NICs[n].Name == i.nic.Name; found.NICs[n].Lease {
			found.NICs[n].Address = i.lease.Address
		}
	}
	found.UnusableNICs = link.Unusable(i.env.sys)
	i.switches.beside(found.NICs)
	return found, nil
}

// serial is the machine's serial number by DMI, empty where it has none.
func (i *installation) serial() string {
	found, err := inventory.Read(i.env.sys)
	if err != nil {
		return "" // takeInventory reports it
	}
	return found.DMI.Serial
}

// imageServerAddresses are host:port, by preference; -imageServerHostname, one
// or several with commas between them, overrides the file.
func (i *installation) imageServerAddresses() []string {
	var addresses []string
	for host := range strings.SplitSeq(i.opt.imageServerHostname, ",") {
		if host = strings.TrimSpace(host); host != "" {
			addresses = append(addresses, joinHostPort(host, i.opt.imageServerPort))
		}
	}
	if len(addresses) > 0 {
		return addresses
	}
	return i.config.ImageServers
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
	named := len(i.imageServerAddresses()) > 0
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
	if named && directory == "" {
		err = i.leaseAndConfigure(ctx)
	} else {
		err = i.readConfig(ctx)
	}
	if err != nil {
		return err
	}
	return i.connect(ctx, progress.Manifest)
}
