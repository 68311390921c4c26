package report

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage/recovery"
)

// receiver answers as it is told, and keeps what it is told.
type receiver struct {
	answer Configuration
	err    error
	asked  []Asker
	told   map[string]string
}

func (s *receiver) Configuration(_ *http.Request, machine string, who Asker) (Configuration, error) {
	s.asked = append(s.asked, who)
	return s.answer, s.err
}

func (s *receiver) Take(_ *http.Request, machine string, kind Kind, body []byte) error {
	s.told[machine+" "+string(kind)] = string(body)
	return s.err
}

func (s *receiver) KeepRecovery(context.Context, string, recovery.Escrow, []byte) error { return s.err }

type refusal struct{}

func (refusal) Error() string   { return "two machines are this one" }
func (refusal) HTTPStatus() int { return http.StatusConflict }

func TestConfiguration(t *testing.T) {
	server := &receiver{told: map[string]string{}}
	site := siteAtAll(t, Handler(server))
	who := Asker{MACs: []netconfig.MAC{{0x52, 0x54, 0, 0, 0, 1}, {0x52, 0x54, 0, 0, 0, 2}}, Serial: "a b&c", UUID: "u", Boot: "b"}
	for name, answer := range map[string]Configuration{
		"go":   {Word: Go, Machine: "web1", Files: map[string][]byte{"imagename": []byte("debian/12\n"), "random-seed": {0, 255, 10}}, Again: defaultAgain},
		"wipe": {Word: Go, Machine: "web1", Wipe: "discard", Again: defaultAgain},
		"wait": {Word: Wait, Reason: "nobody has approved it", Again: 7 * time.Second},
		"disk": {Word: BootDisk, Machine: "web1", Reason: "it is installed", Again: defaultAgain},
	} {
		server.answer, server.asked = answer, nil
		got, err := site.Configuration(t.Context(), who)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		answer.Format = configurationFormat
		if diff := cmp.Diff(answer, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if diff := cmp.Diff([]Asker{who}, server.asked); diff != "" {
			t.Errorf("%s: asked by %s", name, diff)
		}
	}
	server.err = refusal{}
	if _, err := site.Configuration(t.Context(), who); err == nil || !strings.Contains(err.Error(), "two machines are this one") || strings.Contains(err.Error(), "a+b") {
		t.Errorf("a refusal: %v", err)
	}
}

// TestNoConfiguration: whatever is not clearly one of the four words is an error:
// nothing is installed by it.
func TestNoConfiguration(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.Handler
		word    Word
	}{
		"reports only":   {http.NotFoundHandler(), NotHere},
		"no JSON":        {http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>welcome") }), 0},
		"another format": {http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"format": 2}`) }), 0},
		"broken":         {http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(502) }), 0},
		"moved":          {http.RedirectHandler("/elsewhere", http.StatusFound), 0},
		"cut short": {http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, `{"format": 1}`)
		}), 0},
	} {
		got, err := siteAtAll(t, c.handler).Configuration(t.Context(), Asker{})
		if got.Word != c.word || (err == nil) != (c.word != 0) {
			t.Errorf("%s: %d, %v", name, got.Word, err)
		}
		if coded := new(Error); err != nil && !errors.As(err, &coded) {
			t.Errorf("%s: %v has no code", name, err)
		}
	}
}

// TestRemedy: a certificate for another name, or of another site, is told with
// what to do about it.
func TestRemedy(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	mac := netconfig.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	for text, c := range map[string]struct {
		url  string
		pool *x509.CertPool
	}{
		"not for localhost: add that to names in site.yaml": {strings.Replace(server.URL, "127.0.0.1", "localhost", 1), roots},
		"boot a medium that this server has made":           {server.URL, x509.NewCertPool()},
	} {
		site, err := New(c.url, mac, &tls.Config{RootCAs: c.pool})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := site.Configuration(t.Context(), Asker{}); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v: no %q", err, text)
		}
	}
}

func TestReports(t *testing.T) {
	server := &receiver{told: map[string]string{}}
	site := siteAtAll(t, Handler(server))
	for _, kind := range []Kind{Inventory, Events, State, Log, NewSystem} {
		if err := site.Post(t.Context(), kind, []byte("said "+string(kind))); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if got := server.told["52-54-00-12-34-56 "+string(kind)]; got != "said "+string(kind) {
			t.Errorf("%s: kept %q", kind, got)
		}
	}
	if err := site.Post(t.Context(), State, make([]byte, State.most()+1)); err == nil {
		t.Error("a report without end was taken")
	}
	if err := site.Deposit(t.Context(), escrow(t)); err != nil {
		t.Error(err)
	}
}

// siteAtAll is a site server whose every address the handler answers.
func siteAtAll(t *testing.T, handler http.Handler) *Site {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	site, err := New(server.URL, netconfig.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return site
}
