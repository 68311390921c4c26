package redfish

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const iso = "http://192.0.2.1:8080/boot/installer.iso"

func quick() Times {
	return Times{Request: 5 * time.Second, Happen: time.Second, Poll: 5 * time.Millisecond}
}

func trusting(server *httptest.Server) BMC {
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	return BMC{URL: server.URL, User: "root", Password: password, CA: pool}
}

// Every way in which vendors read the standard leads to the same: the machine
// starts from the ISO, once, and no session is left open.
func TestBoot(t *testing.T) {
	for name, c := range map[string]struct {
		bmc   *emulator
		which Machine
		did   []string
	}{
		"action below the system": {&emulator{insertBy: "action"}, Machine{},
			[]string{"insert " + iso, "boot Once Cd", "ForceRestart", "started from Cd " + iso}},
		"whole action below the manager": {&emulator{insertBy: "whole action", belowManager: true, wantsETag: true}, Machine{},
			[]string{"insert " + iso, "boot Once Cd", "ForceRestart", "started from Cd " + iso}},
		"patch": {&emulator{insertBy: "patch", belowManager: true, wantsETag: true}, Machine{},
			[]string{"insert " + iso, "boot Once Cd", "ForceRestart", "started from Cd " + iso}},
		"patch without Inserted, basic authentication": {&emulator{insertBy: "bare patch", noSessions: true}, Machine{},
			[]string{"insert " + iso, "boot Once Cd", "ForceRestart", "started from Cd " + iso}},
		"a USB stick": {&emulator{insertBy: "action", types: []string{"USBStick"}, targets: []string{"None", "Pxe", "Usb"}}, Machine{},
			[]string{"insert " + iso, "boot Once Usb", "ForceRestart", "started from Usb " + iso}},
		"a CD that is called UsbCd": {&emulator{insertBy: "action", targets: []string{"None", "Pxe", "UsbCd"}}, Machine{},
			[]string{"insert " + iso, "boot Once UsbCd", "ForceRestart", "started from UsbCd " + iso}},
		"off": {&emulator{insertBy: "action", off: true, resets: []string{"On", "ForceOff", "ForceRestart"}}, Machine{},
			[]string{"insert " + iso, "boot Once Cd", "On", "started from Cd " + iso}},
		"no restart": {&emulator{insertBy: "action", resets: []string{"On", "ForceOff", "GracefulShutdown"}}, Machine{},
			[]string{"insert " + iso, "boot Once Cd", "ForceOff", "On", "started from Cd " + iso}},
		"power cycle": {&emulator{insertBy: "action", resets: []string{"On", "PowerCycle"}}, Machine{},
			[]string{"insert " + iso, "boot Once Cd", "PowerCycle", "started from Cd " + iso}},
		"one of several": {&emulator{insertBy: "action", systems: 2}, Machine{Serial: "sn 1"},
			[]string{"insert " + iso, "boot Once Cd", "ForceRestart", "started from Cd " + iso}},
		"something is in the drive": {&emulator{insertBy: "action", image: "http://old/x.iso", inserted: true}, Machine{},
			[]string{"insert", "insert " + iso, "boot Once Cd", "ForceRestart", "started from Cd " + iso}},
	} {
		t.Run(name, func(t *testing.T) {
			server := c.bmc.start(t)
			var told []string
			if err := Boot(t.Context(), trusting(server), c.which, iso, quick(), func(text string) { told = append(told, text) }); err != nil {
				t.Fatalf("%v\ntold %q", err, told)
			}
			if diff := cmp.Diff(c.did, c.bmc.did); diff != "" {
				t.Error(diff)
			}
			if len(told) < 4 {
				t.Errorf("told %q", told)
			}
			if len(c.bmc.sessions) > 0 || c.bmc.noSessions == (c.bmc.opened > 0) {
				t.Errorf("%d sessions were opened, %d are left", c.bmc.opened, len(c.bmc.sessions))
			}
		})
	}
}

