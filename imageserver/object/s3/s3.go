// Package s3 keeps objects in a bucket of an S3-compatible server.
package s3
