package shell

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/firstlight/firstlight/installer/progress"
	pb "github.com/firstlight/firstlight/proto/installer/v1"
)

// session is a programme, what it wrote, and who works with it. It outlives
// connections.
type session struct {
	id      string // a secret: who has it, and the owner's certificate, comes back
	number  uint32
	owner   string
	argv    []string
	started time.Time
	gone    func()        // takes it out of the server's list
	ended   chan struct{} // closed once the programme is gone and its output read

	command  *exec.Cmd
	terminal *os.File   // the master side of the pty; nil where there are pipes
	outputs  []*os.File // what the programme's output is read from
	input    *os.File
	typed    chan []byte // accepted input on its way to the programme

	mu        sync.Mutex
	wake      chan struct{} // closed and replaced at every change
	output    []piece       // sorted by offset, without gaps
	written   uint64        // bytes written by the programme so far
	confirmed uint64        // bytes that have reached the owner
	accepted  uint64        // bytes of input that will reach the programme
	queued    int           // of these, bytes that have not yet
	inputDone bool          // no more input is accepted
	attached  *attachment
	detached  bool // on purpose: output that nobody takes is let go
	patience  *time.Timer
	observers int
	exit      *pb.Exit
	reason    string // why it was ended, where it was
}

// attachment is the owner's connection. Of two, the newer counts.
type attachment struct {
	cancel  context.CancelCauseFunc
	leaving bool // on purpose
}

// piece is some output in a row.
type piece struct {
	offset uint64
	data   []byte
	stderr bool
}

// start runs argv in a session of its own (setsid(2)).
func start(number uint32, owner string, argv []string, open *pb.Open) (*session, error) {
	s := &session{
		id: rand.Text(), number: number, owner: owner, argv: argv, started: time.Now(),
		ended: make(chan struct{}), typed: make(chan []byte, keepInput), wake: make(chan struct{}),
	}
	s.command = exec.Command(argv[0], argv[1:]...)
	s.command.Env = environment(open.GetTerm())
	if home, err := os.Stat("/root"); err == nil && home.IsDir() {
		s.command.Dir = "/root"
	}
	begin := s.startPiped
	if open.GetTerm() != "" {
		begin = func() error { return s.startTerminal(size(open.GetSize())) }
	}
	if err := begin(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", argv[0], err)
	}
	var reading sync.WaitGroup
	readers := make([]*reader, len(s.outputs))
	for n, file := range s.outputs {
		readers[n] = &reader{session: s, file: file, stderr: n == 1}
		reading.Go(readers[n].run)
	}
	go s.write()
	go s.wait(&reading, readers)
	return s, nil
}

// environment is what the programme starts with: nothing of the installer's
// own but where programmes are.
func environment(term string) []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=/root", "USER=root", "LOGNAME=root", "LANG=C.UTF-8"}
	if term != "" {
		env = append(env, "TERM="+term)
	}
	return env
}

func size(wanted *pb.Size) *pty.Winsize {
	if wanted.GetRows() == 0 || wanted.GetCols() == 0 || wanted.GetRows() > 1<<12 || wanted.GetCols() > 1<<12 {
		return &pty.Winsize{Rows: 24, Cols: 80}
	}
	return &pty.Winsize{Rows: uint16(wanted.GetRows()), Cols: uint16(wanted.GetCols())}
}

func (s *session) startTerminal(size *pty.Winsize) error {
	terminal, err := pty.StartWithSize(s.command, size)
	if err != nil {
		return err
	}
	s.terminal, s.input, s.outputs = terminal, terminal, []*os.File{terminal}
	return nil
}

func (s *session) startPiped() error {
	var far []*os.File
	defer func() {
		for _, file := range far {
			// The programme has its own, or never will.
			_ = file.Close()
		}
	}()
	in, input, err := os.Pipe()
	if err != nil {
		return err
	}
	far = append(far, in)
	s.input, s.command.Stdin = input, in
	for _, stream := range []func(*os.File){
		func(w *os.File) { s.command.Stdout = w }, func(w *os.File) { s.command.Stderr = w },
	} {
		read, write, err := os.Pipe()
		if err != nil {
			return errors.Join(err, s.closeFiles())
		}
		far = append(far, write)
		s.outputs = append(s.outputs, read)
		stream(write)
	}
	s.command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.command.Start(); err != nil {
		return errors.Join(err, s.closeFiles())
	}
	return nil
}

