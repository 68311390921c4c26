package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	// retries is how often a request is tried; more would hide for minutes that
	// nobody answers.
	retries = 3
	// answerTimeout is how long the server may take to begin its answer.
	answerTimeout = 30 * time.Second
	// stallTimeout is how long an answer may stand still in its middle.
	stallTimeout = 60 * time.Second
	// onePut is the number of bytes up to which an upload is one request.
	onePut = 128 << 20
	// partSize is that of the parts of larger uploads.
	partSize = 64 << 20
)

// Error is a bucket that cannot be used; docs/errors.md explains its codes.
type Error struct {
	code      string
	text      string
	err       error
	temporary bool
}

// Error is the text, with the cause where there is one.
func (e *Error) Error() string {
	if e.err != nil {
		return e.text + ": " + e.err.Error()
	}
	return e.text
}

// Code is the stable code: IMG-029 (a request to the bucket failed), SRV-016 (the
// bucket or its cache cannot be used by this server).
func (e *Error) Code() string { return e.code }

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.err }

// Temporary says that another try may succeed.
func (e *Error) Temporary() bool { return e.temporary }

var (
	// ErrNoKey: the bucket has no object of this key.
	ErrNoKey = errors.New("not in the bucket")
	// ErrConflict: a conditional write found another state than it was for.
	ErrConflict = errors.New("somebody else wrote it")
)

// Bucket is a bucket, or what lies below a prefix in it. It is safe for
// concurrent use. It knows nothing of what the keys mean.
type Bucket struct {
	core    *minio.Core
	name    string
	prefix  string // "" or with a slash at its end
	observe func(op string, took time.Duration)
	// ahead is the bucket's clock less this machine's, in nanoseconds.
	ahead atomic.Int64
}

// OpenBucket reads s3://BUCKET[/PREFIX]?endpoint=URL[&region=REGION]. The
// endpoint is http://HOST[:PORT] or https://HOST[:PORT]; without a scheme it is
// https. The credentials are those of AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
// AWS_SESSION_TOKEN, else of ~/.aws/credentials. observe, which may be nil, is
// told of each request. It sends nothing. The error is an *Error.
func OpenBucket(location string, observe func(op string, took time.Duration)) (*Bucket, error) {
	bad := func(text string, err error) (*Bucket, error) {
		return nil, &Error{code: "SRV-016", text: "--store " + location + ": " + text, err: err}
	}
	u, err := url.Parse(location)
	if err != nil {
		return bad("no URL", err)
	}
	query := u.Query()
	for key := range query {
		if key != "endpoint" && key != "region" {
			return bad(fmt.Sprintf("%q is not known; there are endpoint and region", key), nil)
		}
	}
	if u.Scheme != "s3" || u.Host == "" || u.User != nil || u.Fragment != "" || query.Get("endpoint") == "" {
		return bad("it is written s3://BUCKET[/PREFIX]?endpoint=https://HOST:PORT[&region=REGION]; credentials are in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", nil)
	}
	endpoint := query.Get("endpoint")
	if !strings.Contains(endpoint, "://") {
		endpoint = "https://" + endpoint
	}
	e, err := url.Parse(endpoint)
	if err != nil || e.Scheme != "http" && e.Scheme != "https" || e.Host == "" || strings.Trim(e.Path, "/") != "" {
		return bad("the endpoint is no http or https address of a host", err)
	}
	b := &Bucket{name: u.Host, observe: observe}
	if prefix := strings.Trim(u.Path, "/"); prefix != "" {
		b.prefix = prefix + "/"
	}
	if observe == nil {
		b.observe = func(string, time.Duration) {}
	}
	b.core, err = minio.NewCore(e.Host, &minio.Options{
		Creds:      credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}}),
		Secure:     e.Scheme == "https",
		Region:     query.Get("region"),
		MaxRetries: retries,
		Transport: &clocked{bucket: b, next: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
			ForceAttemptHTTP2:     true,
			MaxIdleConnsPerHost:   32,
			IdleConnTimeout:       time.Minute,
			TLSHandshakeTimeout:   10 * time.Second,
			ExpectContinueTimeout: 10 * time.Second,
			ResponseHeaderTimeout: answerTimeout,
			DisableCompression:    true,
		}},
	})
	if err != nil {
		return bad("the endpoint cannot be used", err)
	}
	return b, nil
}

// clocked learns from each answer what time it is at the bucket.
type clocked struct {
	bucket *Bucket
	next   http.RoundTripper
}

// RoundTrip is that of http.RoundTripper.
func (c *clocked) RoundTrip(request *http.Request) (*http.Response, error) {
	answer, err := c.next.RoundTrip(request)
	if err == nil {
		if date, dateErr := http.ParseTime(answer.Header.Get("Date")); dateErr == nil {
			ahead := int64(time.Until(date))
			// A date has whole seconds, and was a while on its way: small differences
			// are none.
			if before := c.bucket.ahead.Load(); max(ahead-before, before-ahead) > int64(2*time.Second) {
				c.bucket.ahead.Store(ahead)
			}
		}
	}
	return answer, err
}

// now is the time at the bucket, within a second or two.
func (b *Bucket) now() time.Time { return time.Now().Add(time.Duration(b.ahead.Load())) }

// String is where the bucket is, without anything secret.
func (b *Bucket) String() string {
	return "s3://" + strings.TrimSuffix(b.name+"/"+b.prefix, "/") + " at " + b.core.EndpointURL().String()
}

