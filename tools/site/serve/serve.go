// Package serve runs a site's servers as one: certificates, boot media, images,
// HTTP, TFTP and DHCP. What cannot run yet, for want of an address or because
// another program has the port, is said on the page with what to do about it, and
// tried again; the rest goes on.
package serve

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/tools/pki"
	"github.com/firstlight/firstlight/tools/site"
	"github.com/firstlight/firstlight/tools/site/netboot"
	"github.com/firstlight/firstlight/tools/site/server"
)

// Options say what is served.
type Options struct {
	Site      *site.Site
	Interface string // where machines are; empty: the only one that there is
	DHCP      netboot.Mode
	HTTP      string // address to listen on, host:port
	// TFTP says whether TFTP is served.
	TFTP bool
	// ImageServer is host:port of another image server; empty: the one of RunImages.
	ImageServer string
	// RunImages serves the site's own images with the certificate until ctx ends.
	// It may be nil.
	RunImages func(ctx context.Context, certificate func() (*tls.Certificate, error)) error
	// Images lists them for the page; it may be nil.
	Images func(ctx context.Context) ([]server.Image, error)
	// MakeMedia makes what machines boot, below a directory for each architecture,
	// and says in plain words what is missing for which machines.
	MakeMedia func(ctx context.Context, dir string, urls Addresses) ([]server.Notice, error)
	// Ready is called once when the page can be reached.
	Ready func(address net.Addr)
	// Retry is the time until what could not start is tried again; 0 is 5 seconds.
	Retry time.Duration
	// RivalInterval is the time between two looks for other DHCP servers; 0 is 5
	// minutes.
	RivalInterval time.Duration
	Log           *slog.Logger
	Version       string
	Now           func() time.Time
}

// Addresses are those by which machines reach this server.
type Addresses struct {
	Host netip.Addr // not valid where it is not known yet
	HTTP int        // port
}

// Intervals at which things are looked at again.
const (
	addressInterval = 2 * time.Second  // certificates and addresses
	retryInterval   = 5 * time.Second  // a server that could not start
	rivalInterval   = 5 * time.Minute  // other DHCP servers
	seenInterval    = 5 * time.Second  // machines that were handed over
	seenTimeout     = 2 * time.Second  // for one of them
	seenFor         = 24 * time.Hour   // then nobody waits for it any more
	seenAfter       = 10 * time.Second // the installer's kernel is gone by then
)

// running is a site that is being served.
type running struct {
	Options
	settings site.Settings
	http     *server.Server
	port     int // of HTTP

	mu          sync.Mutex
	certificate *tls.Certificate
	notices     map[string]server.Notice // by what they are about
	host        netip.Addr               // on the machines' network
	dhcp        *netboot.Server          // nil while none runs
	rivals      int
}

// Run serves until ctx ends. An error means that what everything else needs cannot
// be had: the directory, the certificates, or the port of HTTP.
func Run(ctx context.Context, o Options) error {
	r := &running{Options: o, notices: make(map[string]server.Notice)}
	var err error
	if r.settings, err = o.Site.Settings(); err != nil {
		return err
	}
	if err := r.makeKeys(); err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", o.HTTP)
	if err != nil {
		if _, text, splitErr := net.SplitHostPort(o.HTTP); splitErr == nil {
			var port int
			if _, scanErr := fmt.Sscanf(text, "%d", &port); scanErr == nil && port > 0 {
				if taken := netboot.PortTaken("tcp", port); taken != nil {
					return taken
				}
			}
		}
		return fmt.Errorf("listening on %s: %w", o.HTTP, err)
	}
	r.port = listener.Addr().(*net.TCPAddr).Port
	images := o.ImageServer
	if images == "" {
		images = ":6971"
	}
	r.http = server.New(server.Options{
		Site: o.Site, Media: r.mediaDir(), KernelOptions: r.settings.KernelOptions, ImageServer: images, TLS: true,
		Images: o.Images, Notices: r.noticed, GoneOn: r.goneOn, Log: o.Log, Version: o.Version, Now: o.Now,
	})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.serveHTTP(ctx, listener) })
	group.Go(func() error { r.http.Follow(ctx); return nil })
	group.Go(func() error { r.keepCertificate(ctx); return nil })
	group.Go(func() error { r.watchHandedOver(ctx); return nil })
	group.Go(func() error { r.keepServing(ctx, "DHCP", r.serveDHCP); return nil })
	if o.TFTP {
		group.Go(func() error { r.keepServing(ctx, "TFTP", r.serveTFTP); return nil })
	}
	if o.RunImages != nil && o.ImageServer == "" {
		group.Go(func() error {
			r.keepServing(ctx, "images", func(ctx context.Context) error { return o.RunImages(ctx, r.current) })
			return nil
		})
	}
	if o.Ready != nil {
		o.Ready(listener.Addr())
	}
	o.Log.Info("serving", "page", "http://"+listener.Addr().String()+"/", "site", o.Site.Dir(), "version", o.Version)
	return group.Wait()
}

