// Package keys makes the keys of a layout's encrypted volumes and keeps them
// until they are written: one for each key slot, each of its own randomness, and
// the machine's recovery key.
//
// They lie outside of the Go heap, where the collector neither moves nor keeps
// them, in memory that is locked, so that they never reach a swap device, and
// left out of core dumps; Wipe overwrites them. It never writes one anywhere.
package keys

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/luks"
	"github.com/firstlight/firstlight/storage/recovery"
	"github.com/firstlight/firstlight/storage/tpm2"
)

// AnySlot is the number of a slot that is not known: that of a volume that is
// kept.
const AnySlot = -1

// Slot is a key slot of a volume.
type Slot struct {
	Number int
	Kind   storage.Slot
	// Key is what opens it. It must not be kept, nor anything made of it.
	Key []byte
	// Added is the key of slot 0 and then Key, as cryptsetup wants them for adding
	// the slot; nil for slot 0 itself.
	Added []byte
	// Token is the LUKS2 token that says how the slot is opened, as JSON; nil for
	// none. Nothing in it is secret.
	Token []byte
}

// TPM seals secrets. [tpm2.TPM] is the real one.
type TPM interface {
	Seal(ctx context.Context, secret []byte, pcrs []uint) (tpm2.Token, error)
	Unseal(ctx context.Context, token tpm2.Token) ([]byte, error)
}

// Keys are the keys of one installation. Several goroutines may read them at
// once, but not while Seal or Wipe run.
type Keys struct {
	memory   []byte
	volumes  map[string][]Slot // by mapping
	pcrs     map[string][]uint
	recovery []byte          // in memory; nil for none
	scratch  []byte          // in memory
	kept     map[string]bool // mappings of volumes that are kept
	adopted  [][]byte        // memory of its own for each of their keys
}

// New makes the keys for the volumes of a layout, but for those that are kept:
// theirs come by Adopt. Errors have code LUK-007.
func New(l storage.Layout, random io.Reader) (*Keys, error) {
	k := &Keys{volumes: make(map[string][]Slot), pcrs: make(map[string][]uint), kept: make(map[string]bool)}
	encrypted := l.Encrypted()
	for _, v := range encrypted {
		if v.Partition.Kept {
			k.kept[v.Partition.LUKS.Mapping] = true
		}
	}
	encrypted = slices.DeleteFunc(encrypted, func(v storage.Volume) bool { return v.Partition.Kept })
	if len(encrypted) == 0 {
		return k, nil
	}
	if err := k.lock(sizeOf(encrypted)); err != nil {
		return nil, err
	}
	if err := k.fill(encrypted, random); err != nil {
		_ = k.Wipe() // the error that matters is the other one
		return nil, storage.Errorf(storage.CodeKeyMemory, "making random keys: %w", err)
	}
	return k, nil
}

// length of the key of a slot in bytes.
func length(kind storage.Slot) int {
	switch kind {
	case storage.SlotTPM2:
		return base64.StdEncoding.EncodedLen(tpm2.SecretSize)
	case storage.SlotRecovery:
		return recovery.KeyLength
	}
	return luks.KeySize
}

// scratchSize has room for the randomness of any one key.
const scratchSize = max(tpm2.SecretSize, recovery.Entropy)

func sizeOf(encrypted []storage.Volume) int {
	size := scratchSize + recovery.KeyLength
	for _, v := range encrypted {
		slots := v.Partition.LUKS.Slots
		for _, kind := range slots {
			size += length(slots[0]) + length(kind)
		}
	}
	return size
}

// Adopt takes over the key of a volume that is kept, and wipes what it was given.
// Errors have code LUK-007.
func (k *Keys) Adopt(mapping string, key []byte) error {
	defer clear(key)
	if !k.kept[mapping] || len(key) == 0 {
		return storage.Errorf(storage.CodeKeyMemory, "%s is no volume that is kept, or its key is empty", mapping)
	}
	memory, err := lock(len(key))
	if err != nil {
		return err
	}
	copy(memory, key)
	k.adopted = append(k.adopted, memory)
	k.volumes[mapping] = []Slot{{Number: AnySlot, Kind: storage.SlotKeyFile, Key: memory}}
	return nil
}

// lock gets the memory for the keys that are made.
func (k *Keys) lock(size int) (err error) {
	k.memory, err = lock(size)
	return err
}

// lock gets memory that is not swapped.
func lock(size int) (memory []byte, err error) {
	if memory, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return nil, storage.Errorf(storage.CodeKeyMemory, "memory for keys: %w", err)
	}
	if err := unix.Mlock(memory); err != nil {
		_ = unix.Munmap(memory) // nothing secret is in it yet
		return nil, storage.Errorf(storage.CodeKeyMemory, "locking the memory for keys: %w", err)
	}
	// A core dump is no place for them either; a kernel without the flag has no
	// such dumps to keep them out of.
	_ = unix.Madvise(memory, unix.MADV_DONTDUMP)
	return memory, nil
}

