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
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
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

// Holder has objects, as they are stored. It is called from several goroutines
// at once.
type Holder interface {
	Has(object.Digest) bool
	OpenStored(ctx context.Context, d object.Digest) (*object.Stored, error)
}

// Options of Run. The zero value of each is a sensible default.
type Options struct {
	// Trees are searched in this order.
	Trees []Tree
	// Held has objects already, which Stream takes from there; nil: none.
	Held *pack.Reader
	// Medium has objects that need no network: they are taken from it before
	// trees are searched and servers asked, those that are damaged not; nil: none.
	Medium Holder
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
	// Wait is told why nothing comes at present and when that is tried again,
	// and "" when it goes on. It is called by one goroutine at a time.
	Wait func(reason string, next time.Time)
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
//
// The trees are searched and the servers asked at the same time: what no tree
// can have, because it has no file of that size, is fetched as soon as that is
// known.
func Run(ctx context.Context, servers []Fetcher, file pack.File, need []image.Object, o Options) (object.Getter, error) {
	held, _, err := Partly(ctx, servers, file, need, nil, o)
	if err != nil {
		return nil, err
	}
	return held, nil
}

// Partly is Run for a machine that cannot hold everything. It gathers all of
// must, and of may what it finds in the trees and the limit has room for;
// missing are those of may that it has not.
func Partly(ctx context.Context, servers []Fetcher, file pack.File, must, may []image.Object, o Options) (held *pack.Reader, missing []image.Object, err error) {
	writer, err := pack.NewWriter(file, pack.Options{Limit: o.Limit})
	if err != nil {
		return nil, nil, &Error{code: CodeStore, err: fmt.Errorf("beginning the pack of objects: %w", err)}
	}
	if len(must) > 0 {
		s := newStage(writer, must, o)
		s.writer = writer
		if err := s.takeFromMedium(ctx); err != nil {
			return nil, nil, err
		}
		group, ctx := errgroup.WithContext(ctx)
		search := s.newSearch(ctx)
		group.Go(func() error { return search.run(ctx) })
		group.Go(func() error {
			return s.fetch(ctx, servers, func(ctx context.Context, out chan<- []object.Digest) error {
				if err := s.send(ctx, search.nowhere(ctx), out); err != nil {
					return err
				}
				return s.send(ctx, search.notFound(ctx), out)
			})
		})
		if err := group.Wait(); err != nil {
			return nil, nil, err
		}
	}
	if len(may) > 0 {
		held := writer.Reader()
		s := newStage(writer, slices.DeleteFunc(slices.Clone(may), func(o image.Object) bool { return held.Has(o.Digest) }), o)
		s.writer = writer
		if err := s.newSearch(ctx).run(ctx); err != nil {
			return nil, nil, err
		}
		missing = s.stillMissing()
	}
	return writer.Reader(), missing, nil
}

// Stream fetches the objects need into sink, in about their order and in
// memory that does not grow with them: at most a few MiB for each of the
// streams and workers. It keeps nothing itself, and resumes and fails over as
// Run does. Of the options it uses neither Trees nor Limit.
func Stream(ctx context.Context, servers []Fetcher, sink Sink, need []image.Object, o Options) error {
	s := newStage(sink, need, o)
	var here, carried, away []image.Object
	for _, n := range need {
		switch {
		case o.Held != nil && o.Held.Has(n.Digest):
			here = append(here, n)
		case o.Medium != nil && o.Medium.Has(n.Digest):
			carried = append(carried, n)
		default:
			away = append(away, n)
		}
	}
	return s.fetch(ctx, servers, func(ctx context.Context, out chan<- []object.Digest) error {
		both, until := errgroup.WithContext(ctx)
		var damaged []image.Object
		both.Go(func() (err error) {
			if damaged, err = s.copyHeld(until, o.Held, "", here); err != nil {
				return err
			}
			also, err := s.copyHeld(until, o.Medium, FromMedium, carried)
			damaged = append(damaged, also...)
			return err
		})
		both.Go(func() error { return s.send(until, away, out) })
		if err := both.Wait(); err != nil {
			return err
		}
		return s.send(ctx, damaged, out)
	})
}

// takeFromMedium takes everything that the medium has.
func (s *stage) takeFromMedium(ctx context.Context) error {
	if s.options.Medium == nil {
		return nil
	}
	var carried []image.Object
	for _, o := range s.need {
		if s.options.Medium.Has(o.Digest) {
			carried = append(carried, o)
		}
	}
	_, err := s.copyHeld(ctx, s.options.Medium, FromMedium, carried)
	return err
}

// copyHeld gives the sink what is held, and returns what was not whole any
// more: memory and sticks can fail too. Where source is not empty, the objects
// are reported as having come from there.
func (s *stage) copyHeld(ctx context.Context, held Holder, source Source, objects []image.Object) (damaged []image.Object, err error) {
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(s.options.Workers)
	for _, o := range objects {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			stored, err := held.OpenStored(ctx, o.Digest)
			if err == nil {
				err = s.sink.AppendStored(stored.Info, stored)
				err = errors.Join(err, stored.Close())
			}
			switch {
			case err == nil && source != "":
				s.have(o.Digest, source)
			case err == nil:
			case errors.Is(err, object.ErrDamaged), source != "" && errors.Is(err, unix.EIO):
				s.log("%v; asking the image server for it", err)
				mu.Lock()
				defer mu.Unlock()
				damaged = append(damaged, o)
			default:
				return s.refused(err)
			}
			return nil
		})
	}
	err = group.Wait()
	return damaged, err
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
	s := &stage{sink: sink, options: o, need: need, sent: map[object.Digest]bool{},
		missing: map[object.Digest]uint64{}, bySize: map[uint64][]object.Digest{}}
	for _, n := range need {
		if _, twice := s.missing[n.Digest]; !twice {
			s.missing[n.Digest] = n.Size
			s.bySize[n.Size] = append(s.bySize[n.Size], n.Digest)
		}
	}
	return s
}

// stage is one Run or Stream.
type stage struct {
	writer  *pack.Writer // for what is found in trees
	sink    Sink         // for what comes from a server
	jobs    chan job
	sent    map[object.Digest]bool // given to the streams
	options Options
	need    []image.Object // in path order of first use

	mu      sync.Mutex // also held while functions of options are called
	missing map[object.Digest]uint64
	bySize  map[uint64][]object.Digest // missing objects by their size
	asking  int                        // calls of Fetch
	waiting bool
	heard   time.Time // when something last came from the server, or was last asked for
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
	s.bySize[size] = slices.DeleteFunc(s.bySize[size], func(other object.Digest) bool { return other == d })
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

// wantedSize says how many objects of that size are still missing, which it is
// if it is one, and whether any of any size is.
func (s *stage) wantedSize(size uint64) (n int, one object.Digest, any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	these := s.bySize[size]
	if len(these) == 1 {
		one = these[0]
	}
	return len(these), one, len(s.missing) > 0
}

// stillMissing are the objects that have not come, in their order.
func (s *stage) stillMissing() []image.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	var missing []image.Object
	for _, n := range s.need {
		if _, is := s.missing[n.Digest]; is {
			missing = append(missing, n)
		}
	}
	return missing
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
