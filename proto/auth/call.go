package auth

import (
	"context"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Call is an RPC that is also served as a POST over HTTP/1.1, where gRPC would
// cost too much. Who may call it is decided as for the RPC.
type Call struct {
	path    string
	handler http.Handler
}

// NewCall is the RPC method ("/package.Service/Method") served at path by
// handler, which is reached only by those whom policy lets call it, by POST, and
// finds their Peer in the request's context. insecure is NewServer's. Others get
// 401 where a certificate or TLS is missing, 403 where a role is, and a line of
// text.
func NewCall(policy Policy, insecure bool, path, method string, handler http.Handler) Call {
	g := gate{policy: policy, insecure: insecure}
	return Call{path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller := Peer{Plaintext: true}
		if r.TLS != nil {
			caller = peerOfTLS(*r.TLS)
		}
		ctx, err := g.decide(r.Context(), caller, method)
		if err != nil {
			code := http.StatusForbidden
			if status.Code(err) == codes.Unauthenticated {
				code = http.StatusUnauthorized
			}
			http.Error(w, status.Convert(err).Message(), code)
			return
		}
		handler.ServeHTTP(w, r.WithContext(ctx))
	})}
}

// ServeHTTP decides about the caller and serves him, whatever the path.
func (c Call) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.handler.ServeHTTP(w, r) }

// callsOrPages lets POSTs to the paths of calls through to them, and GET and
// HEAD of anything else to the pages.
func callsOrPages(calls []Call, pages http.Handler) http.Handler {
	looking := readOnly(pages)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, call := range calls {
			if r.URL.Path != call.path {
				continue
			}
			if r.Method != http.MethodPost {
				w.Header().Set("Allow", http.MethodPost)
				http.Error(w, "this is for programs, by POST", http.StatusMethodNotAllowed)
				return
			}
			call.ServeHTTP(w, r)
			return
		}
		looking.ServeHTTP(w, r)
	})
}

// admit decides about the caller of an RPC.
func (g gate) admit(ctx context.Context, method string) (context.Context, error) {
	return g.decide(ctx, identify(ctx), method)
}
