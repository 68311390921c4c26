// Package server is a site's face on the network over HTTP: what machines boot
// and ask, the pages that people look at, and what other programs read. It shows
// and passes on; what may be done to a machine, package site decides. Nothing
// here lets anybody change a machine: that is done in the site's directory.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/report"
	"github.com/firstlight/firstlight/installer/trust"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage/recovery"
	"github.com/firstlight/firstlight/tools/site"
)

// Notice is something about the server itself that people should know.
type Notice struct {
	Bad  bool   `json:"bad"` // it keeps machines from booting
	Text string `json:"text"`
	Do   string `json:"do,omitempty"`
}

// Image is one image of the site, for the page.
type Image struct {
	Name  string    `json:"name"`
	Arch  string    `json:"arch,omitempty"`
	Bytes uint64    `json:"bytes"`
	Added time.Time `json:"added"`
}

// Options are what a Server works with.
type Options struct {
	Site *site.Site
	// Media is the directory with what machines boot: <arch>/vmlinuz,
	// <arch>/initramfs, and what else there is.
	Media string
	// KernelOptions are given to the installer's kernel, besides what it needs.
	KernelOptions string
	// ImageServer is host:port of the image server for machines whose
	// configuration names none; without a host it is the one by which the machine
	// has reached this server.
	ImageServer string
	// TLS says that this server speaks it, and machines shall.
	TLS bool
	// GoneOn is told of each machine that fetches what it boots; it may be nil.
	GoneOn func(mac netconfig.MAC)
	// Images and Notices may be nil.
	Images  func(ctx context.Context) ([]Image, error)
	Notices func() []Notice
	Log     *slog.Logger
	Version string
	Now     func() time.Time
}

// Server answers everything that is asked of a site over HTTP. It is an
// http.Handler.
type Server struct {
	Options
	mux     *http.ServeMux
	page    *pages
	streams chan struct{}
	watch   watch
}

// maxStreams bounds those who follow the page.
const maxStreams = 256

// New is a Server.
func New(o Options) *Server {
	s := &Server{Options: o, mux: http.NewServeMux(), page: newPages(), streams: make(chan struct{}, maxStreams)}
	s.watch.changed = make(chan struct{})
	s.mux.Handle("/v1/machines/", report.Handler(s))
	s.mux.Handle("POST /v1/machines/{machine}/secrets", report.SecretsHandler(s.secrets))
	s.mux.HandleFunc("GET /v1/boot/{mac}", s.servePixiecore)
	s.mux.HandleFunc("GET /v1/ipxe/{mac}", s.serveScript)
	s.mux.HandleFunc("GET /v1/efi/{mac}/{arch}/{file}", s.serveProgram)
	s.mux.HandleFunc("GET /config/{file...}", s.serveConfigFile)
	s.mux.HandleFunc("GET /boot/{arch}/{file}", s.serveMedia)
	s.mux.HandleFunc("GET /{$}", s.serveFleet)
	s.mux.HandleFunc("GET /machines/{name}", s.serveMachine)
	s.mux.HandleFunc("GET /machines/{name}/log", s.serveLog)
	s.mux.HandleFunc("GET /api/v1/machines", s.serveMachines)
	s.mux.HandleFunc("GET /api/v1/machines/{name}", s.serveOne)
	s.mux.HandleFunc("GET /api/v1/machines/{name}/inventory", s.serveInventory)
	s.mux.HandleFunc("GET /api/v1/events", s.serveEvents)
	s.mux.HandleFunc("GET /api/v1/images", s.serveImages)
	s.mux.HandleFunc("GET /api/v1/audit", s.serveAudit)
	s.mux.HandleFunc("GET /sd", s.serveDiscovery)
	s.mux.Handle("GET /metrics", s.metrics())
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(w, "ok")
	})
	return s
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Referrer-Policy", "no-referrer")
	s.mux.ServeHTTP(w, r)
}

// HTTPError is an error with the status that a machine is told it with.
type HTTPError struct {
	Status int
	Err    error
}

func (e *HTTPError) Error() string { return e.Err.Error() }

// Unwrap is the cause.
func (e *HTTPError) Unwrap() error { return e.Err }

// HTTPStatus is for package report.
func (e *HTTPError) HTTPStatus() int { return e.Status }

// refuse gives an error of the site its status.
func refuse(err error) error {
	status := http.StatusInternalServerError
	switch progress.Code(err) {
	case site.CodeTwice:
		status = http.StatusConflict
	case site.CodeUnknown:
		status = http.StatusNotFound
	case site.CodeMachine, site.CodeState:
		status = http.StatusForbidden
	}
	return &HTTPError{status, fmt.Errorf("%s: %w", progress.Code(err), err)}
}

