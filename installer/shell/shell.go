// Package shell lets operators look around in the installer's environment and
// steer the installation: the service firstlight.installer.v1.Installer.
//
// It runs programmes for those whom the policy lets in, keeps what they wrote
// while a connection is away, and hands everything else to functions of the
// installer. It decides nothing about the installation.
package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/proto/auth"
	pb "github.com/firstlight/firstlight/proto/installer/v1"
)

// What one installer keeps at most.
const (
	maxSessions  = 16
	maxObservers = 32
	maxArguments = 64 << 10 // bytes of one command line
	keepOutput   = 256 << 10
	keepInput    = 256 << 10 // accepted and not yet taken by the programme
	pieceSize    = 16 << 10  // bytes of one frame
)

// openTimeout bounds the time until a stream has said what it is for.
const openTimeout = 20 * time.Second

// Options are what the service works with. Every function is needed and may
// be called from many goroutines. What Hold, Resume, Approve and Reboot return
// is NotNow or Unknown where it is the caller who must do something else; by
// is the name in the caller's certificate.
type Options struct {
	// Command is the shell with its arguments.
	Command []string
	// Model has the log; what operators do is logged there.
	Model *progress.Model
	// Patience is how long a session outlives a lost connection: a minute.
	Patience time.Duration

	Hold    func(before, by string) error
	Resume  func(by string) (released []string, err error)
	Approve func(hash, by string) error
	Reboot  func(by string) error
	// Plan is the plan as JSON and its hash; nil while there is none.
	Plan func() (document []byte, hash string)
}

// Server is the service. The zero Server is of no use; New makes one.
type Server struct {
	pb.UnimplementedInstallerServer
	options Options

	mu        sync.Mutex
	sessions  []*session
	numbered  uint32 // the last number that was given
	observers int
	closed    string        // why there are no sessions any more
	changed   chan struct{} // closed and replaced when Busy may answer otherwise
}

// New is the service, without a session.
func New(options Options) *Server {
	if options.Patience == 0 {
		options.Patience = time.Minute
	}
	return &Server{options: options, changed: make(chan struct{})}
}

// Register adds the service to r.
func (s *Server) Register(r grpc.ServiceRegistrar) { pb.RegisterInstallerServer(r, s) }

// Policy is the least role for each RPC. Shell is a viewer's because of
// Open.observe; everything else in it is refused to viewers by Shell itself.
func Policy() auth.Policy {
	return auth.Policy{
		pb.Installer_Shell_FullMethodName:   auth.Viewer,
		pb.Installer_Logs_FullMethodName:    auth.Viewer,
		pb.Installer_Plan_FullMethodName:    auth.Viewer,
		pb.Installer_Hold_FullMethodName:    auth.Operator,
		pb.Installer_Resume_FullMethodName:  auth.Operator,
		pb.Installer_Approve_FullMethodName: auth.Operator,
		pb.Installer_Reboot_FullMethodName:  auth.Admin,
	}
}

// NotNow is the error of a request that comes too early or too late.
func NotNow(format string, args ...any) error {
	return status.Errorf(codes.FailedPrecondition, format, args...)
}

// Unknown is the error of a request that names what there is not.
func Unknown(format string, args ...any) error {
	return status.Errorf(codes.NotFound, format, args...)
}

// Busy says whether somebody works in a session, and when that may have
// changed. Who has detached does not count; who has lost the connection does,
// as long as the session waits for them.
func (s *Server) Busy() (who []progress.Session, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range s.list() {
		if session.State != progress.SessionDetached {
			who = append(who, session)
		}
	}
	return who, s.changed
}

// Close ends every session, telling its operator why, and lets in no new one.
// It may be called twice.
func (s *Server) Close(why string) {
	s.mu.Lock()
	s.closed = why
	s.mu.Unlock()
	s.EndAll(why)
	// Their operators are told before the port closes, unless they are gone.
	for until := time.Now().Add(farewell); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		s.mu.Lock()
		left := len(s.sessions)
		s.mu.Unlock()
		if left == 0 {
			return
		}
	}
}

