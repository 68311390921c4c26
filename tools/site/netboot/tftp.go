package netboot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pin/tftp/v3"

	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/trust"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/tools/site"
)

// TFTP gives out first loaders and the installer's configuration files (RFC 1350).
type TFTP struct {
	Site  *site.Site
	Media string // directory: <arch>/<file>
	// Config is one of the installer's files for a machine that asks from one
	// address and has reached the other.
	Config func(who site.Identity, file string, from, at netip.Addr) ([]byte, error)
	// Menu is what pxelinux shall do with a machine.
	Menu func(who site.Identity, from, at netip.Addr) ([]byte, error)
	// Ready is called when the port is open; it may be nil.
	Ready func()
	// GoneOn is told of a machine that fetches its loader; it may be nil.
	GoneOn func(mac netconfig.MAC)
	Log    *slog.Logger
}

// tftpPort is the port of TFTP.
const tftpPort = 69

// Serve answers until ctx ends. The error is an *Error with code CodePort where
// the port cannot be had.
func (t *TFTP) Serve(ctx context.Context) error {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: tftpPort})
	if err != nil {
		if owner := portOwner("udp", tftpPort); owner != "" {
			return fail(CodePort, "UDP port %d (TFTP) is taken by %s", tftpPort, owner)
		}
		return &Error{CodePort, "UDP port 69 (TFTP)", err}
	}
	if t.Ready != nil {
		t.Ready()
	}
	server := tftp.NewServer(t.read, nil)
	server.SetTimeout(2 * time.Second)
	server.SetRetries(5)
	done := make(chan error, 1)
	go func() { done <- server.Serve(conn) }()
	select {
	case <-ctx.Done():
		server.Shutdown()
		<-done
		return nil
	case err := <-done:
		return &Error{CodePort, "the TFTP server has ended", errors.Join(err, conn.Close())}
	}
}

// read sends one file.
func (t *TFTP) read(name string, to io.ReaderFrom) error {
	transfer, ok := to.(tftp.OutgoingTransfer)
	if !ok {
		return errors.New("no transfer")
	}
	address := transfer.RemoteAddr()
	from, _ := netip.AddrFromSlice(address.IP)
	at := netip.IPv4Unspecified()
	if info, ok := to.(tftp.RequestPacketInfo); ok {
		if own, ok := netip.AddrFromSlice(info.LocalIP()); ok {
			at = own.Unmap()
		}
	}
	content, size, err := t.open(name, from.Unmap(), at)
	if err != nil {
		t.Log.Debug("TFTP: refused", "file", name, "address", from, "error", err)
		return err
	}
	defer content.Close() // only read from
	transfer.SetSize(size)
	if _, err := to.ReadFrom(content); err != nil {
		t.Log.Debug("TFTP: cut off", "file", name, "address", from, "error", err)
		return err
	}
	t.Log.Info("TFTP: sent", "file", name, "address", from, "bytes", size)
	return nil
}

// errNoFile is told to those who ask for what there is not.
var errNoFile = errors.New("no such file")

// open finds what a name stands for.
func (t *TFTP) open(name string, from, at netip.Addr) (io.ReadCloser, int64, error) {
	// Firmware likes slashes at the beginning, and backslashes.
	name = strings.TrimPrefix(path.Clean("/"+strings.ReplaceAll(name, `\`, "/")), "/")
	parts := strings.Split(name, "/")
	switch {
	case len(parts) == 4 && parts[0] == "efi" && parts[3] == UKI:
		return t.program(parts[1], parts[2], from)
	case len(parts) == 2 && parts[0] == "pxelinux.cfg":
		mac, ok := site.ParseID(strings.TrimPrefix(parts[1], "01-")) // the hardware type: Ethernet
		if !ok {
			return nil, 0, errNoFile
		}
		return given(t.Menu(site.Identity{MACs: []netconfig.MAC{mac}}, from, at))
	case len(parts) == 1 && slices.Contains([]string{BIOSIPXE, PXELinux, "ldlinux.c32"}, name):
		t.goneOn(from)
		return t.medium("amd64", name)
	}
	directory, file := parts[:len(parts)-1], parts[len(parts)-1]
	if last := len(directory) - 1; last >= 0 && directory[last] == config.StepsDirectory {
		directory, file = directory[:last], path.Join(config.StepsDirectory, file)
	} else if !slices.Contains(append(fetch.Names(), trust.BundleFile, trust.SignatureFile), file) {
		return nil, 0, errNoFile
	}
	if len(directory) > 1 {
		return nil, 0, errNoFile
	}
	who, err := t.asker(directory, from)
	if err != nil {
		return nil, 0, err
	}
	return given(t.Config(who, file, from, at))
}

// asker is the machine that asks for its configuration: the one that the
// directory names by MAC address or serial number, or in the root the one that
// has the address.
func (t *TFTP) asker(directory []string, from netip.Addr) (site.Identity, error) {
	if len(directory) == 1 {
		if mac, ok := site.ParseID(directory[0]); ok {
			return site.Identity{MACs: []netconfig.MAC{mac}}, nil
		}
		return site.Identity{Serial: directory[0]}, t.known(site.Identity{Serial: directory[0]})
	}
	mac, ok := neighbour(from)
	if !ok {
		return site.Identity{}, fmt.Errorf("%w: which machine has the address %s is not known", errNoFile, from)
	}
	return site.Identity{MACs: []netconfig.MAC{mac}}, nil
}

// known refuses those that only a serial number tells and nobody has named.
func (t *TFTP) known(who site.Identity) error {
	m, err := t.Site.Find(who.Clean())
	if m == nil && err == nil {
		return errNoFile
	}
	return err
}

// program is the EFI program that is the whole installer, for a machine that is
// not installed.
func (t *TFTP) program(id, arch string, from netip.Addr) (io.ReadCloser, int64, error) {
	mac, ok := site.ParseID(id)
	if !ok {
		return nil, 0, errNoFile
	}
	m, err := t.Site.Booted(site.Identity{MACs: []netconfig.MAC{mac}}, from.String(), "")
	if err != nil {
		return nil, 0, err
	}
	if m.Status.State == site.Installed {
		return nil, 0, fmt.Errorf("%s is installed: it boots its disk", m.Name)
	}
	if t.GoneOn != nil {
		t.GoneOn(mac)
	}
	return t.medium(arch, UKI)
}

func (t *TFTP) goneOn(from netip.Addr) {
	if mac, ok := neighbour(from); ok && t.GoneOn != nil {
		t.GoneOn(mac)
	}
}

func (t *TFTP) medium(arch, file string) (io.ReadCloser, int64, error) {
	if arch != filepath.Base(arch) {
		return nil, 0, errNoFile
	}
	f, err := os.Open(filepath.Join(t.Media, arch, file))
	if err != nil {
		return nil, 0, errNoFile
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

func given(data []byte, err error) (io.ReadCloser, int64, error) {
	if err != nil {
		return nil, 0, err
	}
	return io.NopCloser(bytes.NewReader(data)), int64(len(data)), nil
}

// neighbour is the MAC address of a machine on this link, as the kernel has
// learned it (proc(5), /proc/net/arp).
func neighbour(address netip.Addr) (netconfig.MAC, bool) {
	table, err := os.ReadFile("/proc/net/arp")
	if err != nil {
		return netconfig.MAC{}, false
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) > 3 && fields[0] == address.String() {
			mac, err := netconfig.ParseMAC(fields[3])
			return mac, err == nil && !mac.IsZero()
		}
	}
	return netconfig.MAC{}, false
}
