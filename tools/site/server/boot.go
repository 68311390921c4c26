package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/tools/site"
)

// CommandLine is what the installer's kernel is started with by a machine that
// reaches this server at an address. mac is the NIC that it boots from, zero
// where that is not known.
func (s *Server) CommandLine(at netip.Addr, httpPort int, mac netconfig.MAC) string {
	words := []string{"console=tty0", "console=ttyS0,115200", "siteserver=" + s.URLAt(at, httpPort, s.TLS)}
	if !mac.IsZero() {
		words = append(words, "BOOTIF=01-"+strings.ReplaceAll(mac.String(), ":", "-"))
	}
	if s.KernelOptions != "" {
		words = append(words, s.KernelOptions)
	}
	return strings.Join(words, " ")
}

// arch is the architecture that a machine boots, in Go's words; amd64 where it
// does not say.
func arch(r *http.Request) string {
	switch a := r.URL.Query().Get("arch"); a {
	case "arm64":
		return a
	default:
		return "amd64"
	}
}

// serveScript is what iPXE does with a machine: it starts the installer, which
// waits where nobody has approved the machine, or the machine's disk.
func (s *Server) serveScript(w http.ResponseWriter, r *http.Request) {
	mac, ok := site.ParseID(r.PathValue("mac"))
	if !ok {
		http.Error(w, "a MAC address with dashes is wanted", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if r.Method == http.MethodHead {
		return // only looking
	}
	who := site.Identity{MACs: []netconfig.MAC{mac}, Serial: r.URL.Query().Get("serial"), UUID: r.URL.Query().Get("uuid")}
	m, err := s.booted(who, remote(r))
	if err != nil {
		s.Log.Warn("a machine boots from its disk, for it is not clear which one it is", "mac", mac, "error", err)
		fmt.Fprint(w, diskScript(err.Error()))
		return
	}
	if m.Status.State == site.Installed {
		s.Log.Info("a machine boots its disk", "machine", m.Name)
		fmt.Fprint(w, diskScript(m.Name+" is installed"))
		return
	}
	s.Log.Info("a machine boots the installer", "machine", m.Name, "state", m.Status.State, "address", remote(r))
	base := s.URLAt(local(r), port(r), false) + "/boot/" + arch(r)
	fmt.Fprintf(w, "#!ipxe\necho Firstlight: %s is %s\nkernel %s/vmlinuz initrd=initramfs %s\ninitrd %s/initramfs\nboot\n",
		m.Name, m.Status.State, base, s.CommandLine(local(r), port(r), mac), base)
}

// serveProgram is what UEFI's HTTP boot fetches: one program that is the whole
// installer. A machine that is installed gets none, and goes on to its disk.
func (s *Server) serveProgram(w http.ResponseWriter, r *http.Request) {
	mac, ok := site.ParseID(r.PathValue("mac"))
	if !ok {
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodHead { // firmware asks for the size first
		m, err := s.booted(site.Identity{MACs: []netconfig.MAC{mac}}, remote(r))
		if err != nil || m.Status.State == site.Installed {
			http.NotFound(w, r)
			return
		}
	}
	s.sendMedium(w, r, r.PathValue("arch"), r.PathValue("file"))
}

// PXELinux is what pxelinux does with a machine that reaches this server at an
// address.
func (s *Server) PXELinux(who site.Identity, from, at netip.Addr, httpPort int) ([]byte, error) {
	m, err := s.booted(who, from.String())
	if err != nil {
		return nil, err
	}
	if m.Status.State == site.Installed {
		return []byte("DEFAULT disk\nLABEL disk\n  LOCALBOOT 0\n"), nil
	}
	base := s.URLAt(at, httpPort, false) + "/boot/amd64"
	return fmt.Appendf(nil, "DEFAULT installer\nLABEL installer\n  KERNEL %s/vmlinuz\n  INITRD %s/initramfs\n  APPEND %s\n",
		base, base, s.CommandLine(at, httpPort, who.MACs[0])), nil
}

// booted is site.Booted, told to those who follow.
func (s *Server) booted(who site.Identity, address string) (*site.Machine, error) {
	defer s.watch.poke()
	if s.GoneOn != nil {
		for _, mac := range who.MACs {
			s.GoneOn(mac)
		}
	}
	return s.Site.Booted(who, address, "")
}

// diskScript makes iPXE start the first disk. UEFI does that itself when iPXE
// ends; some BIOSes would start iPXE again instead.
func diskScript(why string) string {
	why = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || strings.ContainsRune("${}&|", r) { // which mean something to iPXE
			return ' '
		}
		return r
	}, why)
	return "#!ipxe\necho Firstlight: " + why + ": starting the disk\niseq ${platform} efi && exit 1 ||\nsanboot --no-describe --drive 0x80 || exit 1\n"
}

// servePixiecore answers as Pixiecore's API wants it: 404 is "boot your disk".
func (s *Server) servePixiecore(w http.ResponseWriter, r *http.Request) {
	mac, err := netconfig.ParseMAC(r.PathValue("mac"))
	if err != nil || mac.IsZero() {
		http.Error(w, "a MAC address is wanted", http.StatusBadRequest)
		return
	}
	if r.Method == http.MethodHead {
		return // only looking
	}
	m, err := s.booted(site.Identity{MACs: []netconfig.MAC{mac}}, "")
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusNotFound)
	case m.Status.State == site.Installed:
		http.Error(w, m.Name+" is installed", http.StatusNotFound)
	default:
		base := s.URLAt(local(r), port(r), false) + "/boot/" + arch(r)
		writeJSON(w, map[string]any{
			"kernel": base + "/vmlinuz", "initrd": []string{base + "/initramfs"},
			"cmdline": s.CommandLine(local(r), port(r), mac), "message": "Firstlight: " + m.Name,
		})
	}
}

// HasMedium says whether there is such a file for machines of that architecture.
func (s *Server) HasMedium(arch, file string) bool {
	_, err := os.Stat(filepath.Join(s.Media, arch, file))
	return err == nil
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	// Who asks may be gone.
	_ = e.Encode(v)
}
