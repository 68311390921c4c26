// Package redfish starts a machine from an ISO through its management
// controller: it mounts the ISO as virtual media, has the machine boot from it
// once, and restarts it (DMTF DSP0266, Redfish).
//
// Vendors read that standard differently: where the virtual media are (below
// the system or below its manager), how they are mounted (an action or a PATCH),
// what the drive is called (Cd, Usb), which resets there are. Everything is
// therefore asked for, nothing assumed, and after each step it is looked whether
// the controller has done what it said.
package redfish

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/stmcginnis/gofish"
	"github.com/stmcginnis/gofish/common"
)

// The codes of this package; docs/errors.md explains each.
const (
	CodeUnreachable = "SRV-072" // the BMC does not answer
	CodeUnknown     = "TRU-050" // its certificate is not trusted
	CodeLogin       = "TRU-051" // it does not accept the user
	CodeUnable      = "SRV-073" // it cannot do what is needed
	CodeRefused     = "SRV-074" // it refuses a step
	CodeLate        = "SRV-075" // it has said yes, and it does not happen
	CodeWhich       = "SRV-076" // it has several systems
)

// Error is a step that did not succeed, and why.
type Error struct {
	code, text string
	err        error
}

func (e *Error) Error() string {
	if e.err == nil {
		return e.text
	}
	return e.text + ": " + e.err.Error()
}

// Code is one of the codes of this package.
func (e *Error) Code() string { return e.code }

// Unwrap is the cause, which may be nil.
func (e *Error) Unwrap() error { return e.err }

func fail(code string, err error, format string, args ...any) error {
	return &Error{code, fmt.Sprintf(format, args...), err}
}

// BMC is a management controller and how to log in to it.
type BMC struct {
	URL            string // https://bmc.example.com
	User, Password string
	// CA are the authorities that its certificate is checked by; nil for those of
	// the system. Fingerprint ("SHA256:" and hexadecimal digits) is that of its
	// certificate, and then nothing else about it counts.
	CA          *x509.CertPool
	Fingerprint string
}

// Times bound how long things may take. The zero value is for real controllers.
type Times struct {
	Request time.Duration // one request; 0 means 60 s: controllers are slow
	Happen  time.Duration // until what was asked for is so; 0 means 3 minutes
	Poll    time.Duration // between two looks; 0 means 2 s
}

func (t Times) complete() Times {
	for value, standard := range map[*time.Duration]time.Duration{&t.Request: time.Minute, &t.Happen: 3 * time.Minute, &t.Poll: 2 * time.Second} {
		if *value == 0 {
			*value = standard
		}
	}
	return t
}

// session is a connection to a BMC; close ends it: controllers have few.
type session struct {
	client *gofish.APIClient
	ctx    context.Context
	times  Times
	tell   func(string)
	host   string
}

// connect logs in: with a session, and where there are none with each request.
func connect(ctx context.Context, bmc BMC, times Times, tell func(string)) (*session, error) {
	target, err := url.Parse(bmc.URL)
	if err != nil || target.Host == "" || target.Scheme != "https" && target.Scheme != "http" {
		return nil, fail(CodeUnreachable, err, "%q is no URL of a BMC such as https://bmc.example.com", bmc.URL)
	}
	if target.Scheme == "http" && !loopback(target.Hostname()) {
		return nil, fail(CodeUnknown, nil, "%s would carry the BMC's password in the clear: use https", bmc.URL)
	}
	config, err := bmc.tls(target.Hostname())
	if err != nil {
		return nil, err
	}
	s := &session{ctx: ctx, times: times.complete(), tell: tell, host: target.Host}
	transport := &http.Transport{TLSClientConfig: config, DialContext: (&net.Dialer{Timeout: 15 * time.Second}).DialContext, TLSHandshakeTimeout: 30 * time.Second}
	settings := gofish.ClientConfig{
		Endpoint: strings.TrimRight(target.Scheme+"://"+target.Host, "/"), Username: bmc.User, Password: bmc.Password,
		// Redirects would carry the password elsewhere.
		HTTPClient: &http.Client{Transport: untilDone{ctx, transport}, Timeout: s.times.Request, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
	tell("logging in to the BMC " + s.host)
	s.client, err = gofish.ConnectContext(context.WithoutCancel(ctx), settings)
	if status := statusOf(err); status == http.StatusNotFound || status == http.StatusMethodNotAllowed || status == http.StatusNotImplemented {
		settings.BasicAuth = true
		s.client, err = gofish.ConnectContext(context.WithoutCancel(ctx), settings)
	}
	if err != nil {
		return nil, s.explain(err, "logging in to the BMC "+s.host)
	}
	return s, nil
}

func (s *session) close() { s.client.Logout() }

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// untilDone ends requests with its context, but for the one that logs out.
type untilDone struct {
	ctx  context.Context
	next http.RoundTripper
}

func (u untilDone) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodDelete {
		return u.next.RoundTrip(r)
	}
	if err := u.ctx.Err(); err != nil {
		return nil, context.Cause(u.ctx)
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	stop := context.AfterFunc(u.ctx, func() { cancel(context.Cause(u.ctx)) })
	answer, err := u.next.RoundTrip(r.WithContext(ctx))
	if err != nil {
		stop()
		cancel(nil)
		return nil, err
	}
	answer.Body = endWith{answer.Body, func() { stop(); cancel(nil) }}
	return answer, nil
}

type endWith struct {
	io.ReadCloser
	end func()
}

func (e endWith) Close() error {
	defer e.end()
	return e.ReadCloser.Close()
}

// tls is how the BMC's certificate is judged.
func (b BMC) tls(host string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, RootCAs: b.CA}
	if b.Fingerprint == "" {
		return config, nil
	}
	digits, ok := strings.CutPrefix(strings.ToUpper(b.Fingerprint), "SHA256:")
	wanted, err := hex.DecodeString(strings.ReplaceAll(digits, ":", ""))
	if !ok || err != nil || len(wanted) != sha256.Size {
		return nil, fail(CodeUnknown, nil, "%q is no fingerprint: SHA256: and 64 hexadecimal digits", b.Fingerprint)
	}
	// Not by a CA, but by its own digest.
	config.InsecureSkipVerify = true
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if sum := sha256.Sum256(state.PeerCertificates[0].Raw); string(sum[:]) != string(wanted) {
			return fail(CodeUnknown, nil, "the BMC's certificate has the fingerprint SHA256:%s, and machine.yaml says %s: somebody else may answer there, or it was exchanged", hex.EncodeToString(sum[:]), b.Fingerprint)
		}
		return nil
	}
	return config, nil
}

