// Package fetch gets the configuration files of a machine from where they
// are: a directory, HTTP(S), TFTP, or the operator's own programme.
//
// It tells "the server says there is no such file" (ErrAbsent) from "the
// server did not answer" always, because the first means a default and the
// second never may. It does not parse, verify or choose: see installer/config
// and installer/trust.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

// The files of a machine's configuration.
const (
	ConfigJSON        = "config.json"
	StorageLayoutJSON = "storage-layout.json"
	ImageName         = "imagename"
	ImageServer       = "imageserver"
	ToolsImageName    = "tools-imagename"
	RandomSeed        = "random-seed"
	SiteServer        = "siteserver"
)

// Names are all files of a machine's configuration, in the order in which they
// are asked for.
func Names() []string {
	return []string{ConfigJSON, StorageLayoutJSON, ImageName, ImageServer, ToolsImageName, RandomSeed, SiteServer}
}

// MaxFileBytes is the size beyond which no configuration file is read, in
// bytes: what a server sends must not fill the machine's memory.
const MaxFileBytes = 1 << 20

// Files are the configuration files that are there, by name.
type Files map[string][]byte

// ErrAbsent says that the source answered and has no such file. No failure to
// get an answer ever wraps it.
var ErrAbsent = errors.New("no such file")

// Source is one place that configuration comes from.
type Source interface {
	// Get returns the whole file, at most MaxFileBytes long. The error wraps
	// ErrAbsent when the source says that there is no such file. Get may be
	// called again after an error, and by several goroutines at once.
	Get(ctx context.Context, name string) ([]byte, error)
	// String says where that is, for people: "tftp://10.0.2.2/".
	String() string
}

// Error is an error with a stable code, CFG-101 to CFG-107.
type Error struct {
	code string
	err  error
}

func (e *Error) Error() string { return e.err.Error() }

// Unwrap gives the cause, which may be nil.
func (e *Error) Unwrap() error { return errors.Unwrap(e.err) }

// Code is the stable code, such as CFG-101.
func (e *Error) Code() string { return e.code }

// The codes of this package.
const (
	codeMissing   = "CFG-101" // a file that must be there is not
	CodeNoAnswer  = "CFG-102" // the server does not answer
	codeRefused   = "CFG-103" // the server answers with an error
	codeTooLarge  = "CFG-104" // more than MaxFileBytes
	codeAddress   = "CFG-105" // the server's name or URL is no good
	codeProgramme = "CFG-106" // the operator's programme failed
	codeDirectory = "CFG-107" // a directory cannot be read
)

func fail(code, format string, args ...any) error {
	return &Error{code: code, err: fmt.Errorf(format, args...)}
}

// All gets every file that the source has. config.json must be there, or the
// error is an *Error with code CFG-101. Whether any other is needed depends on
// what it says: package config knows. The first failure ends it.
func All(ctx context.Context, source Source) (Files, error) {
	files := Files{}
	for _, name := range Names() {
		data, err := source.Get(ctx, name)
		switch {
		case err == nil:
			files[name] = data
		case !errors.Is(err, ErrAbsent):
			return nil, err
		case name == ConfigJSON:
			return nil, fail(codeMissing, "%s is missing from %s: %w", name, source, err)
		}
	}
	return files, nil
}

// Given is a source of files that are here already; where says where they came
// from.
func Given(where string, files Files) Source { return given{where, files} }

type given struct {
	where string
	files Files
}

func (g given) String() string { return g.where }

func (g given) Get(_ context.Context, name string) ([]byte, error) {
	data, ok := g.files[name]
	switch {
	case !ok:
		return nil, fmt.Errorf("%s: %w", name, ErrAbsent)
	case len(data) > MaxFileBytes:
		return nil, tooLarge(name)
	}
	return data, nil
}

// readAll reads at most MaxFileBytes.
func readAll(r io.Reader, name string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxFileBytes+1))
	if err == nil && len(data) > MaxFileBytes {
		return nil, tooLarge(name)
	}
	return data, err
}

func tooLarge(name string) error {
	return fail(codeTooLarge, "%s is larger than %d bytes, which no configuration file may be", name, MaxFileBytes)
}

// patience says how long a server is asked again.
type patience struct {
	deadline time.Duration // for one file, all tries together
	first    time.Duration // between the first two tries; it doubles
}

func defaultPatience() patience {
	return patience{deadline: time.Minute, first: 250 * time.Millisecond}
}

// orAtMost is p with another deadline, where one is given.
func (p patience) orAtMost(deadline time.Duration) patience {
	if deadline > 0 {
		p.deadline = deadline
	}
	return p
}

// finalError ends the tries.
type finalError struct{ error }

// try calls get until it succeeds, fails with a finalError, or the deadline
// passes. ctx is the caller's: when it ends, its error comes back.
func (p patience) try(ctx context.Context, what string, get func(ctx context.Context) ([]byte, error)) ([]byte, error) {
	const longest = 8 * time.Second
	limited, cancel := context.WithTimeout(ctx, p.deadline)
	defer cancel()
	var last error
	for wait := p.first; ; wait = min(2*wait, longest) {
		data, err := get(limited)
		var final finalError
		switch {
		case err == nil:
			return data, nil
		case errors.As(err, &final):
			return nil, final.error
		case ctx.Err() != nil:
			return nil, fmt.Errorf("fetching %s: %w", what, context.Cause(ctx))
		}
		// The end of the deadline cuts the last try short; the one before
		// says more.
		if last == nil || !errors.Is(err, context.DeadlineExceeded) {
			last = err
		}
		// A quarter of jitter each way: a rack that starts at once shall not
		// ask at once.
		timer := time.NewTimer(wait - wait/4 + rand.N(wait/2+1))
		select {
		case <-timer.C:
		case <-limited.Done():
			timer.Stop()
			if ctx.Err() != nil {
				return nil, fmt.Errorf("fetching %s: %w", what, context.Cause(ctx))
			}
			return nil, fail(CodeNoAnswer, "fetching %s: no usable answer within %v: %w", what, p.deadline, last)
		}
	}
}