// farewell is how long a session's end may be on its way.
const farewell = 2 * time.Second

// EndAll ends every session, telling its operator why, and waits until their
// programmes are gone. New ones may be opened afterwards.
func (s *Server) EndAll(why string) {
	s.mu.Lock()
	sessions := slices.Clone(s.sessions)
	s.mu.Unlock()
	var ending sync.WaitGroup
	for _, session := range sessions {
		ending.Go(func() { session.end(why) })
	}
	ending.Wait()
}

// list describes the sessions; s.mu is held.
func (s *Server) list() []progress.Session {
	all := []progress.Session{}
	for _, session := range s.sessions {
		if described, alive := session.describe(); alive {
			all = append(all, described)
		}
	}
	return all
}

// publish shows the sessions on the page and wakes who waits for them.
func (s *Server) publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.options.Model.Sessions(s.list())
	close(s.changed)
	s.changed = make(chan struct{})
}

// log adds a line about what operators do.
func (s *Server) log(format string, args ...any) {
	phase := progress.Clock
	if current := s.options.Model.Snapshot().Current(); len(current) > 0 {
		phase = current[0].Phase
	}
	s.options.Model.Logf(phase, format, args...)
}

// Shell implements the RPC.
func (s *Server) Shell(stream grpc.BidiStreamingServer[pb.ShellRequest, pb.ShellResponse]) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	frames := make(chan *pb.ShellRequest)
	var left atomic.Bool // the operator has closed the stream
	go func() {
		for {
			frame, err := stream.Recv()
			if err != nil {
				left.Store(errors.Is(err, io.EOF))
				close(frames)
				return
			}
			select {
			case frames <- frame:
			case <-ctx.Done():
				return
			}
		}
	}()
	var open *pb.Open
	select {
	case frame := <-frames:
		open = frame.GetOpen()
	case <-time.After(openTimeout):
	case <-ctx.Done():
	}
	if open == nil {
		return status.Error(codes.InvalidArgument, "the first frame must say what to open")
	}
	caller := auth.PeerOf(ctx)
	if open.GetObserve() {
		return s.observe(ctx, stream, frames, open)
	}
	if caller.Role < auth.Operator {
		return status.Errorf(codes.PermissionDenied, "role %s is needed for a shell, and %q has the role %s, which may only observe", auth.Operator, caller.Name, caller.Role)
	}
	session, opened, err := s.attach(caller.Name, open, cancel)
	if err != nil {
		return err
	}
	s.publish()
	defer s.publish()
	line := &connection{stream: stream, session: session, owner: opened.attachment}
	defer session.leave(opened.attachment, s.options.Patience)
	go func() {
		for frame := range frames {
			if err := session.take(opened.attachment, frame); err != nil {
				cancel(err)
				return
			}
		}
		if left.Load() {
			cancel(errGone)
		}
		cancel(errLost)
	}()
	if err := stream.Send(&pb.ShellResponse{Frame: &pb.ShellResponse_Opened{Opened: opened.frame}}); err != nil {
		return err
	}
	return line.run(ctx, s.options.Model, open, opened.from)
}

// errGone ends a stream whose operator has closed it, errLost one that was cut.
var (
	errGone = errors.New("the operator has gone")
	errLost = errors.New("the connection was lost")
)

// opened is a session's answer to Open.
type opened struct {
	frame      *pb.Opened
	attachment *attachment
	from       uint64 // where its output goes on
}

