package shell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	pb "github.com/firstlight/firstlight/proto/installer/v1"
)

// Size is that of a terminal, in characters.
type Size struct{ Rows, Cols uint32 }

// Session says what to run, and where input and output are.
type Session struct {
	// Argv is the programme with its arguments; empty means the shell that
	// the installer names.
	Argv []string
	// Term is the name of the terminal; with it the session has one of its
	// own, of this Size, and Ctrl-\ detaches. Without it there are pipes.
	Term string
	Size Size
	// Resized brings new sizes; it may be nil.
	Resized <-chan Size
	// Observe looks at the session that somebody else has, the newest one.
	Observe bool
	// ReplayLog hands the installer's log so far to Log first, FollowLog also
	// each line that is added.
	ReplayLog, FollowLog bool
	Log                  func(line string)
	// In is read until it ends; it may still be read once Run has returned.
	In io.Reader
	// Out takes the output, Err what is marked as standard error.
	Out, Err io.Writer
	// Lost is told when the connection breaks, Back when it is there again.
	Lost func(why error)
	Back func()
	// Opened is told once whose session it is, and whether it was taken up.
	Opened func(number uint32, owner string, takenUp bool)
}

// Result is how a session has ended.
type Result struct {
	// Status is the exit status of the programme.
	Status int
	// Reason is why the installer ended it; empty where it ended by itself.
	Reason string
	// Detached says that it goes on without us.
	Detached bool
}

// reconnectFor is how long a broken connection is tried to be made again: the
// installer keeps a session for a minute.
const reconnectFor = time.Minute

// detachKey is Ctrl-\. Who observes can leave by interruptKey, Ctrl-C, too.
const (
	detachKey    = 0x1c
	interruptKey = 0x03
)

// keepInput is how much input may be on its way, in bytes.
const keepInput = 64 << 10

// Run runs a session until it ends, is detached from, or ctx ends, over as
// many connections as it takes. Input and output are neither lost nor doubled
// when one breaks. The error is an *Error, that of ctx, or one of writing.
func Run(ctx context.Context, options Options, session Session) (Result, error) {
	r := &run{session: session, wake: make(chan struct{}, 1)}
	r.taken.L = &r.mu
	if session.In != nil && (!session.Observe || session.Term != "") {
		go r.readInput(session.In)
	}
	client, err := Dial(ctx, options)
	if err != nil {
		return Result{}, err
	}
	for {
		result, err := r.attach(ctx, client)
		// Its end is what was waited for, or an error has been seen.
		_ = client.Close()
		var lost *Error
		if !errors.As(err, &lost) || lost.code != CodeLost {
			return result, err
		}
		if !r.opened() && len(session.Argv) > 0 {
			return result, err // it may have been started: once is enough
		}
		if session.Lost != nil {
			session.Lost(err)
		}
		again := options
		again.Wait, again.Waiting = reconnectFor, nil
		if client, err = Dial(ctx, again); err != nil {
			if e := new(Error); errors.As(err, &e) && e.code == CodeUnreachable {
				err = &Error{CodeLost, fmt.Sprintf("the connection broke and could not be made again in %s", reconnectFor), err}
				return Result{}, err
			}
			return Result{}, err
		}
	}
}

// run is what outlives a connection.
type run struct {
	session Session
	wake    chan struct{} // has an element when there may be something to send

	mu       sync.Mutex
	id       string // with which to come back
	told     bool   // Opened and ReplayLog are done
	received uint64 // bytes of output
	sent     []byte // input that the installer has not confirmed
	base     uint64 // what it has
	taken    sync.Cond
	ended    bool // no more input
	detach   bool
}

// opened says whether the installer has ever answered.
func (r *run) opened() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.told
}