// failed turns an error of a request into one of ours.
func (b *Bucket) failed(op, key string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	answer := minio.ToErrorResponse(err)
	switch {
	case answer.Code == minio.NoSuchKey:
		return fmt.Errorf("%s: %w", key, ErrNoKey)
	case answer.StatusCode == http.StatusPreconditionFailed, answer.StatusCode == http.StatusConflict:
		return fmt.Errorf("%s: %w", key, ErrConflict)
	}
	// Without an answer nobody was reached, or what came was cut off.
	temporary := answer.Code == "" || answer.StatusCode >= 500 || answer.StatusCode == http.StatusTooManyRequests
	return &Error{code: "IMG-029", text: op + " " + key + " of " + b.String(), err: err, temporary: temporary}
}

func (b *Bucket) took(op string, start time.Time) { b.observe(op, time.Since(start)) }

// Entry is a key, without the bucket's prefix, and what is known of it.
type Entry struct {
	Key     string
	Tag     string // changes when the content does
	Size    int64
	Written time.Time // by the bucket's clock
}

// List is the keys that begin with prefix, sorted.
func (b *Bucket) List(ctx context.Context, prefix string) ([]Entry, error) {
	defer b.took("list", time.Now())
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the listing where it is left early
	var found []Entry
	for o := range b.core.ListObjectsIter(ctx, b.name, minio.ListObjectsOptions{Prefix: b.prefix + prefix, Recursive: true}) {
		if o.Err != nil {
			return nil, b.failed("listing", prefix, o.Err)
		}
		found = append(found, Entry{strings.TrimPrefix(o.Key, b.prefix), o.ETag, o.Size, o.LastModified})
	}
	return found, ctx.Err()
}

// open reads length bytes of an object from offset; a negative length means to
// its end. The answer is cut off where it stands still.
func (b *Bucket) open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, Entry, error) {
	start := time.Now()
	defer b.took("get", start)
	options := minio.GetObjectOptions{}
	switch {
	case length == 0:
		return io.NopCloser(bytes.NewReader(nil)), Entry{Key: key}, nil
	case length > 0:
		if err := options.SetRange(offset, offset+length-1); err != nil {
			return nil, Entry{}, err
		}
	case offset > 0:
		if err := options.SetRange(offset, 0); err != nil {
			return nil, Entry{}, err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	body, info, _, err := b.core.GetObject(ctx, b.name, b.prefix+key, options)
	if err != nil {
		cancel(nil)
		return nil, Entry{}, b.failed("reading", key, err)
	}
	stalled := &Error{code: "IMG-029", text: "reading " + key + " of " + b.String() + ": nothing came for " + stallTimeout.String(), temporary: true}
	r := &answer{body: body, bucket: b, key: key, cancel: cancel, ctx: ctx}
	r.timer = time.AfterFunc(stallTimeout, func() { cancel(stalled) })
	return r, Entry{key, info.ETag, info.Size, info.LastModified}, nil
}

// answer is the body of an answer.
type answer struct {
	body   io.ReadCloser
	bucket *Bucket
	key    string
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

func (a *answer) Read(p []byte) (int, error) {
	n, err := a.body.Read(p)
	a.timer.Reset(stallTimeout)
	if err != nil && err != io.EOF {
		if cause := new(Error); errors.As(context.Cause(a.ctx), &cause) {
			return n, cause
		}
		err = a.bucket.failed("reading", a.key, err)
	}
	return n, err
}

func (a *answer) Close() error {
	a.timer.Stop()
	a.cancel(nil)
	// What is left unread is of no interest.
	_ = a.body.Close()
	return nil
}

// Read is a whole small object. The error wraps ErrNoKey where there is none.
func (b *Bucket) Read(ctx context.Context, key string) ([]byte, Entry, error) {
	r, found, err := b.open(ctx, key, 0, -1)
	if err != nil {
		return nil, found, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return data, found, err
}

// The conditions of a write, besides "only if its tag is still this one".
const (
	Always = ""
	IfNew  = "new"
)

// write makes an object, whole or not at all, durably, and returns its tag.
// condition is Always, IfNew, or the tag that the object must have; where it does
// not hold, the error wraps ErrConflict.
func (b *Bucket) write(ctx context.Context, key string, r io.Reader, size int64, condition string) (string, error) {
	defer b.took("put", time.Now())
	options := minio.PutObjectOptions{DisableMultipart: size <= onePut, PartSize: partSize, NumThreads: 2}
	switch condition {
	case Always:
	case IfNew:
		options.SetMatchETagExcept("*")
	default:
		options.SetMatchETag(condition)
	}
	info, err := b.core.Client.PutObject(ctx, b.name, b.prefix+key, r, size, options)
	if err != nil {
		return "", b.failed("writing", key, err)
	}
	return info.ETag, nil
}

// Put makes a small object, whole or not at all, durably, and returns its tag.
// condition is Always, IfNew, or the tag that the object must have; where it does not
// hold, the error wraps ErrConflict. Where an earlier try of the same request may have arrived
// although its answer got lost, what lies there counts: equal bytes are no
// conflict.
func (b *Bucket) Put(ctx context.Context, key string, data []byte, condition string) (string, error) {
	tag, err := b.write(ctx, key, bytes.NewReader(data), int64(len(data)), condition)
	if !errors.Is(err, ErrConflict) {
		return tag, err
	}
	there, found, readErr := b.Read(ctx, key)
	if readErr == nil && bytes.Equal(there, data) {
		return found.Tag, nil
	}
	return "", err
}

// Remove deletes an object; a missing one is no error.
func (b *Bucket) Remove(ctx context.Context, key string) error {
	defer b.took("delete", time.Now())
	err := b.failed("deleting", key, b.core.RemoveObject(ctx, b.name, b.prefix+key, minio.RemoveObjectOptions{}))
	if errors.Is(err, ErrNoKey) {
		return nil
	}
	return err
}
