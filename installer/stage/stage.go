// Package stage gathers every object that an installation needs into one
// pack file in memory, before any disk is written: from the booted root,
// from old file-systems, and the rest from the image server. Each object is
// verified, whichever way it came. It never writes anywhere else, and what
// it holds is in the pack, not on the Go heap.
package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
)

// Source is where an object came from, as the metrics name it.
type Source string

// The sources of objects.
const (
	FromServer    Source = "server"
	FromOldOS     Source = "old_os"
	FromBootImage Source = "boot_image"
	FromMedium    Source = "medium"
)

// Tree is a file-system that may hold files which the image has too. Of its
// regular files only those are read whose size is wanted.
type Tree struct {
	Name   string // for the log: "/dev/vda2 (ext4)"
	Source Source
	FS     fs.FS
	// Below are the directories that are searched; nil means all of FS.
	// Symbolic links are never followed.
	Below []string
}

// BootedRoot is the tree that the installer itself was booted from; root is
// the file-system at "/". Of it only the directories that hold programs and
// libraries are searched.
func BootedRoot(root fs.FS) Tree {
	return Tree{Name: "the booted system", Source: FromBootImage, FS: root,
		Below: []string{"bin", "bbin", "sbin", "lib", "lib64", "usr", "etc"}}
}

// Fetcher brings objects from the image server. It calls piece with runs of
// the encoded bytes of each object, in order for one object, unverified; an
// error of piece ends it. It may be called from several goroutines at once.
//
// An error with the code of package client for a missing, damaged or wrong
// object is about one of the objects; one for a refusal is final; any other
// is taken for a connection that may come back.
type Fetcher interface {
	Fetch(ctx context.Context, digests []object.Digest, piece func(object.Piece) error) error
}

// Sink keeps objects. It is called from several goroutines at once. Bytes that
// are not what info says are an error that wraps object.ErrDamaged, and what
// came of them is not used; any other error is the end.
type Sink interface {
	// Append takes the encoded bytes of one whole object, which are valid only
	// until it returns.
	Append(info object.Info, encoded []byte) error
	// AppendStored takes an object whose encoded bytes r gives. It need not
	// read them to their end.
	AppendStored(info object.Info, r io.Reader) error
}

// Options of Run. The zero value of each is a sensible default.
type Options struct {
	// Trees are searched, in order, before the server is asked.
	Trees []Tree
	// Limit is the most bytes that the pack may take; 0 means no limit.
	Limit uint64
	// Streams is the number of Fetch calls at a time; 0 means 2.
	Streams int
	// Workers verify and keep so many objects at a time; 0 means one for each
	// processor, at least 2 and at most 8.
	Workers int
	// Patience is how long the server may be away, in one go, before Run
	// gives up; 0 means 10 minutes.
	Patience time.Duration
	// Search is how long one of Trees may be searched, Idle how long with
	// nothing found in it; 0 means 10 minutes and 1 minute.
	Search, Idle time.Duration
	// Report is told of verified objects by source and unpacked bytes. It
	// is called by one goroutine at a time.
	Report func(source Source, objects, bytes uint64)
	// Wait is told why nothing comes at present, and "" when it goes on
	// again. It is called by one goroutine at a time.
	Wait func(reason string)
	// Log is told what a person may want to know. It is called by one
	// goroutine at a time.
	Log func(text string)
}

// Codes of Error. Errors of the Fetcher that are final keep their own.
const (
	CodeDamaged = "IMG-080" // an object came damaged twice
	CodeMissing = "IMG-081" // the server does not have an object
	CodeAway    = "IMG-082" // the server was away for too long
	CodeMemory  = "IMG-083" // the objects do not fit into the memory set aside
	CodeStore   = "IMG-084" // the pack could not be written
)

// Error is why not every object could be gathered.
type Error struct {
	code string
	err  error
	// Object is the one that was damaged or missing; zero where it is not
	// about one.
	Object object.Digest
}

// Error says which object, and what was wrong with it.
func (e *Error) Error() string { return e.err.Error() }

// Unwrap is the last cause.
func (e *Error) Unwrap() error { return e.err }

// Code is one of the constants of this package.
func (e *Error) Code() string { return e.code }