// attach finds or starts the session that open asks for.
func (s *Server) attach(owner string, open *pb.Open, cancel context.CancelCauseFunc) (*session, opened, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != "" {
		return nil, opened{}, NotNow("%s", s.closed)
	}
	if id := open.GetSession(); id != "" {
		for _, session := range s.sessions {
			if answer, ok := session.comeBack(id, owner, open, cancel); ok {
				return session, answer, nil
			}
		}
		return nil, opened{}, Unknown("there is no such session any more")
	}
	if open.GetTerm() != "" && len(open.GetArgv()) == 0 {
		for _, session := range slices.Backward(s.sessions) {
			if answer, ok := session.takeUp(owner, open, cancel); ok {
				s.log("%s has come back to shell %d", owner, session.number)
				return session, answer, nil
			}
		}
	}
	if len(s.sessions) >= maxSessions {
		return nil, opened{}, status.Errorf(codes.ResourceExhausted, "there are %d sessions already; exit one of them", maxSessions)
	}
	argv := open.GetArgv()
	if len(argv) == 0 {
		argv = s.options.Command
	}
	bytes := 0
	for _, argument := range argv {
		bytes += len(argument) + 1
	}
	if bytes > maxArguments {
		return nil, opened{}, status.Errorf(codes.InvalidArgument, "the command line has %d bytes, and %d are the most", bytes, maxArguments)
	}
	s.numbered++
	began, err := start(s.numbered, owner, argv, open)
	if err != nil {
		return nil, opened{}, status.Errorf(codes.NotFound, "%v", err)
	}
	s.sessions = append(s.sessions, began)
	began.gone = func() {
		s.mu.Lock()
		s.sessions = slices.DeleteFunc(s.sessions, func(other *session) bool { return other == began })
		s.mu.Unlock()
		s.publish()
	}
	s.log("%s has opened shell %d: %s", owner, began.number, argv[0])
	go func() {
		<-began.ended
		s.log("shell %d of %s has ended: %s", began.number, owner, began.how())
		s.publish()
	}()
	return began, began.begin(cancel), nil
}

// observe sends what a session writes, from what is kept of it on.
func (s *Server) observe(ctx context.Context, stream grpc.BidiStreamingServer[pb.ShellRequest, pb.ShellResponse], frames <-chan *pb.ShellRequest, open *pb.Open) error {
	session, err := s.beginObserving(open.GetSession())
	if err != nil {
		return err
	}
	defer func() {
		s.mu.Lock()
		s.observers--
		s.mu.Unlock()
		session.watch(-1)
		s.publish()
	}()
	session.watch(1)
	s.publish()
	s.log("%s observes shell %d of %s", auth.PeerOf(ctx).Name, session.number, session.owner)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		for frame := range frames {
			if frame.GetDetach() != nil {
				break
			}
			if frame.GetReceived() == 0 && frame.GetResize() == nil {
				cancel(status.Error(codes.PermissionDenied, "who observes changes nothing"))
				return
			}
		}
		cancel(errGone)
	}()
	if err := stream.Send(&pb.ShellResponse{Frame: &pb.ShellResponse_Opened{Opened: &pb.Opened{Number: session.number, Owner: session.owner}}}); err != nil {
		return err
	}
	line := &connection{stream: stream, session: session}
	return line.run(ctx, s.options.Model, open, open.GetReceived())
}

func (s *Server) beginObserving(number string) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.observers >= maxObservers {
		return nil, status.Errorf(codes.ResourceExhausted, "there are %d observers already", maxObservers)
	}
	for _, session := range slices.Backward(s.sessions) {
		if _, alive := session.describe(); alive && (number == "" || number == fmt.Sprint(session.number)) {
			s.observers++
			return session, nil
		}
	}
	return nil, Unknown("there is no session to observe")
}

// Hold implements the RPC.
func (s *Server) Hold(ctx context.Context, request *pb.HoldRequest) (*pb.HoldResponse, error) {
	if err := s.options.Hold(request.GetBefore(), auth.PeerOf(ctx).Name); err != nil {
		return nil, err
	}
	return &pb.HoldResponse{}, nil
}

// Resume implements the RPC.
func (s *Server) Resume(ctx context.Context, _ *pb.ResumeRequest) (*pb.ResumeResponse, error) {
	released, err := s.options.Resume(auth.PeerOf(ctx).Name)
	if err != nil {
		return nil, err
	}
	return &pb.ResumeResponse{Released: released}, nil
}

// Approve implements the RPC.
func (s *Server) Approve(ctx context.Context, request *pb.ApproveRequest) (*pb.ApproveResponse, error) {
	if err := s.options.Approve(request.GetPlan(), auth.PeerOf(ctx).Name); err != nil {
		return nil, err
	}
	return &pb.ApproveResponse{}, nil
}