func (r *run) notify() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// readInput reads until the end or the detach key.
func (r *run) readInput(in io.Reader) {
	buffer := make([]byte, 4<<10)
	for {
		n, err := in.Read(buffer)
		data := buffer[:n]
		r.mu.Lock()
		if at := bytes.IndexByte(data, detachKey); at >= 0 && r.session.Term != "" {
			data, r.detach = data[:at], true
		}
		if r.session.Observe {
			r.detach = r.detach || bytes.IndexByte(data, interruptKey) >= 0
			data = nil
		}
		for len(r.sent) > keepInput {
			r.taken.Wait()
		}
		r.sent = append(r.sent, data...)
		r.ended = r.ended || err != nil
		over := r.ended || r.detach
		r.mu.Unlock()
		r.notify()
		if over {
			return
		}
	}
}

// errExit ends a connection whose session has.
var errExit = errors.New("the session has ended")

// goodbye is how long the installer may take to hear that all has arrived.
const goodbye = 2 * time.Second

// attach is one connection's part of the session.
func (r *run) attach(outer context.Context, client *Client) (Result, error) {
	// What ends ctx is told to the installer, so the call outlives it.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(outer))
	defer cancel(nil)
	stream, err := client.rpc.Shell(ctx)
	if err != nil {
		return Result{}, client.callError(err)
	}
	s := r.session
	r.mu.Lock()
	open := &pb.Open{Term: s.Term, Argv: s.Argv, Observe: s.Observe, Session: r.id, Received: r.received,
		ReplayLog: s.ReplayLog && !r.told, FollowLog: s.FollowLog}
	r.mu.Unlock()
	if s.Term != "" {
		open.Size = &pb.Size{Rows: s.Size.Rows, Cols: s.Size.Cols}
	}
	// An error of Send is only that there is one; Recv says which.
	_ = stream.Send(&pb.ShellRequest{Frame: &pb.ShellRequest_Open{Open: open}})
	frame, err := stream.Recv()
	if err != nil {
		return Result{}, client.callError(err)
	}
	opened := frame.GetOpened()
	if opened == nil {
		return Result{}, &Error{code: CodeRefused, text: "the installer answered something else than that the session is open"}
	}
	r.begin(opened)
	sending, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sending)
		r.send(outer, over, cancel, stream, opened.GetReceived())
	}()
	result, err := r.receive(stream)
	close(over)
	<-sending
	if err == nil {
		// The installer forgets the session once it sees that we know.
		late := time.AfterFunc(goodbye, func() { cancel(errExit) })
		defer late.Stop()
		if stream.CloseSend() == nil {
			_, _ = stream.Recv() // the end, whichever it is
		}
	}
	switch {
	case err == nil:
		return result, nil
	case outer.Err() != nil:
		return Result{}, context.Cause(outer)
	}
	r.mu.Lock()
	detached := r.detach
	r.mu.Unlock()
	if detached {
		return Result{Detached: true}, nil
	}
	if errors.As(err, new(*writeError)) {
		return Result{}, err
	}
	if errors.Is(err, io.EOF) {
		return Result{}, &Error{code: CodeLost, text: "the installer has closed the connection"}
	}
	return Result{}, client.callError(err)
}

// begin takes up what the installer says of the session.
func (r *run) begin(opened *pb.Opened) {
	r.mu.Lock()
	first := !r.told
	r.told, r.id = true, opened.GetSession()
	if first {
		r.base = opened.GetReceived() // of a session that was taken up: what others typed
	} else {
		r.confirm(opened.GetReceived())
	}
	r.mu.Unlock()
	switch {
	case first && r.session.Opened != nil:
		r.session.Opened(opened.GetNumber(), opened.GetOwner(), opened.GetTakenUp())
	case !first && r.session.Back != nil:
		r.session.Back()
	}
}

// confirm forgets the input that has arrived; r.mu is held.
func (r *run) confirm(received uint64) {
	if received <= r.base {
		return
	}
	n := min(received-r.base, uint64(len(r.sent)))
	r.sent, r.base = r.sent[n:], received
	r.taken.Broadcast()
}

