package modules

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// recorded is the index of a Debian 12 kernel, cut down to a few modules.
func recorded(t *testing.T) *Index {
	t.Helper()
	x, err := Read(os.DirFS("testdata/6.1.0-amd64"))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// aliasesOf are modalias files as they were in /sys of the machines named.
func aliasesOf(t *testing.T, machine string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", machine+".modalias"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

func TestMatch(t *testing.T) {
	x := recorded(t)
	for _, test := range []struct {
		alias string
		want  []string
	}{
		{"pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00", []string{"virtio_pci"}},
		{"virtio:d00000001v00001AF4", []string{"virtio_net"}},
		{"virtio:d00000002v00001AF4", []string{"virtio_blk"}},
		{"pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00", []string{"e1000e"}},
		{"pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01", []string{"ahci"}},
		{"scsi:t-0x00", []string{"sd_mod"}},
		{"fs-ext4", []string{"ext4"}},
		{"fs-ext2", []string{"ext4"}},
		{"rtnl-link-bond", []string{"bonding"}},
		{"dm-mod", []string{"dm_mod"}},
		{"dm_mod", []string{"dm_mod"}},
		{"crypto-xts", []string{"xts"}},
		{"crypto-aes", []string{"aesni_intel"}},
		{"pci:v0000DEADd0000BEEFsv00000000sd00000000bc00sc00i00", nil},
		{"", nil},
	} {
		if diff := cmp.Diff(test.want, x.Match(test.alias)); diff != "" {
			t.Errorf("Match(%q) (-want +got):\n%s", test.alias, diff)
		}
	}
}

func TestGlob(t *testing.T) {
	for _, test := range []struct {
		pattern, text string
		want          bool
	}{
		{"", "", true},
		{"*", "", true},
		{"*", "a/b", true},
		{"a*b*c", "a/x/b/y/c", true},
		{"a*b*c", "abcd", false},
		{"usb:v*p*d*dc*dsc*dp*ic08isc06ip50in*", "usb:v46F4p0001d0000dc00dsc00dp00ic08isc06ip50in00", true},
		{"usb:v0424pEC00d[0-9]*", "usb:v0424pEC00d0200", true},
		{"usb:v0424pEC00d[!0]*", "usb:v0424pEC00d0200", false},
		{"cpu:type:x86,ven*fam*mod*:feature:*0099*", "cpu:type:x86,ven0000fam0006mod0003:feature:,0098,0099,", true},
		{"a[b", "ab", false},
		{"a?c", "abc", true},
		{"a?c", "ac", false},
	} {
		if got := glob(test.pattern, test.text); got != test.want {
			t.Errorf("glob(%q, %q) = %v", test.pattern, test.text, got)
		}
	}
}

// The order is dependencies first, and softdeps before those.
func TestOrder(t *testing.T) {
	x := recorded(t)
	names := func(name string) []string {
		t.Helper()
		steps, err := x.Order(name)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, step := range steps {
			names = append(names, step.Name)
		}
		return names
	}
	ext4 := names("ext4")
	for _, need := range []string{"jbd2", "mbcache", "crc16", "crc32c_generic"} {
		if at := slices.Index(ext4, need); at < 0 || at > slices.Index(ext4, "ext4") {
			t.Errorf("%s is not before ext4 in %v", need, ext4)
		}
	}
	if got := names("dm-crypt"); slices.Index(got, "dm_mod") < 0 || got[len(got)-1] != "dm_crypt" {
		t.Errorf("dm-crypt: %v", got)
	}
	if _, err := x.Order("no_such"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an unknown module: %v", err)
	}
}

// A softdep that leads back ends.
func TestOrderCycle(t *testing.T) {
	x, err := Read(fstest.MapFS{
		"modules.dep":     {Data: []byte("a.ko:\nb.ko.xz:\n")},
		"modules.alias":   {Data: []byte("")},
		"modules.softdep": {Data: []byte("softdep a pre: b\nsoftdep b pre: a post: missing\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	steps, err := x.Order("a")
	want := []Step{{"b", "b.ko.xz", true}, {"a", "a.ko", false}}
	if diff := cmp.Diff(want, steps); diff != "" || err != nil {
		t.Errorf("%v, (-want +got):\n%s", err, diff)
	}
}

func TestReadRefuses(t *testing.T) {
	for name, dep := range map[string]string{"no colon": "a.ko\n", "alias without a name": ""} {
		files := fstest.MapFS{"modules.dep": {Data: []byte(dep)}, "modules.alias": {Data: []byte("alias x\n")}}
		if _, err := Read(files); err == nil || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Read(fstest.MapFS{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty directory: %v", err)
	}
}

// kernel pretends to be one: it notes what is put into it.
type kernel struct {
	mu       sync.Mutex
	inserted []string
	fail     map[string]error
}

func (k *kernel) insert(file string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fail[Name(file)]; err != nil {
		return err
	}
	k.inserted = append(k.inserted, Name(file))
	return nil
}

// sysWith makes a /sys of devices with the given aliases.
func sysWith(aliases []string) fstest.MapFS {
	sys := fstest.MapFS{"devices": {Mode: fs.ModeDir | 0o755}}
	for i, alias := range aliases {
		sys[fmt.Sprintf("devices/pci0000:00/%04d/modalias", i)] = &fstest.MapFile{Data: []byte(alias + "\n")}
	}
	return sys
}

// A recorded QEMU machine gets the modules for its devices, each once, and
// none for its CPUs.
func TestColdplug(t *testing.T) {
	k := &kernel{}
	l := NewLoader(recorded(t), k.insert)
	sys := sysWith(aliasesOf(t, "qemu-pc"))
	sys["devices/system/cpu/cpu0/modalias"] = &fstest.MapFile{Data: []byte("fs-ext4")}
	sys["devices/x/modalias"] = &fstest.MapFile{Data: []byte("cpu:type:x86,ven0000fam0006mod0003:feature:,0099,")}
	if err := Coldplug(context.Background(), sys, l); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"virtio_pci", "virtio_net", "virtio_blk", "ata_piix"} {
		if !slices.Contains(k.inserted, want) {
			t.Errorf("%s was not loaded: %v", want, k.inserted)
		}
	}
	for _, unwanted := range []string{"ext4", "aesni_intel"} {
		if slices.Contains(k.inserted, unwanted) {
			t.Errorf("%s was loaded for a CPU", unwanted)
		}
	}
	sorted := slices.Sorted(slices.Values(k.inserted))
	if len(slices.Compact(slices.Clone(sorted))) != len(sorted) {
		t.Errorf("something was loaded twice: %v", sorted)
	}
	if diff := cmp.Diff(k.inserted, l.Loaded()); diff != "" {
		t.Errorf("Loaded (-inserted +got):\n%s", diff)
	}
	before := len(k.inserted)
	if err := Coldplug(context.Background(), sys, l); err != nil || len(k.inserted) != before {
		t.Errorf("a second walk loaded more (%v): %v", err, k.inserted[before:])
	}
}

// What one device's module does wrong does not hinder the others, and is
// told.
func TestColdplugFailure(t *testing.T) {
	broken := errors.New("no such device")
	k := &kernel{fail: map[string]error{"virtio_pci": broken}}
	l := NewLoader(recorded(t), k.insert)
	err := Coldplug(context.Background(), sysWith(aliasesOf(t, "qemu-pc")), l)
	if !errors.Is(err, broken) {
		t.Errorf("the failure got lost: %v", err)
	}
	if !slices.Contains(k.inserted, "virtio_blk") {
		t.Errorf("virtio_blk was not loaded: %v", k.inserted)
	}
}

func TestColdplugEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	k := &kernel{}
	if err := Coldplug(ctx, sysWith(aliasesOf(t, "qemu-pc")), NewLoader(recorded(t), k.insert)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// Of several modules behind one alias one is enough; a failed dependency is
// the failure of what needs it.
func TestLoad(t *testing.T) {
	noAES := unix.ENODEV
	k := &kernel{fail: map[string]error{"aesni_intel": noAES, "dm_mod": unix.ENOMEM}}
	l := NewLoader(recorded(t), k.insert)
	if err := l.Load("crypto-xts"); err != nil {
		t.Errorf("crypto-xts: %v", err)
	}
	if err := l.Load("aesni-intel"); !errors.Is(err, noAES) {
		t.Errorf("aesni-intel: %v", err)
	}
	if err := l.Load("dm-crypt"); !errors.Is(err, unix.ENOMEM) || slices.Contains(k.inserted, "dm_crypt") {
		t.Errorf("dm-crypt without dm_mod: %v, %v", err, k.inserted)
	}
	if err := l.Load("no-such"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no-such: %v", err)
	}
	if err := l.Load("unix"); err != nil {
		t.Errorf("a module that is built in: %v", err)
	}
}

// Many at once load each module once, and wait for one that is under way.
func TestLoadAtOnce(t *testing.T) {
	k := &kernel{}
	l := NewLoader(recorded(t), func(file string) error {
		time.Sleep(time.Millisecond)
		return k.insert(file)
	})
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for _, name := range []string{"ext4", "dm-crypt", "virtio_net"} {
				if err := l.Load(name); err != nil {
					t.Error(err)
				}
				k.mu.Lock()
				there := slices.Contains(k.inserted, Name(name))
				k.mu.Unlock()
				if !there {
					t.Errorf("Load(%s) came back before it was loaded", name)
				}
			}
		})
	}
	wait.Wait()
	sorted := slices.Sorted(slices.Values(k.inserted))
	if len(slices.Compact(slices.Clone(sorted))) != len(sorted) {
		t.Errorf("something was loaded twice: %v", sorted)
	}
}

func TestParseUevent(t *testing.T) {
	for _, test := range []struct {
		message, want string
		added         bool
	}{
		{"add@/devices/pci0000:00/0000:00:03.0/virtio0\x00ACTION=add\x00SUBSYSTEM=virtio\x00MODALIAS=virtio:d00000001v00001AF4\x00SEQNUM=1\x00", "virtio:d00000001v00001AF4", true},
		{"add@/module/loop\x00ACTION=add\x00SUBSYSTEM=module\x00", "", true},
		{"remove@/devices/x\x00MODALIAS=virtio:d1\x00", "", false},
		{"", "", false},
	} {
		got, added := parseUevent([]byte(test.message))
		if got != test.want || added != test.added {
			t.Errorf("%q: %q, %v", test.message, got, added)
		}
	}
}

// A module that the kernel refuses has at least been unpacked; one that is
// damaged is never shown to the kernel.
func TestInsertFromUnpacks(t *testing.T) {
	dir := t.TempDir()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	packed := w.EncodeAll(bytes.Repeat([]byte("no module "), 1000), nil)
	got, err := unpack(bytes.NewReader(packed))
	if err != nil || len(got) != 10000 {
		t.Errorf("unpacked %d bytes, %v", len(got), err)
	}
	packed[len(packed)-1] ^= 1
	if err := os.WriteFile(filepath.Join(dir, "a.ko.zst"), packed, 0o644); err != nil {
		t.Fatal(err)
	}
	err = InsertFrom(dir, func(string) string { return "" })("a.ko.zst")
	if err == nil || !strings.Contains(err.Error(), "unpacking") {
		t.Errorf("a damaged module: %v", err)
	}
}
