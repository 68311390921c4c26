package client

// Error is a failure to get something from, or give something to, an image
// server.
type Error struct {
	code string
	text string
	err  error
}

// The codes of this package; docs/errors.md explains each.
const (
	CodeUnreachable  = "IMG-030" // no connection
	CodeLost         = "IMG-031" // the connection broke, or the server fell silent
	CodeNoImage      = "IMG-032" // no image of that name
	CodeNoObject     = "IMG-033" // the server lacks an object
	CodeDamaged      = "IMG-034" // damaged in the server's store
	CodeWrongAnswer  = "IMG-035" // what came is not what was asked for
	CodeRefused      = "IMG-036" // the server refuses to add or delete this
	CodeBadName      = "IMG-037" // no such name is possible
	CodeOtherVersion = "IMG-038" // the server lacks this call
	CodeServer       = "IMG-039" // the server could not
	CodeFull         = "IMG-027" // the server's disk is full
	CodeBusy         = "IMG-028" // more transfers than the server lets wait
	CodeUntrusted    = "TRU-001" // certificate signed by someone else
	CodeExpired      = "TRU-002" // certificate outside its time
	CodeOtherHost    = "TRU-003" // certificate of another host
	CodeOurs         = "TRU-004" // the server refuses our certificate
	CodeTransport    = "TRU-005" // one side speaks TLS, the other does not
	CodeAnonymous    = "TRU-006" // a client certificate is needed
	CodeRole         = "TRU-007" // the certificate's role does not suffice
)

// Error says what was being done and what went wrong.
func (e *Error) Error() string {
	if e.err != nil {
		return e.text + ": " + e.err.Error()
	}
	return e.text
}

// Code is the stable code: IMG-027, IMG-028, IMG-030 to IMG-039, TRU-001 to TRU-007.
func (e *Error) Code() string { return e.code }

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.err }
