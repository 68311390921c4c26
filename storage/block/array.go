package block

import (
	"os"
	"path/filepath"
)

// HoldResync keeps the kernel from making the copies of a new array equal while
// it is being filled: the disks have better things to do. The new OS begins
// with it (md(4), sync_action).
func HoldResync(node string) {
	// An array that is equal from the start has no such file, and one that does
	// it now is only slower.
	_ = os.WriteFile(filepath.Join("/sys/block", filepath.Base(node), "md/sync_action"), []byte("frozen"), 0)
}
