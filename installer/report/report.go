// Package report is what the installer of one machine and its site server say
// to each other: the machine asks for its configuration, and tells what it finds
// and does. Both ends are here. It decides nothing; a server that cannot be told
// costs a warning, never an installation.
package report

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/firstlight/firstlight/netconfig"
)

// Kind is what a report is about: the last part of its path,
// /v1/machines/<machine>/<kind>.
type Kind string

// The kinds of reports.
const (
	Inventory Kind = "inventory" // the inventory's JSON document
	Events    Kind = "events"    // events, one JSON object a line, in their order
	State     Kind = "state"     // the progress as JSON, as /api/v1/status has it
	Log       Kind = "log"       // the log, plain text, whole
)

// contentType is the media type of a kind's body.
func (k Kind) contentType() string {
	switch k {
	case Events:
		return "application/x-ndjson"
	case Log:
		return "text/plain; charset=utf-8"
	default:
		return "application/json"
	}
}

// CodeSite is the code of Error: the site server cannot be told.
const CodeSite = "SRV-030"

// Error is a report that did not arrive.
type Error struct {
	text string
	err  error
}

func (e *Error) Error() string {
	if e.err == nil {
		return e.text
	}
	return e.text + ": " + e.err.Error()
}

// Code is CodeSite.
func (e *Error) Code() string { return CodeSite }

// Unwrap is the cause, which may be nil.
func (e *Error) Unwrap() error { return e.err }

// postTimeout bounds one report; a machine must not wait for its audience.
const postTimeout = 5 * time.Second

// Site is a site server as one machine sees it. It is safe for concurrent use.
type Site struct {
	machine *url.URL
	client  *http.Client
}

// New is the site server at base, an http or https URL, for the machine whose
// NIC has that MAC address: its name there is the address with dashes.
// certificates is nil for those that the system trusts.
func New(base string, mac netconfig.MAC, certificates *tls.Config) (*Site, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, &Error{text: fmt.Sprintf("%q is not the URL of a site server such as https://site.example.com:8080", base)}
	}
	if mac.IsZero() {
		return nil, &Error{text: "the machine has no network interface by which the site server would know it"}
	}
	name := strings.ReplaceAll(mac.String(), ":", "-")
	return &Site{
		machine: u.JoinPath("v1", "machines", name),
		client:  &http.Client{Timeout: postTimeout, Transport: &http.Transport{TLSClientConfig: certificates}},
	}, nil
}

// At says whether s is what New makes of base and mac.
func (s *Site) At(base string, mac netconfig.MAC) bool {
	other, err := New(base, mac, nil)
	return err == nil && other.machine.String() == s.machine.String()
}

// String is where reports go, without a password.
func (s *Site) String() string { return s.machine.Redacted() }

// Post sends one report. Any answer but a 2xx is an *Error.
func (s *Site) Post(ctx context.Context, kind Kind, body []byte) error {
	_, err := s.post(ctx, kind, body)
	return err
}

// post returns the beginning of the answer.
func (s *Site) post(ctx context.Context, kind Kind, body []byte) ([]byte, error) {
	target := s.machine.JoinPath(string(kind))
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), bytes.NewReader(body))
	if err != nil {
		return nil, &Error{"telling the site server", err}
	}
	request.Header.Set("Content-Type", kind.contentType())
	answer, err := s.client.Do(request)
	if err != nil {
		return nil, &Error{"telling the site server", err}
	}
	defer answer.Body.Close() // only read from
	// It is read so that the connection can be used again; most say nothing.
	said, _ := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
	if answer.StatusCode/100 != 2 {
		return nil, &Error{text: fmt.Sprintf("telling the site server: %s answers %s", target.Redacted(), answer.Status)}
	}
	return said, nil
}
