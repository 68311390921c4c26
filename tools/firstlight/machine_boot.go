package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/tools/pki"
	"github.com/firstlight/firstlight/tools/site"
	"github.com/firstlight/firstlight/tools/site/redfish"
	"github.com/firstlight/firstlight/tools/site/wake"
)

// bootFlags are those of machine boot.
type bootFlags struct {
	via, iso, server, interfaceName string
	eject, yes                      bool
}

// booted is the result of machine boot.
type booted struct {
	Machine string   `json:"machine"`
	Via     string   `json:"via"`
	ISO     string   `json:"iso,omitempty"`
	Steps   []string `json:"steps,omitempty"`
}

// bootLimit bounds a boot through a BMC: slow ones take minutes for each step.
const bootLimit = 15 * time.Minute

func (c *common) machineBoot() *cobra.Command {
	var f bootFlags
	cmd := &cobra.Command{
		Use: "boot NAME", Args: arguments(1, 1),
		Short: "Start a machine into the installer from afar: through its BMC, or by Wake-on-LAN",
		Long: `Start a machine into the installer. With --via redfish its management controller
mounts the site server's ISO as virtual media, and the machine is restarted from
it once, whatever runs on it. With --via wol it is switched on by Wake-on-LAN, and
boots as its firmware is set up to. Without --via it is redfish where the machine
has a bmc in its machine.yaml.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.openSite()
			if err != nil {
				return err
			}
			m, err := s.Machine(args[0])
			if err != nil {
				return err
			}
			if f.via == "" {
				f.via = "wol"
				if m.Card.BMC != nil {
					f.via = "redfish"
				}
			}
			if m.Status.State == site.Installed && !f.eject {
				c.note("%s is installed: its installer will be told to boot the disk. To install it again: firstlight machine reinstall %s", m.Name, m.Name)
			}
			switch f.via {
			case "redfish":
				ctx, cancel := context.WithTimeout(cmd.Context(), bootLimit)
				defer cancel()
				return c.bootByRedfish(ctx, s, m, f)
			case "wol":
				return c.bootByWake(cmd.Context(), s, m, f.interfaceName)
			}
			return &usageError{fmt.Sprintf("--via is redfish or wol, not %q", f.via)}
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.via, "via", "", "`how`: redfish or wol")
	flags.StringVar(&f.iso, "iso", "", "`URL` of the ISO to mount (default: the site server's)")
	flags.StringVar(&f.server, "server", "", "`URL` of the site server as the BMC reaches it (default: port 8080 of this machine)")
	flags.BoolVar(&f.eject, "eject", false, "only take the virtual media out again")
	flags.StringVar(&f.interfaceName, "interface", "", "`interface` to wake the machine over (default: that of its network, or all)")
	flags.BoolVar(&f.yes, "yes", false, "do not ask")
	return cmd
}

// bootByRedfish starts the machine from the site's ISO.
func (c *common) bootByRedfish(ctx context.Context, s *site.Site, m *site.Machine, f bootFlags) error {
	bmc, err := machineBMC(s, m)
	if err != nil {
		return err
	}
	result := booted{Machine: m.Name, Via: "redfish"}
	which := redfish.Machine{Serial: m.Identity.Serial, UUID: m.Identity.UUID}
	if found, ok := s.Hardware(m.Name); ok {
		marks := site.IdentityOf(found)
		which = redfish.Machine{Serial: orElse(which.Serial, marks.Serial), UUID: orElse(which.UUID, marks.UUID)}
	}
	tell := func(text string) {
		c.note("%s", text)
		result.Steps = append(result.Steps, text)
	}
	if f.eject {
		if err := redfish.Eject(ctx, bmc, which, redfish.Times{}, tell); err != nil {
			return err
		}
		return c.print(result, func(w io.Writer) { fmt.Fprintf(w, "the virtual drive of %s is empty\n", m.Name) })
	}
	if result.ISO, err = siteISO(s, m, bmc, f); err != nil {
		return err
	}
	if err := isThere(ctx, result.ISO); err != nil {
		return err
	}
	if err := c.confirm(f.yes, fmt.Sprintf("restart %s through its BMC, whatever runs on it, and boot %s", m.Name, result.ISO)); err != nil {
		return err
	}
	if err := s.Note(site.Entry{Who: c.operator(), Verb: "boot", Machine: m.Name, Detail: "through " + bmc.URL + " from " + result.ISO}); err != nil {
		return err
	}
	if err := redfish.Boot(ctx, bmc, which, result.ISO, redfish.Times{}, tell); err != nil {
		return err
	}
	return c.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "%s was restarted from %s; firstlight machine watch %s shows how it goes on\n", m.Name, result.ISO, m.Name)
	})
}

// machineBMC is the machine's management controller, with what is needed to log
// in to it.
func machineBMC(s *site.Site, m *site.Machine) (redfish.BMC, error) {
	card := m.Card.BMC
	if card == nil {
		return redfish.BMC{}, &usageError{fmt.Sprintf("%s has no bmc: add url, user and password-file under bmc to machines/%s/machine.yaml (docs/bmc.md), or say --via wol", m.Name, m.Name)}
	}
	bmc := redfish.BMC{URL: card.URL, User: card.User, Fingerprint: card.Fingerprint}
	if !filepath.IsLocal(card.PasswordFile) {
		return bmc, &usageError{fmt.Sprintf("password-file of %s is the name of a file in %s", m.Name, pki.Directory(s.Dir()))}
	}
	password, err := os.ReadFile(filepath.Join(pki.Directory(s.Dir()), card.PasswordFile))
	if err != nil {
		return bmc, &usageError{fmt.Sprintf("the password of the BMC of %s: %v", m.Name, err)}
	}
	bmc.Password = strings.TrimRight(string(password), "\r\n")
	if card.CA == "" {
		return bmc, nil
	}
	if !filepath.IsLocal(card.CA) {
		return bmc, &usageError{fmt.Sprintf("ca of %s is the name of a file in %s", m.Name, s.Dir())}
	}
	text, err := os.ReadFile(filepath.Join(s.Dir(), card.CA))
	if err != nil {
		return bmc, &usageError{fmt.Sprintf("the CA of the BMC of %s: %v", m.Name, err)}
	}
	bmc.CA = x509.NewCertPool()
	if !bmc.CA.AppendCertsFromPEM(text) {
		return bmc, &usageError{fmt.Sprintf("%s holds no certificate", filepath.Join(s.Dir(), card.CA))}
	}
	return bmc, nil
}

// siteISO is the URL of the ISO for a machine: of the site server, which by
// default is on this machine, at the address that faces the BMC.
func siteISO(s *site.Site, m *site.Machine, bmc redfish.BMC, f bootFlags) (string, error) {
	if f.iso != "" {
		return f.iso, nil
	}
	arch := m.Arch
	if found, ok := s.Hardware(m.Name); ok {
		arch = found.Arch
	}
	server := strings.TrimRight(f.server, "/")
	if server == "" {
		target, err := url.Parse(bmc.URL)
		if err != nil || target.Host == "" {
			return "", &usageError{fmt.Sprintf("%q is no URL of a BMC", bmc.URL)}
		}
		// Nothing is sent: the kernel says by which address it would be.
		probe, err := net.Dial("udp", net.JoinHostPort(target.Hostname(), "443"))
		if err != nil {
			return "", &usageError{fmt.Sprintf("which address of this machine the BMC can reach is not known (%v): say --server URL", err)}
		}
		defer probe.Close() // it was never used
		local, err := netip.ParseAddrPort(probe.LocalAddr().String())
		if err != nil {
			return "", err
		}
		server = "http://" + netip.AddrPortFrom(local.Addr().WithZone(""), sitePort).String()
	}
	return fmt.Sprintf("%s/boot/%s/%s", server, orElse(arch, "amd64"), isoName), nil
}

// sitePort is where firstlight serve is by default.
const sitePort = 8080

// isThere looks whether the ISO can be had before a machine is restarted for it.
func isThere(ctx context.Context, iso string) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, iso, nil)
	if err != nil {
		return &usageError{fmt.Sprintf("%q is no URL of an ISO: %v", iso, err)}
	}
	answer, err := http.DefaultClient.Do(request)
	if err == nil {
		err = answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			err = errors.New(answer.Status)
		}
	}
	if err != nil {
		return &refusedError{fmt.Sprintf("there is no ISO at %s (%v), so the machine is left alone: is firstlight serve running there? --server and --iso name another place", iso, err)}
	}
	return nil
}

// bootByWake calls the machine on its own network, or on all.
func (c *common) bootByWake(ctx context.Context, s *site.Site, m *site.Machine, name string) error {
	networks, err := wake.Networks(name)
	if err != nil {
		return err
	}
	addresses := []netip.Addr{m.Address}
	if heard, err := netip.ParseAddr(m.Status.Address); err == nil {
		addresses = append(addresses, heard)
	}
	var near []wake.Network
	for _, n := range networks {
		for _, a := range addresses {
			if a.IsValid() && n.Prefix.Masked().Contains(a.Unmap()) {
				near = append(near, n)
				break
			}
		}
	}
	if name == "" && len(near) > 0 {
		networks = near
	}
	if err := s.Note(site.Entry{Who: c.operator(), Verb: "wake", Machine: m.Name}); err != nil {
		return err
	}
	result := booted{Machine: m.Name, Via: "wol"}
	for _, n := range networks {
		if err := wake.Call(ctx, n, m.Identity.MACs); err != nil {
			return err
		}
		step := fmt.Sprintf("called %s over %s (%s)", m.Identity, n.Interface, n.Broadcast())
		c.note("%s", step)
		result.Steps = append(result.Steps, step)
	}
	return c.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "%s was called; nobody answers to that: firstlight machine watch %s shows whether it comes\n", m.Name, m.Name)
	})
}

func orElse(text, other string) string {
	if text != "" {
		return text
	}
	return other
}
