package apply

import (
	"io"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/luks"
)

// keys are the keys of a layout's volumes, each of its own randomness. They are
// outside of the Go heap, where the collector neither moves nor keeps them, and
// locked, so that they never reach a swap device.
type keys struct {
	memory []byte
	place  map[string]int // mapping → offset
}

// newKeys makes a key for each encrypted volume. Errors have code LUK-007.
func newKeys(l storage.Layout, random io.Reader) (*keys, error) {
	k := &keys{place: make(map[string]int)}
	for _, v := range l.Mounts() {
		if v.Partition.LUKS != nil {
			k.place[v.Partition.LUKS.Mapping] = len(k.place) * luks.KeySize
		}
	}
	if len(k.place) == 0 {
		return k, nil
	}
	size := len(k.place) * luks.KeySize
	var err error
	if k.memory, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return nil, storage.Errorf(storage.CodeKeyMemory, "memory for keys: %w", err)
	}
	if err := unix.Mlock(k.memory); err != nil {
		_ = unix.Munmap(k.memory) // nothing secret is in it yet
		return nil, storage.Errorf(storage.CodeKeyMemory, "locking the memory for keys: %w", err)
	}
	// A core dump is no place for them either; a kernel without the flag has no
	// such dumps to keep them out of.
	_ = unix.Madvise(k.memory, unix.MADV_DONTDUMP)
	if _, err := io.ReadFull(random, k.memory[:size]); err != nil {
		_ = k.wipe() // the error that matters is the other one
		return nil, storage.Errorf(storage.CodeKeyMemory, "making random keys: %w", err)
	}
	return k, nil
}

// of is the key of a mapping. It must not be kept.
func (k *keys) of(mapping string) []byte {
	at := k.place[mapping]
	return k.memory[at : at+luks.KeySize : at+luks.KeySize]
}

// wipe overwrites and frees the keys; it may be called twice, and on nil.
func (k *keys) wipe() error {
	if k == nil || k.memory == nil {
		return nil
	}
	clear(k.memory)
	err := unix.Munmap(k.memory)
	k.memory = nil
	if err != nil {
		return storage.Errorf(storage.CodeKeyMemory, "freeing the memory of keys: %w", err)
	}
	return nil
}