// closeFiles closes this side of terminal or pipes; it may be called twice.
func (s *session) closeFiles() error {
	var all []error
	for _, file := range append([]*os.File{s.input}, s.outputs...) {
		if err := file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// reader keeps what one output brings.
type reader struct {
	session *session
	file    *os.File
	stderr  bool
	reads   atomic.Uint64 // how often reading began
	waiting atomic.Bool   // for the programme, not for the operator
}

func (r *reader) run() {
	buffer := make([]byte, pieceSize)
	for {
		r.reads.Add(1)
		r.waiting.Store(true)
		n, err := r.file.Read(buffer)
		r.waiting.Store(false)
		if n > 0 {
			r.session.keep(slices.Clone(buffer[:n]), r.stderr)
		}
		if err != nil { // the end; of a terminal it is EIO (pty(7))
			return
		}
	}
}

// keep adds output. It waits while the owner lacks all that may be kept, so
// that a programme is held up rather than its output lost; unless the owner
// has detached.
func (s *session) keep(data []byte, stderr bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.detached && s.reason == "" && s.written+uint64(len(data))-s.confirmed > keepOutput {
		wake := s.wake
		s.mu.Unlock()
		<-wake
		s.mu.Lock()
	}
	s.output = append(s.output, piece{s.written, data, stderr})
	s.written += uint64(len(data))
	for len(s.output) > 0 && s.written-s.output[0].offset > keepOutput {
		over := s.written - s.output[0].offset - keepOutput
		if first := &s.output[0]; over < uint64(len(first.data)) {
			first.data, first.offset = first.data[over:], first.offset+over
			break
		}
		s.output = s.output[1:]
	}
	s.notify()
}

// notify wakes all who wait for a change; s.mu is held.
func (s *session) notify() {
	close(s.wake)
	s.wake = make(chan struct{})
}

// batch is what there is to tell about a session.
type batch struct {
	piece piece
	taken uint64 // input that has reached the programme
	exit  *pb.Exit
	more  <-chan struct{}
}

// since is the next output from offset on, or from where what is kept begins.
func (s *session) since(offset uint64) batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := batch{taken: s.accepted - uint64(s.queued), exit: s.exit, more: s.wake}
	at := sort.Search(len(s.output), func(n int) bool {
		return s.output[n].offset+uint64(len(s.output[n].data)) > offset
	})
	if at < len(s.output) {
		b.piece = s.output[at]
		if offset > b.piece.offset {
			skip := offset - b.piece.offset
			b.piece.offset, b.piece.data = offset, b.piece.data[skip:]
		}
	}
	return b
}

// begin is the first attachment.
func (s *session) begin(cancel context.CancelCauseFunc) opened {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attachLocked(cancel, 0, false)
}

// attachLocked gives the session to the connection of cancel, which has the
// output up to received; s.mu is held.
func (s *session) attachLocked(cancel context.CancelCauseFunc, received uint64, takenUp bool) opened {
	if s.attached != nil {
		s.attached.cancel(status.Error(codes.Aborted, "the session was taken over by another connection"))
	}
	if s.patience != nil {
		s.patience.Stop()
	}
	a := &attachment{cancel: cancel}
	s.attached, s.detached = a, false
	received = min(received, s.written)
	s.confirmed = max(s.confirmed, received)
	if len(s.output) > 0 {
		// What is kept no longer cannot be waited for.
		s.confirmed = max(s.confirmed, s.output[0].offset)
	}
	s.notify()
	return opened{
		frame:      &pb.Opened{Session: s.id, Number: s.number, Received: s.accepted, Owner: s.owner, TakenUp: takenUp},
		attachment: a, from: received,
	}
}

// comeBack attaches to the session of that id, ended or not.
func (s *session) comeBack(id, owner string, open *pb.Open, cancel context.CancelCauseFunc) (opened, bool) {
	if subtle.ConstantTimeCompare([]byte(id), []byte(s.id)) != 1 || owner != s.owner {
		return opened{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attachLocked(cancel, open.GetReceived(), true), true
}

// takeUp attaches to a shell that its owner has detached from.
func (s *session) takeUp(owner string, open *pb.Open, cancel context.CancelCauseFunc) (opened, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if owner != s.owner || !s.detached || s.exit != nil || s.terminal == nil {
		return opened{}, false
	}
	s.resize(open.GetSize())
	return s.attachLocked(cancel, 0, true), true
}

// leave takes a's connection away. Unless it was left on purpose the session
// ends when nobody has come back in time.
func (s *session) leave(a *attachment, patience time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attached != a {
		return
	}
	s.attached = nil
	if s.detached = a.leaving; s.detached && s.exit == nil {
		s.notify()
		return
	}
	s.patience = time.AfterFunc(patience, func() {
		s.end("the connection was lost, and nobody came back")
		s.forget()
	})
}

// forget takes the session, which has ended, out of the list.
func (s *session) forget() {
	s.mu.Lock()
	if s.patience != nil {
		s.patience.Stop()
	}
	s.mu.Unlock()
	s.gone()
}

func (s *session) watch(change int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.observers += change
}

// describe is the session for the page; alive is false once it has ended.
func (s *session) describe() (described progress.Session, alive bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	described = progress.Session{
		Number: s.number, Who: s.owner, Programme: s.argv[0], // its arguments may be secret, and the page is for everyone
		Since: s.started, State: progress.SessionAttached, Observers: s.observers,
	}
	switch {
	case s.attached != nil:
	case s.detached:
		described.State = progress.SessionDetached
	default:
		described.State = progress.SessionLost
	}
	return described, s.exit == nil
}

// how is how the session has ended.
func (s *session) how() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exit.GetReason() != "" {
		return s.exit.GetReason()
	}
	return fmt.Sprintf("exit status %d", s.exit.GetStatus())
}

// take does what a frame of the owner says.
func (s *session) take(a *attachment, frame *pb.ShellRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attached != a {
		return nil // another connection has the session
	}
	switch f := frame.GetFrame().(type) {
	case *pb.ShellRequest_Data:
		return s.accept(f.Data)
	case *pb.ShellRequest_Resize:
		s.resize(f.Resize)
	case *pb.ShellRequest_Signal:
		return s.signal(f.Signal.GetName())
	case *pb.ShellRequest_Eof:
		if !s.inputDone && s.terminal == nil {
			s.inputDone = true
			close(s.typed)
		}
	case *pb.ShellRequest_Detach:
		a.leaving = true
		return errGone
	case *pb.ShellRequest_Received:
		s.confirmed = max(s.confirmed, min(f.Received, s.written))
		s.notify()
	default:
		return status.Error(codes.InvalidArgument, "a frame that this installer does not know")
	}
	return nil
}

// accept takes input, less what it has already; s.mu is held.
func (s *session) accept(input *pb.Input) error {
	data := input.GetData()
	if input.GetOffset() > s.accepted {
		return status.Error(codes.DataLoss, "some input is missing")
	}
	if known := s.accepted - input.GetOffset(); known < uint64(len(data)) {
		data = data[known:]
	} else {
		return nil
	}
	if s.inputDone {
		s.accepted += uint64(len(data)) // the programme has gone, or asked for no more
		s.notify()
		return nil
	}
	if s.queued+len(data) > keepInput {
		return status.Errorf(codes.ResourceExhausted, "more than %d bytes of input wait for the programme", keepInput)
	}
	s.accepted += uint64(len(data))
	s.queued += len(data)
	s.typed <- data // there is room: each element has a byte at least
	return nil
}

// write brings input to the programme.
func (s *session) write() {
	var failed error
	for data := range s.typed {
		if failed == nil {
			_, failed = s.input.Write(data) // EPIPE: it reads no more, and the rest is let go
		}
		s.mu.Lock()
		s.queued -= len(data)
		s.notify()
		s.mu.Unlock()
	}
	if s.terminal == nil {
		// It sees the end; wait closes it again.
		_ = s.input.Close()
	}
}

func (s *session) resize(wanted *pb.Size) {
	if s.terminal != nil && s.exit == nil {
		// A terminal that keeps its size is no failure.
		_ = pty.Setsize(s.terminal, size(wanted))
	}
}

// signal sends a signal to the foreground processes; s.mu is held.
func (s *session) signal(name string) error {
	allowed := []string{"HUP", "INT", "QUIT", "TERM", "KILL", "USR1", "USR2", "TSTP", "CONT"}
	if !slices.Contains(allowed, name) {
		return status.Errorf(codes.InvalidArgument, "no signal %q (%s)", name, strings.Join(allowed, ", "))
	}
	if s.exit != nil {
		return nil
	}
	group := s.command.Process.Pid
	if s.terminal != nil {
		if foreground, err := unix.IoctlGetInt(int(s.terminal.Fd()), unix.TIOCGPGRP); err == nil && foreground > 1 {
			group = foreground
		}
	}
	// ESRCH: it has just gone.
	_ = unix.Kill(-group, unix.SignalNum("SIG"+name))
	return nil
}

// outputIdle is how long output may stay away, once the programme has ended,
// before what others of its session may still write is given up.
const outputIdle = 200 * time.Millisecond

// wait ends the session when the programme has ended and its output is read.
func (s *session) wait(reading *sync.WaitGroup, readers []*reader) {
	// The state says how it ended, and an error no more than that.
	_ = s.command.Wait()
	all := make(chan struct{})
	go func() {
		reading.Wait()
		close(all)
	}()
	tick := time.NewTicker(outputIdle)
	defer tick.Stop()
	for before := uint64(0); ; {
		select {
		case <-all:
		case <-tick.C:
			now, waiting := uint64(0), true
			for _, r := range readers {
				now += r.reads.Load()
				waiting = waiting && r.waiting.Load()
			}
			if !waiting || now != before {
				before = now
				continue
			}
		}
		break
	}
	// Readers that still wait are let go; nothing else is lost.
	_ = s.closeFiles()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.inputDone {
		s.inputDone = true
		close(s.typed)
	}
	s.exit = &pb.Exit{Status: int32(exitStatus(s.command.ProcessState)), Reason: s.reason}
	s.notify()
	close(s.ended)
	if s.attached == nil && s.detached {
		// Nobody waits for how it ended.
		go s.forget()
	}
}

// exitStatus is what a shell would say.
func exitStatus(state *os.ProcessState) int {
	if wait, ok := state.Sys().(syscall.WaitStatus); ok && wait.Signaled() {
		return 128 + int(wait.Signal())
	}
	return state.ExitCode()
}

// hangUpFor is how long processes have after SIGHUP.
const hangUpFor = 2 * time.Second

// end ends the programme and all that it started in its session, and waits
// until they are gone.
func (s *session) end(why string) {
	s.mu.Lock()
	if s.reason == "" && s.exit == nil {
		s.reason = why
	}
	s.notify()
	s.mu.Unlock()
	for _, signal := range []syscall.Signal{syscall.SIGHUP, syscall.SIGKILL} {
		pids := processesOf(s.command.Process.Pid)
		for _, pid := range pids {
			// ESRCH: it has just gone. SIGCONT: who is stopped hears nothing.
			_ = unix.Kill(pid, signal)
			_ = unix.Kill(pid, unix.SIGCONT)
		}
		until := time.Now().Add(hangUpFor)
		for time.Now().Before(until) && len(processesOf(s.command.Process.Pid)) > 0 {
			time.Sleep(20 * time.Millisecond)
		}
	}
	select {
	case <-s.ended:
	case <-time.After(hangUpFor): // a process that cannot be killed: it waits for hardware
	}
}

// processesOf lists the living processes of a session (proc(5), stat).
func processesOf(session int) []int {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil // a wrong pattern only
	}
	var found []int
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it has just gone
		}
		// The name, in parentheses, may hold anything.
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		if len(fields) < 4 || fields[0] == "Z" || fields[0] == "X" || fields[3] != strconv.Itoa(session) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			found = append(found, pid)
		}
	}
	return found
}