func (r *running) mediaDir() string { return r.Site.State("boot") }

// notice says, or with an empty text takes back, what people should know about
// something.
func (r *running) notice(about string, n server.Notice) {
	r.mu.Lock()
	before := r.notices[about]
	if n.Text == "" {
		delete(r.notices, about)
	} else {
		r.notices[about] = n
	}
	r.mu.Unlock()
	if n.Text != "" && n.Text != before.Text {
		r.Log.Warn(n.Text, "about", about, "do", n.Do)
	}
}

func (r *running) noticed() []server.Notice {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []server.Notice
	for _, n := range r.notices {
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b server.Notice) int { return strings.Compare(a.Text, b.Text) })
	return all
}

func (r *running) goneOn(mac netconfig.MAC) {
	r.mu.Lock()
	dhcp := r.dhcp
	r.mu.Unlock()
	if dhcp != nil {
		dhcp.GoneOn(mac)
	}
}

// keepServing runs a server until ctx ends, and again after it has failed.
func (r *running) keepServing(ctx context.Context, what string, serve func(context.Context) error) {
	for ctx.Err() == nil {
		err := serve(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			r.notice(what, server.Notice{Bad: true, Text: what + ": " + err.Error(), Do: doAbout(err)})
		}
		select {
		case <-ctx.Done():
		case <-time.After(cmp.Or(r.Retry, retryInterval)):
		}
	}
}

// wanted are the settings as they were last read.
func (r *running) wanted() site.Settings {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.settings
}

// makeKeys makes what is missing of the site's keys, as `keys init` does.
func (r *running) makeKeys() error {
	dir := pki.Directory(r.Site.Dir())
	host, err := os.Hostname()
	if err != nil {
		host = "" // the CA's subject is for people only
	}
	if r.settings.Name != "" {
		host = r.settings.Name
	}
	local, err := pki.LocalAddresses()
	if err != nil {
		return err
	}
	if _, err := pki.Init(dir, r.Now, pki.Options{Name: host, Also: append(local, r.settings.Names...)}); err != nil {
		return err
	}
	if _, err := pki.InitSigner(dir, "signer"); err != nil {
		return err
	}
	if _, err := pki.InitEscrow(dir); err != nil {
		return err
	}
	return r.renew()
}

// renew issues the servers' certificate again where an address or a name has
// changed, or its end is near, and takes the one that is there.
func (r *running) renew() error {
	dir := pki.Directory(r.Site.Dir())
	local, err := pki.LocalAddresses()
	if err != nil {
		return err
	}
	authority, err := pki.Open(dir, r.Now)
	if err != nil {
		return err
	}
	issued, why, err := authority.Renew("imageserver", append(local, r.wanted().Names...))
	if err != nil {
		return err
	}
	if why != "" {
		r.Log.Info("the servers' certificate was issued again", "because", why)
		if err := r.Site.Note(site.Entry{Who: "firstlight", Verb: "certificate", Detail: why}); err != nil {
			return err
		}
	}
	pair, err := tls.LoadX509KeyPair(issued.Cert, issued.Key)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.certificate = &pair
	return nil
}

