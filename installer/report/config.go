package report

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/firstlight/firstlight/netconfig"
)

// Asker are the marks by which a site server tells which machine asks for its
// configuration, and which boot of it.
type Asker struct {
	MACs   []netconfig.MAC // of all NICs
	Serial string
	UUID   string
	// Boot is new for each boot of the machine (/proc/sys/kernel/random/boot_id).
	Boot string
}

func (a Asker) query() string {
	q := url.Values{}
	for _, mac := range a.MACs {
		q.Add("mac", mac.String())
	}
	q.Set("serial_number", a.Serial)
	q.Set("uuid", a.UUID)
	q.Set("boot", a.Boot)
	return q.Encode()
}

// AskerOf are the marks in a request.
func AskerOf(r *http.Request) Asker {
	q := r.URL.Query()
	a := Asker{Serial: q.Get("serial_number"), UUID: q.Get("uuid"), Boot: q.Get("boot")}
	for _, text := range q["mac"] {
		if mac, err := netconfig.ParseMAC(text); err == nil && !mac.IsZero() {
			a.MACs = append(a.MACs, mac)
		}
	}
	return a
}

// Word is what a site server says to a machine that asks for its configuration.
type Word int

// What a site server may say.
const (
	// Go: here is the configuration (200).
	Go Word = iota + 1
	// Wait: ask again (202). Nothing may be done to the machine.
	Wait
	// BootDisk: the machine is installed; it shall start what is on its disk (410).
	BootDisk
	// NotHere: this server has no configurations, it only takes reports (404,
	// 405, 501).
	NotHere
)

// Configuration is the answer to GET config, as JSON.
type Configuration struct {
	Format  int    `json:"format"`
	Word    Word   `json:"-"` // stands in the status
	Machine string `json:"machine,omitempty"`
	// Files are the installer's files, by name.
	Files map[string][]byte `json:"files,omitempty"`
	// Wipe asks for an erasure of all disks instead of an installation; its value
	// is how thorough, as Erase in storage-layout.json.
	Wipe string `json:"wipe,omitempty"`
	// Reason is why the machine waits, for its console.
	Reason string `json:"reason,omitempty"`
	// Again is when to ask again; in the header Retry-After.
	Again time.Duration `json:"-"`
}

// configurationFormat is the version of Configuration as JSON.
const configurationFormat = 1

// mostConfiguration bounds the answer, in bytes.
const mostConfiguration = 16 << 20

// shortestAgain and longestAgain bound how soon a machine asks again.
const (
	shortestAgain = time.Second
	longestAgain  = time.Minute
	defaultAgain  = 5 * time.Second
)

// Configuration asks for the machine's configuration. An answer that is none of
// the Words, or no answer, is an *Error; it may be asked again.
func (s *Site) Configuration(ctx context.Context, who Asker) (Configuration, error) {
	target := s.machine.JoinPath("config")
	what := "asking the site server " + target.Redacted()
	target.RawQuery = who.query()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return Configuration{}, &Error{what, err}
	}
	answer, err := s.client.Do(request)
	if err != nil {
		if wrapped := new(url.Error); errors.As(err, &wrapped) {
			err = wrapped.Err // without the query
		}
		return Configuration{}, &Error{what + remedy(err), err}
	}
	defer answer.Body.Close() // only read from
	body, err := io.ReadAll(io.LimitReader(answer.Body, mostConfiguration+1))
	if err == nil && len(body) > mostConfiguration {
		err = fmt.Errorf("more than %d bytes", mostConfiguration)
	}
	if err != nil {
		return Configuration{}, &Error{what, err}
	}
	word := wordOf(answer.StatusCode)
	switch word {
	case 0:
		return Configuration{}, &Error{text: fmt.Sprintf("%s: it answers %s: %s", what, answer.Status, firstLine(body))}
	case NotHere:
		return Configuration{Word: NotHere}, nil
	}
	var c Configuration
	if err := json.Unmarshal(body, &c); err != nil || c.Format != configurationFormat {
		return Configuration{}, &Error{fmt.Sprintf("%s: its answer is no configuration of format %d", what, configurationFormat), err}
	}
	c.Word, c.Again = word, defaultAgain
	if seconds, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil {
		c.Again = min(max(time.Duration(seconds)*time.Second, shortestAgain), longestAgain)
	}
	return c, nil
}

// remedy is what to do about a certificate that is refused; empty for what is no
// matter of certificates.
func remedy(err error) string {
	var (
		host      x509.HostnameError
		authority x509.UnknownAuthorityError
		invalid   x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &host):
		return fmt.Sprintf(" (its certificate is not for %s: add that to names in site.yaml of the server)", host.Host)
	case errors.As(err, &authority):
		return " (its certificate is of another site than this boot medium: boot a medium that this server has made)"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return " (its certificate does not fit this machine's clock)"
	}
	return ""
}

func wordOf(status int) Word {
	switch status {
	case http.StatusOK:
		return Go
	case http.StatusAccepted:
		return Wait
	case http.StatusGone:
		return BootDisk
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return NotHere
	}
	return 0
}

// firstLine is the beginning of what a server says, for people.
func firstLine(body []byte) string {
	for n, b := range body {
		if b == '\n' || n == 300 {
			return string(body[:n])
		}
	}
	return string(body)
}

// write sends c.
func (c Configuration) write(w http.ResponseWriter) {
	status := map[Word]int{Go: http.StatusOK, Wait: http.StatusAccepted, BootDisk: http.StatusGone}[c.Word]
	if status == 0 {
		http.Error(w, "there are no configurations here", http.StatusNotFound)
		return
	}
	c.Format = configurationFormat
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if c.Word == Wait {
		w.Header().Set("Retry-After", strconv.Itoa(int(max(c.Again, shortestAgain)/time.Second)))
	}
	w.WriteHeader(status)
	// A machine that is gone asks again.
	_ = json.NewEncoder(w).Encode(c)
}
