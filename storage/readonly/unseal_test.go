package readonly

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/keys"
	"github.com/firstlight/firstlight/storage/luks"
	"github.com/firstlight/firstlight/storage/tool"
	"github.com/firstlight/firstlight/storage/tpm2/tpm2test"
)

// realHeaders runs cryptsetup, but for the mapping itself, which wants the
// kernel's device mapper: there the key alone is tried.
type realHeaders struct {
	opened []string
	runs   []string
}

func (r *realHeaders) Run(ctx context.Context, c tool.Cmd) (tool.Output, error) {
	r.runs = append(r.runs, c.String())
	if c.Args[0] != "open" {
		return tool.Exec{}.Run(ctx, c)
	}
	name := c.Args[len(c.Args)-1]
	c.Args = append(slices.Clone(c.Args[:len(c.Args)-1]), "--test-passphrase")
	out, err := tool.Exec{}.Run(ctx, c)
	if err == nil {
		r.opened = append(r.opened, name)
		err = errors.New("there is no device mapper here")
	}
	return out, err
}

// TestUnseal opens an old volume with what a TPM releases for the token in its
// header; the TPM is asked once, and what it refuses stays closed.
func TestUnseal(t *testing.T) {
	path := image(t, 32<<20)
	l := storage.LUKS{UUID: "11111111-2222-3333-4444-555555555555", Mapping: "home", Slots: []storage.Slot{storage.SlotKeyFile, storage.SlotTPM2}, PCRs: []uint{7}}
	made, err := keys.New(storage.Layout{Disks: []storage.DiskLayout{{Name: "vda", Path: path, Partitions: []storage.Partition{
		{Number: 1, FileSystem: storage.Ext4, MountPoint: "/home", LUKS: &l},
	}}}}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := made.Wipe(); err != nil {
			t.Error(err)
		}
	}()
	chip := tpm2test.Measured(t)
	if err := made.Seal(t.Context(), chip); err != nil {
		t.Fatal(err)
	}
	slots := made.Slots("home")
	for _, c := range []tool.Cmd{
		luks.Format(path, l, "", slots[0].Key), luks.Add(path, 1, slots[1].Added, len(slots[0].Key)), luks.ImportToken(path, 1, slots[1].Token),
	} {
		if _, err := (tool.Exec{}).Run(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}

	d := disk(t, path)
	runner := &realHeaders{}
	asked := 0
	var warned []string
	a := &Attached{
		runner: runner, seen: map[string]bool{}, loops: map[string]*loop{}, asked: map[string]bool{},
		options: Options{
			Step: 10 * time.Second,
			Warn: func(text string) { warned = append(warned, text) },
			Unseal: func(ctx context.Context, token []byte) ([]byte, error) {
				asked++
				return keys.Unsealed(ctx, chip, token)
			},
		},
	}
	a.add(d.Path, 0, "/dev/", d.Contents)
	volume := slices.Clone(a.luks)
	a.decrypt(t.Context())
	if len(runner.opened) != 1 || asked != 1 {
		t.Errorf("opened %q, asked %d times: %q, %q", runner.opened, asked, runner.runs, warned)
	}
	for _, run := range runner.runs {
		if strings.HasPrefix(run, "cryptsetup open ") && !strings.Contains(run, "--readonly") {
			t.Errorf("not read-only: %s", run)
		}
	}
	a.luks = slices.Clone(volume)
	a.decrypt(t.Context())
	if asked != 1 {
		t.Errorf("the TPM was asked %d times", asked)
	}

	chip.Extend(t, 7, "Secure Boot is off")
	clear(a.asked)
	a.luks = volume
	runner.opened, warned = nil, nil
	if a.decrypt(t.Context()) || len(runner.opened) > 0 || len(warned) != 1 || !strings.Contains(warned[0], "PCR 7") {
		t.Errorf("after another start: opened %q, %q", runner.opened, warned)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	free(t, path)
}