// current is the servers' certificate as it is now.
func (r *running) current() (*tls.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.certificate == nil {
		return nil, errors.New("there is no certificate yet")
	}
	return r.certificate, nil
}

// keepCertificate looks at addresses and settings from time to time, and makes
// boot media anew when what stands in them has changed.
func (r *running) keepCertificate(ctx context.Context) {
	made := Addresses{HTTP: -1}
	for {
		if settings, err := r.Site.Settings(); err != nil {
			r.notice("settings", server.Notice{Bad: true, Text: err.Error(), Do: "correct site.yaml; until then what was read before counts"})
		} else {
			r.mu.Lock()
			r.settings = settings
			r.mu.Unlock()
			r.notice("settings", server.Notice{})
		}
		if err := r.renew(); err != nil {
			r.notice("certificate", server.Notice{Bad: true, Text: "the servers' certificate: " + err.Error(), Do: doAbout(err)})
		} else {
			r.notice("certificate", server.Notice{})
		}
		now := Addresses{HTTP: r.port}
		if n, err := netboot.FindNetwork(r.Interface); err == nil {
			now.Host = n.Address.Addr()
		}
		if now != made && r.MakeMedia != nil {
			r.makeMedia(ctx, now)
			made = now
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(addressInterval):
		}
	}
}

func (r *running) makeMedia(ctx context.Context, now Addresses) {
	lacking, err := r.MakeMedia(ctx, r.mediaDir(), now)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		r.notice("media", server.Notice{Bad: true, Text: "what machines boot could not be made: " + err.Error(), Do: doAbout(err)})
		return
	}
	var text, do []string
	bad := false
	for _, n := range lacking {
		text, do, bad = append(text, n.Text), append(do, n.Do), bad || n.Bad
	}
	r.notice("media", server.Notice{Bad: bad, Text: strings.Join(text, "; "), Do: strings.Join(do, "; ")})
}

// serveHTTP serves pages and machines, over TLS and plainly on one port.
func (r *running) serveHTTP(ctx context.Context, listener net.Listener) error {
	web := &http.Server{
		Handler: r.http, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(r.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() {
		failed <- web.Serve(&eitherListener{Listener: listener, config: &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return r.current() },
		}})
	}()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	limited, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := web.Shutdown(limited); err != nil {
		return web.Close()
	}
	return nil
}

func (r *running) serveTFTP(ctx context.Context) error {
	t := &netboot.TFTP{
		Site: r.Site, Media: r.mediaDir(), GoneOn: r.goneOn, Log: r.Log,
		Config: func(who site.Identity, file string, from, at netip.Addr) ([]byte, error) {
			return r.http.File(who, file, from.String(), r.reachedAt(at), r.port)
		},
		Menu: func(who site.Identity, from, at netip.Addr) ([]byte, error) {
			return r.http.PXELinux(who, from, r.reachedAt(at), r.port)
		},
	}
	t.Ready = func() { r.notice("TFTP", server.Notice{}) }
	return t.Serve(ctx)
}

