package server

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

const (
	// maxStreams is how many calls one connection may have at once.
	maxStreams = 64
	// maxReceived is the largest message that is taken, in bytes: objects come
	// in messages of about 1 MiB, digests in 2 MiB.
	maxReceived = 8 << 20
)

// Tuning is how a gRPC server should be set up that this service runs on:
// windows and buffers for messages of 1 MiB. gRPC's own estimate of the window
// starts at 64 KiB and needs a while to grow. Clients that are gone are found
// out, and those that probe more often than every 5 seconds refused.
func Tuning() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.InitialWindowSize(8 << 20), grpc.InitialConnWindowSize(16 << 20),
		grpc.MaxConcurrentStreams(maxStreams), grpc.MaxRecvMsgSize(maxReceived), grpc.MaxHeaderListSize(64 << 10),
		grpc.ConnectionTimeout(30 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 30 * time.Second, MaxConnectionIdle: time.Hour}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ReadBufferSize(128 << 10), grpc.WriteBufferSize(128 << 10),
	}
}
