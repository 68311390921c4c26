package readonly

import (
	"os"
	"testing"

	"github.com/firstlight/firstlight/hack/mountspace"
)

// The disks of these tests are mounted where no other test's namespace copies the mounts.
func TestMain(m *testing.M) { os.Exit(mountspace.Run(m.Run)) }
