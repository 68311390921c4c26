//go:build tools

package s3

// The S3 server that the tests run, as a process and embedded: its needs must
// stand in go.sum.
import _ "github.com/versity/versitygw/cmd/versitygw"