// send brings input, sizes and confirmations to the installer until over is closed.
func (r *run) send(outer context.Context, over <-chan struct{}, cancel context.CancelCauseFunc, stream grpc.BidiStreamingClient[pb.ShellRequest, pb.ShellResponse], next uint64) {
	var confirmed uint64
	var ended bool
	resized, stopped := r.session.Resized, outer.Done()
	for {
		r.mu.Lock()
		var frames []*pb.ShellRequest
		if r.received > confirmed {
			confirmed = r.received
			frames = append(frames, &pb.ShellRequest{Frame: &pb.ShellRequest_Received{Received: confirmed}})
		}
		next = max(next, r.base)
		if data := r.sent[next-r.base:]; len(data) > 0 && !r.session.Observe {
			data = bytes.Clone(data[:min(len(data), 16<<10)])
			frames = append(frames, &pb.ShellRequest{Frame: &pb.ShellRequest_Data{Data: &pb.Input{Offset: next, Data: data}}})
			next += uint64(len(data))
		}
		all := next == r.base+uint64(len(r.sent))
		if r.ended && all && !ended && !r.session.Observe {
			ended = true
			frames = append(frames, &pb.ShellRequest{Frame: &pb.ShellRequest_Eof{Eof: &pb.Eof{}}})
		}
		leave := r.detach && all
		r.mu.Unlock()
		if leave {
			frames = append(frames, &pb.ShellRequest{Frame: &pb.ShellRequest_Detach{Detach: &pb.Detach{}}})
		}
		for _, frame := range frames {
			if stream.Send(frame) != nil { // Recv says why
				return
			}
		}
		if leave {
			r.leave(over, cancel, stream)
			return
		}
		if !all {
			continue
		}
		select {
		case <-r.wake:
		case size := <-resized:
			r.session.Size = size
			if stream.Send(&pb.ShellRequest{Frame: &pb.ShellRequest_Resize{Resize: &pb.Size{Rows: size.Rows, Cols: size.Cols}}}) != nil {
				return
			}
		case <-stopped:
			stopped = nil
			last := &pb.ShellRequest{Frame: &pb.ShellRequest_Detach{Detach: &pb.Detach{}}}
			if r.session.Term == "" && !r.session.Observe {
				last = &pb.ShellRequest{Frame: &pb.ShellRequest_Signal{Signal: &pb.Signal{Name: "TERM"}}}
			}
			if stream.Send(last) == nil {
				r.leave(over, cancel, stream)
			}
			return
		case <-over:
			return
		}
	}
}

// leave closes our side and gives the installer some time to see it.
func (r *run) leave(over <-chan struct{}, cancel context.CancelCauseFunc, stream grpc.BidiStreamingClient[pb.ShellRequest, pb.ShellResponse]) {
	_ = stream.CloseSend() // Recv says what is wrong
	select {
	case <-over:
	case <-time.After(goodbye):
		cancel(errors.New("the installer did not say goodbye"))
	}
}

// writeError is that our own output cannot be written.
type writeError struct{ err error }

func (e *writeError) Error() string { return "writing the output: " + e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

// receive handles what the installer sends, until the session or the
// connection ends.
func (r *run) receive(stream grpc.BidiStreamingClient[pb.ShellRequest, pb.ShellResponse]) (Result, error) {
	for {
		frame, err := stream.Recv()
		if err != nil {
			return Result{}, err
		}
		switch f := frame.GetFrame().(type) {
		case *pb.ShellResponse_Data:
			if err := r.write(f.Data); err != nil {
				return Result{}, &writeError{err}
			}
		case *pb.ShellResponse_Log:
			if r.session.Log != nil {
				r.session.Log(logLine(f.Log))
			}
		case *pb.ShellResponse_Received:
			r.mu.Lock()
			r.confirm(f.Received)
			r.mu.Unlock()
			r.notify()
		case *pb.ShellResponse_Exit:
			return Result{Status: int(f.Exit.GetStatus()), Reason: f.Exit.GetReason()}, nil
		}
	}
}

// write writes output that has not been written before.
func (r *run) write(output *pb.Output) error {
	data, offset := output.GetData(), output.GetOffset()
	if known := r.received - min(r.received, offset); known < uint64(len(data)) {
		data = data[known:]
	} else {
		return nil
	}
	w := r.session.Out
	if output.GetStderr() {
		w = r.session.Err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	r.mu.Lock()
	r.received = offset + uint64(len(output.GetData()))
	r.mu.Unlock()
	r.notify()
	return nil
}