const (
	defaultStreams  = 2
	defaultPatience = 10 * time.Minute
	defaultSearch   = 10 * time.Minute
	defaultIdle     = time.Minute
)

// Run gathers the objects need in file, which is empty, and returns them.
// The Getter reads from file, which must stay open as long. servers are asked
// in their order: the next one where one does not answer, or sends an object
// wrong.
func Run(ctx context.Context, servers []Fetcher, file pack.File, need []image.Object, o Options) (object.Getter, error) {
	writer, err := pack.NewWriter(file, pack.Options{Limit: o.Limit})
	if err != nil {
		return nil, &Error{code: CodeStore, err: fmt.Errorf("beginning the pack of objects: %w", err)}
	}
	s := newStage(writer, need, o)
	s.writer = writer
	for _, tree := range o.Trees {
		if err := s.search(ctx, tree); err != nil {
			return nil, err
		}
	}
	err = s.fetch(ctx, servers, func(ctx context.Context, out chan<- []object.Digest) error {
		return s.send(ctx, s.need, out)
	})
	if err != nil {
		return nil, err
	}
	return writer.Reader(), nil
}

// Stream fetches the objects need into sink, in about their order and in
// memory that does not grow with them: at most a few MiB for each of the
// streams and workers. It keeps nothing itself, and resumes and fails over as
// Run does. Of the options it uses neither Trees nor Limit.
func Stream(ctx context.Context, servers []Fetcher, sink Sink, need []image.Object, o Options) error {
	s := newStage(sink, need, o)
	return s.fetch(ctx, servers, func(ctx context.Context, out chan<- []object.Digest) error {
		return s.send(ctx, s.need, out)
	})
}

func newStage(sink Sink, need []image.Object, o Options) *stage {
	if o.Streams <= 0 {
		o.Streams = defaultStreams
	}
	if o.Workers <= 0 {
		o.Workers = min(max(runtime.NumCPU(), 2), 8)
	}
	if o.Patience <= 0 {
		o.Patience = defaultPatience
	}
	if o.Search <= 0 {
		o.Search = defaultSearch
	}
	if o.Idle <= 0 {
		o.Idle = defaultIdle
	}
	s := &stage{sink: sink, options: o, need: need, missing: map[object.Digest]uint64{}, bySize: map[uint64]int{}}
	for _, n := range need {
		if _, twice := s.missing[n.Digest]; !twice {
			s.missing[n.Digest] = n.Size
			s.bySize[n.Size]++
		}
	}
	return s
}

// stage is one Run or Stream.
type stage struct {
	writer  *pack.Writer // for what is found in trees
	sink    Sink         // for what comes from a server
	jobs    chan job
	options Options
	need    []image.Object // in path order of first use

	mu      sync.Mutex // also held while functions of options are called
	missing map[object.Digest]uint64
	bySize  map[uint64]int // how many missing objects have this size
	waiting bool
	heard   time.Time // when something last came from the server
}

// have says that the object has come, verified, from source.
func (s *stage) have(d object.Digest, source Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	size, missing := s.missing[d]
	if !missing {
		return // another worker found the same file
	}
	delete(s.missing, d)
	s.bySize[size]--
	if s.options.Report != nil {
		s.options.Report(source, 1, size)
	}
}

// wanted says whether d is still missing and has that size.
func (s *stage) wanted(d object.Digest, size uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	want, missing := s.missing[d]
	return missing && want == size
}

// wantedSize says whether an object of that size is still missing, and
// whether any is.
func (s *stage) wantedSize(size uint64) (this, any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bySize[size] > 0, len(s.missing) > 0
}

func (s *stage) log(format string, args ...any) {
	if s.options.Log == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.options.Log(fmt.Sprintf(format, args...))
}

// refused turns an error of the sink into one with our code, where it has none.
func (s *stage) refused(err error) error {
	switch {
	case errors.Is(err, pack.ErrFull), s.writer != nil && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM)):
		return &Error{code: CodeMemory, err: fmt.Errorf("the objects take more memory than the %d MiB that are set aside: %w", s.options.Limit>>20, err)}
	case codeOf(err) != "":
		return err
	default:
		return &Error{code: CodeStore, err: err}
	}
}