// Reboot implements the RPC.
func (s *Server) Reboot(ctx context.Context, _ *pb.RebootRequest) (*pb.RebootResponse, error) {
	if err := s.options.Reboot(auth.PeerOf(ctx).Name); err != nil {
		return nil, err
	}
	return &pb.RebootResponse{}, nil
}

// Plan implements the RPC.
func (s *Server) Plan(context.Context, *pb.PlanRequest) (*pb.PlanResponse, error) {
	document, hash := s.options.Plan()
	if document == nil {
		return nil, NotNow("there is no plan yet")
	}
	return &pb.PlanResponse{Json: document, Hash: hash}, nil
}

// Logs implements the RPC.
func (s *Server) Logs(request *pb.LogsRequest, stream grpc.ServerStreamingServer[pb.LogLine]) error {
	past, follow, stop := s.options.Model.Lines()
	defer stop()
	for _, line := range past {
		if err := stream.Send(logLine(line)); err != nil {
			return err
		}
	}
	for request.GetFollow() {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case line, ok := <-follow:
			if !ok {
				return status.Error(codes.Aborted, "the log is written faster than this connection takes it; ask again")
			}
			if err := stream.Send(logLine(line)); err != nil {
				return err
			}
		}
	}
	return nil
}

func logLine(line progress.Line) *pb.LogLine {
	return &pb.LogLine{Seconds: line.Seconds, Phase: string(line.Phase), Text: line.Text}
}

// connection is one stream that a session's output goes to: its owner's, or
// that of an observer.
type connection struct {
	stream  grpc.BidiStreamingServer[pb.ShellRequest, pb.ShellResponse]
	session *session
	owner   *attachment // nil for an observer
}

// run sends until the session, the stream or the operator's patience ends.
func (c *connection) run(ctx context.Context, model *progress.Model, open *pb.Open, from uint64) error {
	past, follow, stop := model.Lines()
	defer stop()
	if open.GetReplayLog() {
		for _, line := range past {
			if err := c.stream.Send(&pb.ShellResponse{Frame: &pb.ShellResponse_Log{Log: logLine(line)}}); err != nil {
				return err
			}
		}
	}
	if !open.GetFollowLog() {
		stop()
		follow = nil
	}
	next, acknowledged := from, uint64(0)
	for {
		batch := c.session.since(next)
		if c.owner != nil && batch.taken > acknowledged {
			acknowledged = batch.taken
			if err := c.stream.Send(&pb.ShellResponse{Frame: &pb.ShellResponse_Received{Received: acknowledged}}); err != nil {
				return err
			}
		}
		if piece := batch.piece; len(piece.data) > 0 {
			if err := c.stream.Send(&pb.ShellResponse{Frame: &pb.ShellResponse_Data{Data: &pb.Output{Offset: piece.offset, Data: piece.data, Stderr: piece.stderr}}}); err != nil {
				return err
			}
			next = piece.offset + uint64(len(piece.data))
			continue
		}
		if batch.exit != nil {
			if err := c.stream.Send(&pb.ShellResponse{Frame: &pb.ShellResponse_Exit{Exit: batch.exit}}); err != nil {
				return err
			}
			if c.owner == nil {
				return nil
			}
			// The operator closes the stream once it has arrived; then nobody
			// will ask for it again.
			<-ctx.Done()
			if errors.Is(context.Cause(ctx), errGone) {
				c.session.forget()
			}
			return nil
		}
		select {
		case <-batch.more:
		case line, ok := <-follow:
			if !ok {
				follow = nil // too slow; the log is still on the page
				continue
			}
			if err := c.stream.Send(&pb.ShellResponse{Frame: &pb.ShellResponse_Log{Log: logLine(line)}}); err != nil {
				return err
			}
		case <-ctx.Done():
			if cause := context.Cause(ctx); status.Code(cause) != codes.Unknown {
				return cause
			}
			return nil
		}
	}
}
