package shell_test

import (
	"testing"

	"github.com/firstlight/firstlight/installer/shell"
	"github.com/firstlight/firstlight/proto/auth"
	pb "github.com/firstlight/firstlight/proto/installer/v1"
)

// TestEveryRPCHasAPolicy walks the descriptors, so that a new RPC without an
// entry, or an entry without an RPC, is found.
func TestEveryRPCHasAPolicy(t *testing.T) {
	policy := shell.Policy()
	methods := pb.File_proto_installer_v1_installer_proto.Services().Get(0).Methods()
	for n := range methods.Len() {
		name := "/" + string(methods.Get(n).Parent().FullName()) + "/" + string(methods.Get(n).Name())
		if role := policy[name]; role < auth.Viewer {
			t.Errorf("%s may be called by %s", name, role)
		}
		delete(policy, name)
	}
	for name := range policy {
		t.Errorf("%s is no RPC", name)
	}
}