// What goes wrong has a code and says what was being done; a machine is never
// restarted when it would not start from the ISO.
func TestBootFails(t *testing.T) {
	for name, c := range map[string]struct {
		bmc    *emulator
		which  Machine
		change func(*BMC)
		code   string
		says   string
	}{
		"wrong password":   {&emulator{}, Machine{}, func(b *BMC) { b.Password = "wrong" }, CodeLogin, "The user name or password is wrong"},
		"wrong, basic":     {&emulator{noSessions: true}, Machine{}, func(b *BMC) { b.Password = "wrong" }, CodeLogin, "no valid session"},
		"no privilege":     {&emulator{forbidden: true}, Machine{}, nil, CodeLogin, "has not the privilege"},
		"unknown":          {&emulator{}, Machine{}, func(b *BMC) { b.CA = x509.NewCertPool() }, CodeUnknown, `fingerprint: "SHA256:`},
		"pin":              {&emulator{}, Machine{}, func(b *BMC) { b.Fingerprint = "SHA256:" + strings.Repeat("00", 32) }, CodeUnknown, "somebody else may answer"},
		"no pin":           {&emulator{}, Machine{}, func(b *BMC) { b.Fingerprint = "abc" }, CodeUnknown, "is no fingerprint"},
		"plain text":       {&emulator{}, Machine{}, func(b *BMC) { b.URL = "http://192.0.2.1" }, CodeUnknown, "use https"},
		"no URL":           {&emulator{}, Machine{}, func(b *BMC) { b.URL = "bmc" }, CodeUnreachable, "no URL"},
		"nobody":           {&emulator{}, Machine{}, func(b *BMC) { b.URL = "https://127.0.0.1:1" }, CodeUnreachable, "connection refused"},
		"which":            {&emulator{systems: 2}, Machine{Serial: "X"}, nil, CodeWhich, `/redfish/v1/Systems/2 (serial "OTHER")`},
		"no drive":         {&emulator{types: []string{"Floppy"}}, Machine{}, nil, CodeUnable, "no virtual CD"},
		"no such target":   {&emulator{insertBy: "action", targets: []string{"Pxe"}}, Machine{}, nil, CodeUnable, "it knows Pxe"},
		"no restart":       {&emulator{insertBy: "action", resets: []string{"Nmi"}}, Machine{}, nil, CodeUnable, "it knows Nmi"},
		"refused":          {&emulator{insertBy: "action", refuses: "media"}, Machine{}, nil, CodeRefused, "The image cannot be reached"},
		"never inserted":   {&emulator{insertBy: "action", deaf: "media"}, Machine{}, nil, CodeLate, "the ISO is mounted"},
		"boot is ignored":  {&emulator{insertBy: "action", deaf: "boot"}, Machine{}, nil, CodeLate, "the next start is from Cd"},
		"power is ignored": {&emulator{insertBy: "action", deaf: "power", off: true}, Machine{}, nil, CodeLate, "the machine is on"},
	} {
		t.Run(name, func(t *testing.T) {
			bmc := trusting(c.bmc.start(t))
			if c.change != nil {
				c.change(&bmc)
			}
			err := Boot(t.Context(), bmc, c.which, iso, quick(), func(string) {})
			var coded *Error
			if !errors.As(err, &coded) || coded.Code() != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %s %q", err, c.code, c.says)
			}
			if err != nil && strings.Contains(err.Error(), password) {
				t.Errorf("the password stands in %v", err)
			}
			for _, did := range c.bmc.did {
				if name != "power is ignored" && (strings.Contains(did, "Restart") || did == "On" || did == "ForceOff") {
					t.Errorf("the machine was restarted: %q", c.bmc.did)
				}
			}
			if len(c.bmc.sessions) > 0 {
				t.Errorf("%d sessions are left", len(c.bmc.sessions))
			}
		})
	}
}

// What answers may be anything, and may never answer.
func TestNoBMC(t *testing.T) {
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>router")) }))
	defer web.Close()
	hangs := make(chan struct{})
	silent := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-hangs:
		}
	}))
	defer silent.Close()
	defer close(hangs)
	away := httptest.NewTLSServer(http.RedirectHandler("https://192.0.2.99/", http.StatusFound))
	defer away.Close()
	for name, server := range map[string]*httptest.Server{"a web page": web, "nothing": silent, "a redirect": away} {
		times := quick()
		times.Request = 300 * time.Millisecond
		err := Boot(t.Context(), trusting(server), Machine{}, iso, times, func(string) {})
		var coded *Error
		if !errors.As(err, &coded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Boot(ctx, trusting(silent), Machine{}, iso, quick(), func(string) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// A pinned certificate counts whoever has signed it; Eject leaves an empty drive.
func TestPinAndEject(t *testing.T) {
	e := &emulator{insertBy: "action", image: iso, inserted: true}
	server := e.start(t)
	bmc := trusting(server)
	err := Eject(t.Context(), BMC{URL: bmc.URL, User: bmc.User, Password: bmc.Password}, Machine{}, quick(), func(string) {})
	var coded *Error
	if !errors.As(err, &coded) || coded.Code() != CodeUnknown {
		t.Fatalf("%v", err)
	}
	_, after, _ := strings.Cut(err.Error(), `fingerprint: "`)
	bmc.Fingerprint, _, _ = strings.Cut(after, `"`)
	bmc.CA = nil
	if err := Eject(t.Context(), bmc, Machine{}, quick(), func(string) {}); err != nil {
		t.Fatal(err)
	}
	if e.inserted || e.image != "" {
		t.Errorf("still inserted: %q", e.image)
	}
}
