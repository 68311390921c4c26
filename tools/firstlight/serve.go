package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/imageserver/catalog/store"
	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object/dir"
	"github.com/firstlight/firstlight/imageserver/scrub"
	"github.com/firstlight/firstlight/imageserver/server"
	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/proto/notify"
	"github.com/firstlight/firstlight/tools/media"
	"github.com/firstlight/firstlight/tools/pki"
	"github.com/firstlight/firstlight/tools/site"
	"github.com/firstlight/firstlight/tools/site/netboot"
	"github.com/firstlight/firstlight/tools/site/serve"
	siteserver "github.com/firstlight/firstlight/tools/site/server"
)

func (c *common) serveCommand() *cobra.Command {
	var options serve.Options
	var mode, modules, base, kernel, listenImages string
	var modes []string
	for _, m := range netboot.Modes() {
		modes = append(modes, string(m))
	}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve a site: images, network boot, the machines' configuration, the fleet page",
		Long: `Serve everything that machines need to be installed, from one directory of plain
files: an image server (port 6971), the site's page and API (--http), TFTP, and
what DHCP has to say about booting. What is missing there is made, keys and
certificates too.

A machine that nobody knows boots the installer, says what it is and waits; it is
never touched. firstlight machine list shows it, machine set says what it shall
be, machine approve lets it be installed, once.

With --dhcp auto or proxy the DHCP server that is there stays the one that hands
out addresses. Only --dhcp full and relay hand out any, from the subnets in
site.yaml, and full does not start where another server answers.`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			options.DHCP = netboot.Mode(mode)
			if !slices.Contains(modes, mode) {
				return &usageError{fmt.Sprintf("--dhcp is one of %s, not %q", strings.Join(modes, ", "), mode)}
			}
			if options.DHCP == netboot.Full && options.Interface == "" {
				return &usageError{"--dhcp full hands out addresses: say on which interface, --interface NAME"}
			}
			directory, err := c.siteDirectory()
			if err != nil {
				return err
			}
			options.Site, err = site.Open(directory, time.Now)
			if err != nil {
				return err
			}
			options.Log = slog.New(slog.NewTextHandler(c.err, nil))
			options.Version, options.Now = version(), time.Now
			if cmd.Flags().Changed("imageserver") {
				options.ImageServer, options.Images = c.imageserver, c.listImages
			} else {
				images := &siteImages{data: filepath.Join(options.Site.Dir(), "store"), ca: filepath.Join(pki.Directory(options.Site.Dir()), pki.CAFile), listen: listenImages, log: options.Log}
				options.RunImages, options.Images = images.run, images.list
			}
			m := &siteMedia{common: c, site: options.Site, modules: modules, base: base, kernel: kernel}
			options.MakeMedia = m.make
			options.Ready = func(address net.Addr) {
				c.note("serving %s: the page is %s", options.Site.Dir(), pageURL(address))
				if err := notify.Ready(c.getenv("NOTIFY_SOCKET")); err != nil {
					c.note("%v", err)
				}
			}
			err = serve.Run(cmd.Context(), options)
			if cmd.Context().Err() != nil {
				return nil // it was asked to end
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&options.Interface, "interface", "", "`interface` where the machines are (default: the only one that has an address)")
	flags.StringVar(&mode, "dhcp", string(netboot.Auto), "what is done about DHCP: "+strings.Join(modes, ", "))
	flags.StringVar(&options.HTTP, "http", ":8080", "`address` of the page and the site's API, host:port")
	flags.BoolVar(&options.TFTP, "tftp", true, "serve TFTP, for first loaders and configuration files")
	flags.StringVar(&listenImages, "listen-images", ":6971", "`address` of the image server, host:port")
	flags.StringVar(&modules, "modules", string(media.SetCommon), "`set` of kernel modules for what machines boot")
	flags.StringVar(&base, "base", "", "`file` that make initramfs built (default as media initramfs)")
	flags.StringVar(&kernel, "kernel", "", "`directory` with the installer's kernel (default as media initramfs)")
	return cmd
}

// isoName is the site's ISO image, for virtual media.
const isoName = "firstlight.iso"

