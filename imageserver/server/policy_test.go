package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/firstlight/firstlight/imageserver/catalog/store"
	"github.com/firstlight/firstlight/imageserver/object/dir"
	"github.com/firstlight/firstlight/imageserver/server"
	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/proto/imageserver/bulk"
	pb "github.com/firstlight/firstlight/proto/imageserver/v1"
	"github.com/firstlight/firstlight/tools/pki"
)

// methods are all RPCs of the served services, by their descriptors.
func methods() []protoreflect.MethodDescriptor {
	var all []protoreflect.MethodDescriptor
	for _, file := range []protoreflect.FileDescriptor{pb.File_proto_imageserver_v1_imageserver_proto, healthpb.File_grpc_health_v1_health_proto} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				all = append(all, service.Methods().Get(j))
			}
		}
	}
	return all
}

func fullName(m protoreflect.MethodDescriptor) string {
	return "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
}

// TestEveryCallHasAnEntry walks the descriptors: an RPC without an entry fails,
// and so does an entry without an RPC.
func TestEveryCallHasAnEntry(t *testing.T) {
	policy := server.Policy()
	known := map[string]bool{}
	for _, m := range methods() {
		known[fullName(m)] = true
		if policy[fullName(m)] == auth.Nobody {
			t.Errorf("%s has no entry in the policy", fullName(m))
		}
	}
	for name := range policy {
		if !known[name] {
			t.Errorf("the policy names %s, which there is not", name)
		}
	}
	if len(known) < 8 {
		t.Errorf("only %d RPCs found", len(known))
	}
}

// TestWritesNeedARole: what is not for reading must never be for anyone.
func TestWritesNeedARole(t *testing.T) {
	reads := []string{"GetImage", "FindLatest", "ListImages", "HaveObjects", "GetObjects", "Check", "Watch", "List"}
	policy := server.Policy()
	for _, m := range methods() {
		if !slices.Contains(reads, string(m.Name())) && policy[fullName(m)] < auth.Operator {
			t.Errorf("%s changes something and is open to %s", fullName(m), policy[fullName(m)])
		}
	}
}