// identify joins what a machine is called in the address with the marks that it
// sends.
func identify(called string, who report.Asker) site.Identity {
	i := site.Identity{Serial: who.Serial, UUID: who.UUID}
	if mac, ok := site.ParseID(called); ok {
		i.MACs = append(i.MACs, mac)
	}
	i.MACs = append(i.MACs, who.MACs...)
	return i
}

// again is when a machine that waits asks again.
const again = 3 * time.Second

// Configuration implements report.Receiver.
func (s *Server) Configuration(r *http.Request, called string, who report.Asker) (report.Configuration, error) {
	if who.Boot == "" || r.Method == http.MethodHead {
		return s.look(r, called, who)
	}
	answer, err := s.Site.Claim(identify(called, who), who.Boot, remote(r))
	if err != nil {
		s.Log.Warn("a machine asks for its configuration", "machine", called, "address", remote(r), "error", err)
		return report.Configuration{}, refuse(err)
	}
	c := report.Configuration{Machine: answer.Name, Reason: answer.Reason, Again: again}
	switch answer.State {
	case site.Installed:
		c.Word = report.BootDisk
	case site.Installing:
		c.Word = report.Go
		if answer.Action == site.Wipe {
			// The files go with it: where only what is signed is believed, they
			// have to ask for the wipe too.
			c.Wipe = string(answer.Erase)
		}
		if c.Files, err = s.files(r, answer.Name); err != nil {
			return c, refuse(err)
		}
		s.Log.Info("a machine is being installed", "machine", answer.Name, "address", remote(r))
	default:
		c.Word = report.Wait
	}
	return c, nil
}

// look is the answer to somebody who does not say which boot of a machine asks:
// a dry run. Nothing changes by it.
func (s *Server) look(r *http.Request, called string, who report.Asker) (report.Configuration, error) {
	m, err := s.Site.Find(identify(called, who).Clean())
	if err != nil {
		return report.Configuration{}, refuse(err)
	}
	if m == nil || m.Pending || m.Mistake != "" {
		reason := "nobody has said what it shall be"
		if m != nil && m.Mistake != "" {
			reason = m.Mistake
		}
		return report.Configuration{Word: report.Wait, Reason: reason, Again: again}, nil
	}
	files, err := s.files(r, m.Name)
	if err != nil {
		return report.Configuration{}, refuse(err)
	}
	return report.Configuration{Word: report.Go, Machine: m.Name, Files: files}, nil
}

// files are the installer's files of a machine, with the servers that it does
// not name itself.
func (s *Server) files(r *http.Request, name string) (fetch.Files, error) {
	return s.FilesAt(name, local(r), port(r))
}

// FilesAt is the files of a machine that has reached this server at an address
// and, over HTTP, a port.
func (s *Server) FilesAt(name string, address netip.Addr, httpPort int) (fetch.Files, error) {
	files, err := s.Site.Files(name)
	if err != nil {
		return nil, err
	}
	if _, signed := files[trust.BundleFile]; signed {
		return files, nil // it names its servers itself, and nothing else would be believed
	}
	if files[fetch.ImageServer] == nil && s.ImageServer != "" {
		files[fetch.ImageServer] = []byte(s.imageServerAt(address) + "\n")
	}
	if files[fetch.SiteServer] == nil {
		files[fetch.SiteServer] = []byte(s.URLAt(address, httpPort, s.TLS) + "\n")
	}
	return files, nil
}

func (s *Server) imageServerAt(address netip.Addr) string {
	host, port, err := net.SplitHostPort(s.ImageServer)
	if err == nil && host == "" {
		return net.JoinHostPort(address.String(), port)
	}
	return s.ImageServer
}

// URLAt is this server's, as it is reached at an address.
func (s *Server) URLAt(address netip.Addr, port int, secure bool) string {
	scheme := "http"
	if secure {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(address.String(), strconv.Itoa(port))
}

// remote is the address of who asks.
func remote(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap().String()
	}
	return host
}

// local is the address by which this server was reached.
func local(r *http.Request) netip.Addr {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		if ap, err := netip.ParseAddrPort(a.String()); err == nil {
			return ap.Addr().Unmap()
		}
	}
	return netip.IPv4Unspecified()
}

func port(r *http.Request) int {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		if ap, err := netip.ParseAddrPort(a.String()); err == nil {
			return int(ap.Port())
		}
	}
	return 80
}