// listImages lists the images of another image server, for the page.
func (c *common) listImages(ctx context.Context) ([]siteserver.Image, error) {
	var all []siteserver.Image
	err := c.connected(ctx, func(ctx context.Context, connection *client.Client) error {
		images, err := connection.List(ctx, "")
		for _, i := range images {
			all = append(all, siteserver.Image{Name: i.Name, Arch: i.Attributes[image.AttrArch], Bytes: i.Bytes, Added: i.Added})
		}
		return err
	})
	return all, err
}

// siteMedia makes what the site's machines boot.
type siteMedia struct {
	*common
	site                  *site.Site
	modules, base, kernel string
}

// make makes kernel, initramfs and EFI program for each architecture whose parts
// are there, and copies first loaders of Debian's packages.
func (m *siteMedia) make(ctx context.Context, directory string, at serve.Addresses) ([]siteserver.Notice, error) {
	var lacking []siteserver.Notice
	settings, err := m.site.Settings()
	if err != nil {
		return nil, err
	}
	made := 0
	for _, arch := range media.Architectures() {
		options := media.BootOptions{Options: media.Options{Arch: arch, Base: m.base, KernelDir: m.kernel, Modules: media.Set(m.modules), CA: filepath.Join(pki.Directory(m.site.Dir()), pki.CAFile)}}
		if arch != runtime.GOARCH && (m.base != "" || m.kernel != "") {
			continue // what was named is for this machine's architecture
		}
		for _, signer := range settings.Trust {
			options.Trust = append(options.Trust, filepath.Join(pki.Directory(m.site.Dir()), "signers", signer+".pub"))
		}
		if err := m.findMediaParts(&options); err != nil {
			if arch == runtime.GOARCH {
				return nil, err
			}
			continue
		}
		if options.KernelDir == "" {
			if arch == runtime.GOARCH {
				return nil, &usageError{"there is no kernel for the installer: run hack/setup, or name its directory with --kernel"}
			}
			continue
		}
		below := filepath.Join(directory, arch)
		options.Out = filepath.Join(below, "initramfs")
		report, err := media.Initramfs(ctx, options.Options)
		if err != nil {
			return nil, err
		}
		if err := copyWhole(filepath.Join(below, "vmlinuz"), report.Kernel); err != nil {
			return nil, err
		}
		made++
		if !at.Host.IsValid() {
			continue // a program with no server in it would ask nobody
		}
		options.Out = filepath.Join(below, netboot.UKI)
		options.CommandLine = strings.TrimSpace(fmt.Sprintf("siteserver=https://%s %s", net.JoinHostPort(at.Host.String(), fmt.Sprint(at.HTTP)), settings.KernelOptions))
		if _, err := media.UKI(ctx, options); err != nil {
			lacking = append(lacking, siteserver.Notice{Text: fmt.Sprintf("machines with UEFI (%s) boot over the network only by iPXE: %v", arch, err), Do: "install Debian's package systemd-boot-efi here and start firstlight serve again"})
		}
		options.Out = filepath.Join(below, isoName)
		if _, err := media.ISO(ctx, options); err != nil {
			lacking = append(lacking, siteserver.Notice{Text: fmt.Sprintf("there is no ISO image for virtual media (%s): %v", arch, err), Do: "install Debian's packages isolinux, syslinux-common and systemd-boot-efi here and start firstlight serve again"})
		}
	}
	if made == 0 {
		return nil, &usageError{"there is nothing to boot machines with"}
	}
	return append(lacking, m.copyLoaders(filepath.Join(directory, "amd64"))...), nil
}

// copyLoaders copies the first loaders for BIOS machines, where their packages are
// installed.
func (m *siteMedia) copyLoaders(directory string) []siteserver.Notice {
	found := false
	for name, from := range map[string]string{
		netboot.BIOSIPXE: "/usr/lib/ipxe/undionly.kpxe",
		netboot.PXELinux: "/usr/lib/PXELINUX/lpxelinux.0",
		"ldlinux.c32":    "/usr/lib/syslinux/modules/bios/ldlinux.c32",
	} {
		if err := copyWhole(filepath.Join(directory, name), from); err == nil && name != "ldlinux.c32" {
			found = true
		}
	}
	if found {
		return nil
	}
	return []siteserver.Notice{{
		Text: "machines with BIOS boot over the network only if their network card has iPXE: neither Debian's package ipxe nor pxelinux is installed here",
		Do:   "apt install ipxe, and start firstlight serve again",
	}}
}