// reachedAt is the address by which TFTP was reached, or where the kernel does
// not say, the one on the machines' network.
func (r *running) reachedAt(at netip.Addr) netip.Addr {
	if at.IsValid() && !at.IsUnspecified() {
		return at
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.host
}

// serveDHCP serves DHCP as long as the interface keeps its address.
func (r *running) serveDHCP(ctx context.Context) error {
	if r.DHCP == netboot.Off {
		<-ctx.Done()
		return nil
	}
	network, err := netboot.FindNetwork(r.Interface)
	if err != nil {
		return err
	}
	own := network.Address.Addr()
	rivals, err := netboot.Rivals(ctx, network.Interface, own)
	if err != nil {
		return err
	}
	mode, note, err := netboot.Choose(r.DHCP, rivals, network.Interface)
	if err != nil {
		return err
	}
	dhcp, err := netboot.New(netboot.Options{
		Site: r.Site, Mode: mode, Interface: network.Interface, Address: own, HTTPPort: r.port,
		Medium: r.http.HasMedium, Subnets: r.wanted().Subnets, Log: r.Log, Now: r.Now,
		Booting: func(who site.Identity, firmware string) {
			if err := r.Site.SawFirmware(who, firmware); err != nil {
				r.Log.Warn("a machine boots", "machine", who, "error", err)
			}
		},
		NewSystem: func(who site.Identity, how string) {
			m, err := r.Site.Find(who)
			if err == nil && m != nil && m.Status.State == site.Installed && r.Now().Sub(m.Status.HandedOver) > seenAfter {
				_ = r.Site.Answered(m.Name, how) // it was installed a moment ago
			}
		},
		Ready: func() {
			r.Log.Info("DHCP", "mode", mode, "interface", network.Interface, "address", own, "note", note)
			text := server.Notice{}
			if note != "" && len(rivals) == 0 {
				text = server.Notice{Text: "DHCP: " + note}
			}
			r.notice("DHCP", text)
		},
		Rivals: func() int { r.mu.Lock(); defer r.mu.Unlock(); return r.rivals },
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.dhcp, r.host, r.rivals = dhcp, own, len(rivals)
	r.mu.Unlock()
	limited, cancel := context.WithCancel(ctx)
	defer cancel()
	var again func(context.Context) bool
	switch {
	case mode == netboot.Proxy && len(rivals) == 0:
		again = func(context.Context) bool { return true } // there may be one by now
	case mode == netboot.Full:
		again = func(ctx context.Context) bool { return r.rivalCame(ctx, network) }
	}
	go r.endWhenMoved(limited, cancel, network, again)
	return dhcp.Serve(limited)
}

// rivalCame says whether another server hands out addresses since we do: a router
// that was off when it was looked for, or somebody's new one.
func (r *running) rivalCame(ctx context.Context, network netboot.Network) bool {
	rivals, err := netboot.Rivals(ctx, network.Interface, network.Address.Addr())
	if err != nil && ctx.Err() == nil {
		r.Log.Warn("looking for other DHCP servers", "error", err)
	}
	return len(rivals) > 0
}

// endWhenMoved calls end when the interface has another address, or when again,
// which is asked at intervals and may be nil, says that it is to begin anew.
func (r *running) endWhenMoved(ctx context.Context, end func(), was netboot.Network, again func(context.Context) bool) {
	looked := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(addressInterval):
		}
		now, err := netboot.FindNetwork(was.Interface)
		if err != nil || now != was {
			end()
			return
		}
		if again == nil || time.Since(looked) < cmp.Or(r.RivalInterval, rivalInterval) {
			continue
		}
		if again(ctx) {
			end()
			return
		}
		looked = time.Now()
	}
}

// watchHandedOver looks whether the new systems of machines that were handed over
// answer.
func (r *running) watchHandedOver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(seenInterval):
		}
		machines, err := r.Site.Machines()
		if err != nil {
			continue // the page says so
		}
		group, limited := errgroup.WithContext(ctx)
		group.SetLimit(64)
		for _, m := range machines {
			status := m.Status
			since := r.Now().Sub(status.HandedOver)
			if status.State != site.Installed || !status.Answered.IsZero() || since < seenAfter || since > seenFor {
				continue
			}
			group.Go(func() error {
				r.knock(limited, m)
				return nil
			})
		}
		_ = group.Wait() // nothing in it fails
	}
}

// knock tries the port of the new system: the installer, which may still run, has
// nobody there.
func (r *running) knock(ctx context.Context, m *site.Machine) {
	port := m.Card.AnswersOn
	if port == 0 {
		port = 22
	}
	host := m.Status.Address
	if m.Address.IsValid() {
		host = m.Address.String()
	}
	address := net.JoinHostPort(host, fmt.Sprint(port))
	conn, err := (&net.Dialer{Timeout: seenTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return
	}
	_ = conn.Close() // it has answered
	if err := r.Site.Answered(m.Name, "it answers on "+address); err == nil {
		r.Log.Info("the new system was seen", "machine", m.Name, "address", address)
	}
}