// find is the machine that a report is about.
func (s *Server) find(called string) (*site.Machine, error) {
	if mac, ok := site.ParseID(called); ok {
		m, err := s.Site.Find(site.Identity{MACs: []netconfig.MAC{mac}})
		if m != nil || err != nil {
			return m, err
		}
	}
	return s.Site.Machine(called)
}

// Take implements report.Receiver.
func (s *Server) Take(r *http.Request, called string, kind report.Kind, body []byte) error {
	m, err := s.find(called)
	if err != nil {
		return refuse(err)
	}
	defer s.watch.poke()
	switch kind {
	case report.Inventory:
		err = s.Site.KeepInventory(m.Name, body)
	case report.State:
		var p progress.Snapshot
		if err := json.Unmarshal(body, &p); err != nil || p.Format != progress.Format {
			return &HTTPError{http.StatusUnprocessableEntity, fmt.Errorf("this is no progress of format %d", progress.Format)}
		}
		err = s.Site.Told(m.Name, p)
	case report.Events:
		err = s.Site.KeepEvents(m.Name, body)
	case report.Log:
		err = s.Site.KeepLog(m.Name, body)
	case report.NewSystem:
		if len(body) > 0 { // the installer's, at its end
			err = s.Site.KeepReceipt(m.Name, body)
			break
		}
		err = s.Site.Answered(m.Name, "it reported itself from "+remote(r))
	}
	if err != nil {
		s.Log.Warn("a report was not kept", "machine", m.Name, "kind", kind, "error", err)
		return refuse(err)
	}
	return nil
}

// secrets are what a machine may have besides its configuration, for its TPM alone.
func (s *Server) secrets(_ context.Context, called string, want []string) (endorsementKey string, files map[string][]byte, err error) {
	m, err := s.find(called)
	if err != nil {
		return "", nil, refuse(err)
	}
	return s.Site.Secrets(m.Name, want)
}

// KeepRecovery implements report.Receiver.
func (s *Server) KeepRecovery(_ context.Context, called string, _ recovery.Escrow, document []byte) error {
	m, err := s.find(called)
	if err != nil {
		return err
	}
	return s.Site.KeepRecovery(m.Name, document)
}

// serveConfigFile gives out one of the installer's files, as -configurationBaseUrl
// asks for it.
func (s *Server) serveConfigFile(w http.ResponseWriter, r *http.Request) {
	who := report.AskerOf(r)
	if len(who.MACs) == 0 && who.Serial == "" {
		http.Error(w, "which machine? Ask with ?mac=… or ?serial_number=…", http.StatusBadRequest)
		return
	}
	if r.Method == http.MethodHead {
		w.Header().Set("Allow", http.MethodGet) // which takes the approval, and looking does not
		http.Error(w, "GET it", http.StatusMethodNotAllowed)
		return
	}
	file := r.PathValue("file")
	data, err := s.File(identify("", who), file, remote(r), local(r), port(r))
	if errors.Is(err, fetch.ErrAbsent) {
		http.Error(w, file+": "+err.Error(), http.StatusNotFound)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), refuse(err).(*HTTPError).Status)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(data) // a machine that is gone asks again
}

// File is one of the installer's files for a machine that asks from one address
// and has reached the other. The error wraps fetch.ErrAbsent where the machine
// has no such file.
func (s *Server) File(who site.Identity, file, from string, at netip.Addr, httpPort int) ([]byte, error) {
	name, err := s.Site.ClaimFile(who, file, from)
	if err != nil {
		return nil, err
	}
	files, err := s.FilesAt(name, at, httpPort)
	if err != nil {
		return nil, err
	}
	data, ok := files[file]
	if !ok {
		return nil, fetch.ErrAbsent
	}
	return data, nil
}

// serveMedia serves what machines boot, with ranges.
func (s *Server) serveMedia(w http.ResponseWriter, r *http.Request) {
	s.sendMedium(w, r, r.PathValue("arch"), r.PathValue("file"))
}

func (s *Server) sendMedium(w http.ResponseWriter, r *http.Request, arch, file string) {
	if !plain(arch) || !plain(file) {
		http.NotFound(w, r)
		return
	}
	f, err := os.Open(filepath.Join(s.Media, arch, file))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Close() // only read from
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if strings.HasSuffix(file, ".efi") {
		w.Header().Set("Content-Type", "application/efi") // UEFI 2.10, 24.7.2
	}
	http.ServeContent(w, r, "", info.ModTime(), f)
}

func plain(name string) bool {
	return name != "" && name[0] != '.' && !strings.ContainsAny(name, "/\\\x00")
}
