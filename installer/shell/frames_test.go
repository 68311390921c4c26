package shell

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/firstlight/firstlight/installer/progress"
	pb "github.com/firstlight/firstlight/proto/installer/v1"
)

func frame(f interface{ Fatal(...any) }, frames ...*pb.ShellRequest) (joined []byte) {
	for _, one := range frames {
		data, err := proto.Marshal(one)
		if err != nil {
			f.Fatal(err)
		}
		joined = append(append(joined, byte(len(data)>>8), byte(len(data))), data...)
	}
	return joined
}

// FuzzShellFrames gives a session whatever frames somebody with an operator's
// certificate sends, well formed or not: it may refuse them, but it keeps to its
// bounds, and ends when it is told to.
func FuzzShellFrames(f *testing.F) {
	data := func(offset uint64, text string) *pb.ShellRequest {
		return &pb.ShellRequest{Frame: &pb.ShellRequest_Data{Data: &pb.Input{Offset: offset, Data: []byte(text)}}}
	}
	f.Add(true, frame(f, data(0, "hello\n"), data(6, "again\n"), data(3, "lo\nag"), data(1<<63, "gap")))
	f.Add(false, frame(f, &pb.ShellRequest{Frame: &pb.ShellRequest_Resize{Resize: &pb.Size{Rows: 1 << 31, Cols: 3}}}, &pb.ShellRequest{Frame: &pb.ShellRequest_Received{Received: 1 << 62}}))
	f.Add(true, frame(f, &pb.ShellRequest{Frame: &pb.ShellRequest_Signal{Signal: &pb.Signal{Name: "TERM"}}}, &pb.ShellRequest{Frame: &pb.ShellRequest_Eof{}}, &pb.ShellRequest{Frame: &pb.ShellRequest_Detach{}}))
	f.Add(false, frame(f, &pb.ShellRequest{Frame: &pb.ShellRequest_Open{Open: &pb.Open{Argv: []string{"/bin/false"}, Session: "x"}}}, &pb.ShellRequest{}))
	// Sessions are used for many streams: beginning and ending one takes long.
	type used struct {
		*session
		opened opened
		cancel context.CancelCauseFunc
		ctx    context.Context
		times  int
	}
	sessions := map[bool]*used{}
	f.Fuzz(func(t *testing.T, terminal bool, stream []byte) {
		u := sessions[terminal]
		if u == nil || u.times > 500 || u.ctx.Err() != nil || !alive(u.session) {
			if u != nil {
				go u.end("it has served")
			}
			open := &pb.Open{Argv: []string{"cat"}}
			if terminal {
				open.Term = "xterm"
			}
			u = new(used)
			u.ctx, u.cancel = context.WithCancelCause(context.Background())
			server := New(Options{Model: progress.New(time.Now), Patience: time.Second})
			var err error
			if u.session, u.opened, err = server.attach("operator", open, u.cancel); err != nil {
				t.Fatal(err)
			}
			sessions[terminal] = u
		}
		u.times++
		s, ctx, opened := u.session, u.ctx, u.opened
		for len(stream) >= 2 && ctx.Err() == nil {
			size := min(int(stream[0])<<8|int(stream[1]), len(stream)-2)
			request := new(pb.ShellRequest)
			if proto.Unmarshal(stream[2:2+size], request) == nil {
				if err := s.take(opened.attachment, request); err != nil {
					break
				}
			}
			stream = stream[2+size:]
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		kept := 0
		for _, p := range s.output {
			kept += len(p.data)
		}
		if s.queued > keepInput || kept > 2*keepOutput || s.confirmed > s.written {
			t.Errorf("%d bytes of input and %d of output are kept; %d of %d are confirmed", s.queued, kept, s.confirmed, s.written)
		}
	})
}

func alive(s *session) bool {
	_, alive := s.describe()
	s.mu.Lock()
	defer s.mu.Unlock()
	return alive && !s.inputDone && !s.detached
}
