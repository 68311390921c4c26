package keys

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/recovery"
	"github.com/firstlight/firstlight/storage/tpm2"
	"github.com/firstlight/firstlight/storage/tpm2/tpm2test"
)

func layout(slots map[string][]storage.Slot) storage.Layout {
	d := storage.DiskLayout{Name: "vda", Path: "/dev/vda"}
	for mapping, kinds := range slots {
		d.Partitions = append(d.Partitions, storage.Partition{
			Number: len(d.Partitions) + 1, MountPoint: "/" + mapping, FileSystem: storage.Ext4,
			LUKS: &storage.LUKS{Mapping: mapping, Slots: kinds, PCRs: []uint{7}},
		})
	}
	return storage.Layout{Disks: []storage.DiskLayout{d}}
}

func everything() storage.Layout {
	return layout(map[string][]storage.Slot{
		"root": {storage.SlotTPM2, storage.SlotRecovery},
		"home": {storage.SlotKeyFile, storage.SlotTPM2, storage.SlotRecovery},
		"data": {storage.SlotKeyFile},
	})
}

func code(err error) string {
	var coded *storage.Error
	if !errors.As(err, &coded) {
		return ""
	}
	return coded.Code()
}

func TestNew(t *testing.T) {
	k, err := New(everything(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]string)
	for _, mapping := range []string{"root", "home", "data"} {
		slots := k.Slots(mapping)
		for n, s := range slots {
			if s.Number != n {
				t.Errorf("%s: slot %d has the number %d", mapping, n, s.Number)
			}
			if n > 0 && !bytes.Equal(s.Added, append(bytes.Clone(slots[0].Key), s.Key...)) || n == 0 && s.Added != nil {
				t.Errorf("%s, slot %d: not the first key and the further one", mapping, n)
			}
			if s.Kind == storage.SlotRecovery {
				if !bytes.Equal(s.Key, k.Recovery()) || len(s.Token) == 0 {
					t.Errorf("%s: not the machine's recovery key", mapping)
				}
				continue
			}
			if other := seen[string(s.Key)]; other != "" || len(s.Key) < 44 || bytes.Count(s.Key, []byte{0}) > 8 {
				t.Errorf("%s, slot %d: no random key of its own (%s)", mapping, n, other)
			}
			seen[string(s.Key)] = mapping
			if s.Kind == storage.SlotTPM2 {
				if raw, err := base64.StdEncoding.DecodeString(string(s.Key)); err != nil || len(raw) != tpm2.SecretSize {
					t.Errorf("%s: %v", mapping, err)
				}
			}
		}
	}
	if got := string(k.Recovery()); len(got) != 71 || strings.Trim(got, "cbdefghijklnrtuv-") != "" {
		t.Errorf("recovery key %q", got)
	}
	if text := fmt.Sprintf("%v %s %+v", k, k, k); strings.Contains(text, string(k.Recovery()[:8])) || text != strings.Repeat("3 volumes' keys ", 3)[:len(text)] {
		t.Errorf("printed as %q", text)
	}
	if bytes.Count(k.scratch, []byte{0}) != len(k.scratch) {
		t.Error("randomness is left over")
	}
	if err := errors.Join(k.Wipe(), k.Wipe()); err != nil {
		t.Error(err)
	}
	if k.Slots("root") != nil || k.Recovery() != nil {
		t.Error("there are keys after they were wiped")
	}
	var none *Keys
	if none.Slots("x") != nil || none.Recovery() != nil || none.Wipe() != nil {
		t.Error("nil has keys")
	}
}

// TestLocked looks in the kernel's own account of the memory: locked, and left out
// of core dumps. The bytes are gone when it is given back.
func TestLocked(t *testing.T) {
	k, err := New(everything(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	at := uintptr(unsafe.Pointer(unsafe.SliceData(k.memory)))
	if locked, flags := smaps(t, at); locked == 0 || !strings.Contains(flags, " lo") || !strings.Contains(flags, " dd") {
		t.Errorf("%d kB are locked, flags %s", locked, flags)
	}
	for _, mapping := range []string{"root", "home", "data"} {
		for _, s := range k.Slots(mapping) {
			if p := uintptr(unsafe.Pointer(unsafe.SliceData(s.Key))); p < at || p >= at+uintptr(len(k.memory)) {
				t.Errorf("%s: a key lies elsewhere", mapping)
			}
		}
	}
	// What Wipe does before the memory is unmapped, where it could not be read.
	memory := k.memory
	clear(memory)
	for _, s := range k.Slots("home") {
		if bytes.Count(s.Key, []byte{0}) != len(s.Key) {
			t.Error("a key is not in the memory that is wiped")
		}
	}
	if err := k.Wipe(); err != nil {
		t.Error(err)
	}
	if k.memory != nil {
		t.Error("the memory is still there")
	}
}

// smaps finds a mapping in /proc/self/smaps (proc(5)).
func smaps(t *testing.T, at uintptr) (lockedKB int, flags string) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	here := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if from, rest, ok := strings.Cut(line, "-"); ok {
			to, _, _ := strings.Cut(rest, " ")
			a, err1 := strconv.ParseUint(from, 16, 64)
			b, err2 := strconv.ParseUint(to, 16, 64)
			if err1 == nil && err2 == nil {
				here = uint64(at) >= a && uint64(at) < b
			}
		}
		if !here {
			continue
		}
		if value, ok := strings.CutPrefix(line, "Locked:"); ok {
			if lockedKB, err = strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB")); err != nil {
				t.Fatal(err)
			}
		}
		if value, ok := strings.CutPrefix(line, "VmFlags:"); ok {
			return lockedKB, value
		}
	}
	t.Fatal("the memory is not in smaps")
	return 0, ""
}