// serve starts a real server. Without a TLS configuration it is insecure.
func serve(t *testing.T, config *tls.Config, open bool) string {
	t.Helper()
	data := t.TempDir()
	objects, err := dir.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	images, err := store.Open(data, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	metrics := server.NewMetrics("test", images.Len)
	service := server.New(server.Options{Objects: objects, Images: images, Metrics: metrics, Log: log, Workers: 2,
		Ready: func(context.Context) error { return nil }, TLS: config != nil})
	mux := &auth.Mux{TLS: config, Log: log, RPC: auth.NewServer(server.Policy(), open, grpc.StatsHandler(metrics))}
	mux.Calls = service.Calls(open)
	service.Register(mux.RPC)
	if mux.Pages, err = service.Pages(); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mux.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := images.Close(); err != nil {
			t.Error(err)
		}
		if err := objects.Close(); err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

// secrets are two sites' certificates: ours, and a foreign one.
func secrets(t *testing.T) (ours, foreign string) {
	t.Helper()
	ours, foreign = filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	for _, dir := range []string{ours, foreign} {
		if _, err := pki.Init(dir, time.Now, pki.Options{}); err != nil {
			t.Fatal(err)
		}
		authority, err := pki.Open(dir, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		for _, role := range []auth.Role{auth.Viewer, auth.Operator} {
			if _, err := authority.Issue(pki.Request{Name: role.String(), Role: role.URI()}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := authority.Issue(pki.Request{Name: "nothing"}); err != nil {
			t.Fatal(err)
		}
		past := func() time.Time { return time.Now().AddDate(-4, 0, 0) }
		expired, err := pki.Open(dir, past)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := expired.Issue(pki.Request{Name: "expired", Role: auth.Admin.URI()}); err != nil {
			t.Fatal(err)
		}
	}
	return ours, foreign
}

func serverTLS(t *testing.T, dir string, require bool) *tls.Config {
	t.Helper()
	config, err := auth.ServerTLS(filepath.Join(dir, pki.ImageserverFile), filepath.Join(dir, pki.ImageserverKeyFile), filepath.Join(dir, pki.CAFile), require, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// clientTLS trusts trusts and shows the certificate name of dir, also one that
// auth.ClientTLS would refuse to load.
func clientTLS(t *testing.T, trusts, dir, name string) *tls.Config {
	t.Helper()
	config, err := auth.ClientTLS(filepath.Join(trusts, pki.CAFile), "", "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if name != "" {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return config
}

// call makes an RPC with an empty request and returns its code.
func call(t *testing.T, connection *grpc.ClientConn, m protoreflect.MethodDescriptor) codes.Code {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	stream, err := connection.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, fullName(m))
	if err != nil {
		return status.Code(err)
	}
	if err := stream.SendMsg(dynamicpb.NewMessage(m.Input())); err != nil && err != io.EOF {
		return status.Code(err)
	}
	if err := stream.CloseSend(); err != nil {
		return status.Code(err)
	}
	for {
		answer := dynamicpb.NewMessage(m.Output())
		err := stream.RecvMsg(answer)
		if err == io.EOF {
			return codes.OK
		}
		if err != nil {
			return status.Code(err)
		}
		if m.Name() == "Watch" { // which never ends by itself
			return codes.OK
		}
	}
}

// refused are the codes by which a caller is turned away.
func refused(code codes.Code) bool {
	return code == codes.Unauthenticated || code == codes.PermissionDenied || code == codes.Unavailable
}

// TestCallers is the table of good and bad callers, each with every RPC.
func TestCallers(t *testing.T) {
	ours, foreign := secrets(t)
	const (
		nothing = iota
		reading
		everything
	)
	callers := []struct {
		name    string
		config  *tls.Config // nil: plaintext
		may     int         // with client certificates optional
		require int         // with --require-client-cert
	}{
		{"no certificate", clientTLS(t, ours, "", ""), reading, nothing},
		{"certificate without a role", clientTLS(t, ours, ours, "nothing"), reading, reading},
		{"viewer", clientTLS(t, ours, ours, "viewer"), reading, reading},
		{"operator", clientTLS(t, ours, ours, "operator"), everything, everything},
		{"admin", clientTLS(t, ours, ours, "admin"), everything, everything},
		{"expired admin", clientTLS(t, ours, ours, "expired"), nothing, nothing},
		{"foreign admin", clientTLS(t, ours, foreign, "admin"), nothing, nothing},
		{"server's certificate as a client's", clientTLS(t, ours, ours, "imageserver"), nothing, nothing},
		{"trusts another CA", clientTLS(t, foreign, ours, "admin"), nothing, nothing},
		{"plaintext", nil, nothing, nothing},
	}
	for _, require := range []bool{false, true} {
		address := serve(t, serverTLS(t, ours, require), false)
		for _, caller := range callers {
			may := caller.may
			name := caller.name
			if require {
				may = caller.require
				name += ", certificates required"
			}
			t.Run(name, func(t *testing.T) {
				creds := insecure.NewCredentials()
				if caller.config != nil {
					creds = credentials.NewTLS(caller.config)
				}
				connection, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds))
				if err != nil {
					t.Fatal(err)
				}
				defer connection.Close()
				for _, m := range methods() {
					need := everything
					if server.Policy()[fullName(m)] == auth.Anyone {
						need = reading
					}
					code := call(t, connection, m)
					if got := !refused(code); got != (may >= need) {
						t.Errorf("%s: %s", fullName(m), code)
					}
					if m.Name() != "GetObjects" {
						continue
					}
					// What the RPC refuses, its way over HTTP/1.1 does, and the other
					// way round.
					if status := post(t, address, caller.config); (status == http.StatusOK) != !refused(code) {
						t.Errorf("POST %s: %d, and %s: %s", bulk.Path, status, fullName(m), code)
					}
				}
			})
		}
	}
}

// post asks for no objects over HTTP/1.1 and returns the status, 0 where there
// is no answer.
func post(t *testing.T, address string, config *tls.Config) int {
	t.Helper()
	url := "http://" + address + bulk.Path
	if config != nil {
		config = config.Clone()
		url = "https://" + address + bulk.Path
	}
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	answer, err := web.Post(url, bulk.RequestType, nil)
	if err != nil {
		return 0
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if answer.StatusCode == http.StatusOK && (err != nil || !bytes.Equal(body, bulk.End())) {
		t.Errorf("%q, %v", body, err)
	}
	return answer.StatusCode
}

// TestPostOnly: the path is no page, and other paths take no POST.
func TestPostOnly(t *testing.T) {
	address := serve(t, nil, true)
	if status := post(t, address, nil); status != http.StatusOK {
		t.Errorf("insecure: %d", status)
	}
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete, "PRI"} {
		request, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+bulk.Path, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			continue // PRI is HTTP/2's
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s: %s", method, answer.Status)
		}
	}
	for body, want := range map[string]int{
		"not 32 bytes": http.StatusBadRequest, strings.Repeat("x", 32*(bulk.MaxDigests+1)): http.StatusBadRequest, "": http.StatusOK,
	} {
		answer, err := http.Post("http://"+address+bulk.Path, bulk.RequestType, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("%d bytes: %s", len(body), answer.Status)
		}
	}
	for _, path := range []string{bulk.Path + "/", bulk.Path + "/x", "/v1", "//v1/objects"} {
		answer, err := http.Post("http://"+address+path, bulk.RequestType, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: %s", path, answer.Status)
		}
	}
}

// TestInsecure: in the lab anyone may call everything that there is.
func TestInsecure(t *testing.T) {
	address := serve(t, nil, true)
	connection, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	for _, m := range methods() {
		if code := call(t, connection, m); refused(code) {
			t.Errorf("%s: %s", fullName(m), code)
		}
	}
	err = connection.Invoke(t.Context(), "/firstlight.imageserver.v1.ImageServer/Nothing", &pb.FindLatestRequest{}, &pb.FindLatestResponse{})
	if status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
}

// TestTLSVersion: below 1.3 there is no handshake.
func TestTLSVersion(t *testing.T) {
	ours, _ := secrets(t)
	address := serve(t, serverTLS(t, ours, false), false)
	pool, err := auth.LoadCA(filepath.Join(ours, pki.CAFile))
	if err != nil {
		t.Fatal(err)
	}
	for version, ok := range map[uint16]bool{tls.VersionTLS12: false, tls.VersionTLS13: true} {
		connection, err := tls.Dial("tcp", address, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, MaxVersion: version})
		if (err == nil) != ok {
			t.Errorf("version %x: %v", version, err)
		}
		if err == nil {
			connection.Close()
		}
	}
}

// TestPages: the port shows its pages over plain HTTP and over TLS, to clients
// that could speak HTTP/2 too, and takes GET and HEAD only.
func TestPages(t *testing.T) {
	ours, _ := secrets(t)
	address := serve(t, serverTLS(t, ours, false), false)
	pool, err := auth.LoadCA(filepath.Join(ours, pki.CAFile))
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true, DisableKeepAlives: true}}
	for _, scheme := range []string{"http", "https"} {
		for path, want := range map[string]string{"/": "No images yet", "/healthz": "ok", "/readyz": "ok", "/metrics": "imageserver_images 0"} {
			response, err := web.Get(scheme + "://" + address + path)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(response.Body)
			response.Body.Close()
			if err != nil || response.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(want)) {
				t.Errorf("%s %s: %s, %v\n%s", scheme, path, response.Status, err, body)
			}
		}
		response, err := web.Get(scheme + "://" + address + "/nothing")
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusNotFound {
			t.Errorf("%s /nothing: %s", scheme, response.Status)
		}
		response, err = web.Post(scheme+"://"+address+"/", "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s POST: %s", scheme, response.Status)
		}
	}
}
