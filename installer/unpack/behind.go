package unpack

import (
	"errors"
	"sync"
)

// behindBytes is how much is written before it is sent on its way to the disks:
// the kernel by itself would begin late, and the end would wait for the disk
// with idle processors.
const behindBytes = 128 << 20

// writeBehind syncs file-systems while files are written to them.
type writeBehind struct {
	sync func(mountPoint string) error
	wake chan struct{}
	done chan struct{}

	mu    sync.Mutex
	there []string // mount points of those that are mounted
	bytes uint64   // written since the last time
	err   error
}

// newWriteBehind begins; end must be called.
func newWriteBehind(sync func(mountPoint string) error) *writeBehind {
	b := &writeBehind{sync: sync, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		defer close(b.done)
		for range b.wake {
			b.mu.Lock()
			there := b.there
			b.mu.Unlock()
			for _, mountPoint := range there {
				if err := sync(mountPoint); err != nil {
					b.mu.Lock()
					b.err = errors.Join(b.err, err)
					b.mu.Unlock()
				}
			}
		}
	}()
	return b
}

// mounted says that files are written to one more file-system from now on.
func (b *writeBehind) mounted(mountPoint string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.there = append(b.there[:len(b.there):len(b.there)], mountPoint)
}

// wrote counts, and syncs beside the caller when it is time.
func (b *writeBehind) wrote(bytes uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bytes += bytes; b.bytes < behindBytes {
		return
	}
	select {
	case b.wake <- struct{}{}:
		b.bytes = 0
	default: // it is at it, and has been told already
	}
}

// end waits for what is under way. An error is one of the disk's, which a later
// sync may not tell again (syncfs(2)).
func (b *writeBehind) end() error {
	close(b.wake)
	<-b.done
	return b.err
}
