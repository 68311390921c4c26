package e2e

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"sync"
)

// sceneKeys guards the making of the scenes' certificate.
var sceneKeys sync.Mutex

// serveConfig serves the configuration on a port of the host's loopback, with
// the site's certificate.
func (x *scene) serveConfig(files map[string][]byte) (port uint16) {
	x.t.Helper()
	cert, err := tls.LoadX509KeyPair(site.Secret("imageserver.pem"), site.Secret("imageserver-key.pem"))
	if err != nil {
		x.t.Fatal(err)
	}
	return x.web(files, &cert)
}

// serveRogue serves a configuration with a certificate that somebody made
// himself.
func (x *scene) serveRogue() (port uint16) {
	return x.web(map[string][]byte{"config.json": []byte(`{"Machine":{"Hostname":"stolen"}}`), "imagename": []byte("rogue/1\n"), "imageserver": []byte("192.168.60.1\n")}, nil)
}

func (x *scene) web(files map[string][]byte, cert *tls.Certificate) uint16 {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, there := files[path.Base(r.URL.Path)]
		if !there {
			http.NotFound(w, r)
			return
		}
		if _, err := w.Write(data); err != nil {
			x.t.Logf("%s: %v", r.URL, err) // the machine says what that means to it
		}
	}))
	if cert != nil {
		server.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
	}
	// The machine says itself that it refuses a certificate.
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	x.t.Cleanup(server.Close)
	return uint16(server.Listener.Addr().(*net.TCPAddr).Port)
}
