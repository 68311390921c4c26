package auth

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Policy says for each RPC, by its full name ("/package.Service/Method"), the
// least role that may call it. An RPC without an entry is refused to everyone.
type Policy map[string]Role

// Peer is who calls.
type Peer struct {
	Role Role
	// Name is the common name of the client certificate; empty without one.
	Name string
	// Plaintext says that the connection is not TLS.
	Plaintext bool
}

// peerKey is the context key of the Peer.
type peerKey struct{}

// PeerOf is who made the RPC that ctx belongs to; the zero Peer outside of one.
func PeerOf(ctx context.Context) Peer {
	caller, _ := ctx.Value(peerKey{}).(Peer)
	return caller
}

// maxMessage is the largest message that is taken, in bytes.
const maxMessage = 8 << 20

// NewServer is a gRPC server that every call passes the policy of. Plaintext
// connections may call nothing unless insecure is set, and everything then. It
// must be served by a Mux, which does the handshakes. A peer that is silent for
// 20 seconds is probed, and given up after 20 more.
func NewServer(policy Policy, insecure bool, options ...grpc.ServerOption) *grpc.Server {
	return newServer(gate{policy: policy, insecure: insecure}, options...)
}

// NewClosedServer is a gRPC server that refuses every call to everyone, and
// says why.
func NewClosedServer(why string) *grpc.Server {
	nothing := func(any, grpc.ServerStream) error { return nil } // the gate is before it
	return newServer(gate{closed: why}, grpc.UnknownServiceHandler(nothing))
}

func newServer(gate gate, options ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append([]grpc.ServerOption{
		grpc.Creds(muxCredentials{}),
		grpc.ChainUnaryInterceptor(gate.unary),
		grpc.ChainStreamInterceptor(gate.stream),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(64),
	}, options...)...)
}

// gate asks the policy.
type gate struct {
	policy   Policy
	insecure bool
	closed   string // why everything is refused; empty where it is not
}

func (g gate) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	ctx, err := g.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return handle(ctx, request)
}

func (g gate) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, err := g.admit(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return handle(service, &admitted{stream, ctx})
}

// admitted is a stream whose context knows the Peer.
type admitted struct {
	grpc.ServerStream
	ctx context.Context
}

func (a *admitted) Context() context.Context { return a.ctx }

// decide lets caller call method or not, and puts it into the context.
func (g gate) decide(ctx context.Context, caller Peer, method string) (context.Context, error) {
	need := g.policy[method]
	switch {
	case g.closed != "":
		return nil, status.Errorf(codes.PermissionDenied, "%s: nobody may call this: %s", method, g.closed)
	case need == Nobody:
		return nil, status.Errorf(codes.PermissionDenied, "%s: nobody may call this", method)
	case caller.Plaintext && g.insecure:
		caller.Role = Admin
	case caller.Plaintext:
		return nil, status.Error(codes.Unauthenticated, "this server takes calls over TLS only")
	case caller.Role >= need:
	case caller.Name == "" && caller.Role <= Anyone:
		return nil, status.Errorf(codes.Unauthenticated, "a client certificate of role %s is needed", need)
	default:
		return nil, status.Errorf(codes.PermissionDenied, "role %s is needed, and %q has the role %s", need, caller.Name, caller.Role)
	}
	return context.WithValue(ctx, peerKey{}, caller), nil
}

// identify reads the peer's certificate, which the handshake has verified.
func identify(ctx context.Context) Peer {
	connection, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{Plaintext: true}
	}
	info, ok := connection.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Peer{Plaintext: true}
	}
	return peerOfTLS(info.State)
}

func peerOfTLS(state tls.ConnectionState) Peer {
	if len(state.VerifiedChains) == 0 {
		return Peer{Role: Anyone}
	}
	leaf := state.VerifiedChains[0][0]
	name := leaf.Subject.CommonName
	if name == "" {
		name = fmt.Sprintf("certificate %x", leaf.SerialNumber)
	}
	return Peer{Role: RoleOf(leaf), Name: name}
}
