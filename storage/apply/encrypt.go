package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/keys"
	"github.com/firstlight/firstlight/storage/luks"
	"github.com/firstlight/firstlight/storage/mount"
)

// checkKeys makes sure that every key slot of the layout can be made.
func (r *run) checkKeys() error {
	for _, v := range r.layout.Encrypted() {
		l := v.Partition.LUKS
		slots := r.options.Keys.Slots(l.Mapping)
		if len(slots) == 0 || len(slots) != len(l.Slots) {
			return storage.Errorf(storage.CodeKeyMemory, "there are no keys for %s", v.MountPoint())
		}
		for n, slot := range slots {
			if slot.Kind != l.Slots[n] {
				return storage.Errorf(storage.CodeKeyMemory, "the keys of %s were made for another layout", v.MountPoint())
			}
			if slot.Kind == storage.SlotTPM2 && slot.Token == nil {
				return storage.Errorf(storage.CodeTPM, "the key of %s is not sealed to the TPM", v.MountPoint())
			}
		}
	}
	return nil
}

// encrypt makes a volume with all its key slots on node and maps it.
func (r *run) encrypt(ctx context.Context, node string, p storage.Partition) error {
	slots := r.applied.keys.Slots(p.LUKS.Mapping)
	first := slots[0].Key
	if err := r.tool(ctx, luks.Format(node, *p.LUKS, p.Name, first)); err != nil {
		return luks.Explain("encrypting "+node, err)
	}
	for _, slot := range slots {
		if slot.Number > 0 {
			if err := r.tool(ctx, luks.Add(node, slot.Number, slot.Added, len(first))); err != nil {
				return luks.Explain(fmt.Sprintf("adding the %s key to %s", slot.Kind, node), err)
			}
		}
		if slot.Token != nil {
			if err := r.tool(ctx, luks.ImportToken(node, slot.Number, slot.Token)); err != nil {
				return luks.Explain(fmt.Sprintf("adding the token of the %s key to %s", slot.Kind, node), err)
			}
		}
	}
	if err := r.tool(ctx, luks.Open(node, p.LUKS.Mapping, first)); err != nil {
		r.applied.closeHalfOpen(p.LUKS.Mapping)
		return luks.Explain("opening "+node, err)
	}
	r.applied.opened(p.LUKS.Mapping)
	return nil
}

// openKept maps a volume that is kept.
func (r *run) openKept(ctx context.Context, node string, p storage.Partition) error {
	key := r.applied.keys.Slots(p.LUKS.Mapping)[0].Key
	if err := r.tool(ctx, luks.Open(node, p.LUKS.Mapping, key)); err != nil {
		r.applied.closeHalfOpen(p.LUKS.Mapping)
		return luks.Explain("opening "+node, err)
	}
	r.applied.opened(p.LUKS.Mapping)
	return nil
}

// closeHalfOpen takes away what a killed cryptsetup may have left.
func (a *Applied) closeHalfOpen(mapping string) {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	// It fails when there is nothing, which is what is wanted.
	_, _ = a.seams.Runner.Run(ctx, luks.Close(mapping))
}

// Prove opens every key slot of every volume once, as the new system and its
// operators will: with the key files as they lie in the new root, with what the
// TPM releases for the tokens as they stand in the headers, with the recovery
// key. Of the error, with code LUK-012, each line is a slot that does not open.
// root is where the new root is mounted, tpm may be nil when no slot is the TPM's.
func (a *Applied) Prove(ctx context.Context, root string, tpm keys.TPM) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return errors.New("opening each key slot: the keys are wiped already")
	}
	volumes := a.layout.Encrypted()
	wrong := make([]error, len(volumes))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, v := range volumes {
		// The TPM does one thing at a time, and is asked here: cryptsetup runs
		// beside it.
		var tests []func() error
		for _, slot := range a.keys.Slots(v.Partition.LUKS.Mapping) {
			test, err := a.prove(ctx, v, slot, root, tpm)
			if err != nil {
				wrong[i] = errors.Join(wrong[i], fmt.Errorf("%s, %s: %w", v.MountPoint(), slot.Kind, err))
				continue
			}
			tests = append(tests, func() error {
				if err := test(); err != nil {
					return fmt.Errorf("%s, %s: %w", v.MountPoint(), slot.Kind, err)
				}
				return nil
			})
		}
		g.Go(func() error {
			for _, test := range tests {
				wrong[i] = errors.Join(wrong[i], test())
			}
			return nil
		})
	}
	_ = g.Wait() // the errors are in wrong: all slots are reported, not the first
	if err := errors.Join(wrong...); err != nil {
		return storage.Errorf(storage.CodeProof, "encrypted volumes that were made do not open: %w", err)
	}
	return nil
}

