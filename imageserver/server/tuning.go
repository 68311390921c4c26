package server

import (
	"google.golang.org/grpc"
)

// Tuning is how a gRPC server should be set up that this service runs on:
// windows and buffers for messages of 1 MiB. gRPC's own estimate of the window
// starts at 64 KiB and needs a while to grow.
func Tuning() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.InitialWindowSize(8 << 20), grpc.InitialConnWindowSize(16 << 20),
		grpc.ReadBufferSize(128 << 10), grpc.WriteBufferSize(128 << 10),
	}
}