// copyWhole copies a file so that readers find the old one or the new one.
func copyWhole(to, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	next := to + ".new"
	if err := os.WriteFile(next, data, 0o644); err != nil {
		return err
	}
	return os.Rename(next, to)
}

// siteImages is the image server of a small site.
type siteImages struct {
	data, ca, listen string
	log              *slog.Logger
	images           atomic.Pointer[store.Store] // nil while it does not run
}

// run serves images with the certificate until ctx ends, as the program
// imageserver does.
func (s *siteImages) run(ctx context.Context, certificate func() (*tls.Certificate, error)) (err error) {
	objects, err := dir.Open(s.data)
	if err != nil {
		return fmt.Errorf("opening the object store: %w", err)
	}
	defer func() { err = errors.Join(err, objects.Close()) }()
	images, err := store.Open(s.data, store.Options{Now: time.Now, Log: s.log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, images.Close()) }()
	metrics := server.NewMetrics(version(), images.Len)
	const scrubRate, scrubInterval = 10 << 20, 24 * time.Hour // bytes per second; as imageserver
	scrubber := scrub.New(scrub.Options{Store: objects, BytesPerSecond: scrubRate, Interval: scrubInterval, Log: s.log})
	service := server.New(server.Options{
		Objects: metrics.Timed("dir", objects), Begin: func() server.Batch { return metrics.TimedBatch("dir", objects.Begin()) },
		Images: images, Ready: func(context.Context) error { return nil }, Metrics: metrics, Log: s.log,
		Workers: max(2, runtime.GOMAXPROCS(0)), Version: version(), Started: time.Now(), TLS: true, Damaged: scrubber.Damaged,
		Scrub: func() server.Scrub {
			r := scrubber.Report()
			quarantined, packs := objects.Quarantined()
			return server.Scrub{Objects: r.Objects, Bytes: r.Bytes, Damaged: r.Damaged, Healed: r.Healed, LastPass: r.LastPass, Quarantined: quarantined, Packs: packs}
		},
	})
	mux := &auth.Mux{Log: s.log, RPC: auth.NewServer(server.Policy(), false, server.Tuning()...), Calls: service.Calls(false)}
	if mux.TLS, err = auth.ServerTLSWith(certificate, s.ca); err != nil {
		return err
	}
	service.Register(mux.RPC)
	if mux.Pages, err = service.Pages(); err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", s.listen)
	if err != nil {
		return fmt.Errorf("the image server: listening on %s: %w", s.listen, err)
	}
	s.images.Store(images)
	defer s.images.Store(nil)
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		scrubber.Run(ctx)
	}()
	keeping := make(chan struct{})
	go func() {
		defer close(keeping)
		service.Keep(ctx)
	}()
	err = mux.Serve(ctx, listener)
	stop()
	<-done
	<-keeping
	return err
}

// list is for the page.
func (s *siteImages) list(context.Context) ([]siteserver.Image, error) {
	images := s.images.Load()
	if images == nil {
		return nil, errors.New("it does not run yet")
	}
	var all []siteserver.Image
	for _, e := range images.List("") {
		all = append(all, siteserver.Image{Name: e.Name, Arch: e.Attributes[image.AttrArch], Bytes: e.Bytes, Added: e.Added})
	}
	return all, nil
}

// pageURL is what a browser finds a page with that listens on address: where
// that is every address of this machine, by the machine's name.
func pageURL(address net.Addr) string {
	listens, err := netip.ParseAddrPort(address.String())
	if err != nil || !listens.Addr().IsUnspecified() {
		return "http://" + address.String() + "/"
	}
	name, err := os.Hostname()
	if err != nil {
		name = "localhost"
	}
	return fmt.Sprintf("http://%s:%d/", name, listens.Port())
}