// statusOf is the HTTP status in err, 0 where it has none.
func statusOf(err error) int {
	var answered *common.Error
	if errors.As(err, &answered) {
		return answered.HTTPReturnedStatusCode
	}
	return 0
}

// explain makes an error of ours of what gofish says.
func (s *session) explain(err error, doing string) error {
	var ours *Error
	var unknown *tls.CertificateVerificationError
	switch status := statusOf(err); {
	case err == nil:
		return nil
	case errors.As(err, &ours):
		return ours
	case s.ctx.Err() != nil:
		return fmt.Errorf("%s: %w", doing, context.Cause(s.ctx))
	case errors.As(err, &unknown):
		shown := "unknown"
		if len(unknown.UnverifiedCertificates) > 0 {
			sum := sha256.Sum256(unknown.UnverifiedCertificates[0].Raw)
			shown = "SHA256:" + hex.EncodeToString(sum[:])
		}
		return fail(CodeUnknown, unknown.Err, "%s: its certificate is not trusted; if its own page shows the same, add to the machine's machine.yaml, under bmc:  fingerprint: %q", doing, shown)
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return fail(CodeLogin, nil, "%s: it does not accept the user (%d %s)", doing, status, said(err))
	case status == http.StatusNotFound && strings.HasPrefix(doing, "logging in"):
		return fail(CodeUnable, nil, "%s: it has no Redfish service (404 at /redfish/v1/)", doing)
	case status != 0:
		return fail(CodeRefused, nil, "%s: it answers %d %s", doing, status, said(err))
	}
	if _, notJSON := errors.AsType[*json.SyntaxError](err); notJSON {
		return fail(CodeUnable, err, "%s: what answers is no Redfish service", doing)
	}
	return fail(CodeUnreachable, err, "%s", doing)
}

// said is the reason that a controller gives, shortened.
func said(err error) string {
	var answered *common.Error
	if !errors.As(err, &answered) {
		return ""
	}
	text := answered.Message
	for _, info := range answered.ExtendedInfos {
		if info.Message != "" {
			text = strings.TrimSpace(info.Message + " " + info.Resolution)
			break
		}
	}
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 300 {
		text = text[:300] + "…"
	}
	return text
}

// get reads a resource into v, and returns its ETag.
func (s *session) get(path string, v any) (etag string, err error) {
	answer, err := s.client.Get(path)
	if err != nil {
		return "", s.explain(err, "asking the BMC for "+path)
	}
	defer answer.Body.Close() // only read from
	data, err := io.ReadAll(io.LimitReader(answer.Body, 4<<20))
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		return "", s.explain(err, "asking the BMC for "+path)
	}
	etag = answer.Header.Get("ETag")
	var inside struct {
		ETag string `json:"@odata.etag"`
	}
	if etag == "" && json.Unmarshal(data, &inside) == nil {
		etag = inside.ETag
	}
	return etag, nil
}

// post calls an action.
func (s *session) post(path string, v any) error {
	answer, err := s.client.Post(path, v)
	if err == nil {
		err = answer.Body.Close()
	}
	return err
}

// patch changes a resource. Some controllers want to be told which version of it
// was looked at, others do not know that one.
func (s *session) patch(path, etag string, v any) error {
	headers := map[string]string{}
	if etag != "" {
		headers["If-Match"] = etag
	}
	answer, err := s.client.PatchWithHeaders(path, v, headers)
	if status := statusOf(err); status == http.StatusPreconditionFailed && etag != "" {
		answer, err = s.client.PatchWithHeaders(path, v, map[string]string{"If-Match": "*"})
	}
	if err == nil {
		err = answer.Body.Close()
	}
	return err
}

// until looks again and again whether something is so.
func (s *session) until(what string, so func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(s.ctx, s.times.Happen)
	defer cancel()
	for {
		done, err := so()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			if err := s.ctx.Err(); err != nil {
				return fmt.Errorf("waiting until %s: %w", what, context.Cause(s.ctx))
			}
			return fail(CodeLate, nil, "the BMC has said yes, and after %s it is still not so that %s", s.times.Happen, what)
		case <-time.After(s.times.Poll):
		}
	}
}