func TestNoRandomness(t *testing.T) {
	for _, n := range []int64{0, 40, 130} {
		if _, err := New(everything(), io.LimitReader(rand.Reader, n)); code(err) != storage.CodeKeyMemory {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestSeal(t *testing.T) {
	k, err := New(everything(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := k.Wipe(); err != nil {
			t.Error(err)
		}
	}()
	c := tpm2test.Measured(t)
	if err := k.Seal(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for _, mapping := range []string{"root", "home"} {
		for _, s := range k.Slots(mapping) {
			if s.Kind != storage.SlotTPM2 {
				continue
			}
			key, err := Unsealed(t.Context(), c, s.Token)
			if err != nil || !bytes.Equal(key, s.Key) {
				t.Errorf("%s: %q, %v", mapping, key, err)
			}
			if !bytes.Contains(s.Token, []byte(fmt.Sprintf(`"keyslots":["%d"]`, s.Number))) {
				t.Errorf("%s: token %s", mapping, s.Token)
			}
			if bytes.Contains(c.Said(), s.Key[:8]) {
				t.Error("a key went to the TPM in the clear")
			}
		}
	}
	if bytes.Count(k.scratch, []byte{0}) != len(k.scratch) {
		t.Error("a secret is left over")
	}
	unmeasured := tpm2test.Start(t, tpm2test.Dir(t))
	if err := k.Seal(t.Context(), unmeasured); code(err) != storage.CodePCR {
		t.Errorf("nothing is measured: %v", err)
	}
	if err := k.Seal(t.Context(), liar{c}); code(err) != storage.CodeTPM {
		t.Errorf("another key comes back: %v", err)
	}
}

// liar releases something else than was sealed.
type liar struct{ TPM }

func (liar) Unseal(context.Context, tpm2.Token) ([]byte, error) { return make([]byte, 32), nil }

// The recovery key of the randomness that is given, so that it can be looked for.
func TestRecoveryKey(t *testing.T) {
	k, err := New(layout(map[string][]storage.Slot{"home": {storage.SlotRecovery}}), bytes.NewReader(bytes.Repeat([]byte{0x0f}, recovery.Entropy)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(k.Recovery()), strings.Repeat("-cvcvcvcv", 8)[1:]; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if err := k.Wipe(); err != nil {
		t.Error(err)
	}
}

// The key of a volume that is kept is taken over once, into locked memory, and
// wiped with the others and where it came from.
func TestAdopt(t *testing.T) {
	l := everything()
	for i := range l.Disks[0].Partitions {
		if p := &l.Disks[0].Partitions[i]; p.LUKS.Mapping == "data" {
			p.Kept = true
		}
	}
	k, err := New(l, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if k.Slots("data") != nil || len(k.Slots("home")) != 3 {
		t.Errorf("keys were made for a volume that is kept: %v", k.Slots("data"))
	}
	given := []byte("an old key, of any length")
	key := bytes.Clone(given)
	if err := k.Adopt("data", key); err != nil {
		t.Fatal(err)
	}
	if len(bytes.Trim(key, "\x00")) > 0 {
		t.Error("the key that was given is not wiped")
	}
	slots := k.Slots("data")
	if len(slots) != 1 || slots[0].Number != AnySlot || slots[0].Kind != storage.SlotKeyFile || !bytes.Equal(slots[0].Key, given) {
		t.Errorf("%+v", slots)
	}
	if locked, flags := smaps(t, uintptr(unsafe.Pointer(unsafe.SliceData(slots[0].Key)))); locked == 0 || !strings.Contains(flags, " lo") || !strings.Contains(flags, " dd") {
		t.Errorf("%d kB are locked, flags %s", locked, flags)
	}
	for mapping, key := range map[string]string{"home": "k", "data": ""} {
		if err := k.Adopt(mapping, []byte(key)); code(err) != storage.CodeKeyMemory {
			t.Errorf("%s: %v", mapping, err)
		}
	}
	for range 2 {
		if err := k.Wipe(); err != nil {
			t.Error(err)
		}
	}
	if k.Slots("data") != nil {
		t.Error("the key is still there")
	}
}