// prove prepares the opening of one slot; the TPM has done its part then.
func (a *Applied) prove(ctx context.Context, v storage.Volume, slot keys.Slot, root string, tpm keys.TPM) (open func() error, err error) {
	node := v.Disk.Node(v.Partition)
	cmd := luks.Test(node, slot.Number, slot.Key)
	wipe := func() {}
	switch slot.Kind {
	case storage.SlotKeyFile:
		// Not by its name: the programs may run in a root of their own.
		key, err := readKey(root, v.Partition.LUKS.KeyFile)
		if err != nil {
			return nil, storage.Errorf(storage.CodeIO, "reading the key file: %w", err)
		}
		cmd.Stdin, wipe = key, func() { clear(key) }
	case storage.SlotTPM2:
		if tpm == nil {
			return nil, storage.Errorf(storage.CodeTPM, "there is no TPM")
		}
		token, err := a.seams.Runner.Run(ctx, luks.ExportToken(node, slot.Number))
		if err != nil {
			return nil, luks.Explain("reading the token of "+node, err)
		}
		key, err := keys.Unsealed(ctx, tpm, bytes.TrimSpace(token.Stdout))
		if err != nil {
			return nil, err
		}
		cmd.Stdin, wipe = key, func() { clear(key) }
	}
	return func() error {
		defer wipe()
		_, err := a.seams.Runner.Run(ctx, cmd)
		return luks.Explain("opening "+node, err)
	}, nil
}

// readKey reads a key file of the new root; the caller wipes it.
func readKey(root, name string) ([]byte, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer r.Close() // only read from
	return r.ReadFile(strings.TrimPrefix(name, "/"))
}

// WriteKeys writes the key file of each volume that has one into the new root:
// directory mode 0700, files 0400, each whole and synced before it has its name.
func (a *Applied) WriteKeys(root *os.Root) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return errors.New("writing key files: the keys are wiped already")
	}
	for _, v := range a.layout.Encrypted() {
		l := v.Partition.LUKS
		for _, slot := range a.keys.Slots(l.Mapping) {
			if slot.Kind != storage.SlotKeyFile {
				continue
			}
			if err := writeKey(root, strings.TrimPrefix(l.KeyFile, "/"), slot.Key); err != nil {
				return storage.Errorf(storage.CodeIO, "writing the key file of %s: %w", v.MountPoint(), err)
			}
		}
	}
	return nil
}

// rescueKeys writes the key files of volumes that are kept, and crypttab, which
// names them, as soon as there is a new root. The old one had the only other
// copies: without this, what is kept would be lost with whatever ends the
// installation before WriteKeys. Whoever looks for them next does so without
// replaying a journal.
func (a *Applied) rescueKeys(mounted string) (err error) {
	var kept []storage.Volume
	for _, v := range a.layout.Encrypted() {
		if v.Partition.Kept {
			kept = append(kept, v)
		}
	}
	if len(kept) == 0 {
		return nil
	}
	root, err := os.OpenRoot(mounted)
	if err != nil {
		return storage.Errorf(storage.CodeIO, "writing the keys of what is kept: %w", err)
	}
	defer root.Close() // only used for names
	for _, v := range kept {
		l := v.Partition.LUKS
		if err := writeKey(root, strings.TrimPrefix(l.KeyFile, "/"), a.keys.Slots(l.Mapping)[0].Key); err != nil {
			return storage.Errorf(storage.CodeIO, "writing the key file of %s: %w", v.MountPoint(), err)
		}
	}
	f, err := root.Create("etc/crypttab")
	if err == nil {
		_, err = f.Write(a.layout.Crypttab())
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		return storage.Errorf(storage.CodeIO, "writing the crypttab of what is kept: %w", err)
	}
	return mount.Settle(mounted)
}

func writeKey(root *os.Root, name string, key []byte) (err error) {
	dir := filepath.Dir(name)
	if err := mkdirs(root, filepath.Dir(dir)); err != nil {
		return err
	}
	if err := root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := root.Chmod(dir, 0o700); err != nil {
		return err
	}
	if err := root.Chown(dir, 0, 0); err != nil {
		return err
	}
	temporary := name + ".new"
	if err := root.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return err
	}
	_, err = f.Write(key)
	if err = errors.Join(err, f.Chmod(0o400), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, root.Remove(temporary))
	}
	if err := root.Rename(temporary, name); err != nil {
		return err
	}
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