// fill makes every key.
func (k *Keys) fill(encrypted []storage.Volume, random io.Reader) error {
	at := 0
	take := func(n int) []byte {
		at += n
		return k.memory[at-n : at : at]
	}
	k.scratch = take(scratchSize)
	recoveryKey := take(recovery.KeyLength)
	for _, v := range encrypted {
		l := v.Partition.LUKS
		var slots []Slot
		for n, kind := range l.Slots {
			slot := Slot{Number: n, Kind: kind}
			if n == 0 {
				slot.Key = take(length(kind))
			} else {
				first := slots[0].Key
				slot.Added = take(len(first) + length(kind))
				copy(slot.Added, first)
				slot.Key = slot.Added[len(first):]
			}
			switch kind {
			case storage.SlotTPM2:
				if err := k.random(random, tpm2.SecretSize); err != nil {
					return err
				}
				base64.StdEncoding.Encode(slot.Key, k.scratch[:tpm2.SecretSize])
			case storage.SlotRecovery:
				if k.recovery == nil { // one for all volumes
					if err := k.random(random, recovery.Entropy); err != nil {
						return err
					}
					recovery.Write(recoveryKey, k.scratch[:recovery.Entropy])
					k.recovery = recoveryKey
				}
				copy(slot.Key, k.recovery)
				slot.Token = recovery.Token(n)
			default:
				if _, err := io.ReadFull(random, slot.Key); err != nil {
					return err
				}
			}
			slots = append(slots, slot)
		}
		k.volumes[l.Mapping], k.pcrs[l.Mapping] = slots, l.PCRs
	}
	clear(k.scratch)
	return nil
}

func (k *Keys) random(from io.Reader, n int) error {
	_, err := io.ReadFull(from, k.scratch[:n])
	return err
}

// Slots are the key slots of a volume, by the name of its mapping, in their
// order; none after Wipe, and of nil.
func (k *Keys) Slots(mapping string) []Slot {
	if k == nil {
		return nil
	}
	return slices.Clone(k.volumes[mapping])
}

// Recovery is the machine's recovery key as it is typed; nil when there is none.
// It must not be kept.
func (k *Keys) Recovery() []byte {
	if k == nil {
		return nil
	}
	return k.recovery
}

// Seal has the TPM keep the keys of its slots, and give each of them back once:
// what the TPM cannot release must not be what a volume depends on. It must be
// called before the volumes are made if one of them has such a slot.
func (k *Keys) Seal(ctx context.Context, tpm TPM) error {
	for mapping, slots := range k.volumes {
		for n := range slots {
			if slots[n].Kind != storage.SlotTPM2 {
				continue
			}
			if err := k.seal(ctx, tpm, &slots[n], k.pcrs[mapping]); err != nil {
				return fmt.Errorf("the key of %s: %w", mapping, err)
			}
		}
	}
	return nil
}

func (k *Keys) seal(ctx context.Context, tpm TPM, slot *Slot, pcrs []uint) error {
	defer clear(k.scratch)
	n, err := base64.StdEncoding.Decode(k.scratch, slot.Key)
	if err != nil {
		return storage.Errorf(storage.CodeKeyMemory, "a key is damaged in memory: %w", err)
	}
	token, err := tpm.Seal(ctx, k.scratch[:n], pcrs)
	if err != nil {
		return err
	}
	token.KeySlots = []int{slot.Number}
	if slot.Token, err = json.Marshal(token); err != nil {
		return storage.Errorf(storage.CodeToken, "writing the token of a sealed key: %w", err)
	}
	released, err := tpm.Unseal(ctx, token)
	defer clear(released)
	if err != nil {
		return err
	}
	if !bytes.Equal(released, k.scratch[:n]) {
		return storage.Errorf(storage.CodeTPM, "the TPM releases another key than it was given")
	}
	return nil
}

// Unsealed makes of a token's JSON, as it stands in a volume's header, the key of
// its slot: what the TPM releases, in base64. The caller wipes it.
func Unsealed(ctx context.Context, tpm TPM, token []byte) (key []byte, err error) {
	var read tpm2.Token
	if err := json.Unmarshal(token, &read); err != nil {
		return nil, err
	}
	secret, err := tpm.Unseal(ctx, read)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	key = make([]byte, base64.StdEncoding.EncodedLen(len(secret)))
	base64.StdEncoding.Encode(key, secret)
	return key, nil
}

// String names the keys, and shows none.
func (k *Keys) String() string { return strconv.Itoa(len(k.volumes)) + " volumes' keys" }

// Wipe overwrites and frees the keys; it may be called twice, and on nil.
func (k *Keys) Wipe() error {
	if k == nil || k.memory == nil && k.adopted == nil {
		return nil
	}
	var err error
	for _, memory := range append(k.adopted, k.memory) {
		if memory == nil {
			continue
		}
		clear(memory)
		err = errors.Join(err, unix.Munmap(memory))
	}
	k.adopted = nil
	k.memory, k.scratch, k.recovery = nil, nil, nil
	clear(k.volumes)
	if err != nil {
		return storage.Errorf(storage.CodeKeyMemory, "freeing the memory of keys: %w", err)
	}
	return nil
}
